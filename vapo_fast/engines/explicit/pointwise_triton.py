"""The operations between convolutions by Triton kernels: on CUDA, each in one launch and one pass over memory."""

from __future__ import annotations

import torch
from torch import Tensor

from vapo_fast.engines.explicit.pointwise import FilmPairs, Pairs, Pointwise, pair_like


class TritonPointwise(Pointwise):
    """See `engines.explicit.pointwise.Pointwise`. The stream is in float32; what convolutions read may be in bfloat16.

    Raises: ImportError without Triton.
    """

    def __init__(self) -> None:
        from vapo_fast.kernels import film_silu, residual, silu_map

        self._silu, self._film, self._residual = silu_map, film_silu, residual

    def silu(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        out = torch.empty_like(x, dtype=dtype)
        self._silu.silu(x, out)
        return out

    def silu_derivative(self, x: Tensor, v: Tensor, skip: Tensor | None, dtype: torch.dtype) -> Tensor:
        out = torch.empty_like(x, dtype=dtype)
        self._silu.silu_derivative(x, v, skip, out)
        return out

    def silu_second(
        self, x: Tensor, x_dot: Tensor, a_s: Tensor, b_s: Tensor, skip: Tensor | None, dtype: torch.dtype
    ) -> Pairs:
        in_place = skip is not None and skip.dtype == x.dtype
        adjoints = skip if skip is not None and in_place else pair_like(x, x.dtype)
        result = Pairs(adjoints, pair_like(x, dtype))
        self._silu.silu_second(x, x_dot, a_s, b_s, skip, *result)
        return result

    def film_silu(self, c: Tensor, gain: Tensor, offset: Tensor, dtype: torch.dtype) -> Tensor:
        out = torch.empty_like(c, dtype=dtype)
        self._film.film_silu(c, gain, offset, out)
        return out

    def film_silu_derivative(self, c: Tensor, v: Tensor, gain: Tensor, offset: Tensor, dtype: torch.dtype) -> Tensor:
        out = torch.empty_like(c, dtype=dtype)
        self._film.film_silu_derivative(c, v, gain, offset, out)
        return out

    def film_silu_second(
        self, c: Tensor, c_dot: Tensor, a_s: Tensor, b_s: Tensor, gain: Tensor, offset: Tensor, dtype: torch.dtype
    ) -> FilmPairs:
        pairs = (pair_like(c, dtype), pair_like(c, dtype))
        result = FilmPairs(*pairs, torch.empty_like(gain), torch.empty_like(offset))
        inputs = self._film.SecondInputs(c, c_dot, a_s, b_s, gain, offset)
        self._film.film_silu_second(inputs, self._film.SecondResults(*result))
        return result

    def residual(self, branch: Tensor, skip: Tensor, bias: Tensor | None) -> Tensor:
        out = branch if branch.dtype == skip.dtype else torch.empty_like(skip)
        self._residual.residual(branch, skip, bias, out)
        return out
