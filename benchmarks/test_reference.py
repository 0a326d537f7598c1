"""What the reference costs: one training step, one solve and its noise. pytest benchmarks/ --benchmark-only

Correctness is tests/' business; these only measure. The solve stands beside torchdiffeq where that is installed, with
the same weights, start, tableau and tolerance; torchdiffeq takes one step size for the batch, the reference one for
each sample.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vapo_fast as vf
from vapo_fast import native, noise

SIZES = [64, 1024, 8192]


def model(dimension: int = 2) -> vf.MLPPotential:
    """An MLP with weights drawn at random, so that its field has structure."""
    torch.manual_seed(0)
    potential = vf.MLPPotential((dimension,), vf.DataHomotopy())
    torch.nn.init.normal_(potential.output.weight, std=0.1)
    return potential


@pytest.mark.parametrize("batch_size", [256, 1024])
def test_training_step(benchmark: Any, batch_size: int) -> None:
    potential = model()
    trainer = vf.Trainer(potential, batch_size=batch_size, schedule="constant")
    data = vf.data.load("8gaussians", n=10_000).tensor()
    trainer.fit(data, 3)
    benchmark(trainer.fit, data, 1)


@pytest.mark.parametrize("n", SIZES)
def test_solve(benchmark: Any, n: int) -> None:
    potential = model()
    solution = benchmark(vf.sample, potential, n, return_solution=True)
    benchmark.extra_info["nfe"] = float(solution.nfe.double().mean())


@pytest.mark.parametrize("n", SIZES)
def test_solve_torchdiffeq(benchmark: Any, n: int) -> None:
    torchdiffeq = pytest.importorskip("torchdiffeq")
    potential = model()
    path = potential.homotopy
    x0 = path.omega * noise.normal(0, range(n), (2,))
    calls = 0

    def field(t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return potential.field(x, t)[1]

    times = torch.tensor([path.t0, path.t1])
    benchmark(torchdiffeq.odeint, field, x0, times, rtol=1e-5, atol=1e-5, method="dopri5")
    calls = 0
    torchdiffeq.odeint(field, x0, times, rtol=1e-5, atol=1e-5, method="dopri5")
    benchmark.extra_info["nfe"] = calls


@pytest.mark.parametrize("source", ["torch", "native"])
def test_noise(benchmark: Any, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    if source == "native" and native.unavailable_reason():
        pytest.skip(f"no extension: {native.unavailable_reason()}")
    if source == "torch":
        monkeypatch.setattr(native, "unavailable_reason", lambda: "left out for comparison")
    benchmark(noise.normal, 0, range(8192), (64,))
