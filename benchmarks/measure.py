"""Measure the arms of a case together: interleaved rounds, paired ratios, and the error beside every time."""

from __future__ import annotations

import gc
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from benchmarks.cases import Case
from benchmarks.devices import usable, wait
from benchmarks.flops import field_flops, product_flops
from benchmarks.peers import arms_for
from benchmarks.peers.base import Arm, DisagreementError, Outcome, Runner, UnavailableError
from benchmarks.peers.jax_client import JAX_PRODUCT
from benchmarks.peers.machine import PEAK, PRODUCT, peak_flops
from benchmarks.spread import Error, Quartiles, paired_ratio, rotated
from benchmarks.workloads import ImageProblem, Problem, Workloads

# Threads that an arm leaves spinning go to sleep before the next one starts.
_PAUSE_SECONDS = 0.003
# No round runs an arm more often than this, however short it is.
_MOST_REPEATS = 500


@dataclass(frozen=True)
class Limits:
    """How long to measure.

    Attributes:
        rounds: interleaved rounds, at least 5. round_seconds: an arm shorter than this is repeated within a round, and
            the round's value is the median of the repeats. run_seconds: an arm one run of which takes longer is left
            out, with a line that says so. case_seconds: once a case has taken as long, no further arm but ours is made
            ready for it; those left out are named.
    """

    rounds: int = 7
    round_seconds: float = 0.1
    run_seconds: float = 60.0
    case_seconds: float = math.inf

    def __post_init__(self) -> None:
        if self.rounds < 5:
            raise ValueError(f"rounds must be at least 5 for a spread to mean anything, got {self.rounds}")


@dataclass(frozen=True)
class Measured:
    """One arm of one case.

    Attributes:
        rounds: seconds of each round. repeats: runs in a round. warmup_seconds: making ready, compilation included.
        cpu_per_wall: processors kept busy. outcome: of a run that was not timed. error: of its end states, or the
            relative error of a gradient as ``rms``. flops: operations of one run, where they are counted.
        peak_bytes: the most memory at once: on CUDA the allocator's, from before the arm is made ready to the end of
            its first run; on the CPU counted, where it is.
    """

    arm: str
    peer: bool
    version: str
    rounds: list[float]
    repeats: int
    warmup_seconds: float
    cpu_per_wall: float
    outcome: Outcome
    error: Error | None = None
    flops: int | None = None
    peak_bytes: int | None = None

    @property
    def seconds(self) -> Quartiles:
        """Of the rounds."""
        return Quartiles.of(self.rounds)


@dataclass(frozen=True)
class CaseResult:
    """All arms of a case, and why others are not among them; of images also the data, and the network's size."""

    case: Case
    arms: dict[str, Measured]
    skipped: dict[str, str] = field(default_factory=dict)
    data: str = ""
    parameters: int | None = None

    def ratio(self, arm: str, base: str) -> Quartiles | None:
        """How many times as long as ``base`` an arm took, paired by round; None if either was not measured."""
        if arm not in self.arms or base not in self.arms:
            return None
        return paired_ratio(self.arms[arm].rounds, self.arms[base].rounds)


def measure(
    case: Case,
    workloads: Workloads,
    limits: Limits,
    arms: Sequence[str] | None = None,
    say: Callable[[str], None] = print,
) -> CaseResult:
    """Measure a case with those arms, all or the named ones, that can do its job on its device.

    Raises: DisagreementError if an arm of ours computes something else. A peer that does is left out, by name.
    """
    reason = usable(case.device)
    if reason:
        raise UnavailableError(reason)
    torch.set_num_threads(case.threads)
    problem = workloads.problem(case)
    if case.job in ("solve", "solve_fixed", "sample"):
        _ = problem.reference  # made before anything is warm
    ready: dict[str, _Ready] = {}
    try:
        skipped = _make_all_ready(problem, limits, arms, ready, say)
        rounds, cpu = _interleave(ready, limits)
        measured = {name: _measured(name, ready[name], rounds[name], cpu[name], problem) for name in ready}
    finally:
        for one in ready.values():
            one.runner.close()
        # What was compiled and captured goes before the next case's memory is asked for.
        problem.shared.clear()
        if "torch._dynamo" in sys.modules:  # which is slow to import
            torch.compiler.reset()
        _free(case.device)
    if isinstance(problem, ImageProblem):
        return CaseResult(case, measured, skipped, problem.data_name, problem.parameters)
    return CaseResult(case, measured, skipped)


@dataclass(frozen=True)
class _Ready:
    arm: Arm
    runner: Runner
    warmup_seconds: float
    repeats: int
    peak_bytes: int | None = None


