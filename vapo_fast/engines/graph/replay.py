"""Replays of a recorded step until few enough samples run: in the extension, or the same in Python.

Launches go ahead of what is known. Each replay ends by copying two numbers to pinned memory: how many samples run, and
how many of these will take more than one step more. A lot of replays that is under way is followed by a second one only
if the latest news is that some sample needs it, so that the queue does not run dry in the middle of a solve and nothing
is computed in vain at its end.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from vapo_fast.core import extension
from vapo_fast.engines.graph.driver import LIBRARY, DriverError, Library, out_of_memory_as_pytorchs

UNKNOWN = (1 << 63) - 1
"""How many rows run, before the first look."""
_NOT_READY = 600
_DISABLE_TIMING = 0x2
_MONITOR_SECONDS = 0.05
_SPIN_SECONDS, _NAP_SECONDS = 200e-6, 50e-6

Monitor = Callable[[int], None]


@dataclass(frozen=True)
class Replays:
    """What to launch, and until when.

    Attributes:
        graph, stream: handles of an instantiated CUDA graph, and of the stream.
        flags: address of two int64 that each replay ends by writing: rows that run, rows that are far from their end.
        every: replays between two looks at them.
        stop_at: how many rows may run at the end. most: replays at most.
    """

    graph: int
    stream: int
    flags: int
    every: int
    stop_at: int
    most: int


def replay(replays: Replays, monitor: Monitor | None = None, library: str = LIBRARY) -> tuple[int, int]:
    """Launch until no more than ``stop_at`` rows run: (rows that run, launches, some of which may be under way).

    Args:
        monitor: told the number of rows that run, or `UNKNOWN`, twenty times a second at most; it may raise, as Ctrl-C
            does.
        library: the CUDA driver.
    Raises:
        DriverError, torch.OutOfMemoryError: the driver's. After any exception nothing is under way.
    """
    with out_of_memory_as_pytorchs():
        if extension.unavailable_reason() is None:
            return in_extension(replays, monitor, library)
        return in_python(replays, monitor, library)


def in_extension(replays: Replays, monitor: Monitor | None, library: str) -> tuple[int, int]:
    """`replay` in C++, without the interpreter's lock."""
    native = extension.load()
    try:
        running, launched = native.replay(library, **vars(replays), monitor=monitor)
    except native.DriverError as error:
        raise DriverError(*error.args) from None
    return running, launched


def in_python(replays: Replays, monitor: Monitor | None, library: str) -> tuple[int, int]:
    """`replay` in Python."""
    return _Loop(_Driver(library), replays, monitor).run()


class _Driver(Library):
    """The functions that replays take; DriverError for any that fails or is missing."""

    def __init__(self, library: str) -> None:
        super().__init__(library)
        pointer = ctypes.c_void_p
        self._create = self.function("cuEventCreate", ctypes.POINTER(pointer), ctypes.c_uint)
        self._destroy = self.function("cuEventDestroy_v2", pointer)
        self._record = self.function("cuEventRecord", pointer, pointer)
        self._query = self.function("cuEventQuery", pointer)
        self._launch = self.function("cuGraphLaunch", pointer, pointer)
        self._synchronize = self.function("cuStreamSynchronize", pointer)

    def create_event(self) -> ctypes.c_void_p:
        event = ctypes.c_void_p()
        self.check("cuEventCreate", self._create(ctypes.byref(event), _DISABLE_TIMING))
        return event

    def destroy_event(self, event: ctypes.c_void_p) -> None:
        self._destroy(event)

    def launch(self, graph: int, stream: int) -> None:
        self.check("cuGraphLaunch", self._launch(graph, stream))

    def record(self, event: ctypes.c_void_p, stream: int) -> None:
        self.check("cuEventRecord", self._record(event, stream))

    def is_done(self, event: ctypes.c_void_p) -> bool:
        code = self._query(event)
        if code != _NOT_READY:
            self.check("cuEventQuery", code)
        return bool(code != _NOT_READY)

    def wait(self, stream: int) -> None:
        self.check("cuStreamSynchronize", self._synchronize(stream))


class _Loop:
    """The loop of ``csrc/graph/replay.cpp``, step by step."""

    def __init__(self, driver: _Driver, replays: Replays, monitor: Monitor | None) -> None:
        self._driver, self._replays, self._monitor = driver, replays, monitor
        self._flags = (ctypes.c_int64 * 2).from_address(replays.flags)
        self._free: list[ctypes.c_void_p] = []
        self._waiting: deque[ctypes.c_void_p] = deque()
        # Nothing is known: no sample has ended.
        self._launched, self._running, self._far = 0, UNKNOWN, 0
        self._told = time.monotonic()

    def run(self) -> tuple[int, int]:
        try:
            for _ in range(2):
                self._free.append(self._driver.create_event())
            return self._until_done()
        except BaseException:
            # What is under way writes memory that the caller may now give up.
            with contextlib.suppress(DriverError):  # the first error is the one to tell
                self._driver.wait(self._replays.stream)
            raise
        finally:
            for event in (*self._free, *self._waiting):
                self._driver.destroy_event(event)

    def _until_done(self) -> tuple[int, int]:
        replays = self._replays
        while True:
            # The first lot is needed; a second one only if some sample needs more than that.
            allowed = 2 if self._far > 0 else 1
            while len(self._waiting) < allowed and self._launched < replays.most:
                self._launch()
            if not self._waiting:
                return self._running, self._launched
            self._wait()
            if self._running <= replays.stop_at:
                return self._running, self._launched

    def _launch(self) -> None:
        replays = self._replays
        for _ in range(min(replays.every, replays.most - self._launched)):
            self._driver.launch(replays.graph, replays.stream)
            self._launched += 1
        event = self._free.pop()
        self._waiting.append(event)
        self._driver.record(event, replays.stream)

    def _wait(self) -> None:
        begin = time.monotonic()
        while not self._driver.is_done(self._waiting[0]):
            now = time.monotonic()
            self._tell(now)
            if now - begin >= _SPIN_SECONDS:
                time.sleep(_NAP_SECONDS)
        self._free.append(self._waiting.popleft())
        self._running, self._far = self._flags[0], self._flags[1]
        self._tell(time.monotonic())

    def _tell(self, now: float) -> None:
        if now - self._told < _MONITOR_SECONDS:
            return
        self._told = now
        if self._monitor is not None:
            self._monitor(self._running)
