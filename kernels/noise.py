"""Counter-based draws on the device: Philox4x32-10, Box and Muller's method, the very bits of `vapo_fast.noise`.

One thread makes one block of four words, so nothing but the result is written. The twins are that module's functions of
the same names.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import elementary
from .launch import run

_BLOCK = 256


@triton.jit
def philox(c0, c1, c2, c3, key_low, key_high):
    """Philox4x32-10: uint32 counters and keys to four uint32 words."""
    for _ in tl.static_range(10):
        first = c0.to(tl.uint64) * 0xD2511F53
        second = c2.to(tl.uint64) * 0xCD9E8D57
        c0, c1, c2, c3 = (
            (second >> 32).to(tl.uint32) ^ c1 ^ key_low,
            second.to(tl.uint32),
            (first >> 32).to(tl.uint32) ^ c3 ^ key_high,
            first.to(tl.uint32),
        )
        key_low = (key_low.to(tl.uint64) + 0x9E3779B9).to(tl.uint32)
        key_high = (key_high.to(tl.uint64) + 0xBB67AE85).to(tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def words(key_low, key_high, index, block, stream):
    """The four words of each block of the samples with these numbers."""
    sample = index.to(tl.uint64)
    return philox(
        block.to(tl.uint32),
        sample.to(tl.uint32),
        (sample >> 32).to(tl.uint32),
        (block * 0 + stream).to(tl.uint32),
        (block * 0 + key_low).to(tl.uint32),
        (block * 0 + key_high).to(tl.uint32),
    )


@triton.jit
def open_uniform(word):
    """``(word + 1/2) 2^-32``, exact in float64."""
    return (word.to(tl.float64) + 0.5) * 2.3283064365386963e-10


@triton.jit
def normal_pair(first, second):
    """Two standard normal numbers from two words, in float64."""
    radius = tl.sqrt(-2.0 * elementary.log(open_uniform(first)))
    cosine, sine = elementary.cos_sin_turns(open_uniform(second))
    return radius * cosine, radius * sine


@triton.jit(do_not_specialize=["n", "size", "blocks", "key_low", "key_high", "stream"])
def _draw(
    out,
    index_ptr,
    n: tl.int64,
    size: tl.int64,
    blocks: tl.int64,
    key_low: tl.int64,
    key_high: tl.int64,
    stream: tl.int64,
    NORMAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    item = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = item // blocks
    there = row < n
    block = item - row * blocks
    index = tl.load(index_ptr + row, mask=there, other=0)
    w0, w1, w2, w3 = words(key_low, key_high, index, block, stream)
    if NORMAL:
        v0, v1 = normal_pair(w0, w1)
        v2, v3 = normal_pair(w2, w3)
    else:
        v0, v1, v2, v3 = open_uniform(w0), open_uniform(w1), open_uniform(w2), open_uniform(w3)
    column = 4 * block
    place = out + row * size + column
    tl.store(place, v0.to(out.dtype.element_ty), mask=there)
    tl.store(place + 1, v1.to(out.dtype.element_ty), mask=there & (column + 1 < size))
    tl.store(place + 2, v2.to(out.dtype.element_ty), mask=there & (column + 2 < size))
    tl.store(place + 3, v3.to(out.dtype.element_ty), mask=there & (column + 3 < size))


@triton.jit(do_not_specialize=["n", "key_low", "key_high", "stream"])
def _shuffle_keys(
    out,
    epoch_ptr,
    n: tl.int64,
    key_low: tl.int64,
    key_high: tl.int64,
    stream: tl.int64,
    BLOCK: tl.constexpr,
):
    item = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    epoch = tl.load(epoch_ptr) + item * 0
    w0, w1, w2, w3 = words(key_low, key_high, epoch, item >> 1, stream)
    odd = (item & 1) != 0
    high, low = tl.where(odd, w2, w0), tl.where(odd, w3, w1)
    bits = (high.to(tl.uint64) << 32) | low.to(tl.uint64)
    tl.store(out + item, bits.to(tl.int64, bitcast=True), mask=item < n)


def permutation(key: tuple[int, int], n: int, epoch: Tensor, stream: int) -> Tensor:
    """The shuffle of 0 .. n - 1 that `vapo_fast.noise.permutation` gives, on a device, without waiting for it.

    Args: key and stream as for `normal`; epoch: (1,) int64 on the device.
    Returns: (n,) int64.
    """
    keys = torch.empty(n, dtype=torch.int64, device=epoch.device)
    run(_shuffle_keys, (triton.cdiv(n, _BLOCK),), epoch.device, keys, epoch, n, *key, stream, BLOCK=_BLOCK)
    return torch.sort(keys, stable=True).indices


def normal(key: tuple[int, int], index: Tensor, size: int, stream: int, dtype: torch.dtype) -> Tensor:
    """Standard normal draws, the device's twin of `vapo_fast.core.extension.normal_draws`.

    Args:
        key: the seed's low and high 32 bits. index: (n,) int64 sample numbers, contiguous, on the device.
        size: numbers of a sample. stream: in [0, 2^32). dtype: float32 or float64.
    Returns: (n, size).
    """
    return _launch(key, index, size, stream, dtype, True)


def uniform(key: tuple[int, int], index: Tensor, size: int, stream: int, dtype: torch.dtype) -> Tensor:
    """Uniform draws ``(word + 1/2) / 2^32``; arguments as for `normal`."""
    return _launch(key, index, size, stream, dtype, False)


def _launch(key: tuple[int, int], index: Tensor, size: int, stream: int, dtype: torch.dtype, normal: bool) -> Tensor:
    n, blocks = index.shape[0], triton.cdiv(size, 4)
    out = torch.empty(n, size, dtype=dtype, device=index.device)
    if n:
        grid = (triton.cdiv(n * blocks, _BLOCK),)
        run(_draw, grid, index.device, out, index, n, size, blocks, *key, stream, NORMAL=normal, BLOCK=_BLOCK)
    return out
