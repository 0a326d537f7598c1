"""How far an engine's numbers may be from the float64 reference: one table for all engines, jobs and dtypes.

Errors are measured against the size of the terms that a result is the sum of (`field_scales`, or what the test names),
because a sum of large terms cannot be known better than they are. A float64 engine differs by rounding alone, a float32
one by the rounding of its inputs' arithmetic: the figures are about ten times the largest that the reference itself
shows over the zoo in that dtype.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vapo_fast.engines import Engine, Job
from vapo_fast.engines.base import JobKind
from vapo_fast.homotopy import expand_time
from vapo_fast.ode import Solution
from vapo_fast.potentials import MLPPotential


class Counts(NamedTuple):
    """How alike the step counts of two solves must be.

    Attributes:
        same: share of the samples that must take exactly as many steps, but for ``strays`` samples, so that a batch of
            a few may have its bad luck. In float32 the suite's own worst are .78 (7 of 9) and, tight, .29 (6 of 21).
        largest: difference of one sample's tried steps, relative to 8 plus the reference's; the worst are .25 (one
            of 3001 samples, whose first try is rejected in one of two float32 solves, and two more on the way) and .19.
        mean: difference of the means over the samples, relative to the mean, plus 4 over the number of samples.
    """

    same: float
    strays: int
    largest: float
    mean: float


class Tolerance(NamedTuple):
    """Bounds of one dtype.

    Attributes:
        value, gradient: of Phi and grad Phi, relative to `field_scales`.
        trace: of the Laplacian's integral, relative to 1 plus the largest of the batch.
        loss: of the loss terms, relative to the sum of both.
        weights: of each parameter's gradient, relative to its own largest entry plus a thousandth of the largest of
            all.
        fixed: of states after a solve with fixed steps, relative to 1 plus the largest state.
        adaptive: of states after an adaptive solve, likewise, in units of the larger tolerance: engines may round an
            error ratio to different sides of 1 and then take different steps, each as accurate as was asked.
        floor: added to ``adaptive``, for tolerances near what the dtype resolves.
        counts, tight_counts: of the steps that a solve took, against the reference's in the same dtype; the latter for
            tolerances below `TIGHT`, where a float32 error estimate is rounding for a good part.
    """

    value: float
    gradient: float
    trace: float
    loss: float
    weights: float
    fixed: float
    adaptive: float
    floor: float
    counts: Counts
    tight_counts: Counts


TIGHT = 1e-4
"""A tolerance below this asks a float32 solve for errors near its rounding."""

TOLERANCES = {
    torch.float32: Tolerance(
        value=3e-6,
        gradient=1e-5,
        trace=1e-4,
        loss=5e-6,
        weights=5e-5,
        fixed=5e-5,
        adaptive=10.0,
        floor=2e-5,
        counts=Counts(same=0.85, strays=2, largest=0.3, mean=0.05),
        tight_counts=Counts(same=0.25, strays=2, largest=0.25, mean=0.08),
    ),
    torch.float64: Tolerance(
        value=1e-13,
        gradient=1e-12,
        trace=1e-11,
        loss=1e-13,
        weights=1e-11,
        fixed=1e-12,
        adaptive=1e-3,
        floor=1e-12,
        counts=Counts(same=0.97, strays=0, largest=0.1, mean=0.005),
        tight_counts=Counts(same=0.97, strays=0, largest=0.1, mean=0.005),
    ),
}

ROUNDING = {torch.float32: 2e-5, torch.float64: 1e-13}
"""What one computation done in two ways (other batches, other thread counts) may differ by, where not bit for bit."""

BITWISE = ("native", "triton")
"""Engines whose rows have the same bits in any batch and on any number of threads."""


def job_for(engine: Engine, kind: JobKind, **options: Any) -> Job:
    """A job in the arithmetic of these tables: what "auto" chooses on CUDA at a loose tolerance may be less."""
    return Job(kind, "float32" if engine.name == "triton" else "auto", **options)


def field_scales(model: MLPPotential, x: Tensor, t: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) sizes of the terms of Phi and of grad Phi, in float64, for a float64 model."""
    gauge = model.homotopy.gauge(t if model.time_dependent else torch.full_like(t, model.homotopy.t0))
    network = model.output.weight.detach().abs().sum()
    quadratic, norm = gauge.quadratic.abs(), x.norm(dim=1)
    value = quadratic * norm.square() + gauge.scale * network
    return value + 1e-3, quadratic * norm + gradient.norm(dim=1) + gauge.scale * network


