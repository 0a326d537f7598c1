"""Training batches: batch k of a run is a function of (seed, k) alone, whichever trainer asks for it."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, TensorDataset

from vapo_fast import noise
from vapo_fast.core import checks
from vapo_fast.core.threads import one_thread
from vapo_fast.core.transfer import pinned, to_device
from vapo_fast.homotopy import Homotopy
from vapo_fast.loss import Batch
from vapo_fast.noise import Stream
from vapo_fast.training.augment import augmented

Data = str | Tensor | Dataset[object] | DataLoader[object]


class Source(ABC):
    """A stream of data rows: step k of a run takes the rows [k B, (k + 1) B).

    Attributes:
        held_on: the device of rows that lie in memory, else None. held: these rows (N, *event), if batches are taken
            from them by `vapo_fast.noise.permutation`, one for each epoch.
        digest: a 32-bit checksum of all rows of the step last asked for, if only a part of them was and they come
            in an order that is not this library's; else 0.
    """

    held_on: torch.device | None = None
    held: Tensor | None = None
    digest: int = 0

    @abstractmethod
    def rows(self, step: int, batch_size: int, seed: int, part: range | None = None) -> Tensor:
        """The (B, *event) rows of a step, floating point, on whatever device the data lives.

        ``part`` asks for rows ``part.start`` to ``part.stop - 1`` of them only.
        """

    def describe(self) -> str:
        """Words by which processes find out whether they were given the same data, as far as can be told at once."""
        return type(self).__name__.removeprefix("_")


class Drawn(NamedTuple):
    """What the host does for a batch: rows (B, *event), times (B,), noise if the CPU makes it, `Source.digest`."""

    x_data: Tensor
    t: Tensor
    noise: Tensor | None
    digest: int


@dataclass(frozen=True)
class Batches:
    """The batches of a run.

    Row i of the batch of step k is sample ``s = k * batch_size + i`` of the run. Its noise is draw s of the stream
    TRAIN_NOISE. Times are stratified: row i has ``u = (p_i + v_s) / batch_size``, where v_s is draw s of TRAIN_TIME and
    p a permutation of the batch that changes with the step, so that no row of an ordered data source keeps to one range
    of times. With time_sampling "log_noise", u is uniform in ln beta from t0 to t1; with "uniform", in the path's time.
    Sample s is augmented by draw s of AUGMENT.

    Attributes:
        part: the rows of each batch that this process computes; None for all of them.
        Others: as in `vapo_fast.training.options.TrainingOptions`; device and dtype are the model's.
    """

    source: Source
    homotopy: Homotopy
    seed: int
    batch_size: int
    time_sampling: str
    device: torch.device
    dtype: torch.dtype
    augment: str | None = None
    part: range | None = None

    def __call__(self, step: int) -> Batch:
        """The batch of a 0-based step."""
        return self.place(step, self.draw(step))

    def draw(self, step: int) -> Drawn:
        """The host's share of the work, which any thread may do; steps must be asked for in order."""
        rows = self.source.rows(step, self.batch_size, self.seed, self.part)
        samples = self._samples(step)
        jitter = noise.uniform(self.seed, samples, (1,), stream=Stream.TRAIN_TIME, dtype=torch.float64)[:, 0]
        strata = noise.permutation(self.seed, self.batch_size, step, stream=Stream.TRAIN_TIME)
        if self.part is not None:
            strata = strata[self.part.start : self.part.stop]
        with one_thread():
            t = self.times(strata, jitter)
        draws = self._noise(step, rows) if self.device.type == "cpu" else None
        return Drawn(pinned(rows, self.device), pinned(t.to(self.dtype), self.device), draws, self.source.digest)

    def times(self, strata: Tensor, jitter: Tensor) -> Tensor:
        """float64 times (B,), from each row's place among the strata and its uniform draw in float64."""
        u = (strata + jitter) / self.batch_size
        if self.time_sampling == "log_noise":
            return self.homotopy.time_at_noise_position(2.0 * u - 1.0)
        return self.homotopy.t0 + u * (self.homotopy.t1 - self.homotopy.t0)

    def place(self, step: int, drawn: Drawn) -> Batch:
        """What the host drew for a step, on the device, with the device's share of the work done."""
        x_data = augmented(
            to_device(drawn.x_data, self.device).to(self.dtype), self.augment, self.seed, self._samples(step)
        )
        draws = self._noise(step, x_data) if drawn.noise is None else drawn.noise
        return Batch(x_data, to_device(drawn.t, self.device), draws)

    def _samples(self, step: int) -> range:
        part = range(self.batch_size) if self.part is None else self.part
        return range(step * self.batch_size + part.start, step * self.batch_size + part.stop)

    def _noise(self, step: int, rows: Tensor) -> Tensor:
        shape = tuple(rows.shape[1:])
        return noise.normal(
            self.seed, self._samples(step), shape, stream=Stream.TRAIN_NOISE, dtype=self.dtype, device=self.device
        )


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
    augment: str | None = None,
) -> Batch:
    """The batch of a 0-based step; see `Batches`."""
    return Batches(source, homotopy, seed, batch_size, time_sampling, device, dtype, augment)(step)


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
    is bit-exact only if the loader itself starts where it should. Every process of a data-parallel run reads all of it
    and uses its own rows.
    """
    if isinstance(data, str):
        from vapo_fast.data import load

        data = cast(Dataset[object], load(data, seed=seed))
    if isinstance(data, TensorDataset):
        data = data.tensors[0]
    if isinstance(data, Tensor):
        if len(checks.batch_of_events("data", data, event_shape)) == 0:
            raise ValueError(f"data is empty: shape {tuple(data.shape)}; at least one row is needed")
        return _TensorSource(checks.all_finite("data", data.detach()))
    if isinstance(data, DataLoader):
        if isinstance(data.sampler, DistributedSampler):
            raise ValueError(
                "data is a DataLoader with a DistributedSampler, which gives each process other rows; pass the loader "
                "without it, alike in every process: each reads the whole stream and takes its own rows of every batch"
            )
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

    def rows(self, step: int, batch_size: int, seed: int, part: range | None = None) -> Tensor:
        part = range(batch_size) if part is None else part
        pieces, first, end = [], step * batch_size + part.start, step * batch_size + part.stop
        while first < end:
            epoch, offset = divmod(first, self.count)
            stop = min(self.count, offset + end - first)
            pieces.append(self._epoch_order(seed, epoch)[offset:stop])
            first += stop - offset
        return self.take(pieces[0] if len(pieces) == 1 else torch.cat(pieces))

    def describe(self) -> str:
        return f"{self.count} rows"

    def _epoch_order(self, seed: int, epoch: int) -> Tensor:
        if self._order is None or self._order[:2] != (seed, epoch):
            self._order = (seed, epoch, noise.permutation(seed, self.count, epoch, stream=Stream.DATA_ORDER))
        return self._order[2]


class _TensorSource(_Shuffled):
    def __init__(self, data: Tensor) -> None:
        super().__init__(len(data))
        self.data = self.held = data
        self.held_on = data.device

    def take(self, indices: Tensor) -> Tensor:
        return self.data.index_select(0, to_device(indices, self.data.device))

    def describe(self) -> str:
        few = self.take(torch.arange(0, self.count, max(1, self.count // 16)))
        return f"{super().describe()} with the checksum {_checksum(few):08x}"


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
            return checks.batch_of_events("data.batch(...)", batch(indices), self.event_shape)
        rows = [_row(self.data[i], f"data[{i}]") for i in indices.tolist()]  # type: ignore[index]
        for i, row in zip(indices.tolist(), rows, strict=True):
            checks.batch_of_events(f"data[{i}][None]", row[None], self.event_shape)
        return torch.stack(rows)


class _LoaderSource(Source):
    """Rows in a DataLoader's own order; epochs follow each other without end."""

    def __init__(self, loader: DataLoader[object], event_shape: tuple[int, ...]) -> None:
        self.loader = loader
        self.event_shape = event_shape
        self._batches: Iterator[object] = iter(())
        self._left: list[Tensor] = []

    def rows(self, step: int, batch_size: int, seed: int, part: range | None = None) -> Tensor:
        while (have := sum(map(len, self._left))) < batch_size:
            self._left.append(self._next())
        joined = torch.cat(self._left)
        self._left = [joined[batch_size:]] if have > batch_size else []
        batch = joined[:batch_size]
        if part is None:
            return batch
        self.digest = _checksum(batch)
        return batch[part.start : part.stop]

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
        return checks.batch_of_events(
            "a batch of the DataLoader", _row(item, "a batch of the DataLoader"), self.event_shape
        )


def _checksum(rows: Tensor) -> int:
    """32 bits that differ, but for one chance in 2^32, if a bit of the rows does."""
    return zlib.crc32(rows.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())


def _row(item: object, name: str) -> Tensor:
    """The tensor of an item that is one or, with labels, starts with one."""
    if isinstance(item, (tuple, list)) and item:
        item = item[0]
    if not isinstance(item, Tensor):
        raise TypeError(f"{name} must be a tensor, or a tuple that starts with one, got {type(item).__name__}")
    return item
