"""The training step as a CUDA graph, emulated on the CPU: what is recorded does nothing until it is replayed.

A replay writes where the recorded step wrote, from what then stands where that read, and counts no versions up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from vapo_fast import Trainer
from vapo_fast.homotopy import DataHomotopy, Homotopy, LinearHomotopy
from vapo_fast.potentials import MLPPotential
from vapo_fast.training import captured_step, device_batches
from vapo_fast.training import trainer as trainer_module
from vapo_fast.training.batches import Batches, as_source
from vapo_fast.training.run import Callback

DATA = torch.randn(50, 2, generator=torch.Generator().manual_seed(7))


class EmulatedGraph:
    """Stands for `torch.cuda.CUDAGraph`."""

    made: list[EmulatedGraph] = []  # noqa: RUF012 (cleared by the fixture)

    def __init__(self) -> None:
        self.step: Any = None
        self.replays = 0
        EmulatedGraph.made.append(self)

    def replay(self) -> None:
        self.replays += 1
        step = self.step
        with torch.autograd._unsafe_preserve_version_counter(tuple(_written(step._update.__self__))):
            step._values.copy_(step._run(step._batch))


def _written(trainer: Trainer) -> list[Tensor]:
    state = [value for kept in trainer.optimizer.state.values() for value in kept.values()]
    watch = trainer._watch
    return [*trainer.parameters.values(), *trainer.ema_model.parameters(), *state, watch._failed, watch._bad]


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> type[EmulatedGraph]:
    EmulatedGraph.made = []
    current: list[Any] = []
    original = captured_step.DeferredStep.__init__

    def begin(self: Any, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        self._eager_left = self.EAGER_STEPS
        current.append(self)

    @contextmanager
    def record(graph: EmulatedGraph, stream: object, capture_error_mode: str) -> Iterator[None]:
        """Recording runs nothing: whatever the step wrote is put back."""
        assert stream == current[-1]._device
        graph.step = current[-1]
        places = _written(current[-1]._update.__self__)
        kept = [place.detach().clone() for place in places]
        yield
        with torch.no_grad():
            for place, value in zip(places, kept, strict=True):
                place.copy_(value)

    monkeypatch.setattr(trainer_module, "_defers", lambda model: True)
    monkeypatch.setattr(captured_step.DeferredStep, "__init__", begin)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", EmulatedGraph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(captured_step, "_capture_stream", lambda device: device)
    return EmulatedGraph


def trainer(**options: Any) -> Trainer:
    torch.manual_seed(0)
    return Trainer(MLPPotential((2,), DataHomotopy(), widths=(8,)), batch_size=16, log_every=1, **options)


class Seen(Callback):
    """The loss, and the versions of a weight and of its average, after every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.versions: list[tuple[int, int]] = []

    def on_step_end(self, trainer: Any, step: int, metrics: Any) -> None:
        self.losses.append(metrics.loss)
        self.versions.append((trainer.model.output.weight._version, trainer.ema_model.output.weight._version))


def test_replays_are_the_steps(emulated: type[EmulatedGraph]) -> None:
    ours, seen = trainer(), Seen()
    ours.fit(DATA, 9, callbacks=(seen,))
    assert [graph.replays for graph in emulated.made] == [7]
    theirs, expected = trainer(), Seen()
    theirs._defers = False
    theirs.fit(DATA, 9, callbacks=(expected,))
    torch.testing.assert_close(seen.losses, expected.losses, rtol=1e-5, atol=1e-6)
    for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("captured", [False, True])
def test_every_step_counts_as_a_write(captured: bool, request: pytest.FixtureRequest) -> None:
    """Neither a replay nor a fused optimiser counts versions up by itself."""
    if captured:
        request.getfixturevalue("emulated")
    ours, seen = trainer(), Seen()
    ours.fit(DATA, 9, callbacks=(seen,))
    for before, after in pairwise(seen.versions):
        assert after[0] > before[0], seen.versions
        assert after[1] > before[1]


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU draws its batches as a GPU does, by the kernels in Triton's interpreter."""
    pytest.importorskip("triton", reason="triton is not installed")
    if torch.cuda.is_available():
        pytest.skip("kernels are compiled in this process")
    monkeypatch.setattr(device_batches, "draws_on", lambda device: True)


@pytest.mark.parametrize("path", [DataHomotopy(), LinearHomotopy()], ids=["data", "linear"])
@pytest.mark.parametrize("time_sampling", ["log_noise", "uniform"])
@pytest.mark.parametrize(("rows", "size"), [(50, 16), (7, 16), (16, 16), (5, 1)])
def test_drawn_batches_have_the_bits_of_the_hosts(
    drawing: None, rows: int, size: int, time_sampling: str, path: Homotopy
) -> None:
    """Within an epoch, across the end of one, and across several; far into a run too."""
    batches = Batches(
        as_source(DATA[:rows], (2,)), path, 2**63 + 5, size, time_sampling, torch.device("cpu"), torch.float32
    )
    drawn = device_batches.DeviceBatches.of(batches)
    assert drawn is not None
    for step in (0, 1, 2, 3, 4, 2**33):
        drawn.prepare(step)
        for ours, theirs in zip(drawn(torch.tensor(step)), batches(step), strict=True):
            assert torch.equal(ours, theirs), step


def test_the_host_draws_what_the_device_cannot(drawing: None, monkeypatch: pytest.MonkeyPatch) -> None:
    of = device_batches.DeviceBatches.of
    given = (DataHomotopy(), 0, 16, "log_noise", torch.device("cpu"), torch.float32)
    assert of(Batches(as_source(DATA, (2,)), *given)) is not None
    assert of(Batches(as_source(DataLoader(TensorDataset(DATA)), (2,)), *given)) is None
    assert of(Batches(as_source(DATA, (2,)), *given, part=range(3, 9))) is None
    assert of(Batches(as_source(DATA[:, :, None, None], (2, 1, 1)), *given, augment="flip")) is None
    monkeypatch.undo()
    assert of(Batches(as_source(DATA, (2,)), *given)) is None


def test_a_captured_step_draws_its_own_batches(
    emulated: type[EmulatedGraph], drawing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replays see the step's number alone: nothing of the batch is copied to them."""
    monkeypatch.setattr(Batches, "draw", lambda *_: pytest.fail("the host drew a batch"))
    ours, seen = trainer(), Seen()
    ours.fit(DATA, 9, callbacks=(seen,))
    assert [(graph.replays, graph.step._batch) for graph in emulated.made] == [(7, None)]
    monkeypatch.undo()
    theirs, expected = trainer(), Seen()
    theirs.fit(DATA, 9, callbacks=(expected,))
    torch.testing.assert_close(seen.losses, expected.losses, rtol=1e-5, atol=1e-6)
    for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    # Another fit goes on from there, with orders of its own.
    theirs.fit(DATA, 3)
    monkeypatch.setattr(trainer_module, "_defers", lambda model: True)
    monkeypatch.setattr(device_batches, "draws_on", lambda device: True)
    ours.fit(DATA, 3)
    for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
