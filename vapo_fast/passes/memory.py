"""How much memory the sweeps take for one sample: counted on shapes, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from vapo_fast.passes.heads import ActivatedConvolution, InnerProduct, SumOverImage
from vapo_fast.passes.layer import Layer
from vapo_fast.passes.resampling import Double, Halve
from vapo_fast.passes.residual_block import Residual
from vapo_fast.passes.skip_connection import Concatenate, LayAside
from vapo_fast.passes.stem import Stem

Shape = tuple[int, int, int]


class _Held(NamedTuple):
    """Bytes that a layer keeps after its first sweep, after the sweeps before the last, and that it works in."""

    forward: int
    all: int
    work: int


def peak_bytes(layers: Sequence[Layer], shape: Shape, job: str, wide: int, narrow: int, recompute: bool) -> int:
    """Bytes a sample at the peak of "field", "field_and_trace" or "loss_and_grads".

    Args:
        shape: (C, H, W) of the network's input. wide, narrow: bytes a number of the stream, and of a convolution's.
    """
    held: list[_Held] = []
    side: list[Shape] = []
    for layer in layers:
        one, shape = _held(layer, shape, side, wide, narrow, recompute)
        held.append(one)
    if job == "field":
        return _peak([(h.forward, h.work // 2) for h in held])
    return _peak([(h.all, h.work) for h in held])


def _peak(held: Sequence[tuple[int, int]]) -> int:
    """The most that is held and worked in at once, when records go as they come."""
    total, most = 0, 0
    for kept, work in held:
        total += kept
        most = max(most, total + work)
    return most


def _held(
    layer: Layer, shape: Shape, side: list[Shape], wide: int, narrow: int, recompute: bool
) -> tuple[_Held, Shape]:
    channels, height, width = shape
    pixels = height * width
    size = channels * pixels
    if isinstance(layer, Residual):
        inner = layer.block.first.out_channels * pixels
        kept = 2 * size * wide
        if not recompute:
            kept += (size + 3 * inner) * narrow
        # Both pairs, what they are made from, and the pair that comes in.
        work = 4 * max(size, inner) * narrow + 4 * max(size, inner) * wide
        return _Held(size * wide + inner * narrow, kept, work), (layer.block.first.out_channels, height, width)
    if isinstance(layer, Halve):
        return _Held(0, 0, 4 * size * wide), (channels, height // 2, width // 2)
    if isinstance(layer, Double):
        return _Held(0, 0, 8 * size * wide), (channels, 2 * height, 2 * width)
    if isinstance(layer, LayAside):
        side.append(shape)
        return _Held(0, 0, 0), shape
    if isinstance(layer, Concatenate):
        return _Held(0, 0, 0), (channels + side.pop()[0], height, width)
    if isinstance(layer, Stem):
        return _Held(size * wide, 2 * size * wide, 4 * size * wide), (layer.convolution.out_channels, height, width)
    if isinstance(layer, ActivatedConvolution):
        after = (layer.convolution.out_channels, height, width)
        kept = 2 * size * wide + (0 if recompute else size * narrow)
        return _Held(size * wide, kept, 4 * size * (wide + narrow)), after
    assert isinstance(layer, (SumOverImage, InnerProduct))
    return _Held(size * wide, 2 * size * wide, 2 * size * wide), (1, 1, 1)
