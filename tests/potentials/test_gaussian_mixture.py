"""Exact potentials against the printed tables of METHOD 5, the read-out and float64."""

from __future__ import annotations

import math

import pytest
import torch

from tests.support.exact import gaussian, line_mixture, plane_mixture
from vapo_fast.homotopy import DataHomotopy, Homotopy, LinearHomotopy
from vapo_fast.loss import energy_loss
from vapo_fast.potentials import GaussianMixturePotential, potential_from_config

VAPO, LINEAR = DataHomotopy(1.0, 0.1), LinearHomotopy()
LN2 = math.log(2)


ONE_D = [  # path, t, x: ln rho, u, Phi(x) - Phi(0)
    (VAPO, LN2, -1.0, -1.532643292, -0.533333744, 0.113134661),
    (VAPO, LN2, 0.5, -0.937583801, 0.394279780, 0.184429280),
    (LINEAR, 0.5, -1.0, -1.415022544, -1.730287745, 0.575288158),
    (LINEAR, 0.5, 0.5, -0.686672513, 0.959604589, 0.553638190),
    (LINEAR, 0.9, -1.0, -4.723863853, -2.154513335, 0.298136146),
    (LINEAR, 0.9, 0.5, -0.877677420, 0.764705882, 0.308823528),
]
TWO_D = [  # path, t, x: ln rho, u
    (VAPO, 2.0, (0.0, 0.0), -1.965787905, (0.120930245, 0.065753559)),
    (VAPO, 2.0, (0.7, -0.4), -2.171394602, (0.079522537, 0.245021902)),
    (LINEAR, 0.5, (0.0, 0.0), -1.067538455, (0.634750960, 0.529065433)),
    (LINEAR, 0.5, (0.7, -0.4), -1.702443265, (0.393354467, 1.504900291)),
]


@pytest.mark.parametrize(("path", "t", "x", "log_density", "velocity", "difference"), ONE_D)
def test_one_dimensional_table(path, t, x, log_density, velocity, difference) -> None:  # type: ignore[no-untyped-def]
    model = line_mixture(path)
    points = torch.tensor([[x], [0.0]], dtype=torch.float64)
    phi, gradient = model.field(points, t)
    assert float(model.marginal_log_density(points, t)[0]) == pytest.approx(log_density, abs=6e-10)
    assert float(gradient[0, 0]) == pytest.approx(velocity, abs=6e-10)
    assert float(phi[0] - phi[1]) == pytest.approx(difference, abs=6e-10)


@pytest.mark.parametrize(("path", "t", "x", "log_density", "velocity"), TWO_D)
def test_two_dimensional_table(path, t, x, log_density, velocity) -> None:  # type: ignore[no-untyped-def]
    model = plane_mixture(path)
    points = torch.tensor([x], dtype=torch.float64)
    assert float(model.marginal_log_density(points, t)) == pytest.approx(log_density, abs=6e-10)
    torch.testing.assert_close(
        model.field(points, t)[1][0], torch.tensor(velocity, dtype=torch.float64), atol=6e-10, rtol=0
    )


@pytest.mark.parametrize(("path", "t", "least"), [(VAPO, LN2, -0.066863179), (LINEAR, 0.5, -0.508395172)])
def test_least_loss_of_the_one_dimensional_mixture(path: Homotopy, t: float, least: float) -> None:
    """L* = -1/2 E|u_bar|^2, by quadrature, to the printed digits; the sampled loss of the exact Phi agrees."""
    model = line_mixture(path)
    x = torch.linspace(-9.0, 9.0, 40_001, dtype=torch.float64)[:, None]
    u = model.field(x, t)[1][:, 0]
    integrand = -0.5 * u.square() * model.marginal_log_density(x, t).exp()
    assert float(torch.trapezoid(integrand, x[:, 0])) == pytest.approx(least, abs=6e-10)
    data, noise = model.sample_data(200_000, seed=1), torch.randn(200_000, 1, dtype=torch.float64)
    point = path.perturb(data, t, noise)
    gradient = model.field(point.x, t)[1]
    terms = (0.5 * gradient.square() - gradient * point.velocity)[:, 0]
    assert abs(float(terms.mean()) - least) < 4 * float(terms.std()) / 200_000**0.5
    loss = energy_loss(model, data, t, noise, weight="uniform")
    assert float(loss.total.detach()) == pytest.approx(float(terms.mean()), rel=1e-12)


