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

import importlib.metadata
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.base import (
    Arm,
    LocalRunner,
    Meter,
    Outcome,
    Runner,
    UnavailableError,
    checked_plain_field,
    package_missing,
    package_version,
)
from benchmarks.workloads import Problem

Field = Callable[[Tensor, Tensor | float], Tensor]
# From a field and a problem to the end states, and what the solver itself tells of its steps.
Solve = Callable[[Field, Problem], tuple[Tensor, dict[str, Any]]]


def _prepare(name: str, solve: Solve, problem: Problem) -> Runner:
    return runner_of(checked_plain_field(name, problem), solve, problem)


def runner_of(field: Field, solve: Solve, problem: Problem) -> Runner:
    """A solver around a field."""

    def call() -> Tensor:
        with torch.no_grad():
            return solve(field, problem)[0]

    def look() -> Outcome:
        meter, begin = Meter(field), time.perf_counter()
        with torch.no_grad():
            x, told = solve(meter, problem)
        total = time.perf_counter() - begin
        return Outcome(
            x=x.double().numpy(),
            evaluations=np.asarray(told.get("evaluations", meter.calls)),
            steps=np.asarray(told["steps"]) if "steps" in told else None,
            failed=told.get("failed", 0),
            field_share=meter.seconds / total,
        )

    return LocalRunner(call, look)


def with_torchdiffeq(field: Field, problem: Problem) -> tuple[Tensor, dict[str, Any]]:
    import torchdiffeq

    case, times = problem.case, torch.tensor(problem.span)

    def right_hand_side(t: Tensor, x: Tensor) -> Tensor:
        return field(x, t)

    if case.rtol is None:
        # Its "rk4" is the 3/8 rule: as many evaluations as the classical method.
        grid = torch.linspace(*problem.span, (case.steps or 1) + 1)
        options = {"grid_constructor": lambda function, x0, ends: grid}
        states = torchdiffeq.odeint(right_hand_side, problem.x0, times, method="rk4", options=options)
    else:
        states = torchdiffeq.odeint(right_hand_side, problem.x0, times, rtol=case.rtol, atol=case.rtol, method="dopri5")
    return states[-1], {}


def with_torchebm(field: Field, problem: Problem) -> tuple[Tensor, dict[str, Any]]:
    from torchebm.integrators import Dopri5Integrator, RK4Integrator

    case, (t0, t1) = problem.case, problem.span
    state = {"x": problem.x0}

    def drift(x: Tensor, t: Tensor) -> Tensor:
        # The integrator hands every row the same time.
        return field(x, t[0])

    if case.rtol is None:
        steps = case.steps or 1
        grid = torch.linspace(t0, t1, steps + 1)
        end = RK4Integrator().integrate(state, grid[1] - grid[0], steps, drift=drift, t=grid, adaptive=False)
    else:
        integrator = Dopri5Integrator(atol=case.rtol, rtol=case.rtol, max_steps=100_000)
        first = torch.tensor((t1 - t0) / 100)
        end = integrator.integrate(state, first, 1, drift=drift, t=torch.tensor([t0, t1]), adaptive=True)
    return end["x"], {}


def with_torchode(field: Field, problem: Problem) -> tuple[Tensor, dict[str, Any]]:
    import torchode

    case = problem.case
    if case.rtol is None:
        raise UnavailableError("torchode has no rk4")
    term = torchode.ODETerm(lambda t, x: field(x, t))
    controller = torchode.IntegralController(atol=case.rtol, rtol=case.rtol, term=term)
    solver = torchode.AutoDiffAdjoint(torchode.Dopri5(term=term), controller)
    x0 = problem.x0
    t0, t1 = (torch.full((len(x0),), end) for end in problem.span)
    solution = solver.solve(torchode.InitialValueProblem(y0=x0, t_start=t0, t_end=t1, t_eval=t1[:, None]))
    told = {
        "evaluations": solution.stats["n_f_evals"],
        "steps": solution.stats["n_steps"],
        "failed": int((solution.status != 0).sum()),
    }
    return solution.ys[:, -1], told


def with_scipy(field: Field, problem: Problem) -> tuple[Tensor, dict[str, Any]]:
    from scipy.integrate import solve_ivp

    case, shape = problem.case, problem.x0.shape
    if case.rtol is None:
        raise UnavailableError("SciPy has no fixed-step method")

    def right_hand_side(t: float, flat: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(flat.reshape(shape)).to(torch.float32)
        return field(x, t).numpy().reshape(-1).astype(np.float64)

    start = problem.x0.numpy().reshape(-1).astype(np.float64)
    solution = solve_ivp(right_hand_side, problem.span, start, method="RK45", rtol=case.rtol, atol=case.rtol)
    end = torch.from_numpy(solution.y[:, -1].reshape(shape))
    return end, {"failed": 0 if solution.success else len(end)}


def _arm(name: str, jobs: tuple[str, ...], solve: Solve, note: str) -> Arm:
    return Arm(
        name, True, jobs, name, partial(_prepare, name, solve), package_missing(name), package_version(name), note
    )


def _prepare_autograd(problem: Problem) -> Runner:
    field = checked_plain_field("torch autograd", problem)
    x, t = problem.x0, problem.times
    return LocalRunner(lambda: field(x, t), Outcome)


ARMS = (
    _arm("torchdiffeq", ("solve", "solve_fixed"), with_torchdiffeq, "one step size for the batch; rk4 is its 3/8 rule"),
    _arm("torchode", ("solve",), with_torchode, "a step size for each sample; all evaluated until the last ends"),
    _arm("torchebm", ("solve", "solve_fixed"), with_torchebm, "one step size for the batch"),
    _arm("scipy", ("solve",), with_scipy, "the flattened batch as one float64 system, RK45, as the methods' code does"),
    Arm(
        "torch autograd",
        True,
        ("field",),
        "torch",
        _prepare_autograd,
        lambda: None,
        lambda: f"torch {importlib.metadata.version('torch')}",
    ),
)
