"""Training batches that the device draws for itself, so that a captured training step contains its own batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vapo_fast.core import triton_support
from vapo_fast.loss import Batch
from vapo_fast.noise import Stream
from vapo_fast.training.batches import Batches


class DeviceBatches:
    """The batches of `Batches`, to the bit, where the rows lie on the device: the step is a number there.

    A call only launches work, and reads nothing of the host's, so it can be recorded as part of a CUDA graph. Orders of
    epochs are made by `prepare`, when a step needs another one.
    """

    def __init__(self, batches: Batches, rows: Tensor) -> None:
        self._batches, self._rows = batches, rows
        size, count, device = batches.batch_size, len(rows), batches.device
        # A batch may begin at any row of an epoch, and span the ends of several.
        self._order = torch.empty((size + count - 2) // count + 1, count, dtype=torch.int64, device=device)
        self._epochs: list[int | None] = [None] * len(self._order)
        self._row = torch.arange(size, device=device)
        self._key = batches.seed & 0xFFFFFFFF, batches.seed >> 32

    @staticmethod
    def of(batches: Batches) -> DeviceBatches | None:
        """Those of a run whose data is a tensor on its GPU; None where the host has to do something for a batch."""
        rows = batches.source.held
        if rows is None or rows.device != batches.device or not draws_on(batches.device):
            return None
        if batches.part is not None or batches.augment is not None:
            return None
        return DeviceBatches(batches, rows)

    def prepare(self, step: int) -> None:
        """Make the orders of the epochs that a step's batch reads, if they are not there; nobody waits for them."""
        from vapo_fast.kernels.noise import permutation

        size, count = self._batches.batch_size, len(self._rows)
        for epoch in range(step * size // count, ((step + 1) * size - 1) // count + 1):
            place = epoch % len(self._epochs)
            if self._epochs[place] != epoch:
                number = torch.full((1,), epoch, dtype=torch.int64, device=self._order.device)
                self._order[place].copy_(permutation(self._key, count, number, int(Stream.DATA_ORDER)))
                self._epochs[place] = epoch

    def __call__(self, step: Tensor) -> Batch:
        """The batch of a 0-based step, a 0-dim int64 on the device, for which `prepare` was called."""
        from vapo_fast.kernels import noise as kernels

        b, count = self._batches, len(self._rows)
        samples = step * b.batch_size + self._row
        epoch = samples // count
        places = epoch % len(self._epochs) * count + samples - epoch * count
        x_data = self._rows.index_select(0, self._order.view(-1).index_select(0, places)).to(b.dtype)
        jitter = kernels.uniform(self._key, samples, 1, int(Stream.TRAIN_TIME), torch.float64)[:, 0]
        strata = kernels.permutation(self._key, b.batch_size, step.reshape(1), int(Stream.TRAIN_TIME))
        t = b.times(strata, jitter).to(b.dtype)
        shape = self._rows.shape[1:]
        draws = kernels.normal(self._key, samples, math.prod(shape), int(Stream.TRAIN_NOISE), b.dtype)
        return Batch(x_data, t, draws.reshape(b.batch_size, *shape))


def draws_on(device: torch.device) -> bool:
    """Whether the kernels that draw run on a device."""
    return device.type == "cuda" and triton_support.unavailable_reason(device) is None
