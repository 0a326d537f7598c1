"""A time-independent potential: its optimum for centred Gaussian data, in closed form (METHOD 5), and where it ends."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.support.exact import Quadratic
from vapo_fast import DataHomotopy, Potential, energy_loss, sample

PATH = DataHomotopy(1.0, 0.1)
SCALE = 0.5


def best_curvature() -> float:
    """``c = E_w[S'] / (2 E_w[S])`` with uniform weight over the path's time, S = v + alpha^2 s^2."""
    t = torch.linspace(PATH.t0, PATH.t1, 200_001, dtype=torch.float64)
    k = PATH.kernel(t)
    total = k.beta.square() + (k.alpha * SCALE).square()
    total_dot = 2 * k.beta * k.beta_dot + 2 * k.alpha * k.alpha_dot * SCALE**2
    return float(torch.trapezoid(total_dot, t) / (2 * torch.trapezoid(total, t)))


def test_best_curvature_has_the_printed_value() -> None:
    assert best_curvature() == pytest.approx(-0.210, abs=5e-4)


def test_energy_loss_is_least_there() -> None:
    """The loss of c |x|^2 / 2 is ``c B + c^2 A``, so one batch of it tells where it is least."""
    n = 400_000
    generator = torch.Generator().manual_seed(1)
    x_data, noise = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    t = PATH.t1 * (torch.arange(n) + torch.rand(n, generator=generator, dtype=torch.float64)) / n
    model = Potential.from_module(Quadratic(1.0).double(), (3,), PATH)
    for estimator, bound in (("velocity", 2e-3), ("covariance", 4e-3)):
        loss = energy_loss(model, SCALE * x_data, t, noise, estimator=estimator, weight="uniform")
        found = -float(loss.linear.detach()) / (2 * float(loss.quadratic.detach()))
        assert found == pytest.approx(best_curvature(), abs=bound), estimator


def test_its_samples_do_not_have_the_variance_of_the_data() -> None:
    curvature = best_curvature()
    model = Potential.from_module(Quadratic(curvature).double(), (3,), PATH)
    x = sample(model, 20_000, rtol=1e-9)
    assert isinstance(x, Tensor)
    scale = sample(model, 20_000, rtol=1e-9, t_end=1e-9)  # the prior itself
    assert isinstance(scale, Tensor)
    torch.testing.assert_close(x, scale * math.exp(curvature * PATH.t1), rtol=1e-6, atol=1e-6)
    assert math.exp(2 * curvature * PATH.t1) == pytest.approx(0.144, abs=5e-4)
    k = PATH.kernel(PATH.t1)
    assert float(k.beta.square() + (k.alpha * SCALE).square()) == pytest.approx(0.255, abs=5e-4)
