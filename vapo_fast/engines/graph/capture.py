"""Recordings as CUDA graphs, on a stream of their own and with one pool of memory for all of them.

A step is repeated in one of two ways: the host launches its graph again and again, looking at numbers that it leaves
(`CudaRecorder`), or a WHILE node on the device does (`WhileRecorder`).
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from vapo_fast.engines.graph.driver import DriverError
from vapo_fast.engines.graph.launch import Loop, Recorder, Recording, Report
from vapo_fast.engines.graph.replay import Replays, replay
from vapo_fast.engines.graph.while_graph import Mailbox, WhileGraph, WhileUnavailableError

# Looks at the flags are this far apart at least, in seconds: each costs the host some microseconds.
_BETWEEN_LOOKS = 200e-6
_MOST_BETWEEN_LOOKS = 16
# So long the device may go on by itself: the host sees Ctrl-C, and tells how far the solve is, between two launches.
_LOOP_SECONDS = 0.05
_MOST_STEPS = 1 << 16


class CudaRecorder(Recorder):
    """Records what is launched on a CUDA device.

    All recordings run one after the other on this recorder's stream and leave nothing behind in their pool, which they
    can therefore share: it holds the activations of the largest batch, once.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._flags = torch.zeros(2, dtype=torch.int64, pin_memory=True)

    @contextmanager
    def context(self) -> Iterator[None]:
        """The recorder's stream, between what the caller's stream has done and what it does next."""
        outside = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(outside)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            outside.wait_stream(self._stream)

    def record(self, call: Callable[[], None]) -> Recording:
        """A CUDA graph of a call."""
        return CudaRecording(self._capture(torch.cuda.CUDAGraph(), call))

    def loop(self, call: Callable[[], None], flags: Tensor) -> Loop:
        """A CUDA graph of a call, which ends by copying the flags to pinned memory, and the loop of its replays."""

        def told() -> None:
            call()
            self._flags.copy_(flags, non_blocking=True)

        return ReplayLoop(self._capture(torch.cuda.CUDAGraph(), told), self._stream, self._flags)

    def _capture(self, graph: torch.cuda.CUDAGraph, call: Callable[[], None]) -> torch.cuda.CUDAGraph:
        # Other threads may go on allocating and copying while this one records.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            call()
        return graph


class WhileRecorder(CudaRecorder):
    """The same, with loops that the device repeats by itself; what it cannot is replayed, with one warning."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._mailbox = Mailbox.on(device)
        self._unavailable = False

    def loop(self, call: Callable[[], None], flags: Tensor) -> Loop:
        """A WHILE node around a call, or else the loop of its replays."""
        if not self._unavailable:
            try:
                graph = self._capture(torch.cuda.CUDAGraph(keep_graph=True), call)
                return WhileLoop(graph, self._stream, flags, self._mailbox)
            except (DriverError, WhileUnavailableError) as error:
                self._unavailable = True
                warnings.warn(
                    f"steps are launched one by one, since the device cannot repeat them: {error}", stacklevel=2
                )
        return super().loop(call, flags)


class CudaRecording(Recording):
    """One CUDA graph."""

    def __init__(self, graph: torch.cuda.CUDAGraph) -> None:
        self._graph = graph

    def once(self) -> None:
        self._graph.replay()


class ReplayLoop(Loop):
    """One CUDA graph that the host launches again and again."""

    def __init__(self, graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, flags: Tensor) -> None:
        self._graph, self._stream, self._flags = graph, stream, flags
        self._every = 1

    def until(self, stop_at: int, most: int, report: Report | None) -> tuple[int, int]:
        replays = Replays(
            self._graph.raw_cuda_graph_exec(),
            self._stream.cuda_stream,
            self._flags.data_ptr(),
            self._every,
            stop_at,
            most,
        )
        begin = time.perf_counter()
        running, launched = replay(replays, report)
        seconds = (time.perf_counter() - begin) / launched
        self._every = every(seconds)
        return running, launched


class WhileLoop(Loop):
    """One CUDA graph that the device repeats: as many launches as it takes steps of some hundredths of a second.

    Args:
        graph: recorded and kept; its memory is what the loop works on. stream: of the launches.
        flags: (2,) int64 on the device, written by each step. mailbox: of the recorder.
    Raises: as `WhileGraph`.
    """

    def __init__(self, graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, flags: Tensor, mailbox: Mailbox) -> None:
        self._graph, self._stream, self._mailbox = graph, stream, mailbox
        self._repeated = WhileGraph(graph.raw_cuda_graph(), flags, mailbox)
        self._most = 1

    def until(self, stop_at: int, most: int, report: Report | None) -> tuple[int, int]:
        launch = Replays(
            self._repeated.handle, self._stream.cuda_stream, self._mailbox.flags, every=1, stop_at=stop_at, most=1
        )
        running, steps = stop_at + 1, 0
        while running > stop_at and steps < most:
            self._mailbox.ask(stop_at, min(self._most, most - steps))
            begin = time.perf_counter()
            running, _ = replay(launch, report)
            made = self._mailbox.steps
            if made == 0 and running > stop_at:
                raise RuntimeError(f"the device made no step although {running} samples run")
            self._most = most_steps((time.perf_counter() - begin) / max(1, made))
            steps += made
            if report is not None:
                report(running)
        return running, steps


def every(seconds: float) -> int:
    """How many replays of so many seconds to launch between two looks at the flags."""
    return max(1, min(_MOST_BETWEEN_LOOKS, math.ceil(_BETWEEN_LOOKS / max(seconds, 1e-9))))


def most_steps(seconds: float) -> int:
    """How many steps of so many seconds the device may make by itself."""
    return max(1, min(_MOST_STEPS, math.floor(_LOOP_SECONDS / max(seconds, 1e-9))))
