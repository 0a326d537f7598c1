"""Replays of a recorded step until few enough samples run: a loop in C++, or its short twin in Python.

Each replay ends by copying two numbers to pinned memory: how many samples run, and how many of these need more than one
step more. The loop reads them after every lot of replays. A second lot is launched before the first has ended only if
some sample is known to need it. So the queue does not run dry in the middle of a solve, and no evaluation is computed
in vain at its end.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vapo_fast.core import extension
from vapo_fast.ode.masked_state import ROWS_WITH_MORE_STEPS, RUNNING_ROWS

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
"""The CUDA driver, which the extension opens at run time."""
UNKNOWN = (1 << 63) - 1
"""How many rows run, before the first look."""

_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
_MONITOR_SECONDS = 0.05
_SPIN_SECONDS, _NAP_SECONDS = 200e-6, 50e-6

Monitor = Callable[[int], None]


@dataclass(frozen=True)
class Replays:
    """What to launch, and until when.

    Attributes:
        graph: an instantiated CUDA graph. stream: where it is launched; the current one.
        flags: (2,) int64 in pinned memory that each replay ends by writing (`State.flags`).
        every: replays between two looks at them.
        stop_at: how many rows may run at the end. most: replays at most.
    """

    graph: torch.cuda.CUDAGraph
    stream: torch.cuda.Stream
    flags: Tensor
    every: int
    stop_at: int
    most: int


def replay(replays: Replays, monitor: Monitor | None = None) -> tuple[int, int]:
    """Launch until no more than ``stop_at`` rows run: (rows that run, launches, some of which may be under way).

    Args:
        monitor: told the number of rows that run, or `UNKNOWN`, twenty times a second at most. It may raise, as Ctrl-C
            does.
    Raises:
        RuntimeError, torch.OutOfMemoryError: the driver's. After any exception nothing is under way.
    """
    loop = in_extension if extension.unavailable_reason() is None else in_python
    return loop(replays, monitor)


def in_extension(replays: Replays, monitor: Monitor | None, library: str = LIBRARY) -> tuple[int, int]:
    """`replay` in C++, without the interpreter's lock."""
    native = extension.load()
    try:
        running, launched = native.replay(
            library,
            graph=replays.graph.raw_cuda_graph_exec(),
            stream=replays.stream.cuda_stream,
            flags=replays.flags.data_ptr(),
            every=replays.every,
            stop_at=replays.stop_at,
            most=replays.most,
            monitor=monitor,
        )
    except native.DriverError as error:
        function, name, code = error.args
        kind = torch.OutOfMemoryError if code == _OUT_OF_MEMORY else RuntimeError
        raise kind(f"{function} failed: {name} ({code})") from None
    return running, launched


def in_python(
    replays: Replays, monitor: Monitor | None, new_event: Callable[[], torch.cuda.Event] = torch.cuda.Event
) -> tuple[int, int]:
    """`replay` for installations without the extension; PyTorch's calls release the interpreter's lock."""
    tell = _now_and_then(monitor)
    waiting: deque[torch.cuda.Event] = deque()
    launched, running, more_than_one_step_left = 0, UNKNOWN, 0
    try:
        free = [new_event(), new_event()]
        while True:
            # The first lot is needed; a second one only if some sample needs more than that.
            while len(waiting) < (2 if more_than_one_step_left > 0 else 1) and launched < replays.most:
                for _ in range(min(replays.every, replays.most - launched)):
                    replays.graph.replay()
                    launched += 1
                waiting.append(free.pop())
                waiting[-1].record(replays.stream)
            if not waiting:
                return running, launched
            begin = time.monotonic()
            while not waiting[0].query():  # type: ignore[no-untyped-call]
                tell(running)
                if time.monotonic() - begin >= _SPIN_SECONDS:
                    time.sleep(_NAP_SECONDS)
            free.append(waiting.popleft())
            running = int(replays.flags[RUNNING_ROWS])
            more_than_one_step_left = int(replays.flags[ROWS_WITH_MORE_STEPS])
            tell(running)
            if running <= replays.stop_at:
                return running, launched
    except BaseException:
        # What is under way writes memory that the caller may now give up. The first error is the one to tell.
        with contextlib.suppress(RuntimeError):
            replays.stream.synchronize()
        raise


def _now_and_then(monitor: Monitor | None) -> Monitor:
    """The monitor, called at most so often."""
    told = time.monotonic()

    def tell(running: int) -> None:
        nonlocal told
        now = time.monotonic()
        if monitor is not None and now - told >= _MONITOR_SECONDS:
            told = now
            monitor(running)

    return tell
