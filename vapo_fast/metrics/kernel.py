"""Kernel distance: unbiased squared maximum mean discrepancy with the cubic kernel, on standardised features."""

from __future__ import annotations

import torch
from torch import Tensor

from vapo_fast.metrics._checks import two_sets

_BLOCK = 2**23


def kernel_distance(fake: Tensor, real: Tensor, *, standardise: bool = True) -> float:
    """Unbiased squared MMD between feature sets (m, F) and (n, F) with the kernel ``(x.y / F + 1)^3``.

    Its expectation is zero for equal distributions, so it may be negative. It uses all pairs, in float64, and no random
    subsets. ``standardise`` first shifts and scales both sets so that each feature of ``real`` has mean 0 and standard
    deviation 1 (constant features are only centred); the result then does not depend on units. It is the KID only with
    ``standardise=False`` and Inception features. (Bińkowski et al. 2018, arXiv 1801.01401.)

    Raises: TypeError/ValueError for fewer than two rows, different F, or NaN.
    """
    y, x = two_sets("fake", fake, "real", real, at_least=2)
    x, y = x.to(torch.float64), y.to(torch.float64)
    if standardise:
        centre, scale = x.mean(dim=0), x.std(dim=0)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        x, y = (x - centre) / scale, (y - centre) / scale
    within_x = (_kernel_sum(x, x) - _kernel_diagonal(x)) / (len(x) * (len(x) - 1))
    within_y = (_kernel_sum(y, y) - _kernel_diagonal(y)) / (len(y) * (len(y) - 1))
    return within_x + within_y - 2 * _kernel_sum(x, y) / (len(x) * len(y))


def _kernel_sum(x: Tensor, y: Tensor) -> float:
    rows = max(1, _BLOCK // len(y))
    return sum(
        float((x[start : start + rows] @ y.T / x.shape[1] + 1).pow_(3).sum()) for start in range(0, len(x), rows)
    )


def _kernel_diagonal(x: Tensor) -> float:
    return float((x.square().sum(dim=1) / x.shape[1] + 1).pow(3).sum())
