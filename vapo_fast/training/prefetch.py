"""Batches prepared ahead of their use, in order, by one thread."""

from __future__ import annotations

import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch

from vapo_fast.training.batches import Source

Item = TypeVar("Item")

_DEFAULT_AHEAD = 2
# A thread cannot be stopped inside a data set's read; it is then left to end by itself.
_PATIENCE_SECONDS = 10.0


def batches_ahead(prefetch: int | None, source: Source, device: torch.device) -> int:
    """How many batches to prepare ahead: ``prefetch``, by default 2 for an accelerator and none for the CPU.

    On the CPU preparation and computation share the processor: a thread gains there only while it waits for a disk.
    Rows that lie on an accelerator are never asked for by another thread.
    """
    if source.held_on is not None and source.held_on.type != "cpu":
        return 0
    if prefetch is not None:
        return prefetch
    return 0 if device.type == "cpu" else _DEFAULT_AHEAD


@contextmanager
def prepared(
    draw: Callable[[int], Item], steps: range, ahead: int, device: torch.device
) -> Iterator[Callable[[int], Item]]:
    """Gives the function to call for the item of each of ``steps`` in turn: ``draw(step)``, at most ``ahead`` early.

    An error of ``draw`` is raised by the call for its step, after all items before it were given out. Leaving the block
    ends the thread. With ``ahead`` 0 there is none. ``device`` is the one that the items are for.
    """
    if ahead == 0:
        yield draw
        return
    ahead_of = _Prefetcher(draw, steps, ahead, device)
    try:
        yield ahead_of.take
    finally:
        ahead_of.close()


class _Prefetcher(Generic[Item]):
    def __init__(self, draw: Callable[[int], Item], steps: range, ahead: int, device: torch.device) -> None:
        self._draw = draw
        self._steps = steps
        self._ahead = ahead
        self._device = device
        self._ready: deque[Item] = deque()
        self._error: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()
        # A daemon, so that a read that never ends does not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="vapo_fast prefetch", daemon=True)
        self._thread.start()

    def take(self, step: int) -> Item:
        """The item of the next step; the error that making it raised, if it did."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._error is not None)
            if not self._ready and self._error is not None:
                raise self._error
            item = self._ready.popleft()
            self._changed.notify_all()
        return item

    def close(self) -> None:
        """End the thread and forget what was not taken."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join(_PATIENCE_SECONDS)
        if self._thread.is_alive():
            warnings.warn(
                "the thread that prepares batches is still reading data; it ends when that read does", stacklevel=4
            )

    def _run(self) -> None:
        if self._device.type == "cuda":
            # A thread begins on the first GPU, where pinning memory would make another context.
            torch.cuda.set_device(self._device)
        for step in self._steps:
            with self._changed:
                # Room first and then the work: nothing is read that may never be wanted, beyond what was asked for.
                self._changed.wait_for(lambda: self._closed or len(self._ready) < self._ahead)
                if self._closed:
                    return
            try:
                item = self._draw(step)
            except BaseException as error:  # for the caller to raise
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            with self._changed:
                self._ready.append(item)
                self._changed.notify_all()
