"""The energy loss: its estimators agree, its weights do what they say, its least value is the closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.support.exact import GAUSSIAN_TABLE, gaussian
from vapo_fast.homotopy import DataHomotopy, Homotopy, LinearHomotopy
from vapo_fast.loss import EnergyLoss, energy_loss
from vapo_fast.potentials import MLPPotential

VAPO, LINEAR = DataHomotopy(1.0, 0.1), LinearHomotopy()
paths = pytest.mark.parametrize("path", [VAPO, LINEAR], ids=repr)


def network(path: Homotopy, dimension: int = 3) -> MLPPotential:
    torch.manual_seed(1)
    model = MLPPotential((dimension,), path, (16, 16)).double()
    torch.nn.init.normal_(model.output.weight, std=0.3)
    return model


def gaussian_batch(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    data, noise = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    return mean + 0.5 * data, noise


def per_sample(model: MLPPotential, x_data: Tensor, t: float, noise: Tensor) -> dict[str, Tensor]:
    """The three forms of METHOD 2, one value a sample, written out from their definitions."""
    point = model.homotopy.perturb(x_data, t, noise)
    phi, gradient = model.field(point.x, t)
    half = 0.5 * gradient.square().sum(1)
    return {
        "velocity": half - (gradient * point.velocity).sum(1),
        "covariance": half + phi * point.innovation,
        "distance": 0.5 * (gradient - point.velocity).square().sum(1) - 0.5 * point.velocity.square().sum(1),
    }


@paths
@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.7])
def test_estimators_agree_in_expectation(path: Homotopy, fraction: float) -> None:
    model, n = network(path), 200_000
    t = path.t0 + fraction * (path.t1 - path.t0)
    terms = per_sample(model, *_with_time(gaussian_batch(n, seed=2), t))
    torch.testing.assert_close(terms["velocity"], terms["distance"])
    difference = terms["covariance"] - terms["velocity"]
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / math.sqrt(n)
    assert float(difference.std()) > 0.01  # they are different estimators, so the line above says something


def _with_time(batch: tuple[Tensor, Tensor], t: float) -> tuple[Tensor, float, Tensor]:
    return batch[0], t, batch[1]


@paths
@pytest.mark.parametrize("estimator", ["velocity", "covariance"])
def test_loss_is_the_mean_of_its_definition(path: Homotopy, estimator: str) -> None:
    model = network(path)
    x_data, noise = gaussian_batch(50, seed=3)
    for weight, factor in (("uniform", 1.0), ("inverse_variance", float(path.kernel(0.5).beta) ** -2)):
        loss = energy_loss(model, x_data, 0.5, noise, estimator=estimator, weight=weight)
        expected = factor * float(per_sample(model, x_data, 0.5, noise)[estimator].mean())
        assert float(loss.total.detach()) == pytest.approx(expected, rel=1e-10)
        assert float(loss.total.detach()) == pytest.approx(float((loss.linear + loss.quadratic).detach()))
        assert float(loss.quadratic.detach()) > 0


@paths
def test_callable_weight_and_times_a_row(path: Homotopy) -> None:
    model = network(path)
    x_data, noise = gaussian_batch(20, seed=4)
    t = torch.linspace(path.t0, path.t1, 20, dtype=torch.float64)
    got = energy_loss(model, x_data, t, noise, weight=lambda s: 1.0 + s)
    rows = [energy_loss(model, x_data[i : i + 1], float(t[i]), noise[i : i + 1], weight="uniform") for i in range(20)]
    expected = sum((1.0 + float(t[i])) * float(rows[i].total.detach()) for i in range(20)) / 20
    assert float(got.total.detach()) == pytest.approx(expected, rel=1e-9)
    kept = t.clone()
    in_place = energy_loss(model, x_data, t, noise, weight=lambda s: s.add_(1.0))
    assert torch.equal(in_place.total, got.total)
    assert torch.equal(t, kept)


@pytest.mark.parametrize(("path", "t", "least"), [(path, t, values[-1]) for path, t, values in GAUSSIAN_TABLE])
def test_least_value_for_gaussian_data(path: Homotopy, t: float, least: float) -> None:
    exact = gaussian([1.0, -2.0, 0.5], 0.25, path)
    n = 200_000
    terms = per_sample(exact, *_with_time(gaussian_batch(n, seed=5), t))  # type: ignore[arg-type]
    for name in ("velocity", "covariance"):
        value, error = float(terms[name].mean()), float(terms[name].std()) / math.sqrt(n)
        assert abs(value - least) < 4 * error, name
    # any other potential does worse by half the squared distance of the fields
    other = per_sample(network(path), *_with_time(gaussian_batch(n, seed=5), t))["velocity"]
    assert float((other - terms["velocity"]).mean()) > 0


@paths
@pytest.mark.parametrize("estimator", ["velocity", "covariance"])
def test_parameter_gradients_match_finite_differences(path: Homotopy, estimator: str) -> None:
    model = network(path)
    x_data, noise = gaussian_batch(6, seed=6)
    t = torch.linspace(path.t0, 0.9 * path.t1, 6, dtype=torch.float64)

    def loss() -> EnergyLoss:
        return energy_loss(model, x_data, t, noise, estimator=estimator)

    loss().total.backward()
    for parameter in (model.hidden[0].weight, model.hidden[1].bias, model.output.weight):
        assert isinstance(parameter, Tensor)
        assert parameter.grad is not None
        index = int(parameter.grad.abs().flatten().argmax())
        with torch.no_grad():
            flat = parameter.view(-1)
            flat[index] += 1e-6
            above = float(loss().total.detach())
            flat[index] -= 2e-6
            below = float(loss().total.detach())
            flat[index] += 1e-6
        assert float(parameter.grad.flatten()[index]) == pytest.approx((above - below) / 2e-6, rel=1e-5)


@paths
def test_baseline_changes_the_variance_and_not_the_mean(path: Homotopy) -> None:
    model, n, t = network(path), 100_000, 0.7 * path.t1
    x_data, noise = gaussian_batch(n, seed=7)

    def baseline(x_data: Tensor, t: Tensor) -> Tensor:
        return model(path.kernel(t).alpha[:, None] * x_data, t)

    point = path.perturb(x_data, t, noise)
    plain = (model(point.x, t) * point.innovation).detach()
    centred = (
        (model(point.x, t) - baseline(x_data, torch.full((n,), t, dtype=torch.float64))) * point.innovation
    ).detach()
    difference = plain - centred
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / math.sqrt(n)
    assert float(centred.var()) < 0.5 * float(plain.var())
    got = energy_loss(model, x_data, t, noise, estimator="covariance", weight="uniform", baseline=baseline)
    assert float(got.linear.detach()) == pytest.approx(float(centred.mean()), rel=1e-9)


def test_centring_is_per_data_point_not_per_batch() -> None:
    """A batch-mean centring is a different objective: the loss of a row must not depend on its batch-mates."""
    model = network(VAPO)
    x_data, noise = gaussian_batch(8, seed=8)
    both = energy_loss(model, x_data, 1.0, noise, estimator="covariance").linear
    halves = [
        energy_loss(model, x_data[s], 1.0, noise[s], estimator="covariance").linear for s in (slice(4), slice(4, 8))
    ]
    assert float(both.detach()) == pytest.approx(float((0.5 * (halves[0] + halves[1])).detach()), rel=1e-12)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"estimator": "other"}, ValueError, "estimator must be one of 'velocity', 'covariance'"),
        ({"weight": "heavy"}, ValueError, "weight must be one of"),
        ({"weight": lambda t: 1.0}, ValueError, r"weight\(t\) must return a tensor of shape \(8,\)"),
        ({"baseline": lambda x, t: t}, ValueError, "baseline applies to estimator='covariance' only"),
        ({"x_data": torch.zeros(8, 2).double()}, ValueError, r"x_data must have shape \(B, 3\), got \(8, 2\)"),
        ({"x_data": torch.zeros(8, 3).int()}, TypeError, "x_data must be a floating-point tensor"),
    ],
)
def test_bad_input(options, error, message) -> None:  # type: ignore[no-untyped-def]
    x_data, noise = gaussian_batch(8, seed=9)
    with pytest.raises(error, match=message):
        energy_loss(**{"model": network(VAPO), "x_data": x_data, "t": 0.5, "noise": noise, **options})
