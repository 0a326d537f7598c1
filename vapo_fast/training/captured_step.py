"""A training step that the host does not wait for, on CUDA one graph, and the watch that finds out if one failed."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vapo_fast.loss import Batch
from vapo_fast.training.device_batches import DeviceBatches

Update = Callable[[Batch, Tensor, Tensor], Tensor]
"""One step on the device: (batch, step number (), EMA decay ()) to the numbers that the host may read."""


class DeferredStep:
    """A training step that the host does not wait for: learning rate, decay and step number are on the device too.

    A step whose numbers are not finite, and every one after it, must change nothing; the host learns of it when it next
    reads. If its work can be captured, the whole step (with the batch, where ``draws`` are given) becomes one CUDA
    graph after `EAGER_STEPS` ordinary ones, and is launched by one call from then on. What ``update`` reads and writes
    must stay where it is.

    Args:
        update: does one step, without a host read.
        optimizer: the one that ``update`` steps; it is given a learning rate on the device.
        like: a 0-dim tensor of the model's dtype and on its device.
        capturable: whether ``update`` only launches work on the device.
        draws: where given, batches are drawn on the device, and none is passed.
    """

    EAGER_STEPS = 2
    """Kernels are compiled and the optimiser's state is made before anything is captured."""

    def __init__(
        self,
        update: Update,
        optimizer: torch.optim.Optimizer,
        like: Tensor,
        *,
        capturable: bool,
        draws: DeviceBatches | None = None,
    ) -> None:
        self.draws = draws
        self._update = update
        self._device = like.device
        self._rate = torch.zeros_like(like, dtype=torch.float32)
        self._decay = torch.zeros_like(like)
        self._step = torch.zeros_like(like, dtype=torch.int64)
        on_cuda = like.device.type == "cuda"
        self._eager_left = self.EAGER_STEPS if capturable and on_cuda else None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: Batch | None = None
        self._values = torch.empty(0)
        for group in optimizer.param_groups:
            group["lr"] = self._rate
            group["capturable"] = on_cuda

    @property
    def captured(self) -> bool:
        """Whether a step is one launch, of which all may be done or nothing."""
        return self._graph is not None

    def __call__(self, batch: Batch | None, step: int, rate: float, decay: float) -> Tensor:
        """The 0-based ``step``; the numbers of it, on the device."""
        self._rate.fill_(rate)
        self._decay.fill_(decay)
        self._step.fill_(step)
        if self.draws is not None:
            self.draws.prepare(step)
        if self._graph is None and self._eager_left == 0:
            self._capture(batch)
        if self._graph is not None:
            return self._replay(self._graph, batch)
        if self._eager_left is not None:
            self._eager_left -= 1
        return self._run(batch)

    def _run(self, batch: Batch | None) -> Tensor:
        if self.draws is not None:
            batch = self.draws(self._step)
        elif batch is None:
            raise RuntimeError("a step without a batch")
        return self._update(batch, self._step, self._decay)

    def _capture(self, batch: Batch | None) -> None:
        """Record the step, on copies of a batch that is given, or go on without a graph and say why."""
        self._batch = None if batch is None else Batch(*(part.clone() for part in batch))
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads, such as the one that pins batches ahead and NCCL's own, may go on with theirs.
            stream = _capture_stream(self._device)
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self._values = self._run(self._batch)
        except RuntimeError as error:
            self._eager_left = None
            warnings.warn(
                f"the training step cannot be a CUDA graph, so it is launched op by op: {error}", stacklevel=5
            )
            return
        self._graph = graph

    def _replay(self, graph: torch.cuda.CUDAGraph, batch: Batch | None) -> Tensor:
        for place, part in zip(self._batch or (), batch or (), strict=True):
            place.copy_(part)
        graph.replay()
        return self._values.clone()


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """A stream of this device: PyTorch's own one for graphs is of the device that it first recorded on."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class FiniteWatch:
    """Notes, on the device, the first step whose numbers are not finite, for the host to ask about later.

    ``names`` say what each number is.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.names = list(names)
        self.device = device
        self.reset()

    def reset(self) -> None:
        """Forget a failure."""
        self._failed = torch.zeros((), dtype=torch.bool, device=self.device)
        self._bad = torch.zeros(len(self.names), dtype=torch.bool, device=self.device)
        self._step = torch.zeros((), dtype=torch.int64, device=self.device)

    def update(self, step: int | Tensor, numbers: Tensor) -> Tensor:
        """Look at a step's numbers, (len(names),); returns a 0-dim bool: whether this or an earlier step failed."""
        # In place: a captured step goes on with the same memory.
        bad = ~torch.isfinite(numbers)
        first = bad.any() & ~self._failed
        self._bad.copy_(torch.where(first, bad, self._bad))
        self._step.copy_(torch.where(first, step, self._step))
        self._failed.logical_or_(first)
        return self._failed

    def failure(self) -> tuple[int, str] | None:
        """The 0-based step and the name of its first bad number, or None. Waits for the device."""
        if not bool(self._failed):
            return None
        return int(self._step), self.names[int(self._bad.nonzero()[0])]
