"""vapo_fast itself: the reference and native engines, through the interface that `vapo_fast.sample` uses."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch

import vapo_fast as vf
from benchmarks.peers.base import (
    Arm,
    LocalRunner,
    Outcome,
    Runner,
    Timings,
    UnavailableError,
    check_field,
    check_gradient,
    median_seconds,
)
from benchmarks.workloads import Problem
from vapo_fast._flow import evaluation
from vapo_fast.engines import Engine, Job, UnsupportedJobError, choose
from vapo_fast.ode import Solution, SolveOptions, Status

OTHER_TOLERANCES = {"native tol*100": 100.0, "native tol*10": 10.0, "native tol/10": 0.1}
_SMALLEST_TOLERANCE, _LARGEST_TOLERANCE = 4.0 * torch.finfo(torch.float32).eps, 0.02
_JOB_KINDS = {"solve": "solve", "solve_fixed": "solve", "field": "field", "loss": "loss_and_grads"}


def _prepare(engine: str, problem: Problem, rtol_factor: float = 1.0) -> Runner:
    case = problem.case
    if case.job == "trainer":
        return _TrainerRunner(engine, problem)
    options = SolveOptions()
    if case.job == "solve" and case.rtol is not None:
        tolerance = case.rtol * rtol_factor
        options = SolveOptions(rtol=tolerance, atol=tolerance)
        if not _SMALLEST_TOLERANCE <= tolerance <= _LARGEST_TOLERANCE:
            raise UnavailableError(f"a tolerance of {tolerance:g} means nothing in float32")
    elif case.job == "solve_fixed":
        options = SolveOptions("rk4", steps=case.steps)
    job = Job(_JOB_KINDS[case.job], solve=options)  # type: ignore[arg-type]
    try:
        chosen = choose(engine, problem.potential, torch.device("cpu"), torch.float32, job)
    except UnsupportedJobError as error:
        raise UnavailableError(str(error)) from error
    return {"field": _field, "loss": _loss}.get(case.job, _solve)(engine, chosen, problem, job)


def _solve(name: str, engine: Engine, problem: Problem, job: Job) -> Runner:
    potential, x0, span = problem.potential, problem.x0, problem.span
    rows = len(problem.exact_field)
    with evaluation(potential):
        check_field(name, engine.field(potential, x0[:rows], problem.times[:rows])[1], problem)

    def call() -> Solution:
        with evaluation(potential):
            return engine.solve(potential, x0, *span, job)

    def field() -> None:
        with evaluation(potential):
            engine.field(potential, x0, problem.times)

    def look() -> Outcome:
        outcome = _outcome(call())
        mean = 0.0 if outcome.evaluations is None else float(outcome.evaluations.mean())
        share = mean * median_seconds(field) / median_seconds(call, 3)
        return replace(outcome, field_share=min(1.0, share), field_estimated=True)

    return LocalRunner(call, look)


def _outcome(solution: Solution) -> Outcome:
    return Outcome(
        x=solution.x.double().numpy(),
        evaluations=solution.nfe.numpy(),
        steps=(solution.accepted + solution.rejected).numpy(),
        failed=int((solution.status != Status.SUCCESS).sum()),
    )


def _field(name: str, engine: Engine, problem: Problem, job: Job) -> Runner:
    potential, x, t = problem.potential, problem.x0, problem.times
    rows = len(problem.exact_field)

    def call(count: int = len(x)) -> torch.Tensor:
        with evaluation(potential):
            return engine.field(potential, x[:count], t[:count])[1]

    check_field(name, call(rows), problem)
    return LocalRunner(call, Outcome)


def _loss(name: str, engine: Engine, problem: Problem, job: Job) -> Runner:
    potential, batch = problem.potential, problem.batch

    def call() -> dict[str, torch.Tensor]:
        return engine.loss_and_grads(potential, batch, job).grads

    def look() -> Outcome:
        grads = call()
        names = [name for name, _ in potential.named_parameters()]
        return Outcome(gradient=np.concatenate([grads[name].double().numpy().ravel() for name in names]))

    gradient = look().gradient
    if gradient is not None:
        check_gradient(name, gradient, problem)
    return LocalRunner(call, look)


class _TrainerRunner(Runner):
    """Whole steps of `vapo_fast.Trainer`: batch, loss, gradients, Adam, average, and the reading of the loss."""

    def __init__(self, engine: str, problem: Problem) -> None:
        model = copy.deepcopy(problem.potential)
        try:
            self._trainer = vf.Trainer(model, batch_size=problem.case.n, schedule="constant", engine=engine)
        except UnsupportedJobError as error:
            raise UnavailableError(str(error)) from error
        self._data = problem.data

    def run(self, repeats: int) -> Timings:
        # Steps of one call of fit, which has its own cost at the start.
        cpu, begin = time.process_time(), time.perf_counter()
        self._trainer.fit(self._data, repeats)
        seconds = time.perf_counter() - begin
        return Timings([seconds / repeats] * repeats, time.process_time() - cpu)

    def outcome(self) -> Outcome:
        return Outcome()


def _prepare_sample(problem: Problem) -> Runner:
    """`vapo_fast.sample` as a user calls it: checks, noise and solve."""
    case, potential = problem.case, problem.potential
    sample = partial(vf.sample, potential, case.n, rtol=case.rtol or 1e-5, engine="native", return_solution=True)
    try:
        solution = sample()
    except UnsupportedJobError as error:
        raise UnavailableError(str(error)) from error
    if not isinstance(solution, Solution):
        raise TypeError(f"sample returned a {type(solution).__name__}")
    return LocalRunner(sample, lambda: _outcome(solution))


def _engine_missing(name: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        state = vf.engines()[name]
        return None if state == "usable" else state

    return missing


def _version() -> str:
    return f"vapo_fast {vf.__version__}"


ARMS = (
    Arm(
        "native",
        False,
        ("solve", "solve_fixed", "field", "loss", "trainer"),
        "vapo_fast",
        partial(_prepare, "native"),
        _engine_missing("native"),
        _version,
    ),
    *(
        Arm(
            name,
            False,
            ("solve",),
            "vapo_fast",
            partial(_prepare, "native", rtol_factor=factor),
            _engine_missing("native"),
            _version,
            "at another tolerance: for ratios at equal error",
        )
        for name, factor in OTHER_TOLERANCES.items()
    ),
    Arm(
        "native vf.sample",
        False,
        ("solve",),
        "vapo_fast",
        _prepare_sample,
        _engine_missing("native"),
        _version,
        "the whole call: checks and noise too",
    ),
    Arm(
        "reference",
        False,
        ("solve", "solve_fixed", "field", "loss", "trainer"),
        "vapo_fast",
        partial(_prepare, "reference"),
        _engine_missing("reference"),
        _version,
        "for loss: eager double backward",
    ),
)