def assert_rows_close(actual: Tensor, expected: Tensor, scale: Tensor, tolerance: float, what: str) -> None:
    """Every row of ``actual`` within ``tolerance * scale`` of ``expected``; NaN is never close."""
    error = (actual.to(torch.float64) - expected).abs() / expand_time(scale, expected)
    worst = error.flatten(1).amax(1) if error.dim() > 1 else error
    good = worst <= tolerance
    assert bool(good.all()), (
        f"{what}: {int((~good).sum())} of {len(good)} rows are off; row {int((~good).nonzero()[0])} by "
        f"{worst[~good][0].item():.3g} of its scale, {tolerance:.3g} allowed"
    )


def assert_same(engine: Engine, actual: Tensor, expected: Tensor, what: str, rounding: float | None = None) -> None:
    """One computation done in two ways: the same bits from engines that promise them, the same to rounding else.

    ``rounding`` takes the place of `ROUNDING` after a solve, whose steps may change with the last bits.
    """
    if engine.name in BITWISE:
        assert torch.equal(actual, expected), f"{what} differs in {int((actual != expected).sum())} places"
        return
    allowed = ROUNDING[actual.dtype] if rounding is None else rounding
    scale = (1.0 + expected.double().abs().amax()).expand(expected.shape[:1])
    assert_rows_close(actual, expected.double(), scale, allowed, what)


def assert_same_counts(actual: Solution, expected: Solution, asked: float = 0.0) -> None:
    """The steps of two solutions, tried, accepted and rejected, agree as far as rounding lets them.

    ``asked`` is the larger tolerance of the solve.
    """
    tolerance = TOLERANCES[actual.x.dtype]
    allowed = tolerance.tight_counts if asked < TIGHT else tolerance.counts
    for name in ("nfe", "accepted", "rejected"):
        same = getattr(actual, name).cpu() == getattr(expected, name).cpu()
        others = int((~same).sum())
        most = allowed.strays + (1.0 - allowed.same) * len(same)
        assert others <= most, f"{name}: {others} of {len(same)} samples differ, {most:.1f} may"
    ours, theirs = ((s.accepted + s.rejected).cpu().double() for s in (actual, expected))
    difference = (ours - theirs).abs()
    assert bool((difference <= allowed.largest * (8 + theirs)).all()), f"a sample is {int(difference.max())} steps off"
    mean, expected_mean = float(ours.mean()), float(theirs.mean())
    assert abs(mean - expected_mean) <= allowed.mean * expected_mean + 4 / len(ours), (mean, expected_mean)


def assert_same_rows(engine: Engine, actual: Solution, expected: Solution, rows: Tensor | slice) -> None:
    """The given rows of two solutions are the same, as in `assert_same`."""
    ours, theirs = (Solution(*(getattr(s, name)[rows] for name in _PER_SAMPLE)) for s in (actual, expected))
    if engine.name in BITWISE:
        for name in _PER_SAMPLE:
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    else:
        assert torch.equal(ours.t, theirs.t)
        assert torch.equal(ours.status, theirs.status)
        assert_same_counts(ours, theirs)
        # A step more or less moves the result by about the tolerance.
        torch.testing.assert_close(ours.x, theirs.x, rtol=1e-3, atol=1e-3)


_PER_SAMPLE = ("x", "t", "status", "nfe", "accepted", "rejected")
