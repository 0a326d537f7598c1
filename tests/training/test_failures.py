"""Steps that are not finite, Ctrl-C, and steps that the host does not wait for."""

from __future__ import annotations

import math
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.training.support import (
    DATA,
    PATH,
    At,
    Readings,
    equal,
    mlp,
    sometimes_infinite,
    weights,
)
from vapo_fast.checkpoint import CheckpointError
from vapo_fast.potentials import Potential
from vapo_fast.reference import Trainer as ReferenceTrainer
from vapo_fast.training import trainer as trainer_module
from vapo_fast.training.callbacks import Checkpointer
from vapo_fast.training.optimizer import NonFiniteLossError
from vapo_fast.training.run import TrainingInterrupted
from vapo_fast.training.trainer import Trainer, train


def test_a_non_finite_loss_stops_before_the_update(tmp_path: Path) -> None:
    trainer = Trainer(mlp(), batch_size=16, weight=sometimes_infinite(7), schedule="constant")
    match = (
        r"step 7: the linear term is not finite\. The model is left as it was after step 6\. The last .* is .*6.safe"
    )
    with pytest.raises(NonFiniteLossError, match=match) as caught:
        trainer.fit(DATA, 12, callbacks=[Checkpointer(tmp_path, every=3)])
    assert (caught.value.step, caught.value.term, trainer.step) == (7, "linear term", 6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003.safetensors", "step-00000006.safetensors"]
    constant = Trainer(mlp(), batch_size=16, weight=lambda t: torch.ones_like(t), schedule="constant")
    constant.fit(DATA, 6)
    assert equal(weights(trainer.model), weights(constant.model))
    assert equal(weights(trainer.ema_model), weights(constant.ema_model))
    trainer.fit(DATA, 2)  # and it can go on
    assert trainer.step == 8


def test_a_non_finite_gradient_names_the_parameter() -> None:
    model = mlp()
    model.hidden[1].bias.register_hook(lambda g: g * math.nan)
    before = weights(model)
    with pytest.raises(
        NonFiniteLossError, match=r"step 1: the gradient of hidden\.1\.bias is not finite.*No checkpoint was"
    ):
        Trainer(model, batch_size=16).fit(DATA, 3)
    assert equal(before, weights(model))


def test_nan_in_a_data_set_that_is_not_in_memory_is_caught_by_the_loss() -> None:
    bad = DATA.clone()
    bad[77] = math.nan
    loader: DataLoader[Any] = DataLoader(TensorDataset(bad), batch_size=16)
    with pytest.raises(NonFiniteLossError, match="step 5: the linear term is not finite"):
        Trainer(mlp(), batch_size=16).fit(loader, 10)


class Counting(nn.Module):
    """A network that keeps statistics of what it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 1)
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean += x.detach().mean(0)
            self.calls += 1
        return torch.sin(self.layer(x))[:, 0]


@pytest.mark.parametrize("kind", ["ordinary", "deferred", "reference"])
def test_a_step_that_fails_leaves_buffers_as_they_were(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = DATA.clone()
    bad[5 * 16 :] = math.nan
    loader: DataLoader[Any] = DataLoader(TensorDataset(bad), batch_size=16)
    monkeypatch.setattr(trainer_module, "_defers", lambda model: kind == "deferred")
    model = Potential.from_module(Counting(), (2,), PATH)
    calls = int(model.module.calls)  # type: ignore[arg-type]
    trainer = (ReferenceTrainer if kind == "reference" else Trainer)(model, batch_size=16, log_every=4)
    model.module.mean += 3.0  # type: ignore[operator]
    with pytest.raises(NonFiniteLossError, match="step 6: the linear term"):
        trainer.fit(loader, 20)
    for network in (trainer.model, trainer.ema_model):
        assert int(network.module.calls) == calls + 5  # type: ignore[arg-type,union-attr]
        assert bool(torch.isfinite(network.module.mean).all())  # type: ignore[arg-type,union-attr]
        assert float(network.module.mean.min()) > 0.5  # type: ignore[operator,union-attr]
    # What was set by hand between two fits is what a fit begins with.
    model.module.mean.copy_(torch.tensor([7.0, 8.0]))  # type: ignore[operator]
    with pytest.raises(NonFiniteLossError, match="step 6: the linear term"):
        trainer.fit(DataLoader(TensorDataset(torch.full_like(DATA, math.nan)), batch_size=16), 3)
    assert model.module.mean.tolist() == [7.0, 8.0]  # type: ignore[operator,union-attr]


def test_divergence_ends_in_a_clear_error() -> None:
    with pytest.raises(NonFiniteLossError, match="Lower lr, set grad_clip, or check the data of this step"):
        Trainer(mlp(), batch_size=16, lr=1e25, warmup_steps=0, schedule="constant").fit(DATA, 200)


def test_ctrl_c_finishes_the_step_saves_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole = Trainer(mlp(), batch_size=16)
    whole.fit(DATA, 12)
    trainer, readings = Trainer(mlp(), batch_size=16), Readings()
    press = At(5, lambda t: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(
        TrainingInterrupted, match=r"interrupted after step 5 of 12; the newest checkpoint is .*resume="
    ) as caught:
        trainer.fit(DATA, 12, callbacks=[press, readings, Checkpointer(tmp_path)])
    assert isinstance(caught.value, KeyboardInterrupt)
    assert len(readings.rows) == 5  # callbacks after the one in which Ctrl-C came still saw the step
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again = Trainer(mlp(), batch_size=16)
    again.fit(DATA, 12, resume=tmp_path)
    assert equal(weights(whole.model), weights(again.model))


def test_what_ctrl_c_breaks_elsewhere_counts_as_the_interruption(tmp_path: Path) -> None:
    def press(trainer: Trainer) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError("DataLoader worker exited")

    with pytest.raises(TrainingInterrupted, match="interrupted after step 5 of 12; the newest checkpoint"):
        Trainer(mlp(), batch_size=16).fit(DATA, 12, callbacks=[At(5, press), Checkpointer(tmp_path)])


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    def twice(trainer: Trainer) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    readings = Readings()
    with pytest.raises(TrainingInterrupted, match="no checkpoint was written"):
        Trainer(mlp(), batch_size=16).fit(DATA, 12, callbacks=[At(5, twice), readings])
    assert len(readings.rows) == 4


def test_a_state_torn_by_an_interruption_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(mlp(), batch_size=16)

    def torn(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer.optimizer, "step", torn)
    with pytest.raises(TrainingInterrupted, match="in the middle of an update, so its state was not saved"):
        trainer.fit(DATA, 3, callbacks=[Checkpointer(tmp_path)])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CheckpointError, match="in the middle of an update"):
        trainer.save_state(tmp_path / "s.safetensors")


def test_fit_works_outside_the_main_thread() -> None:
    trainer = Trainer(mlp(), batch_size=16)
    thread = threading.Thread(target=trainer.fit, args=(DATA, 3))
    thread.start()
    thread.join()
    assert trainer.step == 3


def test_another_signal_handler_is_left_in_place() -> None:
    def own(number: int, frame: object) -> None:
        pass

    old = signal.signal(signal.SIGINT, own)
    try:
        seen: list[object] = []
        train(mlp(), DATA, 1, batch_size=8, callbacks=[At(1, lambda t: seen.append(signal.getsignal(signal.SIGINT)))])
        assert seen == [own]
    finally:
        signal.signal(signal.SIGINT, old)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_step_noticed_late_has_frozen_the_run(
    checkpointed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a CUDA device does, on the CPU: the host reads the loss only every tenth step.
    expected = Trainer(mlp(), batch_size=16, weight=sometimes_infinite(999), schedule="constant")
    expected.fit(DATA, 6)
    monkeypatch.setattr(trainer_module, "_defers", lambda model: True)
    trainer = Trainer(mlp(), batch_size=16, weight=sometimes_infinite(7), schedule="constant", log_every=10)
    callbacks = [Checkpointer(tmp_path, every=4)] if checkpointed else []
    with pytest.raises(NonFiniteLossError, match="step 7: the linear term is not finite"):
        trainer.fit(DATA, 30, callbacks=callbacks)
    assert trainer.step == 6
    for a, b in zip(weights(trainer.model), weights(expected.model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    for a, b in zip(weights(trainer.ema_model), weights(expected.ema_model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    # The unread, failed steps were not saved as if they were good.
    assert [p.name for p in tmp_path.iterdir()] == (["step-00000004.safetensors"] if checkpointed else [])
    trainer.fit(DATA, 3)
    assert trainer.step == 9


def test_steps_that_the_host_does_not_wait_for_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rate, decay and step number on the device, which a captured step needs, change nothing but rounding."""
    runs = []
    for deferred in (False, True):
        monkeypatch.setattr(trainer_module, "_defers", lambda model, deferred=deferred: deferred)
        trainer = Trainer(mlp(), batch_size=16, grad_clip=0.5, warmup_steps=5, ema_decay=0.9, log_every=1)
        readings = Readings()
        trainer.fit(DATA, 12, callbacks=[readings])
        trainer.fit(DATA, 4)
        assert trainer.step == 16
        runs.append((weights(trainer.model), weights(trainer.ema_model), torch.tensor([r[:4] for r in readings.rows])))
    for ordinary, other in zip(runs[0], runs[1], strict=True):
        for a, b in zip(ordinary, other, strict=True):
            torch.testing.assert_close(b, a, rtol=2e-5, atol=1e-6)
