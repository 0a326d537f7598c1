"""What an arm of a benchmark is: a way of doing a job, made ready for one case."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.devices import timer, wait
from benchmarks.peak_memory import peak_bytes
from benchmarks.plain_field import PlainField
from benchmarks.spread import Error
from benchmarks.workloads import Problem

# Largest relative difference between an arm's float32 field or gradient and the float64 one.
_FIELD_TOLERANCE = 2e-4
ALONE_ROWS = 16
"""Rows whose field is checked one at a time as well."""


class UnavailableError(Exception):
    """The arm cannot run here, or cannot do this case; the message says why."""


class DisagreementError(Exception):
    """The arm computes something else than the potential's field, so its time means nothing."""


@dataclass(frozen=True)
class Timings:
    """Wall seconds of each repeat, and processor seconds of all of them together, in every thread."""

    seconds: list[float]
    cpu_seconds: float


@dataclass(frozen=True)
class Outcome:
    """What a job came to, from one run that is not timed as a whole.

    Attributes:
        x: (n, d) end states of a solve, float64. evaluations: (n,) or () field evaluations of each sample. steps: (n,)
            or () steps tried. failed: samples that did not reach the end.
        field_share: part of this run's time that was spent in the field; where that cannot be seen from outside it is
            ``field_estimated``: the field alone for this batch, timed just before, times the evaluations.
        gradient: all parameter gradients of a loss in one vector. field: (m, d) grad Phi of the first rows of a batch.
        precision: of the products, where the arm tells. error: where the arm takes it itself, as arms of images do,
            whose results are too large to be kept.
    """

    x: np.ndarray | None = None
    evaluations: np.ndarray | None = None
    steps: np.ndarray | None = None
    failed: int = 0
    field_share: float | None = None
    field_estimated: bool = False
    gradient: np.ndarray | None = None
    field: np.ndarray | None = None
    precision: str = ""
    error: Error | None = None


class Runner(ABC):
    """An arm that is ready: compiled, warm and checked for one case.

    Attributes:
        version: of what runs, if that is not what `Arm.version` says.
    """

    version: str | None = None

    @abstractmethod
    def run(self, repeats: int) -> Timings:
        """Do the job so many times."""

    @abstractmethod
    def outcome(self) -> Outcome:
        """Do it once more and look at the result."""

    def peak_bytes(self) -> int | None:
        """The most memory that a run takes at once on the CPU, from a run of its own; None where it is not counted."""
        return None

    def close(self) -> None:
        """Give back what the runner holds."""
        return


class LocalRunner(Runner):
    """Runs in this process: ``call`` is timed; ``look`` runs it again, untimed, and tells what came of it.

    ``counted``: whether its memory is counted.
    """

    def __init__(
        self, call: Callable[[], object], look: Callable[[], Outcome], device: str = "cpu", counted: bool = False
    ) -> None:
        self._call, self._look, self._seconds, self._counted = call, look, timer(device), counted

    def run(self, repeats: int) -> Timings:
        cpu = time.process_time()
        seconds = [self._seconds(self._call) for _ in range(repeats)]
        return Timings(seconds, time.process_time() - cpu)

    def outcome(self) -> Outcome:
        return self._look()

    def peak_bytes(self) -> int | None:
        return peak_bytes(self._call) if self._counted else None


@dataclass(frozen=True)
class Arm:
    """A way of doing jobs.

    Attributes:
        name: as it stands in tables; of images with the precision of the network's products, if that is not float32,
            as in ``graph, bf16``. peer: whether it is what a user could pick instead of vapo_fast.
        jobs: kinds of `Case` that it does. package: the distribution whose version is recorded.
        prepare: makes a runner for a problem; may raise `UnavailableError`. missing: None, or why it cannot run here.
        note: what a reader must know to judge the number. devices: those whose cases it runs.
    """

    name: str
    peer: bool
    jobs: tuple[str, ...]
    package: str
    prepare: Callable[[Any], Runner]
    missing: Callable[[], str | None]
    version: Callable[[], str]
    note: str = ""
    devices: tuple[str, ...] = ("cpu",)


