"""SiLU of ``h = gain c + offset`` in the four sweeps of a convolutional potential (`engines.explicit.pointwise`).

Maps are [rows, pixels, channels], gain and offset [rows, channels] in float32. Maps may be in bfloat16: they are
widened when loaded and rounded when stored. The naive twin of every function is
`engines.explicit.pointwise.TorchPointwise`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .activation import activate
from .silu_map import load, store

_BLOCK, _CHANNELS = 1024, 64
"""Numbers that a program has at a time, and the most of them that are of one pixel: whole lines of memory."""


@triton.jit
def _tile(pixels, channels, blocks, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    """Where a tile's numbers are and whether they are [PIXELS, CHANNELS], and so for its coefficients [CHANNELS]."""
    program = tl.program_id(0).to(tl.int64)
    row = program // blocks
    pixel = program % blocks * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    real = channel < channels
    at = (row * pixels + pixel)[:, None] * channels + channel[None, :]
    return at, (pixel < pixels)[:, None] & real[None, :], row * channels + channel, real


@triton.jit
def _film_silu(
    c_ptr, gain_ptr, offset_ptr, out_ptr, pixels, channels, blocks, PIXELS: tl.constexpr, CHANNELS: tl.constexpr
):
    at, inside, wide, real = _tile(pixels, channels, blocks, PIXELS, CHANNELS)
    gain, offset = load(gain_ptr, wide, real), load(offset_ptr, wide, real)
    value, _first, _second = activate(gain[None, :] * load(c_ptr, at, inside) + offset[None, :], "silu", False)
    store(out_ptr, at, value, inside)


@triton.jit
def _film_silu_derivative(
    c_ptr, v_ptr, gain_ptr, offset_ptr, out_ptr, pixels, channels, blocks, PIXELS: tl.constexpr, CHANNELS: tl.constexpr
):
    at, inside, wide, real = _tile(pixels, channels, blocks, PIXELS, CHANNELS)
    gain, offset = load(gain_ptr, wide, real), load(offset_ptr, wide, real)
    _value, first, _second = activate(gain[None, :] * load(c_ptr, at, inside) + offset[None, :], "silu", False)
    store(out_ptr, at, gain[None, :] * first * load(v_ptr, at, inside), inside)


@triton.jit
def _film_silu_second(
    c_ptr,
    c_dot_ptr,
    a_s_ptr,
    b_s_ptr,
    gain_ptr,
    offset_ptr,
    adjoints_ptr,
    values_ptr,
    of_gain_ptr,
    of_offset_ptr,
    pixels,
    channels,
    size: tl.int64,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    real = channel < channels
    wide = row * channels + channel
    gain, offset = load(gain_ptr, wide, real), load(offset_ptr, wide, real)  # [CHANNELS]
    of_gain = tl.zeros((CHANNELS,), tl.float32)
    of_offset = tl.zeros((CHANNELS,), tl.float32)
    for start in tl.range(0, pixels, PIXELS, num_stages=1):
        pixel = start + tl.arange(0, PIXELS)
        inside = (pixel < pixels)[:, None] & real[None, :]
        at = (row * pixels + pixel)[:, None] * channels + channel[None, :]  # [PIXELS, CHANNELS]
        other = at + size
        c, c_dot = load(c_ptr, at, inside), load(c_dot_ptr, at, inside)
        a_s, b_s = load(a_s_ptr, at, inside), load(b_s_ptr, at, inside)
        value, first, second = activate(gain[None, :] * c + offset[None, :], "silu", True)
        h_dot = gain[None, :] * c_dot
        a_h = a_s * first
        b_h = b_s * first + a_s * second * h_dot
        store(adjoints_ptr, at, gain[None, :] * b_h, inside)
        store(adjoints_ptr, other, gain[None, :] * a_h, inside)
        store(values_ptr, at, value, inside)
        store(values_ptr, other, first * h_dot, inside)
        # What is outside was loaded as 0, and adds nothing.
        of_gain += tl.sum(b_h * c + a_h * c_dot, axis=0)
        of_offset += tl.sum(b_h, axis=0)
    tl.store(of_gain_ptr + wide, of_gain, mask=real)
    tl.store(of_offset_ptr + wide, of_offset, mask=real)


def film_silu(c: Tensor, gain: Tensor, offset: Tensor, out: Tensor) -> None:
    """``out = silu(gain c + offset)``; ``out`` may be ``c``."""
    grid, sizes, tile = _grid(c)
    if c.numel():
        with launch.on(c.device):
            _film_silu[grid](c, gain, offset, out, *sizes, **tile, **launch.OPTIONS)


def film_silu_derivative(c: Tensor, v: Tensor, gain: Tensor, offset: Tensor, out: Tensor) -> None:
    """``out = gain silu'(gain c + offset) v``; ``out`` may be ``c`` or ``v``."""
    grid, sizes, tile = _grid(c)
    if c.numel():
        with launch.on(c.device):
            _film_silu_derivative[grid](c, v, gain, offset, out, *sizes, **tile, **launch.OPTIONS)


def film_silu_second(
    c: Tensor,
    c_dot: Tensor,
    a_s: Tensor,
    b_s: Tensor,
    gain: Tensor,
    offset: Tensor,
    adjoints: Tensor,
    values: Tensor,
    of_gain: Tensor,
    of_offset: Tensor,
) -> None:
    """[b_c; a_c], [s; s_dot] and the gradients of gain and offset, see `passes.pointwise.Pointwise`.

    The pairs are of twice as many rows; a program sums over all pixels of its channels, in an order of its own alone.
    """
    (_, across), (pixels, channels, _), tile = _grid(c)
    if c.numel():
        inputs = (c, c_dot, a_s, b_s, gain, offset)
        outputs = (adjoints, values, of_gain, of_offset)
        with launch.on(c.device):
            _film_silu_second[(len(c), across)](
                *inputs, *outputs, pixels, channels, c.numel(), **tile, **launch.OPTIONS
            )


def _grid(c: Tensor) -> tuple[tuple[int, int], tuple[int, int, int], dict[str, int]]:
    """The grid, (pixels, channels, tiles of a row's pixels), and the tile's shape."""
    n, channels, height, width = c.shape
    across = min(_CHANNELS, triton.next_power_of_2(channels))
    tile = {"PIXELS": _BLOCK // across, "CHANNELS": across}
    blocks = triton.cdiv(height * width, tile["PIXELS"])
    return (n * blocks, triton.cdiv(channels, across)), (height * width, channels, blocks), tile
