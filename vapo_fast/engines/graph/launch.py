"""How a program runs: from Python, op by op, and by a recording once it has run a few times.

The runs before a recording are not wasted: they are the solve's own steps, and prepare what must not happen while a
program is recorded (compiled kernels, libraries' workspaces).
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from vapo_fast.ode.masked_state import RUNNING_ROWS

Report = Callable[[int], None]
"""Told now and then how many rows run, or a larger number where that is not known."""


Recording = Callable[[], None]
"""A program that is run again, without Python, by a call."""


class Loop(Protocol):
    """A program that can be repeated without Python."""

    def until(self, stop_at: int, most: int, report: Report | None) -> tuple[int, int]:
        """Run it until no more than ``stop_at`` rows run, at most ``most`` times: (rows that run, runs)."""


class Recorder(Protocol):
    """Makes recordings; all of them run one after the other, in a context of its own.

    A program is launched by a call, which is not run. Both raise RuntimeError if it cannot be recorded, and
    torch.OutOfMemoryError.
    """

    def context(self) -> AbstractContextManager[None]:
        """Where programs run, recorded or not."""

    def record(self, call: Callable[[], None]) -> Recording:
        """A program that is run once now and then."""

    def loop(self, call: Callable[[], None], flags: Tensor) -> Loop:
        """A program that is repeated; each run ends by writing `State.flags`."""


Made = TypeVar("Made")


class Launcher:
    """Runs programs by key; those that came often are recorded."""

    WARM_RUNS = 2
    """Runs from Python before a program is recorded."""
    MOST_RECORDINGS = 24
    """Of each kind."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._refused = False
        self._recordings: OrderedDict[Hashable, Recording] = OrderedDict()
        self._loops: OrderedDict[Hashable, Loop] = OrderedDict()
        self._warm: dict[Hashable, int] = {}

    def forget(self) -> None:
        """Drop all recordings: the memory that they work on has moved."""
        self._recordings.clear()
        self._loops.clear()
        self._warm.clear()

    def once(self, key: Hashable, call: Callable[[], None]) -> None:
        """Run a program."""
        recording = self._recorded(self._recordings, key, lambda recorder: recorder.record(call))
        if recording is None:
            self._run(key, call)
        else:
            recording()

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
            loop = self._recorded(self._loops, key, lambda recorder: recorder.loop(call, flags))
            if loop is not None:
                running, more = loop.until(stop_at, most - runs, report)
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

    def _recorded(
        self, known: OrderedDict[Hashable, Made], key: Hashable, make: Callable[[Recorder], Made]
    ) -> Made | None:
        """What is recorded of a program, now if it is due; None if it is to run from Python."""
        if key in known:
            known.move_to_end(key)
            return known[key]
        if self._refused or self._warm.get(key, 0) < self.WARM_RUNS:
            return None
        try:
            made = make(self._recorder)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._refused = True
            warnings.warn(
                f"this model's field cannot be a CUDA graph, so it is launched op by op: {error}", stacklevel=2
            )
            return None
        known[key] = made
        if len(known) > self.MOST_RECORDINGS:
            known.popitem(last=False)
        return made
