"""Training batches: batch k of a run is a function of (seed, k) alone, whichever trainer asks for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sized
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from vapo_fast import _checks, noise
from vapo_fast._threads import one_thread
from vapo_fast.homotopy import Homotopy
from vapo_fast.noise import Stream

Data = str | Tensor | Dataset[object] | DataLoader[object]


class Batch(NamedTuple):
    """What one training step sees: data points (B, *event), times (B,), standard normal noise (B, *event)."""

    x_data: Tensor
    t: Tensor
    noise: Tensor

    def split(self, parts: int) -> list[Batch]:
        """Consecutive micro-batches, ``parts`` of them, whose sizes differ by at most one."""
        pieces = (torch.tensor_split(value, parts) for value in self)
        return [Batch(*piece) for piece in zip(*pieces, strict=True)]


class Source(ABC):
    """A stream of data rows: step k of a run takes the rows [k B, (k + 1) B)."""

    @abstractmethod
    def rows(self, step: int, batch_size: int, seed: int) -> Tensor:
        """The (B, *event) rows of a step, floating point, on whatever device the data lives."""


def training_batch(
    source: Source,
    step: int,
    *,
    homotopy: Homotopy,
    seed: int,
    batch_size: int,
    time_sampling: str,
    device: torch.device,
    dtype: torch.dtype,
) -> Batch:
    """The batch of a 0-based step.

    Row i is sample ``k = step * batch_size + i`` of the run. Its noise is draw k of the stream TRAIN_NOISE. Times are
    stratified: row i has ``u = (s_i + v_k) / batch_size``, where v_k is draw k of TRAIN_TIME and s a permutation of the
    batch that changes with the step, so that no row of an ordered data source keeps to one range of times. With
    time_sampling "log_noise", u is uniform in ln beta from t0 to t1; with "uniform", in the path's time.
    """
    x_data = to_device(source.rows(step, batch_size, seed), device).to(dtype)
    samples = range(step * batch_size, (step + 1) * batch_size)
    jitter = noise.uniform(seed, samples, (1,), stream=Stream.TRAIN_TIME, dtype=torch.float64)[:, 0]
    strata = noise.permutation(seed, batch_size, step, stream=Stream.TRAIN_TIME)
    with one_thread():
        u = (strata + jitter) / batch_size
        if time_sampling == "log_noise":
            t = homotopy.time_at_noise_position(2.0 * u - 1.0)
        else:
            t = homotopy.t0 + u * (homotopy.t1 - homotopy.t0)
    draws = noise.normal(seed, samples, tuple(x_data.shape[1:]), stream=Stream.TRAIN_NOISE, dtype=dtype, device=device)
    return Batch(x_data, to_device(t.to(dtype), device), draws)


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """A copy on a device that nobody waits for: from ordinary memory, CUDA would first finish all its work."""
    if device.type != "cuda" or host.device.type != "cpu":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


def as_source(data: Data, event_shape: tuple[int, ...], *, seed: int = 0) -> Source:
    """Check ``data`` and make it a stream of rows.

    Args:
        data: a tensor (N, *event); a map-style Dataset or a DataLoader whose items are tensors, or tuples that start
            with one (labels are ignored); or a name that `vapo_fast.data.load` knows.
        event_shape: what each row must look like.
        seed: for generated data sets, the seed of their samples.
    Raises:
        TypeError: another type, or integer data. ValueError: no rows, another shape, NaN or infinite entries (a tensor
            is checked in full here; other data sets one batch at a time, through the loss).
    A DataLoader keeps its own order, batch after batch, regrouped to the trainer's batch size; a run resumed with one
    is bit-exact only if the loader itself starts where it should.
    """
    if isinstance(data, str):
        from vapo_fast.data import load

        data = cast(Dataset[object], load(data, seed=seed))
    if isinstance(data, TensorDataset):
        data = data.tensors[0]
    if isinstance(data, Tensor):
        if len(_checks.batch_of_events("data", data, event_shape)) == 0:
            raise ValueError(f"data is empty: shape {tuple(data.shape)}; at least one row is needed")
        return _TensorSource(_checks.all_finite("data", data.detach()))
    if isinstance(data, DataLoader):
        return _LoaderSource(data, event_shape)
    if isinstance(data, IterableDataset):
        raise TypeError("data is an IterableDataset, whose rows cannot be indexed; pass a DataLoader over it")
    if isinstance(data, Dataset):
        return _DatasetSource(data, event_shape)
    raise TypeError(
        "data must be a tensor (N, *event), a torch Dataset or DataLoader, or the name of a data set, "
        f"got {type(data).__name__}"
    )


class _Shuffled(Source):
    """Rows by number: each epoch is its own permutation of the data, a batch may span the end of one."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._order: tuple[int, int, Tensor] | None = None

    @abstractmethod
    def take(self, indices: Tensor) -> Tensor:
        """Rows with these numbers."""

    def rows(self, step: int, batch_size: int, seed: int) -> Tensor:
        pieces, first, end = [], step * batch_size, (step + 1) * batch_size
        while first < end:
            epoch, offset = divmod(first, self.count)
            stop = min(self.count, offset + end - first)
            pieces.append(self._epoch_order(seed, epoch)[offset:stop])
            first += stop - offset
        return self.take(pieces[0] if len(pieces) == 1 else torch.cat(pieces))

    def _epoch_order(self, seed: int, epoch: int) -> Tensor:
        if self._order is None or self._order[:2] != (seed, epoch):
            self._order = (seed, epoch, noise.permutation(seed, self.count, epoch, stream=Stream.DATA_ORDER))
        return self._order[2]


