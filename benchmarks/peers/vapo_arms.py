"""vapo_fast itself: its engines, through the interface that `vapo_fast.sample` uses."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

import vapo_fast as vf
from benchmarks.cases import JOBS, Case
from benchmarks.devices import OURS, wait
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
    to_numpy,
)
from benchmarks.workloads import Problem
from vapo_fast.callbacks import Callback, Metrics
from vapo_fast.engines import Engine, Job, UnsupportedJobError, choose
from vapo_fast.ode import Solution, SolveOptions, Status
from vapo_fast.sampling.batching import evaluation
from vapo_fast.training.run import TrainingRun

OTHER_TOLERANCES = {"tol*100": 100.0, "tol*10": 10.0, "tol/10": 0.1, "tol/20": 0.05}
"""Arms ``native tol*10`` and so on: our engines at other tolerances, by their factor. A twentieth of 1e-5 is about the
tightest that float32 holds."""
_SMALLEST_TOLERANCE, _LARGEST_TOLERANCE = 4.0 * torch.finfo(torch.float32).eps, 0.02
_JOB_KINDS = {"solve": "solve", "solve_fixed": "solve", "field": "field", "loss": "loss_and_grads"}


def _prepare(engine: str, problem: Problem, rtol_factor: float = 1.0) -> Runner:
    case = problem.case
    if case.job == "trainer":
        untimed, least = _UNTIMED_STEPS[case.device], _LEAST_STEPS[case.device]
        return TrainerRunner(problem.potential, problem.data, case, untimed, least, engine=engine)
    if case.job == "sample":
        return _prepare_sample(engine, problem)
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
        chosen = choose(engine, problem.potential, problem.device, torch.float32, job)
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
        outcome = outcome_of(call())
        mean = 0.0 if outcome.evaluations is None else float(outcome.evaluations.mean())
        device = problem.case.device
        share = mean * median_seconds(field, device=device) / median_seconds(call, 3, device)
        return replace(outcome, field_share=min(1.0, share), field_estimated=True)

    return LocalRunner(call, look, problem.case.device)


def outcome_of(solution: Solution) -> Outcome:
    """What a solution tells of its solve."""
    return Outcome(
        x=to_numpy(solution.x),
        evaluations=solution.nfe.cpu().numpy(),
        steps=(solution.accepted + solution.rejected).cpu().numpy(),
        failed=int((solution.status != Status.SUCCESS).sum()),
        precision=solution.precision,
    )


def _field(name: str, engine: Engine, problem: Problem, job: Job) -> Runner:
    potential, x, t = problem.potential, problem.x0, problem.times
    rows = len(problem.exact_field)

    def call(count: int = len(x)) -> torch.Tensor:
        with evaluation(potential):
            return engine.field(potential, x[:count], t[:count])[1]

    check_field(name, call(rows), problem)
    # The rows that are compared are those of the whole batch.
    return LocalRunner(call, lambda: Outcome(field=to_numpy(call()[:rows])), problem.case.device)


def _loss(name: str, engine: Engine, problem: Problem, job: Job) -> Runner:
    potential, batch = problem.potential, problem.batch

    def call() -> dict[str, torch.Tensor]:
        return engine.loss_and_grads(potential, batch, job).grads

    def look() -> Outcome:
        grads = call()
        names = [name for name, _ in potential.named_parameters()]
        return Outcome(gradient=np.concatenate([to_numpy(grads[name]).ravel() for name in names]))

    gradient = look().gradient
    if gradient is not None:
        check_gradient(name, gradient, problem)
    return LocalRunner(call, look, problem.case.device)


class Stopwatch(Callback):
    """Starts when a number of steps are done, and the device has done them."""

    def __init__(self, device: str, steps: int) -> None:
        self._device, self._left = device, steps
        self._start()

    def _start(self) -> None:
        wait(self._device)
        self.cpu, self.begin = time.process_time(), time.perf_counter()

    def on_step_end(self, trainer: TrainingRun, step: int, metrics: Metrics | None) -> None:
        self._left -= 1
        if self._left == 0:
            self._start()


# A training run has so many steps that only those of a fit in progress count, as they do for the peers: not its start,
# and not, on CUDA, the first ordinary steps nor that which records the graph that the rest replay.
_UNTIMED_STEPS = {"cpu": 3, "cuda": 20}
_LEAST_STEPS = {"cpu": 1, "cuda": 100}


class TrainerRunner(Runner):
    """Whole steps of `vapo_fast.Trainer`: batch, loss, gradients, Adam, average, and the reading of the loss.

    Args:
        data: on the case's device. untimed, least: steps that are done first, and the least number that is timed; by
            device, for MLPs. options: of the trainer.
    """

    def __init__(
        self, model: vf.Potential, data: torch.Tensor, case: Case, untimed: int, least: int, **options: Any
    ) -> None:
        try:
            self.trainer = vf.Trainer(
                copy.deepcopy(model),
                batch_size=case.n,
                schedule="constant",
                **options,  # type: ignore[arg-type]
            )
        except UnsupportedJobError as error:
            raise UnavailableError(str(error)) from error
        self._data, self.device, self._untimed, self._least = data, case.device, untimed, least

    def run(self, repeats: int) -> Timings:
        steps = max(repeats, self._least)
        watch = Stopwatch(self.device, self._untimed)
        self.trainer.fit(self._data, self._untimed + steps, callbacks=(watch,))
        wait(self.device)
        seconds = time.perf_counter() - watch.begin
        return Timings([seconds / steps] * repeats, time.process_time() - watch.cpu)

    def outcome(self) -> Outcome:
        return Outcome()


def _prepare_sample(engine: str, problem: Problem) -> Runner:
    """`vapo_fast.sample` as a user calls it: checks, noise and solve."""
    case, potential = problem.case, problem.potential
    options = {} if case.rtol is None else {"rtol": case.rtol}
    sample = partial(vf.sample, potential, case.n, engine=engine, return_solution=True, **options)
    try:
        solution = sample()
    except UnsupportedJobError as error:
        raise UnavailableError(str(error)) from error
    if not isinstance(solution, Solution):
        raise TypeError(f"sample returned a {type(solution).__name__}")
    return LocalRunner(sample, lambda: outcome_of(solution), case.device)


def _engine_missing(name: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        state = vf.engines()[name]
        return None if state == "usable" else state

    return missing


def version() -> str:
    return f"vapo_fast {vf.__version__}"


def _arm(
    engine: str,
    devices: tuple[str, ...],
    prepare: Callable[[Problem], Runner],
    extra: str = "",
    jobs: tuple[str, ...] = JOBS,
    note: str = "",
) -> Arm:
    missing = _engine_missing(engine)
    return Arm(f"{engine} {extra}".strip(), False, jobs, "vapo_fast", prepare, missing, version, note, devices)


def _arms_of(engine: str, device: str) -> list[Arm]:
    """An engine of ours on the device where it is what everybody is compared with."""
    where, solves = (device,), ("solve",)
    others = [
        _arm(engine, where, partial(_prepare, engine, rtol_factor=factor), name, solves, "for ratios at equal error")
        for name, factor in OTHER_TOLERANCES.items()
    ]
    whole = "the whole call: checks and noise too"
    sample = _arm(engine, where, partial(_prepare_sample, engine), "vf.sample", solves, whole)
    return [_arm(engine, where, partial(_prepare, engine)), *others, sample]


ARMS = (
    *(arm for device, engine in OURS.items() for arm in _arms_of(engine, device)),
    _arm("reference", tuple(OURS), partial(_prepare, "reference"), note="for loss: eager double backward"),
)
