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

import vapo_fast.trainer as trainer_module
from vapo_fast import Trainer
from vapo_fast.callbacks import Callback
from vapo_fast.homotopy import DataHomotopy
from vapo_fast.potentials import MLPPotential

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
        with torch.autograd._unsafe_preserve_version_counter(tuple(_written(step._trainer))):
            step._values.copy_(step._run(step._batch))


def _written(trainer: Trainer) -> list[Tensor]:
    state = [value for kept in trainer.optimizer.state.values() for value in kept.values()]
    watch = trainer._watch
    return [*trainer.parameters.values(), *trainer.ema_model.parameters(), *state, watch._failed, watch._bad]


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> type[EmulatedGraph]:
    EmulatedGraph.made = []
    current: list[Any] = []
    original = trainer_module._DeferredStep.__init__

    def begin(self: Any, trainer: Trainer) -> None:
        original(self, trainer)
        self._eager_left = self.EAGER_STEPS
        current.append(self)

    @contextmanager
    def record(graph: EmulatedGraph, stream: object) -> Iterator[None]:
        """Recording runs nothing: whatever the step wrote is put back."""
        assert stream == current[-1]._trainer.device
        graph.step = current[-1]
        places = _written(current[-1]._trainer)
        kept = [place.detach().clone() for place in places]
        yield
        with torch.no_grad():
            for place, value in zip(places, kept, strict=True):
                place.copy_(value)

    monkeypatch.setattr(trainer_module, "_defers", lambda model: True)
    monkeypatch.setattr(trainer_module._DeferredStep, "__init__", begin)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", EmulatedGraph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(trainer_module, "_capture_stream", lambda device: device)
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
    theirs._watch.deferred = False
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
