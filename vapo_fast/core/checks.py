"""Argument checks with one wording: the argument's name, its value, and what would be right."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real

import torch
from torch import Tensor


def positive_int(name: str, value: object) -> int:
    """Return ``value`` as an int; TypeError unless it is an integer, ValueError unless it is >= 1."""
    return _integer(name, value, "a positive integer", least=1)


def non_negative_int(name: str, value: object) -> int:
    """Return ``value`` as an int; TypeError unless it is an integer, ValueError unless it is >= 0."""
    return _integer(name, value, "a non-negative integer", least=0)


def unsigned(name: str, value: object, bits: int) -> int:
    """Return ``value`` as an int; TypeError unless it is an integer, ValueError unless it is in [0, 2^bits)."""
    return _integer(name, value, f"an integer in [0, 2**{bits})", least=0, below=1 << bits)


def positive_float(name: str, value: object) -> float:
    """Return ``value`` as a float; TypeError unless it is a real number, ValueError unless finite and > 0."""
    number = finite_float(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be a finite number > 0, got {value!r}")
    return number


def non_negative_float(name: str, value: object) -> float:
    """Return ``value`` as a float; TypeError unless it is a real number, ValueError unless finite and >= 0."""
    number = finite_float(name, value)
    if number < 0:
        raise ValueError(f"{name} must be a finite number >= 0, got {value!r}")
    return number


def finite_float(name: str, value: object) -> float:
    """Return ``value`` as a float; TypeError unless it is a real number, ValueError unless finite."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__})")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return number


def one_of(name: str, value: object, allowed: Iterable[str]) -> str:
    """Return ``value``; ValueError unless it is one of ``allowed``."""
    names = list(allowed)
    if not isinstance(value, str) or value not in names:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, names))}, got {value!r}")
    return value


def event_shape(value: Sequence[int]) -> tuple[int, ...]:
    """Return ``value`` as a tuple of positive ints; TypeError/ValueError otherwise."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise TypeError(
            f"event_shape must be a sequence of positive integers such as (2,) or (3, 32, 32), got {value!r}"
        )
    shape = tuple(positive_int("each size in event_shape", size) for size in value)
    if not shape:
        raise ValueError("event_shape must have at least one dimension, for example (2,); got ()")
    return shape


def batch_of_events(name: str, x: object, shape: tuple[int, ...]) -> Tensor:
    """Return ``x`` if it is a floating-point tensor of shape ``(B, *shape)``; TypeError/ValueError otherwise."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor of shape (B, {_sizes(shape)}), got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got dtype {x.dtype}; convert with .float()")
    if x.dim() != len(shape) + 1 or tuple(x.shape[1:]) != shape:
        raise ValueError(f"{name} must have shape (B, {_sizes(shape)}), got {tuple(x.shape)}")
    return x


def time_or_times(name: str, t: float | Tensor, rows: int) -> None:
    """ValueError if ``t`` is a tensor that is neither one time nor one for each row."""
    if isinstance(t, Tensor) and t.dim() and t.shape != (rows,):
        raise ValueError(f"{name} must be a number or have shape ({rows},), got {tuple(t.shape)}")


def all_finite(name: str, x: Tensor) -> Tensor:
    """Return ``x``; ValueError naming the first bad row if any entry is NaN or infinite. Reads the device."""
    if x.is_meta:
        raise ValueError(f"{name} is on the meta device, which holds no values; put it on the cpu or an accelerator")
    finite = torch.isfinite(x)
    if not bool(finite.all()):
        rows = (~finite).reshape(x.shape[0], -1).any(dim=1).nonzero().flatten() if x.dim() else x.new_zeros(1)
        raise ValueError(
            f"{name} has NaN or infinite entries in {len(rows)} of {x.shape[0] if x.dim() else 1} rows "
            f"(first: row {int(rows[0])}); remove or repair them"
        )
    return x


def kind_of(value: object) -> str:
    """The dtype and shape of a tensor, or the type of another value, for messages."""
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _integer(name: str, value: object, kind: str, *, least: int, below: float = math.inf) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be {kind}, got {value!r} ({type(value).__name__})")
    number = int(value)
    if not least <= number < below:
        raise ValueError(f"{name} must be {kind}, got {number}")
    return number


def _sizes(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
