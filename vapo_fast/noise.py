"""Counter-based noise: row i of any draw depends on (seed, stream, i) only, to the last bit.

Philox4x32-10 (Salmon et al., SC 2011) maps a 64-bit key and a 128-bit counter to four 32-bit words. Here

    key = (seed mod 2^32, seed div 2^32),    counter = (block, index mod 2^32, index div 2^32, stream),

where ``index`` numbers samples and ``block`` numbers the groups of four words inside one event: element j of an event
comes from block ``j // 4``. Words are integers, and all later operations are correctly rounded in float64
(`vapo_fast.core.elementary`). Any engine on any device can therefore make the same draw, for any split into batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from vapo_fast.core import checks, elementary, extension, triton_support

_MASK16 = 0xFFFF
_MASK32 = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
# Blocks made at once: about 20 temporaries of this many int64 pairs stay inside a CPU's cache.
_CHUNK_BLOCKS = 1 << 14
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Stream(IntEnum):
    """What a draw is for; draws of different streams are independent under one seed."""

    PRIOR = 0
    TRAIN_NOISE = 1
    TRAIN_TIME = 2
    DATA_ORDER = 3
    PROBE = 4
    DATA = 5
    AUGMENT = 6
    DEQUANTISATION = 7
    LANGEVIN = 8
    METROPOLIS = 9


Index = Tensor | range | Sequence[int]


def normal(
    seed: int,
    index: Index,
    event_shape: Sequence[int],
    *,
    stream: int = Stream.PRIOR,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard normal draws by Box and Muller's method.

    Words 2k and 2k + 1 of a sample become uniforms ``u1, u2 = (word + 1/2) / 2^32`` and elements 2k and 2k + 1 are
    ``sqrt(-2 ln u1) (cos, sin)(2 pi u2)`` in float64, rounded to ``dtype``. The largest possible value is 6.76.

    Args:
        seed: integer in [0, 2^64).
        index: (n,) sample numbers in [0, 2^63): an int64 tensor, a range or a sequence of ints.
        event_shape: shape of one sample; () gives one number a sample.
        stream: integer in [0, 2^32); see `Stream`.
        dtype: float64, float32, bfloat16 or float16 (the last two rounded by way of float32).
    Returns: (n, *event_shape) on ``device``.
    Raises: TypeError or ValueError for a bad seed, index, shape, stream or dtype.
    """
    return _draw(_NORMAL, seed, index, event_shape, stream=stream, dtype=dtype, device=device)