@pytest.mark.parametrize("path", [VAPO, DataHomotopy(1.4, 0.02), LINEAR, LinearHomotopy(0.6, 0.95)], ids=repr)
def test_read_out_is_the_log_density_up_to_a_constant(path: Homotopy) -> None:
    model = plane_mixture(path)
    x = 2.0 * torch.randn(500, 2, dtype=torch.float64)
    for fraction in (0.0, 1e-9, 0.2, 0.6, 1.0):
        t = path.t0 + fraction * (path.t1 - path.t0)
        difference = path.log_density(model(x, t), x, t) - model.marginal_log_density(x, t)
        assert float(difference.max() - difference.min()) < 1e-8 * max(1.0, float(difference.abs().max()))
    # and in float32 to 1e-5 of the values read out
    x32, t = x.float(), path.t0 + 0.4 * (path.t1 - path.t0)
    difference = (
        path.log_density(model.float()(x32, t), x32, t) - plane_mixture(path).marginal_log_density(x, t).float()
    )
    scale = max(1.0, float(plane_mixture(path).marginal_log_density(x, t).abs().max()))
    assert float((difference - difference.median()).abs().max()) < 1e-5 * scale


def test_gaussian_data_has_the_affine_field() -> None:
    m = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    for path in (VAPO, LINEAR):
        model = gaussian(m[0], 0.25, path)
        t = torch.linspace(path.t0, path.t1, 7, dtype=torch.float64)
        x = torch.randn(7, 3, dtype=torch.float64)
        k = path.kernel(t)
        total, half_total_dot = (
            k.beta.square() + 0.25 * k.alpha.square(),
            k.beta * k.beta_dot + 0.25 * k.alpha * k.alpha_dot,
        )
        expected = k.alpha_dot[:, None] * m + (half_total_dot / total)[:, None] * (x - k.alpha[:, None] * m)
        torch.testing.assert_close(model.field(x, t)[1], expected)


def test_field_near_the_start_has_no_cancellation() -> None:
    x = torch.tensor([[-1.0], [0.5]], dtype=torch.float64)
    for t in (0.0, 1e-300, 1e-12, 1e-6):
        expected = -0.5 * x + 0.1  # -x/2 + (1 + e^-tau)/2 E[x_data], E[x_data] = .1
        torch.testing.assert_close(line_mixture(VAPO).field(x, t)[1], expected, rtol=0, atol=5e-6)
        torch.testing.assert_close(
            line_mixture(VAPO).float().field(x.float(), t)[1], expected.float(), rtol=0, atol=5e-6
        )


def test_gradcheck() -> None:
    model = plane_mixture(VAPO)
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 0.3, 2.0, 4.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: model(x, t), (x,))
    assert torch.autograd.gradgradcheck(lambda x: model(x, t), (x,))


def test_config_round_trip_and_samples() -> None:
    model = plane_mixture(LINEAR)
    again = potential_from_config(model.config())
    x = torch.randn(5, 2, dtype=torch.float64)
    torch.testing.assert_close(again(x, 0.3), model(x, 0.3))
    data = model.sample_data(50_000, seed=2)
    torch.testing.assert_close(data.mean(0), torch.tensor([0.5, 0.375], dtype=torch.float64), atol=0.02, rtol=0)
    assert torch.equal(data, model.sample_data(50_000, seed=2))
    assert not torch.equal(data, model.sample_data(50_000, seed=3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(1), torch.zeros(1, 2), torch.ones(1, 1, 1)), "covariances must be"),
        ((torch.tensor([math.inf]), torch.zeros(1, 1), torch.ones(1, 1, 1)), "weights has NaN or infinite"),
        ((torch.ones(1), torch.full((1, 1), math.nan), torch.ones(1, 1, 1)), "means has NaN"),
        ((torch.ones(1), torch.zeros(1, 2), torch.tensor([[[1.0, 0.5], [0.0, 1.0]]])), "symmetric"),
    ],
)
def test_bad_input(arguments, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        GaussianMixturePotential(*arguments, VAPO)
