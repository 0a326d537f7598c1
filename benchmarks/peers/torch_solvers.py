"""Solvers for PyTorch: torchdiffeq, torchode, torchebm, and SciPy as the methods' own code uses it.

Each is given the plain field (`benchmarks.plain_field`) and what its documentation recommends. They differ in whose
error they control:

- torchdiffeq, torchebm: one step size for the batch, from the root mean square over all its entries. torchdiffeq steps
  past the end and interpolates. torchebm has no rule for its first step: it gets a hundredth of the interval.
- torchode: one step size for each sample; samples that have ended are still evaluated until the slowest ends.
- SciPy: the batch as one long system in float64, as in the samplers of score- and potential-based models (``solve_ivp``
  over the flattened batch, RK45, which is dopri5): one step size, every evaluation converted to and from PyTorch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.devices import wait
from benchmarks.peers.base import (
    Arm,
    LocalRunner,
    Meter,
    Outcome,
    Runner,
    UnavailableError,
    arm_of,
    checked_plain_field,
    median_seconds,
    to_numpy,
)
from benchmarks.plain_field import PlainField
from benchmarks.workloads import Problem

Field = Callable[[Tensor, Tensor | float], Tensor]
# Solves once: the end states, and what the solver itself tells of its steps.
Solve = Callable[[], tuple[Tensor, dict[str, Any]]]


# Sets a solver up around a field, once for a problem, of which it takes ``case.rtol``, which is atol too, or else
# ``case.steps``, the starts ``x0`` (n, ...), the interval twice over as ``span`` and ``ends``, and ``device``.
Maker = Callable[[Field, Any], Solve]


def _prepare(name: str, make: Maker, problem: Problem) -> Runner:
    field = checked_plain_field(name, problem)
    if problem.case.device == "cuda" and make is not with_torchode:
        choose_reads_time(field, make, problem)
    return runner_of(field, make, problem)


def choose_reads_time(field: PlainField, make: Maker, problem: Problem) -> None:
    """Have the field treat a 0-dim time in the way that is faster for this solver here, see `PlainField.reads_time`."""
    solve, taken = make(field, problem), {}
    for reads in (True, False):
        field.reads_time = reads
        with torch.no_grad():
            solve()
            taken[reads] = median_seconds(solve, 1, problem.case.device)
    field.reads_time = taken[True] <= taken[False]


def runner_of(field: Field, make: Maker, problem: Problem) -> Runner:
    """A solver around a field."""
    solve, device = make(field, problem), problem.case.device

    def call() -> Tensor:
        with torch.no_grad():
            return solve()[0]

    def look() -> Outcome:
        meter = Meter(field, device)
        metered = make(meter, problem)
        with torch.no_grad():
            wait(device)
            begin = time.perf_counter()
            x, told = metered()
            wait(device)
        total = time.perf_counter() - begin
        steps, evaluations = told.get("steps"), told.get("evaluations", meter.calls)
        return Outcome(
            x=to_numpy(x),
            evaluations=_counts(evaluations),
            steps=None if steps is None else _counts(steps),
            failed=_failed(told.get("failed", 0)),
            field_share=min(1.0, meter.seconds / total),
        )

    return LocalRunner(call, look, device)


def _counts(values: Tensor | int) -> np.ndarray:
    return values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _failed(told: Tensor | int) -> int:
    """How many samples failed, from that number or from the samples' statuses, 0 for those that did not."""
    return int((told != 0).sum()) if isinstance(told, Tensor) else told


def with_torchdiffeq(field: Field, problem: Any) -> Solve:
    import torchdiffeq

    case, times, x0 = problem.case, problem.ends, problem.x0

    def right_hand_side(t: Tensor, x: Tensor) -> Tensor:
        return field(x, t)

    options: dict[str, Any] = {"rtol": case.rtol, "atol": case.rtol, "method": "dopri5"}
    if case.rtol is None:
        # Its "rk4" is the 3/8 rule: as many evaluations as the classical method.
        grid = torch.linspace(*problem.span, (case.steps or 1) + 1, device=x0.device)
        options = {"method": "rk4", "options": {"grid_constructor": lambda function, x0, ends: grid}}
    return lambda: (torchdiffeq.odeint(right_hand_side, x0, times, **options)[-1], {})


