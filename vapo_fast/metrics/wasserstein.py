"""Sliced Wasserstein distance: exact one-dimensional optimal transport, averaged over fixed directions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vapo_fast import noise
from vapo_fast.core import checks
from vapo_fast.metrics._checks import one_set, two_sets

# Projected values held at once: some hundred megabytes for any number of directions.
_CHUNK = 2**23


def sliced_wasserstein(a: Tensor, b: Tensor, *, n_projections: int = 256, seed: int = 0, p: float = 2.0) -> float:
    r"""Sliced p-Wasserstein distance between two samples: ``(mean over directions of W_p^p)^(1/p)``.

    ``a`` (n, *event) and ``b`` (m, *event) may differ in size; events are flattened. Each one-dimensional problem is
    solved exactly from the sorted projections. The directions, uniform on the sphere, depend on ``seed`` only. Raises
    TypeError/ValueError for empty or non-finite sets, different event shapes, ``p < 1``. (Bonneel et al., Sliced and
    Radon Wasserstein Barycenters, 2015.)
    """
    flat_a, flat_b = two_sets("a", a, "b", b)
    power = checks.positive_float("p", p)
    if power < 1:
        raise ValueError(f"p must be >= 1, got {p!r}")
    directions = _directions(flat_a.shape[1], checks.positive_int("n_projections", n_projections), seed).to(
        flat_a.dtype
    )
    rows_a, rows_b, mass = _coupling(len(flat_a), len(flat_b))
    total = 0.0
    step = max(1, _CHUNK // (len(flat_a) + len(flat_b)))
    for start in range(0, len(directions), step):
        part = directions[start : start + step]
        sorted_a = (part @ flat_a.T).sort(dim=1).values
        sorted_b = (part @ flat_b.T).sort(dim=1).values
        gap = (sorted_a[:, rows_a] - sorted_b[:, rows_b]).abs_().to(torch.float64)
        total += float((gap.pow_(power) @ mass).sum())
    return float((total / len(directions)) ** (1 / power))


def sliced_wasserstein_floor(
    real: Tensor,
    n: int,
    trials: int = 8,
    *,
    n_reference: int | None = None,
    n_projections: int = 256,
    seed: int = 0,
    p: float = 2.0,
) -> float:
    """Mean sliced Wasserstein distance between independent real sets: the score of a perfect model of ``n`` samples.

    Each trial draws disjoint sets of ``n`` and ``n_reference`` (default ``n``) events from ``real`` without
    replacement. Trials share no event if ``real`` is large enough, and are reshuffles otherwise. Raises ValueError if
    ``real`` has too few events.
    """
    first = checks.positive_int("n", n)
    second = first if n_reference is None else checks.positive_int("n_reference", n_reference)
    flat = one_set("real", real)
    if first + second > len(flat):
        raise ValueError(f"real must have at least n + n_reference = {first + second} events to split, got {len(flat)}")
    repeats = checks.positive_int("trials", trials)
    need = first + second
    independent = need * repeats <= len(flat)
    total = 0.0
    for trial in range(repeats):
        order = noise.permutation(seed, len(flat), 0 if independent else trial)
        rows = order[trial * need : (trial + 1) * need] if independent else order[:need]
        total += sliced_wasserstein(flat[rows[:first]], flat[rows[first:]], n_projections=n_projections, seed=seed, p=p)
    return total / repeats


def _directions(dimension: int, count: int, seed: int) -> Tensor:
    """(count, dimension) unit vectors, float64."""
    normal: Tensor = noise.normal(seed, range(count), (dimension,), stream=noise.Stream.PROBE, dtype=torch.float64)
    return torch.nn.functional.normalize(normal, dim=1)


def _coupling(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """The monotone coupling of n and m equal masses: for each piece its sorted row on both sides and its mass, float64.

    The whole mass is counted as lcm(n, m), so that both sides step at integers.
    """
    whole = math.lcm(n, m)
    step_a, step_b = whole // n, whole // m
    cuts = torch.unique(torch.cat((torch.arange(n) * step_a, torch.arange(m) * step_b)))
    ends = torch.cat((cuts[1:], torch.tensor([whole])))
    return cuts // step_a, cuts // step_b, (ends - cuts).to(torch.float64) / whole
