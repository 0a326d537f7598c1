"""Who runs a program: Python, op by op, or a recording of it, which is made once it has run a few times.

The runs before a recording are not wasted: they are the solve's own steps, and prepare what must not happen while a
program is recorded (compiled kernels, libraries' workspaces).
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from vapo_fast.graph.state import RUNNING_ROWS

Report = Callable[[int], None]
"""Told now and then how many rows run."""


class Recording(Protocol):
    """A program that can be run again without Python."""

    def once(self) -> None:
        """Run it."""

    def until(self, stop_at: int, most: int, report: Report | None) -> tuple[int, int]:
        """Run it until no more than ``stop_at`` rows run, at most ``most`` times: (rows that run, runs)."""


class Recorder(Protocol):
    """Makes recordings; all of them run one after the other, in a context of its own."""

    def context(self) -> AbstractContextManager[None]:
        """Where programs run, recorded or not."""

    def record(self, call: Callable[[], None], flags: Tensor) -> Recording:
        """A program, as launched by ``call``, which is not run; it ends by telling the host ``State.flags``.

        Raises: RuntimeError if it cannot be recorded; torch.OutOfMemoryError.
        """


class Launcher:
    """Runs programs by key; those that came often are recorded, if there is a recorder.

    Args:
        recorder: None to run everything from Python.
    """

    WARM_RUNS = 2
    """Runs from Python before a program is recorded."""
    MOST_RECORDINGS = 24

    def __init__(self, recorder: Recorder | None = None) -> None:
        self._recorder = recorder
        self._refused = False
        self._recordings: OrderedDict[Hashable, Recording] = OrderedDict()
        self._warm: dict[Hashable, int] = {}

    def forget(self) -> None:
        """Drop all recordings: the memory that they work on has moved."""
        self._recordings.clear()
        self._warm.clear()

    def once(self, key: Hashable, call: Callable[[], None], flags: Tensor) -> None:
        """Run a program."""
        recording = self._recording(key, call, flags)
        if recording is None:
            self._run(key, call)
        else:
            recording.once()

    def until(
        self,
        key: Hashable,
        call: Callable[[], None],
        flags: Tensor,
        stop_at: int,
        most: int,
        report: Report | None,
    ) -> tuple[int, int]:
        """Run a program until no more than ``stop_at`` rows run, at most ``most`` times: (rows that run, runs)."""
        running, runs = stop_at + 1, 0
        while runs < most and running > stop_at:
            recording = self._recording(key, call, flags)
            if recording is not None:
                running, more = recording.until(stop_at, most - runs, report)
                return running, runs + more
            self._run(key, call)
            runs += 1
            running = int(flags[RUNNING_ROWS])
            if report is not None:
                report(running)
        return running, runs

    def _run(self, key: Hashable, call: Callable[[], None]) -> None:
        call()
        self._warm[key] = self._warm.get(key, 0) + 1

    def _recording(self, key: Hashable, call: Callable[[], None], flags: Tensor) -> Recording | None:
        if key in self._recordings:
            self._recordings.move_to_end(key)
            return self._recordings[key]
        if self._recorder is None or self._refused or self._warm.get(key, 0) < self.WARM_RUNS:
            return None
        try:
            recording = self._recorder.record(call, flags)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._refused = True
            warnings.warn(
                f"this model's field cannot be a CUDA graph, so it is launched op by op: {error}", stacklevel=2
            )
            return None
        self._recordings[key] = recording
        if len(self._recordings) > self.MOST_RECORDINGS:
            self._recordings.popitem(last=False)
        return recording
