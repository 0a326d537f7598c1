"""SiLU of ``h = gain c + offset`` in the four sweeps of a convolutional potential (`engines.explicit.pointwise`).

Maps are [rows, pixels, channels], gain and offset [rows, channels] in float32. Maps may be in bfloat16: they are
widened when loaded and rounded when stored. The naive twin of every function is
`engines.explicit.pointwise.TorchPointwise`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .activation import activate
from .launch import run
from .silu_map import load, store

_BLOCK, _CHANNELS = 1024, 64
"""Numbers that a program has at a time, and the most of them that are of one pixel: whole lines of memory."""


class SecondInputs(NamedTuple):
    """What the second derivatives are made of: maps, and coefficients [rows, channels]."""

    c: Any
    c_dot: Any
    a_s: Any
    b_s: Any
    gain: Any
    offset: Any


class SecondResults(NamedTuple):
    """Their results: maps of twice as many rows, and the derivatives by the coefficients."""

    adjoints: Any
    activations: Any
    by_gain: Any
    by_offset: Any


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
    at, inside, coefficient, real = _tile(pixels, channels, blocks, PIXELS, CHANNELS)
    gain, offset = load(gain_ptr, coefficient, real), load(offset_ptr, coefficient, real)
    value, _first, _second = activate(gain[None, :] * load(c_ptr, at, inside) + offset[None, :], "silu", False)
    store(out_ptr, at, value, inside)


@triton.jit
def _film_silu_derivative(
    c_ptr, v_ptr, gain_ptr, offset_ptr, out_ptr, pixels, channels, blocks, PIXELS: tl.constexpr, CHANNELS: tl.constexpr
):
    at, inside, coefficient, real = _tile(pixels, channels, blocks, PIXELS, CHANNELS)
    gain, offset = load(gain_ptr, coefficient, real), load(offset_ptr, coefficient, real)
    _value, first, _second = activate(gain[None, :] * load(c_ptr, at, inside) + offset[None, :], "silu", False)
    store(out_ptr, at, gain[None, :] * first * load(v_ptr, at, inside), inside)


@triton.jit
def _film_silu_second(inputs, results, pixels, channels, size: tl.int64, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    real = channel < channels
    coefficient = row * channels + channel
    gain, offset = load(inputs.gain, coefficient, real), load(inputs.offset, coefficient, real)  # [CHANNELS]
    by_gain = tl.zeros((CHANNELS,), tl.float32)
    by_offset = tl.zeros((CHANNELS,), tl.float32)
    for start in tl.range(0, pixels, PIXELS, num_stages=1):
        pixel = start + tl.arange(0, PIXELS)
        inside = (pixel < pixels)[:, None] & real[None, :]
        at = (row * pixels + pixel)[:, None] * channels + channel[None, :]  # [PIXELS, CHANNELS]
        other = at + size
        c, c_dot = load(inputs.c, at, inside), load(inputs.c_dot, at, inside)
        a_s, b_s = load(inputs.a_s, at, inside), load(inputs.b_s, at, inside)
        value, first, second = activate(gain[None, :] * c + offset[None, :], "silu", True)
        h_dot = gain[None, :] * c_dot
        a_h = a_s * first
        b_h = b_s * first + a_s * second * h_dot
        store(results.adjoints, at, gain[None, :] * b_h, inside)
        store(results.adjoints, other, gain[None, :] * a_h, inside)
        store(results.activations, at, value, inside)
        store(results.activations, other, first * h_dot, inside)
        # What is outside was loaded as 0, and adds nothing.
        by_gain += tl.sum(b_h * c + a_h * c_dot, axis=0)
        by_offset += tl.sum(b_h, axis=0)
    tl.store(results.by_gain + coefficient, by_gain, mask=real)
    tl.store(results.by_offset + coefficient, by_offset, mask=real)


def film_silu(c: Tensor, gain: Tensor, offset: Tensor, out: Tensor) -> None:
    """``out = silu(gain c + offset)``; ``out`` may be ``c``."""
    grid, sizes, tile = _grid(c)
    if c.numel():
        run(_film_silu, grid, c.device, c, gain, offset, out, *sizes, **tile)


def film_silu_derivative(c: Tensor, v: Tensor, gain: Tensor, offset: Tensor, out: Tensor) -> None:
    """``out = gain silu'(gain c + offset) v``; ``out`` may be ``c`` or ``v``."""
    grid, sizes, tile = _grid(c)
    if c.numel():
        run(_film_silu_derivative, grid, c.device, c, v, gain, offset, out, *sizes, **tile)


def film_silu_second(inputs: SecondInputs, results: SecondResults) -> None:
    """[b_c; a_c], [s; s_dot] and the gradients of gain and offset, see `engines.explicit.pointwise.Pointwise`.

    The pairs are of twice as many rows; a program sums over all pixels of its channels, in an order of its own alone.
    """
    c = inputs.c
    (_, across), (pixels, channels, _), tile = _grid(c)
    if c.numel():
        run(_film_silu_second, (len(c), across), c.device, inputs, results, pixels, channels, c.numel(), **tile)


def _grid(c: Tensor) -> tuple[tuple[int, int], tuple[int, int, int], dict[str, int]]:
    """The grid, (pixels, channels, tiles of a row's pixels), and the tile's shape."""
    n, channels, height, width = c.shape
    across = min(_CHANNELS, triton.next_power_of_2(channels))
    tile = {"PIXELS": _BLOCK // across, "CHANNELS": across}
    blocks = triton.cdiv(height * width, tile["PIXELS"])
    return (n * blocks, triton.cdiv(channels, across)), (height * width, channels, blocks), tile
