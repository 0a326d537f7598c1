"""A small model, its data, and callbacks, for the tests of training."""

from __future__ import annotations

import math
import threading
from typing import Any

import torch
from torch import Tensor, nn

from vapo_fast.homotopy import DataHomotopy, Homotopy
from vapo_fast.potentials import MLPPotential
from vapo_fast.training.options import TrainingOptions
from vapo_fast.training.run import Callback, Metrics
from vapo_fast.training.trainer import Trainer

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


def sometimes_infinite(step: int) -> Any:
    calls = iter(range(1, 1000))
    return lambda t: torch.full_like(t, math.inf if next(calls) == step else 1.0)


def threads_that_prepare() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "prefetch" in thread.name]


def options(**changes: Any) -> TrainingOptions:
    return Trainer(mlp(), **changes).options