def with_torchebm(field: Field, problem: Any) -> Solve:
    from torchebm.integrators import Dopri5Integrator, RK4Integrator

    case, (t0, t1), device = problem.case, problem.span, problem.device
    state = {"x": problem.x0}

    def drift(x: Tensor, t: Tensor) -> Tensor:
        # The integrator hands every row the same time.
        return field(x, t[0])

    if case.rtol is None:
        steps = case.steps or 1
        grid = torch.linspace(t0, t1, steps + 1, device=device)
        fixed = RK4Integrator()
        return lambda: (fixed.integrate(state, grid[1] - grid[0], steps, drift=drift, t=grid, adaptive=False)["x"], {})
    integrator = Dopri5Integrator(atol=case.rtol, rtol=case.rtol, max_steps=100_000)
    first = torch.tensor((t1 - t0) / 100, device=device)
    return lambda: (integrator.integrate(state, first, 1, drift=drift, t=problem.ends, adaptive=True)["x"], {})


def with_torchode(field: Field, problem: Any) -> Solve:
    import torchode

    case, x0 = problem.case, problem.x0
    if case.rtol is None:
        raise UnavailableError("torchode has no rk4")
    term = torchode.ODETerm(lambda t, x: field(x, t))
    controller = torchode.IntegralController(atol=case.rtol, rtol=case.rtol, term=term)
    solver = torchode.AutoDiffAdjoint(torchode.Dopri5(term=term), controller).to(problem.device)
    t0, t1 = (torch.full((len(x0),), end, device=problem.device) for end in problem.span)

    def solve() -> tuple[Tensor, dict[str, Any]]:
        solution = solver.solve(torchode.InitialValueProblem(y0=x0, t_start=t0, t_end=t1, t_eval=t1[:, None]))
        told = {
            "evaluations": solution.stats["n_f_evals"],
            "steps": solution.stats["n_steps"],
            "failed": solution.status,
        }
        return solution.ys[:, -1], told

    return solve


def with_scipy(field: Field, problem: Any) -> Solve:
    from scipy.integrate import solve_ivp

    case, shape = problem.case, problem.x0.shape
    if case.rtol is None:
        raise UnavailableError("SciPy has no fixed-step method")

    def right_hand_side(t: float, flat: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(flat.reshape(shape)).to(problem.device, torch.float32)
        return field(x, t).cpu().numpy().reshape(-1).astype(np.float64)

    start = problem.x0.cpu().numpy().reshape(-1).astype(np.float64)

    def solve() -> tuple[Tensor, dict[str, Any]]:
        solution = solve_ivp(right_hand_side, problem.span, start, method="RK45", rtol=case.rtol, atol=case.rtol)
        end = torch.from_numpy(solution.y[:, -1].reshape(shape))
        return end, {"failed": 0 if solution.success else len(end)}

    return solve


def field_runner(field: Field, problem: Problem) -> Runner:
    """The field of a whole batch, each row at its own time."""
    x, t, rows = problem.x0, problem.times, len(problem.exact_field)

    def call() -> Tensor:
        with torch.no_grad():
            return field(x, t)

    return LocalRunner(call, lambda: Outcome(field=to_numpy(call()[:rows])), problem.case.device)


def _prepare_autograd(problem: Problem) -> Runner:
    return field_runner(checked_plain_field("torch autograd", problem), problem)


_SOLVES = ("solve", "solve_fixed")


def _arm(name: str, jobs: tuple[str, ...], make: Maker, note: str, devices: tuple[str, ...] = ("cpu", "cuda")) -> Arm:
    return arm_of(name, name, jobs, partial(_prepare, name, make), note, devices)


ARMS = (
    _arm("torchdiffeq", _SOLVES, with_torchdiffeq, "one step size for the batch; rk4 is its 3/8 rule"),
    _arm("torchode", ("solve",), with_torchode, "a step size for each sample; all evaluated until the last ends"),
    _arm("torchebm", _SOLVES, with_torchebm, "one step size for the batch"),
    _arm("scipy", ("solve",), with_scipy, "the flattened batch as one float64 system, RK45", ("cpu",)),
    arm_of("torch", "torch autograd", ("field",), _prepare_autograd),
)
