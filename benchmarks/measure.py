"""Measure the arms of a case together: interleaved rounds, paired ratios, and the error beside every time."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

import vapo_fast as vf
from benchmarks.cases import JOBS, Case
from benchmarks.devices import usable
from benchmarks.flops import PRODUCT_SIZE, field_flops, product_flops, product_shapes
from benchmarks.peers import ARMS
from benchmarks.peers.base import Arm, DisagreementError, LocalRunner, Outcome, Runner, UnavailableError
from benchmarks.peers.jax_client import JAX_PRODUCT
from benchmarks.workloads import Problem, Workloads
from vapo_fast.core import extension

PRODUCT = "matrix product"
"""The arm of a field's case that measures the machine: a square float32 product in PyTorch; on CUDA, cuBLAS's float32
products of the field's own shapes, one after the other."""
PEAK = "multiply-adds in registers"
"""The arm of every case on the CPU that measures its limit: the multiply-adds of our kernels, without any memory."""
# A run of it, in thousands of multiply-adds for each chain: some milliseconds.
_PEAK_TURNS = 1000
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
class Quartiles:
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Quartiles:
        """Of at least two values."""
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return Quartiles(median, low, high)


@dataclass(frozen=True)
class Error:
    """Distance from the float64 solution: root mean square over a sample's coordinates, for the samples compared."""

    rms: float
    median: float
    largest: float

    @staticmethod
    def of(x: np.ndarray, reference: np.ndarray) -> Error:
        """Of the first rows of x (n, d), as many as ``reference`` has."""
        rows = np.sqrt(np.square(x[: len(reference)] - reference).mean(axis=1))
        return Error(float(np.sqrt(np.square(rows).mean())), float(np.median(rows)), float(rows.max()))


@dataclass(frozen=True)
class Measured:
    """One arm of one case.

    Attributes:
        rounds: seconds of each round. repeats: runs in a round. warmup_seconds: making ready, compilation included.
        cpu_per_wall: processors kept busy. outcome: of a run that was not timed. error: of its end states, or the
            relative error of a gradient as ``rms``. flops: operations of one run, where they are counted.
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

    @property
    def seconds(self) -> Quartiles:
        """Of the rounds."""
        return Quartiles.of(self.rounds)


@dataclass(frozen=True)
class CaseResult:
    """All arms of a case, and why others are not among them."""

    case: Case
    arms: dict[str, Measured]
    skipped: dict[str, str] = field(default_factory=dict)

    def ratio(self, arm: str, base: str | None = None) -> Quartiles | None:
        """How many times as long as ``base`` (default: `Case.ours`) an arm took, paired by round; None if either was
        not measured."""
        base = base or self.case.ours
        if arm not in self.arms or base not in self.arms:
            return None
        return paired_ratio(self.arms[arm].rounds, self.arms[base].rounds)


def paired_ratio(values: Sequence[float], bases: Sequence[float]) -> Quartiles:
    """Quartiles of the ratios of values taken in the same rounds: what a machine's moods do to both cancels."""
    return Quartiles.of([value / base for value, base in zip(values, bases, strict=True)])


def measure(
    case: Case,
    workloads: Workloads,
    limits: Limits,
    arms: Sequence[str],
    say: Callable[[str], None] = print,
) -> CaseResult:
    """Measure a case with those of the named arms that can do its job on its device.

    Raises: DisagreementError if an arm of ours computes something else. A peer that does is left out, by name.
    """
    reason = usable(case.device)
    if reason:
        raise UnavailableError(reason)
    torch.set_num_threads(case.threads)
    problem = workloads.problem(case)
    if case.job in ("solve", "solve_fixed", "sample"):
        _ = problem.reference  # made before anything is warm
    begin = time.perf_counter()
    ready: dict[str, _Ready] = {}
    skipped: dict[str, str] = {}
    try:
        for arm in arms_for(case, arms):
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
        rounds, cpu = _interleave(ready, limits)
        measured = {name: _measured(name, ready[name], rounds[name], cpu[name], problem) for name in ready}
    finally:
        for one in ready.values():
            one.runner.close()
    return CaseResult(case, measured, skipped)


def _one_line(text: str, longest: int = 160) -> str:
    line = text.splitlines()[0]
    return line if len(line) <= longest else line[: longest - 3] + "..."


@dataclass(frozen=True)
class _Ready:
    arm: Arm
    runner: Runner
    warmup_seconds: float
    repeats: int