class _TensorSource(_Shuffled):
    def __init__(self, data: Tensor) -> None:
        super().__init__(len(data))
        self.data = data

    def take(self, indices: Tensor) -> Tensor:
        return self.data.index_select(0, to_device(indices, self.data.device))


class _DatasetSource(_Shuffled):
    def __init__(self, data: object, event_shape: tuple[int, ...]) -> None:
        if not isinstance(data, Sized):
            raise TypeError(f"data ({type(data).__name__}) has no length; pass a DataLoader over it")
        if len(data) == 0:
            raise ValueError(f"data ({type(data).__name__}) is empty; at least one row is needed")
        super().__init__(len(data))
        self.data = data
        self.event_shape = event_shape
        self.take(torch.zeros(1, dtype=torch.int64))

    def take(self, indices: Tensor) -> Tensor:
        batch = getattr(self.data, "batch", None)
        if callable(batch):
            return _checks.batch_of_events("data.batch(...)", batch(indices), self.event_shape)
        rows = [_row(self.data[i], f"data[{i}]") for i in indices.tolist()]  # type: ignore[index]
        for i, row in zip(indices.tolist(), rows, strict=True):
            _checks.batch_of_events(f"data[{i}][None]", row[None], self.event_shape)
        return torch.stack(rows)


class _LoaderSource(Source):
    """Rows in a DataLoader's own order; epochs follow each other for ever."""

    def __init__(self, loader: DataLoader[object], event_shape: tuple[int, ...]) -> None:
        self.loader = loader
        self.event_shape = event_shape
        self._batches: Iterator[object] = iter(())
        self._left: list[Tensor] = []

    def rows(self, step: int, batch_size: int, seed: int) -> Tensor:
        while (have := sum(map(len, self._left))) < batch_size:
            self._left.append(self._next())
        joined = torch.cat(self._left)
        self._left = [joined[batch_size:]] if have > batch_size else []
        return joined[:batch_size]

    def _next(self) -> Tensor:
        try:
            item = next(self._batches)
        except StopIteration:
            self._batches = iter(self.loader)
            try:
                item = next(self._batches)
            except StopIteration:
                raise ValueError(
                    "data is a DataLoader that gives no batches (empty, or drop_last removed the only one)"
                ) from None
        return _checks.batch_of_events(
            "a batch of the DataLoader", _row(item, "a batch of the DataLoader"), self.event_shape
        )


def _row(item: object, name: str) -> Tensor:
    """The tensor of an item that is one or, with labels, starts with one."""
    if isinstance(item, (tuple, list)) and item:
        item = item[0]
    if not isinstance(item, Tensor):
        raise TypeError(f"{name} must be a tensor, or a tuple that starts with one, got {type(item).__name__}")
    return item
