"""The two trainers on the same seed: one loss curve, the same weights, interchangeable checkpoints."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from vapo_fast import reference
from vapo_fast.homotopy import DataHomotopy, LinearHomotopy
from vapo_fast.potentials import MLPPotential, UNetPotential
from vapo_fast.training.callbacks import Checkpointer
from vapo_fast.training.optimizer import NonFiniteLossError
from vapo_fast.training.run import Callback, Metrics
from vapo_fast.training.trainer import Trainer


class Curve(Callback):
    def __init__(self) -> None:
        self.rows: list[Metrics] = []

    def on_step_end(self, trainer: Any, step: int, metrics: Metrics | None) -> None:
        assert metrics is not None
        self.rows.append(metrics)


def setup(dtype: torch.dtype = torch.float32, **options: Any) -> tuple[MLPPotential, torch.Tensor]:
    torch.manual_seed(1)
    model = MLPPotential((2,), options.get("path", DataHomotopy(sigma=0.1)), widths=(16, 16), fourier_features=4)
    data = torch.randn(500, 2).abs()
    return model.to(dtype), data.to(dtype)


CASES: list[dict[str, Any]] = [
    {},
    {"estimator": "covariance", "weight": "uniform", "time_sampling": "uniform"},
    {"optimizer": "adamw", "weight_decay": 0.1, "grad_clip": 0.05, "schedule": "constant"},
    {"weight_decay": 0.1, "weight": lambda t: 1 + t, "ema_decay": 0.5},
    {"estimator": "covariance", "baseline": lambda x, t: x.sum(1) * t},
]


def curve(kind: Any, model: MLPPotential, data: torch.Tensor, steps: int, **options: Any) -> tuple[Any, torch.Tensor]:
    trainer, watch = kind(copy.deepcopy(model), batch_size=32, lr=3e-3, warmup_steps=10, **options), Curve()
    trainer.fit(data, steps, callbacks=[watch])
    return trainer, torch.tensor([list(m[:6]) for m in watch.rows], dtype=torch.float64)


@pytest.mark.parametrize("options", CASES, ids=lambda o: "-".join(o) or "defaults")
def test_loss_curves_agree(options: dict[str, Any]) -> None:
    # In float64 rounding stays below 1e-9 over 100 steps, so any difference of rule would show.
    model, data = setup(torch.float64)
    ours, first = curve(Trainer, model, data, 100, **options)
    twin, second = curve(reference.Trainer, model, data, 100, **options)
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)
    assert bool((first[:, 0].diff().abs() > 1e-6).all())
    for a, b in zip(ours.ema_model.parameters(), twin.ema_model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_loss_curves_agree_in_float32() -> None:
    model, data = setup()
    _, first = curve(Trainer, model, data, 100)
    _, second = curve(reference.Trainer, model, data, 100)
    torch.testing.assert_close(first[:, :4], second[:, :4], rtol=1e-4, atol=1e-4)


def test_linear_path_and_accumulation_agree() -> None:
    model, data = setup(torch.float64, path=LinearHomotopy(t1=0.9))
    _, first = curve(Trainer, model, data, 40, accumulate=5)
    _, second = curve(reference.Trainer, model, data, 40, accumulate=5)
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)


def test_flipped_images_agree() -> None:
    torch.manual_seed(1)
    model = UNetPotential((1, 4, 4), DataHomotopy(sigma=0.1), 4, (1,), 1).double()
    data = torch.randn(30, 1, 4, 4, dtype=torch.float64)
    curves = [
        curve(kind, model, data, 12, **options)[1]
        for kind, options in (
            (Trainer, {"augment": "flip", "accumulate": 3, "prefetch": 2}),
            (reference.Trainer, {"augment": "flip", "accumulate": 3, "prefetch": 2}),
            (Trainer, {}),
        )
    ]
    torch.testing.assert_close(curves[0], curves[1], rtol=1e-9, atol=1e-9)
    assert float((curves[0] - curves[2]).abs().max()) > 1e-3


def test_signatures_differ_by_engine_and_precision_only() -> None:
    ours, twin = (inspect.signature(kind.__init__).parameters for kind in (Trainer, reference.Trainer))
    assert {k: v for k, v in ours.items() if k not in ("engine", "precision")} == dict(twin)
    assert set(ours) - set(twin) == {"engine", "precision"}
    assert inspect.signature(Trainer.fit) == inspect.signature(reference.Trainer.fit)


def test_one_trainer_resumes_the_others_checkpoint(tmp_path: Path) -> None:
    model, data = setup(torch.float64)
    whole, _ = curve(reference.Trainer, model, data, 40)
    stopped = Trainer(copy.deepcopy(model), batch_size=32, lr=3e-3, warmup_steps=10)

    class Stop(Callback):
        def on_step_end(self, trainer: Any, step: int, metrics: Metrics | None) -> None:
            if step == 20:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped.fit(data, 40, callbacks=[Stop(), Checkpointer(tmp_path)])
    resumed = reference.Trainer(copy.deepcopy(model), batch_size=32, lr=3e-3, warmup_steps=10)
    resumed.fit(data, 40, resume=tmp_path)
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_a_non_finite_loss_names_step_and_term() -> None:
    model, data = setup()
    trainer = reference.Trainer(model, batch_size=32, weight=lambda t: t * float("nan"))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NonFiniteLossError, match="step 1: the linear term is not finite"):
        trainer.fit(data, 5)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
