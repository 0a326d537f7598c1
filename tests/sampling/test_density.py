"""Read-out and likelihood of exact potentials against the closed-form density of the path."""

import math

import pytest
import torch

from tests.support.exact import Quadratic, plane_mixture, well
from vapo_fast import noise
from vapo_fast.engines import UnsupportedJobError
from vapo_fast.homotopy import DataHomotopy, LinearHomotopy
from vapo_fast.ode import SolveError
from vapo_fast.potentials import MLPPotential, Potential
from vapo_fast.potentials.gaussian_mixture import GaussianMixturePotential
from vapo_fast.sampling.density import log_density, log_likelihood
from vapo_fast.sampling.sample import sample

PATHS = [DataHomotopy(1.0, 0.1), LinearHomotopy(1.0, 0.9), DataHomotopy(1.7, 0.2)]


def correlated(path, dimension=6):
    """Its Hessian is not diagonal, so random signs do make an error."""
    mean = torch.linspace(-1.0, 1.0, dimension)
    covariance = 0.1 * torch.eye(dimension) + 0.2
    return GaussianMixturePotential(torch.ones(1), mean[None], covariance[None], path)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_read_out_is_the_log_density_up_to_a_constant(path):
    model = plane_mixture(path)
    x = sample(model, 64)
    for t in (None, path.t1, 0.5 * path.t1, 0.01 * path.t1):
        time = path.t1 if t is None else t
        difference = log_density(model, x, t) - model.marginal_log_density(x, time)
        assert (difference - difference[0]).abs().max() < 1e-5
    assert log_density(model, x, torch.full((64,), path.t1, dtype=torch.float64)).equal(log_density(model, x))


def test_read_out_evaluates_a_model_in_training_mode():
    class Noisy(Quadratic):
        def __init__(self):
            super().__init__()
            self.drop = torch.nn.Dropout(0.5)

        def forward(self, x):
            return super().forward(self.drop(x))

    model, x = Potential.from_module(Noisy(), (4,), PATHS[0]), torch.ones(5, 4)
    assert torch.equal(log_density(model, x), log_density(well((4,)), x))
    assert model.module.drop.training


