from __future__ import annotations

import copy
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from vapo_fast import noise
from vapo_fast.checkpoint import CheckpointError, save_training
from vapo_fast.engines import UnsupportedJobError
from vapo_fast.homotopy import DataHomotopy, Homotopy, LinearHomotopy
from vapo_fast.loss import energy_loss
from vapo_fast.potentials import GaussianMixturePotential, MLPPotential, Potential
from vapo_fast.reference import Trainer as ReferenceTrainer
from vapo_fast.training import trainer as trainer_module
from vapo_fast.training.batches import as_source, training_batch
from vapo_fast.training.callbacks import Checkpointer
from vapo_fast.training.optimizer import NonFiniteLossError
from vapo_fast.training.options import TrainingOptions, ema_decay_at, learning_rate
from vapo_fast.training.run import Callback, Metrics, TrainingInterrupted
from vapo_fast.training.trainer import Trainer, train

PATH = DataHomotopy(sigma=0.1)
DATA = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)).abs()


def mlp(path: Homotopy = PATH, **options: Any) -> MLPPotential:
    torch.manual_seed(0)
    return MLPPotential((2,), path, **{"widths": (8, 8), "fourier_features": 2} | options)


def weights(module: nn.Module) -> list[Tensor]:
    return [value.clone() for value in module.state_dict().values()]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class Readings(Callback):
    def __init__(self) -> None:
        self.rows: list[Metrics] = []

    def on_step_end(self, trainer: Any, step: int, metrics: Metrics | None) -> None:
        if metrics is not None:
            self.rows.append(metrics)


class At(Callback):
    """Does something at a step."""

    def __init__(self, step: int, action: Any) -> None:
        self.step, self.action = step, action

    def on_step_end(self, trainer: Any, step: int, metrics: Metrics | None) -> None:
        if step == self.step:
            self.action(trainer)


# Learning


@pytest.mark.parametrize("path", [DataHomotopy(sigma=0.1), LinearHomotopy(t1=0.9)], ids=["data", "linear"])
def test_training_reaches_the_closed_form_minimum_on_gaussian_data(path: Homotopy) -> None:
    mean, s = torch.tensor([0.8, -0.4]), 0.3
    data = mean + s * noise.normal(11, range(20_000), (2,))
    trainer = train(
        mlp(path, widths=(32, 32), data_scale=0.5), data, 600, lr=5e-3, batch_size=256, weight="uniform", ema_decay=0.99
    )
    t = path.t0 + (path.t1 - path.t0) * (torch.arange(40_000) + 0.5) / 40_000
    x = mean + s * noise.normal(12, range(40_000), (2,))

    def energy(model: Potential) -> float:
        return energy_loss(model, x, t, noise.normal(13, range(40_000), (2,)), weight="uniform").total.item()

    # L* = -1/2 alpha'^2 |m|^2 - D S'^2 / (8 S), S = v + alpha^2 s^2, averaged over the same times.
    k = path.kernel(t.double())
    spread = k.beta**2 + (k.alpha * s) ** 2
    slope = 2 * k.beta * k.beta_dot + 2 * k.alpha * k.alpha_dot * s**2
    best = float((-0.5 * k.alpha_dot**2 * mean.square().sum() - 2 * slope**2 / (8 * spread)).mean())
    assert abs(energy(trainer.ema_model) - best) < 0.02 * abs(best)
    assert energy(mlp(path, data_scale=0.5)) - best > 0.1 * abs(best)


def test_a_wrapped_module_learns() -> None:
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 1))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.layers(torch.cat([x, t[:, None]], 1)).squeeze(1)

    readings = Readings()
    model = Potential.from_module(Net(), (2,), PATH, time_dependent=True)
    train(model, DATA, 150, lr=1e-2, batch_size=128, weight="uniform", callbacks=[readings])
    losses = [row.loss for row in readings.rows]
    assert sum(losses[-20:]) / 20 < sum(losses[:5]) / 5 - 0.05


