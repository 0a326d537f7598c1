"""The operations between convolutions by the C++ extension: on the CPU, each in one pass over memory, threaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vapo_fast.core import extension
from vapo_fast.engines.explicit.pointwise import FilmPairs, Pairs, Pointwise, pair_like

if TYPE_CHECKING:
    from numpy.typing import NDArray


class NativePointwise(Pointwise):
    """See `passes.pointwise.Pointwise`. Maps in float64, or in float32 and, for convolutions, bfloat16.

    Raises: NativeUnavailableError without the extension.
    """

    def __init__(self) -> None:
        self._kernels = extension.load().pointwise

    def silu(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        out = torch.empty_like(x, dtype=dtype)
        self._kernels.silu(_map(x), _map(out), extension.threads())
        return out

    def silu_derivative(self, x: Tensor, v: Tensor, skip: Tensor | None, dtype: torch.dtype) -> Tensor:
        out = torch.empty_like(x, dtype=dtype)
        skip = None if skip is None else skip.to(x.dtype)
        v = v.to(x.dtype) if dtype != x.dtype else v
        self._kernels.silu_derivative(
            _map(x), _map(v), None if skip is None else _map(skip), _map(out), extension.threads()
        )
        return out

    def silu_second(
        self, x: Tensor, x_dot: Tensor, a_s: Tensor, b_s: Tensor, skip: Tensor | None, dtype: torch.dtype
    ) -> Pairs:
        adjoints, values = pair_like(x, x.dtype) if skip is None else skip.to(x.dtype), pair_like(x, dtype)
        a_s, b_s = a_s.to(dtype), b_s.to(dtype)
        maps = [_map(each) for each in (x, x_dot, a_s, b_s, adjoints)]
        self._kernels.silu_second(*maps, skip is not None, _map(values), extension.threads())
        return Pairs(adjoints, values)

    def film_silu(self, c: Tensor, gain: Tensor, offset: Tensor, dtype: torch.dtype) -> Tensor:
        c = c.to(dtype)
        out = torch.empty_like(c)
        self._kernels.film_silu(_map(c), gain.numpy(), offset.numpy(), _map(out), extension.threads())
        return out

    def film_silu_derivative(self, c: Tensor, v: Tensor, gain: Tensor, offset: Tensor, dtype: torch.dtype) -> Tensor:
        c, v = c.to(dtype), v.to(dtype)
        out = torch.empty_like(c)
        self._kernels.film_silu_derivative(
            _map(c), _map(v), gain.numpy(), offset.numpy(), _map(out), extension.threads()
        )
        return out

    def film_silu_second(
        self, c: Tensor, c_dot: Tensor, a_s: Tensor, b_s: Tensor, gain: Tensor, offset: Tensor, dtype: torch.dtype
    ) -> FilmPairs:
        inputs = [each.to(dtype) for each in (c, c_dot, a_s, b_s)]
        result = FilmPairs(pair_like(c, dtype), pair_like(c, dtype), torch.empty_like(gain), torch.empty_like(offset))
        self._kernels.film_silu_second(
            *(_map(each) for each in inputs),
            gain.numpy(),
            offset.numpy(),
            _map(result.adjoints),
            _map(result.values),
            result.gain.numpy(),
            result.offset.numpy(),
            extension.threads(),
        )
        return result

    def residual(self, branch: Tensor, skip: Tensor, bias: Tensor | None) -> Tensor:
        out = branch if branch.dtype == skip.dtype else torch.empty_like(skip)
        self._kernels.residual(
            _map(branch), _map(skip), None if bias is None else bias.numpy(), _map(out), extension.threads()
        )
        return out


def _map(tensor: Tensor) -> NDArray[Any]:
    """A channels-last map as the extension sees it: (rows, pixels, channels), bfloat16 as its bits."""
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    n, channels, height, width = tensor.shape
    return tensor.permute(0, 2, 3, 1).view(n, height * width, channels).numpy()
