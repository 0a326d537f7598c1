"""3x3 convolutions of float32 maps on the CPU with fewer multiplications: the extension's minimal filtering."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vapo_fast import native

if TYPE_CHECKING:
    from vapo_fast._native import WinogradConvolution

# Fewer channels than this leave too little work between a tile's transforms.
_FEWEST_CHANNELS = 16
_TILE = 4


def worth_filtering(layer: nn.Conv2d, x: Tensor) -> bool:
    """Whether minimal filtering is there for a convolution of ``x`` (B, C, H, W), and faster than the library's.

    That depends on the layer and on the size of the image alone, never on how many images there are: so an image has
    the same result in any batch.
    """
    return (
        x.device.type == "cpu"
        and x.dtype == layer.weight.dtype == torch.float32
        and layer.kernel_size == (3, 3)
        and min(layer.in_channels, layer.out_channels) >= _FEWEST_CHANNELS
        and len(x) > 0
        and native.unavailable_reason() is None
    )


class WinogradWeights:
    """The transformed weights of a network's convolutions, kept from one evaluation to the next.

    They are compared with the layer's own, byte for byte, whenever they are asked for, so that they cannot be stale.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[nn.Conv2d, bool], WinogradConvolution] = {}

    def convolution(self, layer: nn.Conv2d, weight: Tensor, transposed: bool) -> Callable[[Tensor], Tensor]:
        """The convolution by a layer's weight, or its adjoint: (B, C, H, W) float32 to the same with other channels.

        Args:
            weight: (outputs, inputs, 3, 3) in channels-last memory, what the layer holds now.
        """
        array, key = weight.permute(0, 2, 3, 1).numpy(), (layer, transposed)
        kept = self._kept.get(key)
        if kept is None or not kept.holds(array):
            kept = native.extension().WinogradConvolution(array, transposed=transposed, tile=_TILE, threads=_threads())
            self._kept[key] = kept
        return partial(_convolve, kept, weight.shape[1 if transposed else 0])


def _convolve(convolution: WinogradConvolution, channels: int, x: Tensor) -> Tensor:
    n, _, height, width = x.shape
    y = torch.empty((n, height, width, channels), dtype=x.dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    convolution.apply(x.permute(0, 2, 3, 1).numpy(), y.numpy(), _threads())
    return y.permute(0, 3, 1, 2)


def _threads() -> int:
    return min(torch.get_num_threads(), int(native.extension().MOST_THREADS))