# What a step is


def test_one_step_is_adam_on_the_energy_loss_of_the_batch() -> None:
    model = mlp().double()
    nn.init.normal_(model.output.weight)
    twin = copy.deepcopy(model)
    trainer = Trainer(model, lr=1e-2, batch_size=16, seed=5, warmup_steps=0, schedule="constant")
    readings = Readings()
    trainer.fit(DATA.double(), 1, callbacks=[readings])
    batch = training_batch(
        as_source(DATA.double(), (2,)),
        0,
        homotopy=PATH,
        seed=5,
        batch_size=16,
        time_sampling="log_noise",
        device=torch.device("cpu"),
        dtype=torch.float64,
    )
    loss = energy_loss(twin, *batch)
    loss.total.backward()
    assert readings.rows[0][:3] == pytest.approx([v.item() for v in loss], rel=1e-11)
    norm = torch.sqrt(sum(p.grad.square().sum() for p in twin.parameters() if p.grad is not None))  # type: ignore[arg-type]
    assert readings.rows[0].grad_norm == pytest.approx(float(norm), rel=1e-11)
    for before, after in zip(twin.parameters(), model.parameters(), strict=True):
        # Adam's first step is lr g / (|g| + eps).
        assert before.grad is not None
        expected = before - 1e-2 * before.grad / (before.grad.abs() + 1e-8)
        torch.testing.assert_close(after, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("parts", [2, 3, 16])
def test_accumulation_gives_the_whole_batch_to_rounding(parts: int) -> None:
    results = []
    for accumulate in (1, parts):
        trainer, readings = Trainer(mlp().double(), batch_size=16, accumulate=accumulate), Readings()
        trainer.fit(DATA.double(), 20, callbacks=[readings])
        results.append((trainer, torch.tensor([row[:4] for row in readings.rows])))
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-9, atol=1e-10)
    for a, b in zip(weights(results[0][0].model), weights(results[1][0].model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_gradients_are_clipped_to_the_norm() -> None:
    clipped: list[float] = []

    def note(trainer: Trainer) -> None:
        gradients = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
        clipped.append(float(torch.cat(gradients).norm()))

    readings = Readings()
    for limit in (1e-3, 1e6):
        Trainer(mlp(), batch_size=16, grad_clip=limit).fit(DATA, 1, callbacks=[At(1, note), readings])
    assert clipped[0] == pytest.approx(1e-3, rel=1e-4)
    assert clipped[1] == pytest.approx(readings.rows[1].grad_norm, rel=1e-5)
    assert readings.rows[0].grad_norm == readings.rows[1].grad_norm > 1e-2


def options(**changes: Any) -> TrainingOptions:
    return Trainer(mlp(), **changes).options


def test_learning_rate_schedules() -> None:
    o = options(lr=2.0, warmup_steps=4, schedule="constant")
    assert [learning_rate(o, step, 0, 100) for step in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    o = options(lr=2.0, warmup_steps=0, schedule="cosine")
    assert learning_rate(o, 0, 0, 10) == 2.0
    assert learning_rate(o, 5, 0, 10) == pytest.approx(1.0)
    assert learning_rate(o, 9, 0, 10) == pytest.approx(1 + math.cos(0.9 * math.pi))
    assert learning_rate(o, 10, 10, 20) == 2.0  # the next fit is a cycle of its own


def test_the_average_follows_its_documented_decay() -> None:
    assert [ema_decay_at(options(ema_decay=0.5), k) for k in (0, 2, 9, 1000)] == [0.1, 0.25, 0.5, 0.5]
    trainer = Trainer(mlp(), batch_size=16, ema_decay=0.3)
    expected = [p.detach().clone().double() for p in trainer.model.parameters()]
    raw: list[list[Tensor]] = []
    trainer.fit(
        DATA,
        6,
        callbacks=[
            At(k, lambda t: raw.append([p.detach().clone() for p in t.model.parameters()])) for k in range(1, 7)
        ],
    )
    for k, current in enumerate(raw):
        decay = min(0.3, (1 + k) / (10 + k))
        expected = [decay * e + (1 - decay) * c for e, c in zip(expected, current, strict=True)]
    for average, e in zip(trainer.ema_model.parameters(), expected, strict=True):
        torch.testing.assert_close(average.double(), e, rtol=1e-5, atol=1e-7)
    assert trainer.ema_model is not trainer.model


def test_buffers_are_copied_and_frozen_parameters_stay() -> None:
    model = mlp()
    model.hidden[0].weight.requires_grad_(False)
    kept = model.hidden[0].weight.clone()
    trainer = Trainer(model, batch_size=16, optimizer="adamw", weight_decay=0.1)
    model.frequencies.mul_(2.0)
    trainer.fit(DATA, 3)
    assert torch.equal(model.hidden[0].weight, kept)
    assert torch.equal(trainer.ema_model.frequencies, model.frequencies)  # type: ignore[arg-type]


def test_weight_decay_shrinks_weights() -> None:
    sizes = []
    for decay in (0.0, 10.0):
        trainer = Trainer(mlp(), batch_size=16, optimizer="adamw", weight_decay=decay, lr=1e-2, warmup_steps=0)
        trainer.fit(DATA, 30)
        sizes.append(sum(p.square().sum().item() for p in trainer.model.parameters()))
    assert sizes[1] < 0.2 * sizes[0]


def test_the_readings_add_up() -> None:
    readings = Readings()
    Trainer(mlp(), batch_size=16, lr=1.0, schedule="constant", warmup_steps=2, log_every=2).fit(
        DATA, 5, callbacks=[readings]
    )
    assert len(readings.rows) == 3
    for row in readings.rows:
        assert row.loss == pytest.approx(row.linear + row.quadratic, abs=1e-5 * (1 + abs(row.quadratic)))
        assert row.samples_per_second > 0
    assert [row.lr for row in readings.rows] == [1.0, 1.0, 1.0]
    assert readings.rows[0].seconds < readings.rows[1].seconds < readings.rows[2].seconds


# Runs


def test_the_seed_decides_the_run() -> None:
    runs = []
    for seed in (1, 1, 2):
        trainer = Trainer(mlp(), batch_size=16, seed=seed)
        torch.manual_seed(torch.randint(1000, ()).item())  # the global generator plays no part
        trainer.fit(DATA, 10)
        runs.append(weights(trainer.model))
    assert equal(runs[0], runs[1])
    assert not equal(runs[0], runs[2])


def test_a_second_fit_goes_on() -> None:
    whole = Trainer(mlp(), batch_size=16, schedule="constant")
    whole.fit(DATA, 20)
    parts = Trainer(mlp(), batch_size=16, schedule="constant")
    parts.fit(DATA, 8)
    parts.fit(DATA, 12)
    assert (parts.step, parts.start_step, parts.end_step) == (20, 8, 20)
    assert equal(weights(whole.model), weights(parts.model))
    assert equal(weights(whole.ema_model), weights(parts.ema_model))


def test_data_of_every_kind_trains_alike() -> None:
    runs = []
    for data in (DATA, TensorDataset(DATA, torch.zeros(len(DATA)))):
        trainer = Trainer(mlp(), batch_size=16)
        trainer.fit(data, 5)
        runs.append(weights(trainer.model))
    assert equal(*runs)
    for other in (DataLoader(TensorDataset(DATA), batch_size=10), "8gaussians"):
        trainer = Trainer(mlp(), batch_size=16)
        trainer.fit(other, 5)  # type: ignore[arg-type]
        assert not equal(weights(trainer.model), runs[0])


def test_the_models_mode_comes_back() -> None:
    for mode in (True, False):
        model = mlp().train(mode)
        seen: list[bool] = []
        train(model, DATA, 1, batch_size=8, callbacks=[At(1, lambda t, seen=seen: seen.append(t.model.training))])
        assert seen == [True]
        assert model.training is mode


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


def threads_that_prepare() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "prefetch" in thread.name]


def test_an_option_that_a_file_does_not_know_had_its_default(tmp_path: Path) -> None:
    trainer = Trainer(mlp(), batch_size=16)
    trainer.fit(DATA, 2)
    known = {name: value for name, value in trainer.options.config().items() if name not in ("augment", "grad_clip")}
    training = {"step": 2, "start_step": 0, "options": known}
    save_training(tmp_path / "s.safetensors", trainer.model, trainer.ema_model, trainer.optimizer, training)
    with pytest.warns(UserWarning, match=r"with other options \(grad_clip None -> 2.0\): the result differs"):
        Trainer(mlp(), batch_size=16, grad_clip=2.0).fit(DATA, 4, resume=tmp_path / "s.safetensors")


# Going wrong


def sometimes_infinite(step: int) -> Any:
    calls = iter(range(1, 1000))
    return lambda t: torch.full_like(t, math.inf if next(calls) == step else 1.0)


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


# Precision and engines


def test_bfloat16_products_stay_close_to_float32() -> None:
    curves = []
    for precision in ("float32", "bf16"):
        trainer, readings = Trainer(mlp(widths=(32, 32)), batch_size=128, precision=precision, lr=3e-3), Readings()
        trainer.fit(DATA, 30, callbacks=[readings])
        assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
        curves.append(torch.tensor([row[:4] for row in readings.rows]))
    assert not torch.equal(curves[0], curves[1])
    torch.testing.assert_close(curves[1], curves[0], rtol=0.05, atol=0.02)
    assert bool(torch.isfinite(curves[1]).all())


class CountingPath(DataHomotopy):
    """Notes how many threads PyTorch has when the times of a batch are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[int] = []

    def time_at_noise_position(self, position: Any) -> Tensor:
        self.counts.append(torch.get_num_threads())
        return super().time_at_noise_position(position)


@pytest.mark.parametrize(("few", "threads"), [(10**6, 1), (10, 3)])
def test_what_is_tiny_is_computed_on_one_thread(few: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_FEW", few)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        path = CountingPath()
        trainer = Trainer(mlp(path), batch_size=16)
        counts: list[int] = []
        trainer.optimizer.register_step_pre_hook(lambda *_: counts.append(torch.get_num_threads()))
        trainer.fit(DATA, 2)
        assert (path.counts, counts, torch.get_num_threads()) == ([1, 1], [threads, threads], 3)

        def fail(*_: Any) -> None:
            raise ZeroDivisionError

        trainer.optimizer.register_step_pre_hook(fail)
        with pytest.raises(ZeroDivisionError):
            trainer.fit(DATA, 1)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_norm_that_overflows_although_its_parts_are_finite_does_not_stop_a_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = Trainer(mlp(), batch_size=16)
    gradients = trainer._gradients
    monkeypatch.setattr(trainer, "_gradients", lambda batch: (gradients(batch)[0], torch.full((5,), 3e38)))
    read: list[float] = []

    class Read(Callback):
        def on_step_end(self, trainer: Any, step: int, metrics: Metrics | None) -> None:
            read.append(math.nan if metrics is None else metrics.grad_norm)

    trainer.fit(DATA, 2, callbacks=[Read()])
    assert (trainer.step, read) == (2, [math.inf, math.inf])


def test_auto_precision_is_the_models_own() -> None:
    for dtype in (torch.float32, torch.float64):
        own, auto = (
            Trainer(mlp().to(dtype), batch_size=16, precision=p) for p in (str(dtype).removeprefix("torch."), "auto")
        )
        own.fit(DATA, 3)
        auto.fit(DATA, 3)
        assert equal(weights(own.model), weights(auto.model))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": "triton"}, "engine='triton' cannot do this 'loss_and_grads' job"),
        ({"precision": "tf32"}, "precision='tf32' is not the model's own"),
        ({"precision": "float64"}, "precision='float64' is not the model's own"),
        ({"precision": "bf16", "estimator": "covariance"}, "precision='bf16' goes with estimator='velocity'"),
    ],
)
def test_jobs_that_the_engine_cannot_do_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedJobError, match=message):
        Trainer(mlp(), **({"engine": "reference"} | arguments))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lr": 0.0}, ValueError, "lr must be a finite number > 0, got 0.0"),
        ({"lr": math.nan}, ValueError, "lr must be finite, got nan"),
        ({"lr": "fast"}, TypeError, "lr must be a number, got 'fast'"),
        ({"batch_size": 0}, ValueError, "batch_size must be a positive integer, got 0"),
        ({"batch_size": 8.0}, TypeError, "batch_size must be a positive integer, got 8.0"),
        ({"optimizer": "sgd"}, ValueError, "optimizer must be one of 'adam', 'adamw', got 'sgd'"),
        ({"weight_decay": -1}, ValueError, "weight_decay must be a finite number >= 0, got -1"),
        ({"warmup_steps": -1}, ValueError, "warmup_steps must be a non-negative integer, got -1"),
        ({"schedule": "linear"}, ValueError, "schedule must be one of 'cosine', 'constant', got 'linear'"),
        ({"grad_clip": 0}, ValueError, "grad_clip must be a finite number > 0, got 0"),
        ({"ema_decay": 1.0}, ValueError, r"ema_decay must be in \[0, 1\), got 1.0"),
        ({"accumulate": 0}, ValueError, "accumulate must be a positive integer, got 0"),
        ({"accumulate": 9, "batch_size": 8}, ValueError, r"accumulate must be at most batch_size \(8\), got 9"),
        ({"estimator": "score"}, ValueError, "estimator must be one of 'velocity', 'covariance', got 'score'"),
        ({"weight": "snr"}, ValueError, "weight must be one of .* got 'snr'"),
        ({"baseline": lambda x, t: t}, ValueError, "baseline applies to estimator='covariance' only"),
        ({"time_sampling": "beta"}, ValueError, "time_sampling must be one of 'log_noise', 'uniform', got 'beta'"),
        ({"seed": -1}, ValueError, "seed must be a non-negative integer, got -1"),
        ({"seed": 2**64}, ValueError, r"seed must be below 2\*\*64"),
        ({"log_every": 0}, ValueError, "log_every must be a positive integer, got 0"),
        ({"augment": "rotate"}, ValueError, "augment must be one of 'flip', got 'rotate'"),
        ({"augment": "flip"}, ValueError, r"augment='flip' is for images, events of shape \(C, H, W\); this model has"),
        ({"augment": True}, ValueError, "augment must be one of 'flip', got True"),
        ({"prefetch": -1}, ValueError, "prefetch must be a non-negative integer, got -1"),
        ({"prefetch": 1.0}, TypeError, "prefetch must be a non-negative integer, got 1.0"),
        ({"engine": "gpu"}, ValueError, "engine must be one of .* got 'gpu'"),
        ({"precision": "half"}, ValueError, "precision must be one of .* got 'half'"),
    ],
)
def test_bad_options_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Trainer(mlp(), **arguments)


def _replaced(model: Any) -> None:
    model.hidden[0].weight = nn.Parameter(model.hidden[0].weight.detach().clone())


def _tied(model: Any) -> None:
    model.hidden[1].bias = model.hidden[0].bias


CHANGES: list[tuple[Any, str]] = [
    (_replaced, r"hidden\.0\.weight of the model has been replaced by another parameter; .*make a new trainer"),
    (lambda m: m.hidden[1].bias.requires_grad_(False), r"hidden\.1\.bias of the model has been frozen"),
    (_tied, r"hidden\.1\.bias of the model has been removed"),
    (lambda m: m.output.weight.requires_grad_(True), r"output\.weight of the model has become trainable"),
    (
        lambda m: m.double(),
        r"hidden\.0\.weight of the model is torch\.float64 on cpu, and was torch\.float32 on cpu; change it back",
    ),
]


@pytest.mark.parametrize("change", CHANGES, ids=range(len(CHANGES)))
@pytest.mark.parametrize("trainer", [Trainer, ReferenceTrainer])
def test_another_model_than_the_trainer_was_made_for_is_refused(trainer: Any, change: tuple[Any, str]) -> None:
    """Not trained in part: the optimiser holds the parameters of before."""
    model = mlp()
    model.output.weight.requires_grad_(False)
    run = trainer(model, batch_size=16)
    run.fit(DATA, 2)
    change[0](model)
    before = weights(model)
    with pytest.raises(ValueError, match=change[1]):
        run.fit(DATA.to(next(model.parameters()).dtype), 2)
    assert equal(weights(model), before)


def test_models_that_cannot_be_trained_are_named() -> None:
    with pytest.raises(TypeError, match="model must be a Potential, got Linear"):
        Trainer(nn.Linear(2, 1))  # type: ignore[arg-type]
    exact = GaussianMixturePotential(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None], PATH)
    with pytest.raises(ValueError, match=r"no trainable parameters \(GaussianMixturePotential\)"):
        Trainer(exact)
    with torch.inference_mode():
        frozen = mlp()
    with pytest.raises(ValueError, match=r"made inside torch.inference_mode\(\), where no gradients can be"):
        Trainer(frozen)
    mixed = mlp()
    mixed.output.double()
    with pytest.raises(ValueError, match=r"one dtype on one device, got torch.float32 on cpu, torch.float64 on cpu"):
        Trainer(mixed)
    with pytest.raises(TypeError, match=r"float32 or float64 parameters, got torch.bfloat16"):
        Trainer(mlp().bfloat16())


@pytest.mark.parametrize(("steps", "error"), [(0, ValueError), (-3, ValueError), (1.5, TypeError), (None, TypeError)])
def test_bad_step_counts_are_named(steps: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="steps must be a positive integer"):
        Trainer(mlp()).fit(DATA, steps)


def test_defaults_come_from_the_potential_and_its_path():
    vapo = Trainer(MLPPotential((2,), DataHomotopy(), widths=(8,))).options
    assert (vapo.lr, vapo.batch_size, vapo.weight) == (1e-2, 1024, "inverse_variance")
    wide = Trainer(MLPPotential((2,), LinearHomotopy(), widths=(256, 8))).options
    assert (wide.lr, wide.batch_size, wide.weight) == (5e-3, 1024, "uniform")
    still = Trainer(MLPPotential((2,), DataHomotopy(), widths=(8,), time_dependent=False)).options
    assert (still.lr, still.batch_size, still.weight) == (2e-3, 1024, "inverse_variance")
    named = Trainer(MLPPotential((2,), DataHomotopy(), widths=(8,)), lr=0.1, batch_size=3, weight="uniform").options
    assert (named.lr, named.batch_size, named.weight) == (0.1, 3, "uniform")


def test_balanced_weights_weigh_noise_levels_alike():
    """``weight (scale beta)^2`` may not vary by more than the square of the gauge's own factor 2."""
    from vapo_fast.loss import loss_weight

    for path in (DataHomotopy(), LinearHomotopy()):
        t = path.time_at_noise_position(torch.linspace(-1, 1, 50, dtype=torch.float64))
        balance = loss_weight(path, path.balanced_weight, t) * (path.gauge(t).scale * path.kernel(t).beta).square()
        assert float(balance.max() / balance.min()) <= 4.0 + 1e-9
