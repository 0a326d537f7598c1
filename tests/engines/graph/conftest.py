"""A module to solve with, whose evaluations are counted, and a small U-Net: for the graph engine's tests."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import vapo_fast as vf
from tests.support.recorder import RecordedOnCpu
from vapo_fast.engines import Job
from vapo_fast.ode import SolveOptions

PATH = vf.DataHomotopy(1.0, 0.1)
JOB = Job("solve", solve=SolveOptions("bosh3", rtol=1e-3))


def unet(**more: int) -> vf.UNetPotential:
    """A U-Net of 4 by 4 pixels with every parameter drawn."""
    torch.manual_seed(0)
    model = vf.UNetPotential((1, 4, 4), PATH, channels=4, multipliers=(1,), blocks=1, **more)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


class Quadratic(nn.Module):
    """Phi = -rate/2 |x|^2."""

    def __init__(self, rate: float = 1.0) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate))
        self.power = 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -0.5 * self.rate * (x.abs() ** self.power).sum(1)


class Calls:
    """Batch sizes that `Quadratic` was called with, and the largest that fits in memory."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.limit = 10**9


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Kept outside the module, whose attributes are a part of its fingerprint."""
    counted, forward = Calls(), Quadratic.forward

    def watched(self: Quadratic, x: torch.Tensor) -> torch.Tensor:
        counted.rows.append(len(x))
        if len(x) > counted.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, x)

    monkeypatch.setattr(Quadratic, "forward", watched)
    return counted


@pytest.fixture
def model() -> vf.Potential:
    return vf.Potential.from_module(Quadratic(), (3,), PATH)


@pytest.fixture
def engine() -> RecordedOnCpu:
    return RecordedOnCpu()