def arms_for(case: Case, names: Sequence[str]) -> list[Arm]:
    """Those of the named arms that do a case's job on its device, and what measures the machine beside them."""
    chosen = [ARMS[name] for name in names if case.job in ARMS[name].jobs and case.device in ARMS[name].devices]
    products = [_product_arm()] if case.job == "field" else []
    peaks = [_peak_arm(case.threads)] if case.device == "cpu" else []
    return [*chosen, *products, *peaks]


def _make_ready(arm: Arm, problem: Problem, limits: Limits) -> _Ready:
    begin = time.perf_counter()
    runner = arm.prepare(problem)
    (once,) = runner.run(1).seconds
    warmup = time.perf_counter() - begin
    if once <= 2 * limits.run_seconds:
        # The first warm run, which also tells how often to repeat.
        (once,) = runner.run(1).seconds
    if once > limits.run_seconds:
        runner.close()
        raise UnavailableError(f"one run took {once:.0f} s, over the limit of {limits.run_seconds:.0f} s")
    repeats = max(1, min(_MOST_REPEATS, round(limits.round_seconds / once)))
    return _Ready(arm, runner, warmup, repeats)


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


def rotated(names: Sequence[str], by: int) -> list[str]:
    """The names, starting with another one."""
    start = by % len(names) if names else 0
    return [*names[start:], *names[:start]]


def _measured(name: str, one: _Ready, rounds: list[float], cpu: float, problem: Problem) -> Measured:
    case, outcome = problem.case, one.runner.outcome()
    error, flops = None, None
    if outcome.x is not None:
        error = Error.of(outcome.x, problem.reference)
    elif outcome.gradient is not None:
        exact = problem.exact_gradient
        relative = float(np.linalg.norm(outcome.gradient - exact) / np.linalg.norm(exact))
        error = Error(relative, relative, relative)
    elif outcome.field is not None:
        exact = problem.exact_field[: len(outcome.field)]
        rows = np.abs(outcome.field - exact).max(axis=1) / np.abs(exact).max()
        error = Error(float(np.sqrt(np.square(rows).mean())), float(np.median(rows)), float(rows.max()))
    if name == JAX_PRODUCT or (name == PRODUCT and case.device == "cpu"):
        flops = product_flops()
    elif name == PEAK:
        flops = peak_flops(case.threads)
    elif case.job == "field":
        flops = field_flops(case.n, case.dimension, case.widths)
    arm = one.arm
    version = one.runner.version or arm.version()
    return Measured(name, arm.peer, version, rounds, one.repeats, one.warmup_seconds, cpu, outcome, error, flops)


def _product_arm() -> Arm:
    def square(problem: Problem) -> Runner:
        a, b = torch.ones(2, PRODUCT_SIZE, PRODUCT_SIZE)
        out = torch.empty_like(a)
        return LocalRunner(lambda: torch.mm(a, b, out=out), Outcome)

    def of_the_field(problem: Problem) -> Runner:
        if torch.get_float32_matmul_precision() != "highest":
            raise UnavailableError("float32 products are set to be computed with less precision")
        case, products = problem.case, []
        for rows, inner, columns in product_shapes(case.n, case.dimension, case.widths):
            a, b = (torch.randn(shape, device=problem.device) for shape in ((rows, inner), (inner, columns)))
            products.append((a, b, torch.empty(rows, columns, device=problem.device)))

        def call() -> None:
            for a, b, out in products:
                torch.mm(a, b, out=out)

        return LocalRunner(call, Outcome, case.device)

    def prepare(problem: Problem) -> Runner:
        return (square if problem.case.device == "cpu" else of_the_field)(problem)

    return Arm(PRODUCT, False, ("field",), "torch", prepare, lambda: None, lambda: f"torch {torch.__version__}")


def peak_flops(threads: int) -> int:
    """Operations of a run of the arm `PEAK`."""
    from vapo_fast._native_testing import rates  # built for development only

    return int(rates.multiply_adds(extension.chosen_instruction_set(), _PEAK_TURNS, threads))


def _peak_arm(threads: int) -> Arm:
    def prepare(problem: Problem) -> Runner:
        return LocalRunner(lambda: peak_flops(threads), Outcome)

    reason = extension.unavailable_reason
    return Arm(PEAK, False, JOBS, "vapo_fast", prepare, reason, lambda: f"vapo_fast {vf.__version__}")


def default_cache() -> Path:
    """Where trained potentials and float64 solutions are kept unless told otherwise; git ignores it."""
    return Path(__file__).resolve().parent.parent / "out" / "benchmarks"
