"""Recordings as CUDA graphs, on a stream of their own and with one pool of memory for all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from vapo_fast.engines.graph.launch import Loop, Recorder, Recording, Report
from vapo_fast.engines.graph.replay import Replays, replay

# Looks at the flags are this far apart at least, in seconds: each costs the host some microseconds.
_BETWEEN_LOOKS = 200e-6
_MOST_BETWEEN_LOOKS = 16


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
        return self._capture(call).replay

    def loop(self, call: Callable[[], None], flags: Tensor) -> Loop:
        """A CUDA graph of a call, which ends by copying the flags to pinned memory, and the loop of its replays."""

        def told() -> None:
            call()
            self._flags.copy_(flags, non_blocking=True)

        return ReplayLoop(self._capture(told), self._stream, self._flags)

    def _capture(self, call: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on allocating and copying while this one records.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            call()
        return graph


class ReplayLoop(Loop):
    """One CUDA graph that the host launches again and again."""

    def __init__(self, graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, flags: Tensor) -> None:
        self._graph, self._stream, self._flags = graph, stream, flags
        self._every = 1

    def until(self, stop_at: int, most: int, report: Report | None) -> tuple[int, int]:
        replays = Replays(self._graph, self._stream, self._flags, self._every, stop_at, most)
        begin = time.perf_counter()
        running, launched = replay(replays, report)
        self._every = every((time.perf_counter() - begin) / launched)
        return running, launched


def every(seconds: float) -> int:
    """How many replays of so many seconds to launch between two looks at the flags."""
    return max(1, min(_MOST_BETWEEN_LOOKS, math.ceil(_BETWEEN_LOOKS / max(seconds, 1e-9))))
