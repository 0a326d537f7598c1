"""The convolutions of one evaluation: forward, transposed, and weight gradients, in the arithmetic of its precision."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vapo_fast.engines.explicit.winograd import WinogradWeights, transformed_bytes, winograd_tile


class Convolutions:
    """Stride-1 convolutions with odd kernels that keep the image's size, in channels-last memory, without bias.

    Weights are converted, and turned around for the transposed convolutions, at the first use; so an object of this
    class is for one evaluation, during which weights do not change.

    Args:
        dtype: what the convolutions read and write; products are accumulated in float32 at least.
        exact: convolutions that keep their weights' type instead.
        winograd: the network's transformed weights, for the convolutions that they make faster; None to leave all to
            the library.
    """

    def __init__(
        self, dtype: torch.dtype, exact: Collection[nn.Conv2d] = (), winograd: WinogradWeights | None = None
    ) -> None:
        self._dtype = dtype
        self._exact = frozenset(exact)
        self._winograd = winograd
        self._weights: dict[nn.Conv2d, Tensor] = {}
        self._transposed: dict[nn.Conv2d, Tensor] = {}
        self._filters: dict[tuple[nn.Conv2d, bool, int], Callable[[Tensor], Tensor]] = {}

    def dtype(self, layer: nn.Conv2d) -> torch.dtype:
        """What this layer reads."""
        return layer.weight.dtype if layer in self._exact else self._dtype

    def weight_bytes(self, layer: nn.Conv2d) -> int:
        """Most memory that this layer's weights take here, beside the layer's own."""
        dtype, weight = self.dtype(layer), layer.weight
        size = weight.numel() * dtype.itemsize
        as_it_is = weight.dtype == dtype and weight.is_contiguous(memory_format=torch.channels_last)
        transformed = transformed_bytes(layer) if self._winograd is not None and dtype == torch.float32 else None
        return (0 if as_it_is else size) + (size if transformed is None else transformed)

    def forward(self, layer: nn.Conv2d, x: Tensor) -> Tensor:
        """``W x``, without the bias: (B, inputs, H, W) to (B, outputs, H, W)."""
        return self._applied(layer, x, transposed=False)

    def transposed(self, layer: nn.Conv2d, a: Tensor) -> Tensor:
        """``W^T a``: what the convolution's input gets of its output's adjoint."""
        return self._applied(layer, a, transposed=True)

    def transposed_halves(self, layer: nn.Conv2d, pair: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        """(W^T b, W^T a) for ``pair`` = [b; a]; ``kept`` is the second if that is known already."""
        n = len(pair) // 2
        if kept is not None:
            return self.transposed(layer, pair[:n]), kept
        both = self.transposed(layer, pair)
        return both[:n], both[n:]

    def weight_gradient(self, layer: nn.Conv2d, values: Tensor, adjoints: Tensor) -> Tensor:
        """The sum of ``adjoint (x) value`` over rows and positions, in the weight's type."""
        dtype, weight = self.dtype(layer), self._weight(layer)
        padding = [size // 2 for size in weight.shape[2:]]
        _, gradient, _ = torch.ops.aten.convolution_backward(
            adjoints.to(dtype), values.to(dtype), weight, None, [1, 1], padding, [1, 1], False, [0, 0], 1,
            [False, True, False],
        )  # fmt: skip
        return gradient.to(layer.weight.dtype)  # type: ignore[no-any-return]

    def _applied(self, layer: nn.Conv2d, x: Tensor, transposed: bool) -> Tensor:
        x = x.to(self.dtype(layer))
        tile = None if self._winograd is None else winograd_tile(layer, x)
        if self._winograd is not None and tile is not None:
            key = layer, transposed, tile
            if key not in self._filters:
                self._filters[key] = self._winograd.convolution(layer, self._weight(layer), transposed, tile)
            return self._filters[key](x)
        return self._convolve(x, self._turned(layer) if transposed else self._weight(layer))

    def _turned(self, layer: nn.Conv2d) -> Tensor:
        if layer not in self._transposed:
            turned = self._weight(layer).flip(2, 3).transpose(0, 1)
            self._transposed[layer] = turned.contiguous(memory_format=torch.channels_last)
        return self._transposed[layer]

    def _weight(self, layer: nn.Conv2d) -> Tensor:
        if layer not in self._weights:
            weight = layer.weight.detach().to(self.dtype(layer))
            self._weights[layer] = weight.contiguous(memory_format=torch.channels_last)
        return self._weights[layer]

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        y = F.conv2d(x, weight, padding=(weight.shape[2] // 2, weight.shape[3] // 2))
        return y.contiguous(memory_format=torch.channels_last)


@contextmanager
def float32_products(device: torch.device, precision: str) -> Iterator[None]:
    """While inside, cuDNN rounds float32 convolutions' factors to TF32 if the precision is "tf32", and never else."""
    if device.type != "cuda":
        yield
        return
    settings = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        settings.fp32_precision = before
