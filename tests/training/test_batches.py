from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, TensorDataset

from vapo_fast import noise
from vapo_fast.homotopy import DataHomotopy, Homotopy, LinearHomotopy
from vapo_fast.loss import Batch
from vapo_fast.noise import Stream
from vapo_fast.training.batches import Batches, as_source, training_batch

PATHS = [DataHomotopy(sigma=0.1), LinearHomotopy(t1=0.9)]


def make(
    data: object, step: int, *, path: Homotopy = PATHS[0], seed: int = 3, size: int = 8, sampling: str = "log_noise"
) -> Batch:
    source = data if hasattr(data, "rows") else as_source(data, (2,))  # type: ignore[arg-type]
    return training_batch(
        source,  # type: ignore[arg-type]
        step,
        homotopy=path,
        seed=seed,
        batch_size=size,
        time_sampling=sampling,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


class Pairs(Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.x[i], i % 2


def rows(n: int) -> torch.Tensor:
    return torch.arange(2.0 * n).reshape(n, 2)


def test_a_batch_depends_on_seed_and_step_only() -> None:
    data = rows(21)
    source = as_source(data, (2,))
    run = [make(source, step) for step in range(12)]
    for step in (11, 0, 5):  # another source, in another order
        for a, b in zip(make(data, step), run[step], strict=True):
            assert torch.equal(a, b)
    assert not torch.equal(make(data, 5, seed=4).x_data, run[5].x_data)
    assert not torch.equal(make(data, 5, seed=4).noise, run[5].noise)


def test_every_epoch_is_another_permutation_and_batches_span_epochs() -> None:
    data = rows(12)
    seen = torch.cat([make(data, step).x_data for step in range(6)])  # 48 rows: four epochs
    epochs = [seen[12 * e : 12 * (e + 1)] for e in range(4)]
    for epoch in epochs:
        assert torch.equal(epoch[epoch[:, 0].argsort()], data)
    assert not torch.equal(epochs[0], epochs[1])


def test_a_batch_larger_than_the_data_repeats_it() -> None:
    x = make(rows(3), 0, size=8).x_data
    assert sorted(x[:3, 0].tolist()) == sorted(x[3:6, 0].tolist()) == [0.0, 2.0, 4.0]


def test_noise_is_the_counter_stream_of_the_sample_numbers() -> None:
    batch = make(rows(9), 4)
    expected = noise.normal(3, range(32, 40), (2,), stream=Stream.TRAIN_NOISE)
    assert torch.equal(batch.noise, expected)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("sampling", ["log_noise", "uniform"])
def test_times_are_stratified_over_the_whole_path(path: Homotopy, sampling: str) -> None:
    size = 64
    t = make(rows(9), 2, path=path, size=size, sampling=sampling).t.double()
    if sampling == "uniform":
        position = (t - path.t0) / (path.t1 - path.t0)
    else:
        first, last = (math.log(float(path.kernel(end).beta)) for end in (path.t0, path.t1))
        position = (path.kernel(t).beta.log() - first) / (last - first)
    order = position.sort().values
    lower = torch.arange(size) / size
    assert bool((order > lower - 1e-5).all())
    assert bool((order < lower + 1 / size + 1e-5).all())
    assert not torch.equal(position, order)
    within = order * size - torch.arange(size)  # where in its stratum a time lies: uniform, sd 0.289
    assert 0.2 < float(within.std()) < 0.4


def test_strata_move_between_rows_from_step_to_step() -> None:
    ranks = torch.stack([make(rows(8), step).t.argsort().argsort() for step in range(40)])
    # Were row 0 always in one stratum, an ordered loader would tie its first class to one range of times.
    assert len(ranks[:, 0].unique()) >= 7


@pytest.mark.parametrize("kind", ["tensor", "dataset", "loader"])
def test_parts_of_a_batch_are_its_rows(kind: str) -> None:
    data = torch.randn(20, 1, 2, 3, generator=torch.Generator().manual_seed(0))

    def batches(part: range | None) -> Batches:
        dataset = TensorDataset(data)
        given: object = {"tensor": data, "dataset": Images(data), "loader": DataLoader(dataset, batch_size=3)}[kind]
        source = as_source(given, (1, 2, 3))  # type: ignore[arg-type]
        device = torch.device("cpu")
        return Batches(source, PATHS[0], 5, 7, "log_noise", device, torch.float32, "flip", part)

    whole = batches(None)
    parts = [batches(part) for part in (range(3), range(3, 4), range(4, 7))]
    for step in range(6):
        expected, found = whole(step), [part(step) for part in parts]
        for values, value in zip(zip(*found, strict=True), expected, strict=True):
            assert torch.equal(torch.cat(values), value)
        digests = {part.source.digest for part in parts}
        assert len(digests) == 1
        assert (digests == {0}) == (kind != "loader")
    assert whole.source.digest == 0


def test_what_the_host_draws_for_cuda_waits_in_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's half of a batch touches CUDA by pinning alone, so that another thread may do it."""
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor)
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    source = as_source(rows(9), (2,))
    cpu, cuda = (
        Batches(source, PATHS[0], 3, 8, "log_noise", torch.device(name), torch.float32) for name in ("cpu", "cuda")
    )
    expected = cpu.draw(2)
    assert pinned == []
    drawn = cuda.draw(2)
    assert [tensor is held for tensor, held in zip(pinned, drawn, strict=False)] == [True, True]
    assert torch.equal(drawn.x_data, expected.x_data)
    assert torch.equal(drawn.t, expected.t)
    assert drawn.noise is None  # drawn on the device
    assert expected.noise is not None


class Images(Dataset[torch.Tensor]):
    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.x[i]


def test_a_checksum_sees_every_row_of_a_loaders_batch() -> None:
    digests = []
    for changed in (None, 0, 6):
        data = rows(7)
        if changed is not None:
            data[changed, 1] += 1e-3
        source = as_source(DataLoader(TensorDataset(data), batch_size=4), (2,))
        source.rows(0, 7, 0, range(2, 3))
        digests.append(source.digest)
    assert len(set(digests)) == 3


def test_a_loader_that_shards_is_refused() -> None:
    dataset = TensorDataset(rows(10))
    sampler = DistributedSampler(dataset, num_replicas=2, rank=1)
    with pytest.raises(ValueError, match="a DistributedSampler, which gives each process other rows; pass the loader"):
        as_source(DataLoader(dataset, sampler=sampler), (2,))


def test_split_keeps_rows_and_order() -> None:
    batch = make(rows(9), 0, size=7)
    parts = batch.split(3)
    assert [len(p.x_data) for p in parts] == [3, 2, 2]
    for k, whole in enumerate(batch):
        assert torch.equal(torch.cat([p[k] for p in parts]), whole)


def test_tensor_dataset_pairs_and_tensor_give_the_same_rows() -> None:
    data = rows(10)
    expected = make(data, 1)
    for other in (TensorDataset(data, torch.zeros(10)), Pairs(data)):
        assert torch.equal(make(other, 1).x_data, expected.x_data)


def test_a_dataset_with_a_batch_method_is_read_by_batches() -> None:
    class Batched(Pairs):
        def batch(self, indices: torch.Tensor) -> torch.Tensor:
            return self.x[indices]

        def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
            raise AssertionError("not row by row")

    assert torch.equal(make(Batched(rows(10)), 1).x_data, make(rows(10), 1).x_data)


def test_a_named_data_set_is_loaded() -> None:
    batch = make("8gaussians", 0, size=16)
    assert batch.x_data.shape == (16, 2)
    assert bool(((batch.x_data.norm(dim=1) - 1).abs() < 0.3).all())


def test_a_loader_keeps_its_order_and_is_regrouped() -> None:
    source = as_source(DataLoader(TensorDataset(rows(10)), batch_size=4), (2,))
    first = [make(source, step, size=3).x_data[:, 0].div(2).tolist() for step in range(5)]
    assert first == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 0, 1], [2, 3, 4]]