def uniform(
    seed: int,
    index: Index,
    event_shape: Sequence[int],
    *,
    stream: int = Stream.TRAIN_TIME,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Uniform draws in the open interval (0, 1): each element is ``(word + 1/2) / 2^32``, rounded to ``dtype``.

    A value that rounds to an end is moved to the nearest normal number inside. Arguments, result and errors are those
    of `normal`.
    """
    draw = _draw(_UNIFORM, seed, index, event_shape, stream=stream, dtype=dtype, device=device)
    limits = torch.finfo(dtype)
    return draw.clamp_(limits.tiny, 1.0 - 0.5 * limits.eps)


def check_seed(seed: object) -> None:
    """TypeError unless ``seed`` is an integer, ValueError unless it is in [0, 2^64)."""
    _key(seed)


def permutation(seed: int, n: int, epoch: int, *, stream: int = Stream.DATA_ORDER) -> Tensor:
    """A shuffle of 0 .. n - 1 that depends on (seed, stream, epoch, n) only.

    It sorts 64-bit keys: item i has words ``2i, 2i + 1`` of the draw with index ``epoch``.

    Args: seed as for `normal`; n: positive; epoch: non-negative.
    Returns: (n,) int64 on the CPU.
    """
    n = checks.positive_int("n", n)
    epoch = checks.non_negative_int("epoch", epoch)
    (low, high), stream = _key(seed), checks.unsigned("stream", stream, bits=32)
    if extension.unavailable_reason() is None and n <= 1 << 33 and epoch < 1 << 63:
        return extension.permutation(high << 32 | low, n, epoch, stream)
    blocks = torch.arange((n + 1) // 2)
    zeros = torch.zeros_like(blocks)
    epoch_low, epoch_high = (zeros + (epoch & _MASK32)), (zeros + (epoch >> 32))
    words = philox((blocks, epoch_low, epoch_high, zeros + stream), (low, high))
    keys = torch.stack((words[0] << 32 | words[1], words[2] << 32 | words[3]), dim=1).flatten()[:n]
    return torch.argsort(keys, stable=True)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four int64 tensors of one shape, holding 32-bit words, to four more.

    A round takes (c0, c1, c2, c3) to (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0 c0)); after it the
    key words grow by the Weyl constants.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK32, (k1 + _WEYL[1]) & _MASK32
    return c0, c1, c2, c3


def _multiply(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a 32 x 32-bit product, made from 16-bit halves: the whole would overflow int64."""
    low = word * (multiplier & _MASK16)
    middle = word * (multiplier >> 16) + (low >> 16)
    return middle >> 16, ((middle & _MASK16) << 16) | (low & _MASK16)


def _normal_from_words(words: tuple[Tensor, ...]) -> Tensor:
    u = [_open_uniform(word) for word in words]
    parts = []
    for u1, u2 in ((u[0], u[1]), (u[2], u[3])):
        radius = elementary.sqrt(-2.0 * elementary.log(u1))
        cosine, sine = elementary.cos_sin_turns(u2)
        parts += [radius * cosine, radius * sine]
    return torch.stack(parts, dim=-1)


def _uniform_from_words(words: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([_open_uniform(word) for word in words], dim=-1)


def _open_uniform(word: Tensor) -> Tensor:
    """``(word + 1/2) 2^-32``, exact in float64."""
    return (word.to(torch.float64) + 0.5) * 2.0**-32


class _Distribution(NamedTuple):
    """How words become numbers, and what gives the same bits in the extension and in the Triton kernels."""

    from_words: Callable[[tuple[Tensor, ...]], Tensor]
    native: Callable[[int, Tensor, int, int, torch.dtype], Tensor]
    kernel: str


_NORMAL = _Distribution(_normal_from_words, extension.normal_draws, "normal")
_UNIFORM = _Distribution(_uniform_from_words, extension.uniform_draws, "uniform")


def _draw(
    distribution: _Distribution,
    seed: int,
    index: Index,
    event_shape: Sequence[int],
    *,
    stream: int,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Tensor:
    key, stream_word, rows = _key(seed), checks.unsigned("stream", stream, bits=32), _index(index, device)
    shape = _event_shape(event_shape)
    if dtype not in _DTYPES:
        raise TypeError(f"dtype must be one of {', '.join(map(str, _DTYPES))}, got {dtype}")
    size = math.prod(shape)
    # Narrow types go through float32 because PyTorch's own conversion does on some devices and not on others.
    drawn = torch.float64 if dtype == torch.float64 else torch.float32
    if rows.device.type == "cuda" and triton_support.unavailable_reason(rows.device) is None:
        from vapo_fast.kernels import noise as kernels

        values: Tensor = getattr(kernels, distribution.kernel)(key, rows.contiguous(), size, stream_word, drawn)
        return values.to(dtype).reshape(rows.shape[0], *shape)
    if rows.device.type == "cpu" and extension.unavailable_reason() is None:
        values = distribution.native(key[1] << 32 | key[0], rows.contiguous(), size, stream_word, drawn)
        return values.to(dtype).reshape(rows.shape[0], *shape)
    blocks = (size + 3) // 4
    out = torch.empty(rows.shape[0], size, dtype=dtype, device=device)
    rows_at_once = max(1, _CHUNK_BLOCKS // blocks)
    for start in range(0, rows.shape[0], rows_at_once):
        words = _words(key, rows[start : start + rows_at_once], blocks, stream_word)
        values = distribution.from_words(words).flatten(1)[:, :size]
        out[start : start + rows_at_once] = values if dtype == torch.float64 else values.to(torch.float32).to(dtype)
    return out.reshape(rows.shape[0], *shape)


def _words(key: tuple[int, int], rows: Tensor, blocks: int, stream: int) -> tuple[Tensor, ...]:
    """The four words of every block of every row: int64, each (rows, blocks)."""
    index = rows[:, None].expand(-1, blocks)
    block = torch.arange(blocks, device=rows.device).expand_as(index)
    return philox((block, index & _MASK32, index >> 32, torch.full_like(index, stream)), key)


def _key(seed: object) -> tuple[int, int]:
    number = checks.unsigned("seed", seed, bits=64)
    return number & _MASK32, number >> 32


def _index(index: Index, device: torch.device | str) -> Tensor:
    if isinstance(index, Tensor):
        if index.dtype != torch.int64 or index.dim() != 1:
            raise TypeError(f"index must be an int64 tensor of shape (n,), got {checks.kind_of(index)}")
        rows = index
    elif isinstance(index, range):
        if len(index) and (min(index[0], index[-1]) < 0 or max(index[0], index[-1]) >= 1 << 63):
            raise ValueError(f"index must hold sample numbers in [0, 2**63), got {index}")
        return torch.arange(index.start, index.stop, index.step, device=device)
    elif isinstance(index, Sequence) and not isinstance(index, (str, bytes)):
        try:
            rows = torch.tensor(index) if len(index) else torch.empty(0, dtype=torch.int64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"index must hold integers in [0, 2**63), got {index!r}: {error}") from error
        if rows.dim() != 1 or rows.dtype != torch.int64:
            raise TypeError(f"index must be a flat sequence of integers in [0, 2**63), got {index!r}")
    else:
        raise TypeError(
            f"index must be an int64 tensor (n,), a range or a sequence of ints, got {type(index).__name__}"
        )
    if rows.numel() and bool((rows < 0).any()):
        raise ValueError(f"index must hold sample numbers in [0, 2**63), got {int(rows.min())}")
    return rows.to(device)


def _event_shape(value: Sequence[int]) -> tuple[int, ...]:
    return () if isinstance(value, Sequence) and len(value) == 0 else checks.event_shape(value)