def test_read_out_is_differentiable():
    model = plane_mixture(PATHS[0])
    x = sample(model, 5).requires_grad_()
    (score,) = torch.autograd.grad(log_density(model, x, 2.0).sum(), x)
    (expected,) = torch.autograd.grad(model.marginal_log_density(x, 2.0).sum(), x)
    torch.testing.assert_close(score, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("method", ["dopri5", "tsit5"])
def test_likelihood_is_exact(path, method):
    model = plane_mixture(path)
    x = sample(model, 48, seed=2)
    values = log_likelihood(model, x, rtol=1e-6, method=method)
    assert values.shape == (48,)
    assert (values - model.marginal_log_density(x, path.t1)).abs().max() < 1e-3
    assert (log_likelihood(model, x) - model.marginal_log_density(x, path.t1)).abs().max() < 1e-3


def test_likelihood_in_float32():
    model = plane_mixture(PATHS[0]).float()
    x = sample(model, 32)
    values = log_likelihood(model, x)
    assert values.dtype == torch.float32
    assert (values - model.marginal_log_density(x, PATHS[0].t1)).abs().max() < 1e-3


def test_likelihood_at_an_earlier_end_and_by_fixed_steps():
    model = plane_mixture(PATHS[0])
    x = sample(model, 20, t_end=2.0)
    exact = model.marginal_log_density(x, 2.0)
    assert (log_likelihood(model, x, t_end=2.0, rtol=1e-6) - exact).abs().max() < 1e-3
    assert (log_likelihood(model, x, t_end=2.0, method="rk4", steps=100) - exact).abs().max() < 1e-3


def test_likelihood_far_from_the_data():
    model = plane_mixture(PATHS[0])
    x = torch.tensor([[3.0, -2.0], [0.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(
        log_likelihood(model, x, rtol=1e-7), model.marginal_log_density(x, PATHS[0].t1), rtol=1e-5, atol=1e-3
    )


def test_hutchinson_is_within_its_standard_error():
    model = correlated(PATHS[0])
    x = sample(model, 40)
    exact = model.marginal_log_density(x, PATHS[0].t1)
    values, error = log_likelihood(model, x, trace="hutchinson", probes=64, return_standard_error=True)
    assert (error > 0.01).all()
    assert ((values - exact).abs() < 4.0 * error).all()
    standardised = (values - exact) / error
    assert standardised.mean().abs() < 4.0 / math.sqrt(40)
    assert 0.6 < float(standardised.std()) < 1.5


def test_hutchinson_error_shrinks_as_one_over_the_root_of_probes():
    model = correlated(PATHS[0])
    x = sample(model, 10)
    few, many = (
        log_likelihood(model, x, trace="hutchinson", probes=m, return_standard_error=True)[1].mean() for m in (16, 256)
    )
    assert float(few / many) == pytest.approx(4.0, rel=0.3)


def test_hutchinson_is_seeded_by_row():
    model = correlated(PATHS[0])
    x = sample(model, 9)
    options = {"trace": "hutchinson", "probes": 4}
    values = log_likelihood(model, x, **options)
    assert torch.equal(values, log_likelihood(model, x, **options))
    torch.testing.assert_close(log_likelihood(model, x, batch_size=4, **options), values, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(log_likelihood(model, x[:3], **options), values[:3], rtol=1e-10, atol=1e-10)
    assert not torch.equal(values, log_likelihood(model, x, seed=1, **options))


def test_exact_trace_has_no_standard_error():
    model = plane_mixture(PATHS[0])
    values, error = log_likelihood(model, sample(model, 3), return_standard_error=True)
    assert values.shape == error.shape == (3,)
    assert error.eq(0).all()


def test_likelihood_of_a_time_independent_potential():
    """Phi = -|x|^2/2 carries N(0, I) to N(0, e^-2T I)."""
    model = well((2, 2)).double()
    x = 0.3 * noise.normal(0, range(6), (2, 2), dtype=torch.float64)
    variance = math.exp(-2.0 * 1.5)
    expected = -0.5 * x.flatten(1).square().sum(1) / variance - 2.0 * math.log(2 * math.pi * variance)
    torch.testing.assert_close(log_likelihood(model, x, t_end=1.5, rtol=1e-8), expected, rtol=1e-6, atol=1e-6)


def test_likelihood_integrates_to_one_for_a_network():
    """Any smooth potential gives a density: its integral over a grid is 1."""
    torch.manual_seed(0)
    model = MLPPotential((1,), PATHS[0], widths=(16,)).double()
    x = torch.linspace(-12.0, 12.0, 1201, dtype=torch.float64)[:, None]
    total = torch.trapezoid(log_likelihood(model, x, rtol=1e-7).exp(), x[:, 0])
    assert float(total) == pytest.approx(1.0, abs=2e-3)


def test_failures():
    class Explosive(torch.nn.Module):
        def forward(self, x):
            return torch.where(x[:, 0] > 1.0, -(x[:, 0] ** 4), -0.5 * x.square().sum(1))

    model = Potential.from_module(Explosive(), (2,), PATHS[0])
    x = torch.tensor([[0.001, 0.002], [5.0, 0.0]])
    with pytest.raises(SolveError, match="1 of 2 samples"):
        log_likelihood(model, x)
    values = log_likelihood(model, x, throw=False)
    assert values.isnan().tolist() == [False, True]


def test_many_coordinates_warn():
    model = well((300,))
    with pytest.warns(RuntimeWarning, match="300 reverse passes"):
        log_likelihood(model, torch.zeros(1, 300), t_end=0.1, method="euler", steps=1)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.zeros(3)}, ValueError, r"x must have shape \(B, 2\)"),
        ({"rtol": -1.0}, ValueError, "rtol must be"),
        ({"t_end": 9.0}, ValueError, "t_end must be at most"),
        ({"seed": -5}, ValueError, "seed must be"),
        ({"engine": "reference", "precision": "tf32"}, UnsupportedJobError, "tf32"),
    ],
)
def test_bad_inputs_are_named(changes, error, message):
    arguments = {"x": torch.zeros(3, 2, dtype=torch.float64)} | changes
    with pytest.raises(error, match=message):
        log_likelihood(plane_mixture(PATHS[0]), arguments.pop("x"), **arguments)