def test_float64_data_come_in_the_models_dtype() -> None:
    assert make(rows(5).double(), 0).x_data.dtype == torch.float32


class Unending(IterableDataset[torch.Tensor]):
    def __iter__(self) -> Iterator[torch.Tensor]:
        while True:
            yield torch.zeros(2)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (
            torch.zeros(4, 2, dtype=torch.int64),
            TypeError,
            r"data must be a floating-point tensor, got dtype torch.int64",
        ),
        (torch.zeros(4, 3), ValueError, r"data must have shape \(B, 2\), got \(4, 3\)"),
        (torch.zeros(2), ValueError, r"data must have shape \(B, 2\), got \(2,\)"),
        (torch.zeros(0, 2), ValueError, "data is empty"),
        (
            torch.tensor([[0.0, 1.0], [math.nan, 0.0]]),
            ValueError,
            r"data has NaN or infinite entries in 1 of 2 rows \(first: row 1\)",
        ),
        (Pairs(torch.zeros(0, 2)), ValueError, r"data \(Pairs\) is empty"),
        (Pairs(torch.zeros(3, 5)), ValueError, r"data\[0\]\[None\] must have shape \(B, 2\)"),
        (Pairs(torch.zeros(3, 2, dtype=torch.uint8)), TypeError, "floating-point"),
        (Unending(), TypeError, "pass a DataLoader over it"),
        ([[0.0, 1.0]], TypeError, "data must be a tensor .* got list"),
        (None, TypeError, "got NoneType"),
        ("no-such-set", ValueError, "no-such-set"),
    ],
)
def test_bad_data_is_named(data: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        as_source(data, (2,))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("loader", "error", "message"),
    [
        (DataLoader(TensorDataset(rows(3)), batch_size=4, drop_last=True), ValueError, "gives no batches"),
        (
            DataLoader(TensorDataset(torch.zeros(8, 3)), batch_size=4),
            ValueError,
            r"must have shape \(B, 2\), got \(4, 3\)",
        ),
        (DataLoader(TensorDataset(torch.zeros(8, 2).long()), batch_size=4), TypeError, "floating-point"),
        (DataLoader([{"x": 1.0}] * 4, batch_size=2), TypeError, "got dict"),  # type: ignore[arg-type]
    ],
)
def test_a_bad_loader_is_named(loader: DataLoader[object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(as_source(loader, (2,)), 0)
