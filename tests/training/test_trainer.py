"""What a step is, what it learns, and in which precision."""

from __future__ import annotations

import copy
import math
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
    options,
    weights,
)
from vapo_fast import noise
from vapo_fast.engines import UnsupportedJobError
from vapo_fast.homotopy import DataHomotopy, Homotopy, LinearHomotopy
from vapo_fast.loss import energy_loss
from vapo_fast.potentials import Potential
from vapo_fast.training.batches import as_source, training_batch
from vapo_fast.training.options import ema_decay_at
from vapo_fast.training.run import Callback, Metrics
from vapo_fast.training.trainer import Trainer, train


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
    monkeypatch.setattr("vapo_fast.core.threads._FEW", few)
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
