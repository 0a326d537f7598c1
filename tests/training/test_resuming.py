"""Runs that are interrupted and go on, and batches that are prepared ahead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tests.training.support import (
    DATA,
    At,
    Readings,
    equal,
    mlp,
    sometimes_infinite,
    threads_that_prepare,
    weights,
)
from vapo_fast.checkpoint import save_training
from vapo_fast.training import trainer as trainer_module
from vapo_fast.training.callbacks import Checkpointer
from vapo_fast.training.optimizer import NonFiniteLossError
from vapo_fast.training.run import TrainingInterrupted
from vapo_fast.training.trainer import Trainer

SCRIPT = """
    import os, signal, sys, torch
    from vapo_fast import noise
    from vapo_fast.training.run import Callback
    from vapo_fast.training.callbacks import Checkpointer, CSVLogger
    from vapo_fast.homotopy import DataHomotopy
    from vapo_fast.potentials import MLPPotential
    from vapo_fast.training.trainer import Trainer

    directory, kill_at, resume = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "resume"

    class Kill(Callback):
        def on_step_end(self, trainer, step, metrics):
            if step == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    torch.manual_seed(0)
    model = MLPPotential((2,), DataHomotopy(sigma=0.1), widths=(16, 16), fourier_features=4)
    if resume:  # whatever the weights are before a resume must not matter
        torch.nn.init.normal_(model.output.weight)
    trainer = Trainer(model, batch_size=32, lr=3e-3, warmup_steps=150, seed=9, grad_clip=0.5, accumulate=2)
    keeper = Checkpointer(directory, every=100)
    trainer.fit(
        noise.normal(1, range(500), (2,)).abs(),
        200,
        callbacks=[CSVLogger(directory + "/log.csv"), keeper, Kill()],
        resume=directory if resume else None,
    )
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_two_hundred_steps_are_one_hundred_a_kill_and_the_other_hundred_bit_for_bit(tmp_path: Path) -> None:
    def run(directory: Path, kill_at: int, mode: str) -> int:
        command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(directory), str(kill_at), mode]
        return subprocess.run(command, timeout=120, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode

    assert run(tmp_path / "whole", 0, "new") == 0
    assert run(tmp_path / "broken", 137, "new") == -signal.SIGKILL
    assert [p.name for p in (tmp_path / "broken").glob("*.safetensors")] == ["step-00000100.safetensors"]
    assert run(tmp_path / "broken", 0, "resume") == 0
    # Parameters, averages, moments, step counts and description: the files are the same bytes.
    for name in ("step-00000200.safetensors", "model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()
    curves = [
        [line.split(",")[:7] for line in (tmp_path / d / "log.csv").read_text().split()] for d in ("whole", "broken")
    ]
    assert curves[0] == curves[1]
    assert len(curves[0]) == 201


def test_resuming_restores_every_tensor_and_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    first = Trainer(mlp(), batch_size=16)
    first.fit(DATA, 7)
    first.save_state(tmp_path / "s.safetensors")
    second = Trainer(mlp(), batch_size=16)
    second.fit(DATA, 7, resume=tmp_path / "s.safetensors")
    assert second.step == 7
    assert equal(weights(first.model), weights(second.model))
    assert equal(weights(first.ema_model), weights(second.ema_model))
    for p, q in zip(first.model.parameters(), second.model.parameters(), strict=True):
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(first.optimizer.state[p][key], second.optimizer.state[q][key])
    fresh = Trainer(mlp(), batch_size=16)
    before = weights(fresh.model)
    with pytest.raises(ValueError, match=r"steps must be at least 7, those already done in .*; got 5"):
        fresh.fit(DATA, 5, resume=tmp_path / "s.safetensors")
    assert fresh.step == 0
    assert equal(before, weights(fresh.model))


def test_resuming_with_other_options_warns(tmp_path: Path) -> None:
    trainer = Trainer(mlp(), batch_size=16)
    trainer.fit(DATA, 2)
    trainer.save_state(tmp_path / "s.safetensors")
    with pytest.warns(UserWarning, match=r"with other options \(batch_size 16 -> 8; seed 0 -> 3\): the result differs"):
        Trainer(mlp(), batch_size=8, seed=3).fit(DATA, 4, resume=tmp_path / "s.safetensors")
    Trainer(mlp(), batch_size=16, accumulate=4, log_every=2).fit(DATA, 4, resume=tmp_path / "s.safetensors")


@pytest.mark.parametrize("kind", ["tensor", "dataset", "loader"])
@pytest.mark.parametrize("deferred", [False, True])
def test_batches_prepared_ahead_are_the_same(kind: str, deferred: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "_defers", lambda model: deferred)
    dataset = TensorDataset(DATA, torch.zeros(len(DATA)))
    data: Any = {"tensor": DATA, "dataset": dataset, "loader": DataLoader(dataset, batch_size=7)}[kind]
    runs = []
    for prefetch in (0, 1, 3, None):
        trainer, readings = Trainer(mlp(), batch_size=16, accumulate=3, prefetch=prefetch), Readings()
        trainer.fit(data, 30, callbacks=[readings])
        runs.append((weights(trainer.model), [row[:4] for row in readings.rows]))
    for found, curve in runs[1:]:
        assert equal(found, runs[0][0])
        assert curve == runs[0][1]


def test_a_run_interrupted_while_batches_are_ready_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole = Trainer(mlp(), batch_size=16)
    whole.fit(DATA, 12)
    press = At(5, lambda t: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(TrainingInterrupted, match="after step 5 of 12"):
        Trainer(mlp(), batch_size=16, prefetch=4).fit(DATA, 12, callbacks=[press, Checkpointer(tmp_path)])
    assert not threads_that_prepare()
    again = Trainer(mlp(), batch_size=16, prefetch=2)
    again.fit(DATA, 12, resume=tmp_path)
    assert equal(weights(whole.model), weights(again.model))


class Torn(Dataset[Tensor]):
    """A data set that cannot be read from its 58th row asked for on: in the fourth batch of 16."""

    def __init__(self) -> None:
        self.asked = 0

    def __len__(self) -> int:
        return len(DATA)

    def __getitem__(self, index: int) -> Tensor:
        self.asked += 1
        if self.asked >= 58:
            raise OSError(f"row {index} is gone")
        return DATA[index]


@pytest.mark.parametrize("prefetch", [0, 2, 50])
def test_a_row_that_cannot_be_read_ends_the_run_at_its_step(prefetch: int, tmp_path: Path) -> None:
    trainer = Trainer(mlp(), batch_size=16, prefetch=prefetch, schedule="constant")
    with pytest.raises(OSError, match="is gone"):
        trainer.fit(Torn(), 10, callbacks=[Checkpointer(tmp_path, every=3)])
    assert trainer.step == 3
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000003.safetensors"]
    assert not threads_that_prepare()
    whole = Trainer(mlp(), batch_size=16, schedule="constant")
    whole.fit(DATA, 3)
    assert equal(weights(whole.model), weights(trainer.model))


def test_a_loss_that_fails_ends_the_thread() -> None:
    with pytest.raises(NonFiniteLossError, match="step 2"):
        Trainer(mlp(), batch_size=16, weight=sometimes_infinite(2), prefetch=3).fit(DATA, 50)
    assert not threads_that_prepare()


def test_an_option_that_a_file_does_not_know_had_its_default(tmp_path: Path) -> None:
    trainer = Trainer(mlp(), batch_size=16)
    trainer.fit(DATA, 2)
    known = {name: value for name, value in trainer.options.config().items() if name not in ("augment", "grad_clip")}
    training = {"step": 2, "start_step": 0, "options": known}
    save_training(tmp_path / "s.safetensors", trainer.model, trainer.ema_model, trainer.optimizer, training)
    with pytest.warns(UserWarning, match=r"with other options \(grad_clip None -> 2.0\): the result differs"):
        Trainer(mlp(), batch_size=16, grad_clip=2.0).fit(DATA, 4, resume=tmp_path / "s.safetensors")
