"""3x3 convolutions of float32 maps on the CPU with fewer multiplications: the extension's minimal filtering."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vapo_fast.core import extension

if TYPE_CHECKING:
    from vapo_fast._native import WinogradConvolution

# What `python -m benchmarks convolutions` found: with fewer channels a tile's transforms take as long as its products
# save, and without this saving too; and weights that are larger than this pass through the cache too slowly.
_FEWEST_CHANNELS = 16
_LEAST_SAVING = 1.5
_MOST_WEIGHTS_OF_LARGE_TILES = 256 * 256


def winograd_tile(layer: nn.Conv2d, x: Tensor) -> int | None:
    """The side of the squares of outputs to compute at once for ``x`` (B, C, H, W); None where the library is faster.

    That depends on the layer and on the size of the image alone, never on how many images there are: an image has the
    same result in any batch.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or len(x) == 0 or not _may_be_filtered(layer):
        return None
    height, width = x.shape[2:]
    tile = min(_tiles(layer), key=lambda side: _products(side, height, width))
    return tile if 9 * height * width >= _LEAST_SAVING * _products(tile, height, width) else None


def transformed_bytes(layer: nn.Conv2d) -> int | None:
    """Most bytes that `WinogradWeights` keeps of a float32 layer on the CPU, both directions; None if it keeps none.

    That is the weights in every position of a tile, whose number depends on the image, and the layer's own to compare.
    """
    if not _may_be_filtered(layer):
        return None
    per_weight = max((side + 2) ** 2 / 9 for side in _tiles(layer)) + 1.0
    return math.ceil(2 * per_weight * layer.weight.numel() * layer.weight.element_size())


def _may_be_filtered(layer: nn.Conv2d) -> bool:
    return (
        layer.weight.device.type == "cpu"
        and layer.weight.dtype == torch.float32
        and layer.kernel_size == (3, 3)
        and min(layer.in_channels, layer.out_channels) >= _FEWEST_CHANNELS
        and extension.unavailable_reason() is None
    )


def _tiles(layer: nn.Conv2d) -> tuple[int, ...]:
    return (2, 4) if layer.in_channels * layer.out_channels <= _MOST_WEIGHTS_OF_LARGE_TILES else (2,)


def _products(tile: int, height: int, width: int) -> int:
    """Multiplications for an image and a pair of channels."""
    return -(-height // tile) * -(-width // tile) * (tile + 2) ** 2


class WinogradWeights:
    """The transformed weights of a network's convolutions, kept from one evaluation to the next.

    They are compared with the layer's own, byte for byte, whenever they are asked for, so that they cannot be stale.
    For a convolution and its adjoint they take 10 times the memory of its weight with tiles of 4, 5.6 times with 2.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[nn.Conv2d, bool, int], WinogradConvolution] = {}

    def convolution(self, layer: nn.Conv2d, weight: Tensor, transposed: bool, tile: int) -> Callable[[Tensor], Tensor]:
        """The convolution by a layer's weight, or its adjoint: (B, C, H, W) float32 to the same with other channels.

        Args:
            weight: (outputs, inputs, 3, 3), float32 in channels-last memory, what the layer holds now.
            tile: 2 or 4.
        """
        array, key = weight.permute(0, 2, 3, 1).numpy(), (layer, transposed, tile)
        kept = self._kept.get(key)
        if kept is None or not kept.holds(array):
            kept = extension.load().WinogradConvolution(
                array, transposed=transposed, tile=tile, threads=extension.threads()
            )
            self._kept[key] = kept
        return partial(_convolve, kept, weight.shape[1 if transposed else 0])


def _convolve(convolution: WinogradConvolution, channels: int, x: Tensor) -> Tensor:
    n, _, height, width = x.shape
    y = torch.empty((n, height, width, channels), dtype=x.dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    convolution.apply(x.permute(0, 2, 3, 1).numpy(), y.numpy(), extension.threads())
    return y.permute(0, 3, 1, 2)
