"""Checks of the samples and features that metrics compare."""

from __future__ import annotations

import torch
from torch import Tensor

from vapo_fast.core import checks


def two_sets(name_a: str, a: object, name_b: str, b: object, at_least: int = 1) -> tuple[Tensor, Tensor]:
    """Both sets flattened to (n, D) on the CPU, float64 if either is, else float32.

    TypeError unless both are floating-point tensors; ValueError when the shapes of their events differ, when a set
    has fewer than ``at_least`` rows, or when an entry is NaN or infinite.
    """
    flat_a, flat_b = one_set(name_a, a, at_least), one_set(name_b, b, at_least)
    if a.shape[1:] != b.shape[1:]:  # type: ignore[attr-defined]
        raise ValueError(
            f"{name_a} and {name_b} must hold events of one shape, got {tuple(a.shape[1:])} and {tuple(b.shape[1:])}"  # type: ignore[attr-defined]
        )
    dtype = torch.promote_types(flat_a.dtype, flat_b.dtype)
    return flat_a.to(dtype), flat_b.to(dtype)


def one_set(name: str, x: object, at_least: int = 1) -> Tensor:
    """One set flattened to (n, D) on the CPU, at least float32; errors as `two_sets`."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name} must be a floating-point tensor of shape (n, ...), got {kind}")
    if x.dim() < 2 or (x.shape[0] > 0 and x[:1].numel() == 0):
        raise ValueError(f"{name} must have shape (n, ...) with at least one coordinate, got {tuple(x.shape)}")
    if x.shape[0] < at_least:
        raise ValueError(f"{name} must have at least {at_least} rows for this metric, got {x.shape[0]}")
    flat = x.detach().to("cpu", torch.promote_types(x.dtype, torch.float32)).reshape(x.shape[0], -1)
    return checks.all_finite(name, flat)
