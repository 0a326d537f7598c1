"""Densities of a model: the read-out of the potential's value, and the likelihood by change of variables."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from vapo_fast import noise
from vapo_fast.core import checks
from vapo_fast.engines import Job, choose
from vapo_fast.homotopy import DensityCoefficients, Homotopy, Time, as_time
from vapo_fast.ode import Solution
from vapo_fast.ode.options import DEFAULT_MAX_STEPS, DEFAULT_RTOL
from vapo_fast.potentials.base import Potential, check_events, check_model, end_time
from vapo_fast.sampling.batching import (
    TO_NOISE_SHARE,
    batch_size_for,
    evaluation,
    evaluation_mode,
    in_batches,
    progress_bar,
    solve_options,
)

TRACES = ("exact", "hutchinson")
_DEFAULT_PROBES = 16
MOST_PROBES = 1 << 20
"""Largest number of probes of a Hutchinson estimate, which every engine can hold."""
# The exact Laplacian takes one reverse pass for each coordinate at each evaluation.
_EXACT_WARNING_DIMENSION = 256


def log_density(model: Potential, x: Tensor, t: Time | None = None) -> Tensor:
    """Read ln rho(x, t) off the potential's value: one evaluation, in evaluation mode, exact for the optimal potential.

    The omitted constant depends on t, so compare values at one t only. Gradients flow to x and the model.

    For a *trained* potential, do not compare values across a gap, where rho(x, t) nearly vanishes. The loss is an
    average over rho, so the gradient of the potential is untrained in the gap. A difference across it integrates that
    gradient, and the read-out multiplies the error (by 2 / beta(t)^2 late on VAPO's path). Modes many beta(t) apart are
    then each right up to a constant of their own, tens of nats off at the end of a path. Compare them at an earlier t,
    where noise of beta(t) joins them (`Homotopy.time_at_noise_level`), or by `log_likelihood`, which is normalised and
    follows the flow where it is trained.

    Args:
        x: (B, *event_shape), in the model's dtype and on its device.
        t: float or (B,) times of the path, in [t0, t1]; default its end, ``homotopy.t1``.
    Returns: (B,) nats.
    Raises: TypeError, ValueError for a bad x or t, or a model with NaN parameters.
    """
    check_model(model)
    check_events(model, "x", x)
    time = model.homotopy.t1 if t is None else _path_time(model.homotopy, t, x.shape[0])
    with evaluation_mode(model):
        return model.homotopy.log_density(model(x, time), x, time)


def _path_time(path: Homotopy, t: Time, rows: int) -> Time:
    """``t`` if it is one time of the path, or one for each row; ValueError otherwise. One device read."""
    checks.time_or_times("t", t, rows)
    # The ends are rounded as t is: in float32 the end of a path may lie beyond t1 in float64.
    times = as_time(t)
    first, last = (torch.tensor(end, dtype=times.dtype, device=times.device) for end in (path.t0, path.t1))
    outside = ~((times >= first) & (times <= last)).flatten()
    if bool(outside.any()):
        first_bad = float(times.flatten()[outside][0])
        raise ValueError(f"t must be in [{path.t0:g}, {path.t1:g}], the times of {path!r}, got {first_bad!r}")
    return t


def log_likelihood(
    model: Potential,
    x: Tensor,
    *,
    rtol: float = DEFAULT_RTOL,
    atol: float | None = None,
    method: str = "dopri5",
    steps: int | None = None,
    trace: str = "exact",
    probes: int = _DEFAULT_PROBES,
    seed: int = 0,
    t_end: float | None = None,
    return_standard_error: bool = False,
    batch_size: int | None = None,
    engine: str = "auto",
    precision: str = "auto",
    throw: bool = True,
    max_steps: int = DEFAULT_MAX_STEPS,
    progress: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Normalised log-likelihood of x under the flow from the prior: ``ln q(x_0) - integral of Laplacian Phi dt``.

    x is carried from t_end back to x_0 at t0 together with the integral (instantaneous change of variables). At the
    default t_end the density is the path's at t1, that of data blurred by the noise left there.

    Args:
        x: (B, *event_shape), in the model's dtype and on its device.
        rtol, atol, method, steps, max_steps: as for `vapo_fast.sample`; the integral is part of the error's norm.
        trace: "exact" takes one reverse pass for each of the D coordinates (warns above D = 256); "hutchinson"
            estimates it with ``probes`` (at most 2^20) random sign vectors for each sample, held fixed along its path,
            one pass each.
        seed: of the probes; those of row i depend on (seed, i) only.
        t_end: end time, as for `vapo_fast.sample`.
        return_standard_error: also return the standard error over the probes (0 for the exact trace); needs
            ``probes >= 2``.
        batch_size: rows integrated at a time; default: as many as fit, halved (with a warning) when memory runs out.
        engine, precision: see `vapo_fast.engines`.
        throw: raise `SolveError` if a row fails; with False such a row is NaN.
        progress: show a progress bar (needs rich).
    Returns: (B,) nats in x's dtype, or (values, standard errors); not differentiable, unlike `log_density`.
    Raises:
        SolveError, UnsupportedJobError, MemoryError, TypeError, ValueError: as `vapo_fast.sample`.
    """
    check_model(model)
    check_events(model, "x", x)
    checks.one_of("trace", trace, TRACES)
    probes = checks.positive_int("probes", probes)
    if probes > MOST_PROBES:
        raise ValueError(f"probes must be at most {MOST_PROBES}, got {probes}")
    hutchinson = trace == "hutchinson"
    if return_standard_error and hutchinson and probes < 2:
        raise ValueError(f"return_standard_error needs probes >= 2 to compare, got {probes}")
    dimension = math.prod(model.event_shape)
    if not hutchinson and dimension > _EXACT_WARNING_DIMENSION:
        warnings.warn(
            f"trace='exact' takes {dimension} reverse passes at each evaluation of the field; trace='hutchinson' takes "
            f"one for each of {probes} probes",
            RuntimeWarning,
            stacklevel=2,
        )
    path, end = model.homotopy, end_time(model, t_end)
    job = Job("solve_with_trace", precision, solve_options(method, rtol, atol, steps, max_steps, TO_NOISE_SHARE))
    chosen = choose(engine, model, x.device, x.dtype, job)
    noise.check_seed(seed)

    with evaluation(model), progress_bar("log-likelihood", x.shape[0], progress) as report:
        start = x.detach().clone()

        def solve(first: int, last: int) -> tuple[Solution, Tensor]:
            signs = _signs(seed, first, last, probes, dimension, start) if hutchinson else None
            tell = None if report is None else lambda ended: report(first + ended)
            return chosen.solve_with_trace(model, start[first:last], end, path.t0, job, signs, tell)

        if batch_size is None:
            batch_size = batch_size_for(chosen, model, x.shape[0], job, probes if hutchinson else 0)
        parts = in_batches(solve, x.shape[0], batch_size, report)
        solution = Solution.concatenate([part for part, _ in parts])
        if throw:
            solution.raise_for_failures()
        # Integrated from t_end down to t0, the integral already has the minus sign of the formula.
        estimates = torch.cat([integrals for _, integrals in parts]).to(torch.float64)
        values = log_prior(solution.x, path.omega) + estimates.mean(1)
        values = torch.where(solution.success, values, torch.nan).to(x.dtype)
        if not return_standard_error:
            return values
        error = estimates.std(1) / math.sqrt(probes) if hutchinson else torch.zeros_like(estimates[:, 0])
        return values, torch.where(solution.success, error, torch.nan).to(x.dtype)


def read_out(coefficients: DensityCoefficients, phi: Tensor, x: Tensor) -> Tensor:
    """ln rho (B,) in float64, up to a constant of the coefficients' time, from Phi (B,) at x (B, *event)."""
    square = x.flatten(1).double().square().sum(1)
    return float(coefficients.potential) * phi.double() + float(coefficients.quadratic) * square


def log_prior(x: Tensor, omega: float) -> Tensor:
    """ln N(x; 0, omega^2 I) in float64."""
    flat = x.flatten(1).to(torch.float64)
    return -0.5 * flat.square().sum(1) / omega**2 - flat.shape[1] * (math.log(omega) + 0.5 * math.log(2.0 * math.pi))


def _signs(seed: int, first: int, last: int, probes: int, dimension: int, like: Tensor) -> Tensor:
    """(last - first, probes, dimension) of independent random signs."""
    draw = noise.uniform(
        seed,
        range(first, last),
        (probes, dimension),
        stream=noise.Stream.PROBE,
        dtype=torch.float64,
        device=like.device,
    )
    return torch.where(draw < 0.5, -1.0, 1.0).to(like.dtype)
