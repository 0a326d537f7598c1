"""Recordings without CUDA, which repeat their call, and the graph engine with them on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from vapo_fast.engines import GraphEngine, Job
from vapo_fast.engines.graph.launch import Loop, Recorder, Report
from vapo_fast.engines.graph.recorded import Recorded
from vapo_fast.engines.stepper import Stepper
from vapo_fast.ode.masked_state import RUNNING_ROWS
from vapo_fast.potentials import Potential


class Repeated(Loop):
    """A "recording" of a call: calls it again, and looks at the flags only now and then, as a replay loop does."""

    def __init__(self, recorder: RepeatingRecorder, call: Callable[[], None], flags: Tensor | None) -> None:
        self.recorder, self.call, self.flags = recorder, call, flags

    def __call__(self) -> None:
        self.recorder.replays += 1
        self.call()

    def until(self, stop_at: int, most: int, report: Report | None) -> tuple[int, int]:
        assert self.flags is not None
        runs, running = 0, stop_at + 1
        while running > stop_at and runs < most:
            for _ in range(min(self.recorder.every, most - runs)):
                self()
                runs += 1
            running = int(self.flags[RUNNING_ROWS])
            if report is not None:
                report(running)
        return running, runs


class RepeatingRecorder(Recorder):
    """Makes `Repeated`; counts them and what they do.

    Args:
        every: replays between two looks at the flags.
        error, errors: how many recordings fail at first, and with what.
    """

    def __init__(self, every: int = 1, error: Exception | None = None, errors: int = 0) -> None:
        self.every, self.error, self.errors = every, error, errors
        self.records, self.replays, self.inside = 0, 0, 0

    @contextmanager
    def context(self) -> Iterator[None]:
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    def record(self, call: Callable[[], None]) -> Repeated:
        return self._made(call, None)

    def loop(self, call: Callable[[], None], flags: Tensor) -> Repeated:
        return self._made(call, flags)

    def _made(self, call: Callable[[], None], flags: Tensor | None) -> Repeated:
        assert self.inside == 1
        if self.errors and self.error is not None:
            self.errors -= 1
            raise self.error
        self.records += 1
        return Repeated(self, call, flags)


class RecordedOnCpu(GraphEngine):
    """The graph engine as it is on CUDA, on CPU tensors: any module, in recorded steps.

    Args:
        most_rows: as for `Recorded`.
    """

    def __init__(self, most_rows: int = 1 << 20) -> None:
        super().__init__(Recorded(most_rows, lambda device: RepeatingRecorder()))

    @property
    def recorded(self) -> Recorded:
        assert isinstance(self._stepper, Recorded)
        return self._stepper

    def stepper_on(self, device: torch.device) -> Stepper:
        return self._stepper

    def supports(self, potential: Potential, device: torch.device, dtype: torch.dtype, job: Job) -> str | None:
        return super().supports(potential, torch.device("cuda"), dtype, job)