def _make_all_ready(
    problem: Problem | ImageProblem,
    limits: Limits,
    names: Sequence[str] | None,
    ready: dict[str, _Ready],
    say: Callable[[str], None],
) -> dict[str, str]:
    """Make the arms ready, into ``ready``; why others are not among them."""
    case, begin, skipped = problem.case, time.perf_counter(), dict[str, str]()
    for arm in arms_for(case, names):
        try:
            reason = arm.missing()
            if reason:
                raise UnavailableError(reason)
            if time.perf_counter() - begin > limits.case_seconds and arm.name not in (case.ours, PEAK):
                raise UnavailableError(f"the case's {limits.case_seconds:.0f} s are up")
            ready[arm.name] = _make_ready(arm, problem, limits)
        except Exception as error:
            if isinstance(error, DisagreementError) and not arm.peer:
                raise
            # One arm's trouble, such as a peer that runs out of memory, must not cost the others their hours.
            reason = str(error) if isinstance(error, UnavailableError) else f"{type(error).__name__}: {error}"
            skipped[arm.name] = _one_line(reason or type(error).__name__)
            say(f"  skipped {arm.name}: {skipped[arm.name]}")
            del error
            _free(case.device)
    return skipped


def _make_ready(arm: Arm, problem: Problem | ImageProblem, limits: Limits) -> _Ready:
    device = problem.case.device
    before = _reset_peak(device)
    begin = time.perf_counter()
    runner = arm.prepare(problem)
    (once,) = runner.run(1).seconds
    warmup = time.perf_counter() - begin
    peak = None if before is None else torch.cuda.max_memory_allocated() - before
    if once <= 2 * limits.run_seconds:
        # The first warm run, which also tells how often to repeat.
        (once,) = runner.run(1).seconds
    if once > limits.run_seconds:
        runner.close()
        raise UnavailableError(f"one run took {once:.0f} s, over the limit of {limits.run_seconds:.0f} s")
    repeats = max(1, min(_MOST_REPEATS, round(limits.round_seconds / once)))
    return _Ready(arm, runner, warmup, repeats, peak)


def _reset_peak(device: str) -> int | None:
    if device != "cuda":
        return None
    wait(device)
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _free(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def _one_line(text: str, longest: int = 160) -> str:
    line = text.splitlines()[0]
    return line if len(line) <= longest else line[: longest - 3] + "..."


def _interleave(ready: Mapping[str, _Ready], limits: Limits) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each round for every arm, and the processors that each kept busy."""
    names = list(ready)
    values: dict[str, list[float]] = {name: [] for name in names}
    cpu, wall = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    # What exists now is not looked through again: collecting between arms then takes next to no time. Within an arm the
    # collector stays on, as it is for users.
    gc.collect()
    gc.freeze()
    try:
        for i in range(limits.rounds):
            # Each round starts with another arm, so that none always follows the same one.
            for name in rotated(names, i):
                gc.collect()
                time.sleep(_PAUSE_SECONDS)
                timings = ready[name].runner.run(ready[name].repeats)
                values[name].append(statistics.median(timings.seconds))
                cpu[name] += timings.cpu_seconds
                wall[name] += sum(timings.seconds)
    finally:
        gc.unfreeze()
    return values, {name: cpu[name] / wall[name] for name in names if wall[name]}


def _measured(name: str, one: _Ready, rounds: list[float], cpu: float, problem: Problem | ImageProblem) -> Measured:
    case, outcome, arm = problem.case, one.runner.outcome(), one.arm
    error = outcome.error if isinstance(problem, ImageProblem) else _error(outcome, problem)
    flops = None
    if name == JAX_PRODUCT or (name == PRODUCT and case.device == "cpu"):
        flops = product_flops()
    elif name == PEAK:
        flops = peak_flops(case.threads)
    elif case.job == "field":
        flops = field_flops(case.n, case.dimension, case.widths)
    peak = one.runner.peak_bytes() if one.peak_bytes is None else one.peak_bytes
    version = one.runner.version or arm.version()
    took = one.warmup_seconds
    return Measured(name, arm.peer, version, rounds, one.repeats, took, cpu, outcome, error, flops, peak)


def _error(outcome: Outcome, problem: Problem) -> Error | None:
    """Of the end states, of the gradient relative to its norm, or of the field relative to its largest entry."""
    if outcome.x is not None:
        return Error.of(outcome.x, problem.reference)
    if outcome.gradient is not None:
        exact = problem.exact_gradient
        relative = float(np.linalg.norm(outcome.gradient - exact) / np.linalg.norm(exact))
        return Error(relative, relative, relative)
    if outcome.field is not None:
        exact = problem.exact_field[: len(outcome.field)]
        return Error.of_rows(np.abs(outcome.field - exact).max(axis=1) / np.abs(exact).max())
    return None


def default_cache() -> Path:
    """Where trained potentials and float64 solutions are kept unless told otherwise; git ignores it."""
    return Path(__file__).resolve().parent.parent / "out" / "benchmarks"
