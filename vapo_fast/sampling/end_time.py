"""The choice of the time at which sampling stops, by validation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from vapo_fast import noise
from vapo_fast.core import checks
from vapo_fast.engines import Job, choose
from vapo_fast.ode.options import DEFAULT_MAX_STEPS, DEFAULT_RTOL, times_of
from vapo_fast.potentials.base import Potential, check_model, model_dtype_device
from vapo_fast.sampling.batching import solve_in_batches, solve_options

_DEFAULT_CANDIDATES = 13


@dataclass(frozen=True)
class EndTimes:
    """Result of `validate_t_end`: (m,) float64 candidate end times, their scores, and the candidate with the lowest.

    A time that not every sample reached has the score infinity.
    """

    candidates: Tensor
    scores: Tensor
    t_end: float


def validate_t_end(
    model: Potential,
    held_out: Tensor,
    *,
    candidates: Sequence[float] | Tensor | None = None,
    n: int | None = None,
    n_projections: int = 256,
    rtol: float = DEFAULT_RTOL,
    atol: float | None = None,
    method: str = "dopri5",
    steps: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    engine: str = "auto",
    precision: str = "auto",
    max_steps: int = DEFAULT_MAX_STEPS,
) -> EndTimes:
    """Choose the end time of a time-independent potential on held-out data.

    Such a potential cannot reproduce the path, so the end time is a hyper-parameter. Samples are integrated once
    through all candidate times. Each time is scored by the sliced Wasserstein distance to ``held_out`` (lower is
    better). A warning tells if the best is the first or the last. Candidates that not every sample reached lose.

    Args:
        model: a time-independent potential.
        held_out: (m, *event_shape) data that was not trained on.
        candidates: increasing end times after ``homotopy.t0``, also past t1; default: 13 from t1/2 to 2 t1.
        n: samples drawn; default as many as ``held_out`` has, up to 10 000.
        n_projections, seed: of the distance and of the samples.
        Others: as for `sample`.
    Raises: ValueError for a time-dependent potential, whose end is t1; and as `sample`.
    """
    from vapo_fast.metrics import sliced_wasserstein

    check_model(model)
    if model.time_dependent:
        raise ValueError("validate_t_end is for time-independent potentials; a time-dependent one ends at homotopy.t1")
    held_out = checks.all_finite("held_out", checks.batch_of_events("held_out", held_out, model.event_shape))
    if held_out.shape[0] == 0:
        raise ValueError(f"held_out must hold at least one sample, got shape {tuple(held_out.shape)}")
    path = model.homotopy
    if candidates is None:
        candidates = torch.linspace(0.5 * path.t1, 2.0 * path.t1, _DEFAULT_CANDIDATES, dtype=torch.float64)
    times = times_of(candidates, "candidates") or ()
    if times[0] <= path.t0 or any(after <= before for before, after in pairwise(times)):
        raise ValueError(f"candidates must increase, from after the start of the path, {path.t0:g}; got {times}")
    count = min(held_out.shape[0], 10_000) if n is None else checks.positive_int("n", n)
    options = replace(solve_options(method, rtol, atol, steps, max_steps), t_eval=times)
    job = Job("solve", precision, options)
    dtype, device = model_dtype_device(model)
    chosen = choose(engine, model, device, dtype, job)

    def start(first: int, last: int) -> Tensor:
        return path.omega * noise.normal(seed, range(first, last), model.event_shape, dtype=dtype, device=device)

    solution = solve_in_batches(chosen, model, start, count, path.t0, times[-1], job, batch_size=batch_size)
    states = solution.ys
    if states is None:
        raise RuntimeError(f"engine {chosen.name!r} returned no states at the candidate times")
    real = held_out.to(device=device, dtype=dtype)
    # Late times may be too stiff for a potential; earlier times keep their scores.
    scores = [
        sliced_wasserstein(state, real, n_projections=n_projections, seed=seed)
        if bool(torch.isfinite(state).all())
        else math.inf
        for state in states
    ]
    if math.isinf(min(scores)):
        solution.raise_for_failures()
    best = min(range(len(times)), key=scores.__getitem__)
    if len(times) > 1 and best in (0, len(times) - 1):
        end = "first" if best == 0 else "last"
        warnings.warn(
            f"the best end time, {times[best]:.4g}, is the {end} candidate; a better one may lie beyond it",
            stacklevel=2,
        )
    return EndTimes(torch.tensor(times, dtype=torch.float64), torch.tensor(scores, dtype=torch.float64), times[best])