def arm_of(
    package: str,
    name: str,
    jobs: tuple[str, ...],
    prepare: Callable[[Any], Runner],
    note: str = "",
    devices: tuple[str, ...] = ("cpu", "cuda"),
    *needs: Callable[[], str | None],
) -> Arm:
    """A peer that is a package installed here; ``needs`` say what else is missing."""

    def missing() -> str | None:
        return next((reason for need in (package_missing(package), *needs) if (reason := need())), None)

    return Arm(name, True, jobs, package, prepare, missing, package_version(package), note, devices)


def median_seconds(call: Callable[[], object], repeats: int = 5, device: str = "cpu") -> float:
    """Median time of a call."""
    return statistics.median(LocalRunner(call, Outcome, device).run(repeats).seconds)


def to_numpy(values: Tensor | np.ndarray) -> np.ndarray:
    """In float64, from any device."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=np.float64)


def package_missing(package: str) -> Callable[[], str | None]:
    """A check that a package can be imported here."""

    def missing() -> str | None:
        return None if importlib.util.find_spec(package) else f"{package} is not installed: make bench-peers"

    return missing


def package_version(package: str) -> Callable[[], str]:
    """A reader of an installed distribution's version."""
    return lambda: f"{package} {importlib.metadata.version(package)}"


def compiler_missing() -> str | None:
    """None, or why torch.compile cannot work here: it writes C++, which the system's compiler builds."""
    found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    return None if found else "torch.compile needs a C++ compiler"


class Meter:
    """A field that counts its evaluations and adds up their time."""

    def __init__(self, field: Callable[[Tensor, Tensor | float], Tensor], device: str = "cpu") -> None:
        self._field, self._device, self.calls = field, device, 0
        self._seconds, self._events = 0.0, list[tuple[torch.cuda.Event, torch.cuda.Event]]()

    def __call__(self, x: Tensor, t: Tensor | float) -> Tensor:
        self.calls += 1
        if self._device == "cuda":
            # Without waiting, which would change what is being measured.
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            values = self._field(x, t)
            end.record()
            self._events.append((begin, end))
            return values
        start = time.perf_counter()
        try:
            return self._field(x, t)
        finally:
            self._seconds += time.perf_counter() - start

    @property
    def seconds(self) -> float:
        """Spent in the field so far."""
        wait(self._device)
        return self._seconds + sum(1e-3 * begin.elapsed_time(end) for begin, end in self._events)


def check_field(arm: str, values: Tensor | np.ndarray, problem: Problem) -> None:
    """DisagreementError if grad Phi of the first rows, as many as given, is not the potential's, in float64."""
    _check(arm, "field", to_numpy(values), problem.exact_field[: len(values)])


def check_gradient(arm: str, values: np.ndarray, problem: Problem) -> None:
    """DisagreementError if a loss's gradient is not the one computed in float64."""
    _check(arm, "gradient of the loss", to_numpy(values), problem.exact_gradient)


def checked_plain_field(arm: str, problem: Problem) -> PlainField:
    """The plain field of a problem, once it is known to be the potential's."""
    field = PlainField(problem.weights, problem.device)
    rows = len(problem.exact_field)
    check_field(arm, field(problem.x0[:rows], problem.times[:rows]), problem)
    alone = torch.cat([field(problem.x0[i : i + 1], float(problem.times[i])) for i in range(min(rows, ALONE_ROWS))])
    check_field(arm, alone, problem)
    return field


def _check(arm: str, what: str, values: np.ndarray, exact: np.ndarray) -> None:
    if values.shape != exact.shape:
        raise DisagreementError(f"{arm}: the {what} has shape {values.shape}, not {exact.shape}")
    error = float(np.abs(values - exact).max() / np.abs(exact).max())
    if not error <= _FIELD_TOLERANCE:
        raise DisagreementError(
            f"{arm}: the {what} differs from the float64 one by {error:.2g} of its largest entry, "
            f"over {_FIELD_TOLERANCE:g}"
        )
