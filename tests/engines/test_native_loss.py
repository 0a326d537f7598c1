"""The native engine's energy loss, for any optimiser."""

import pytest
import torch
from torch import nn

import vapo_fast as vf
from tests.engines.native_models import PATH, Own, batch, mlp
from vapo_fast.core import extension
from vapo_fast.engines import (
    UnsupportedJobError,
)
from vapo_fast.engines.native import energy_loss

pytestmark = pytest.mark.skipif(extension.unavailable_reason() is not None, reason=str(extension.unavailable_reason()))

# The loss for any optimiser.


@pytest.mark.parametrize("estimator", ["velocity", "covariance"])
@pytest.mark.parametrize("weight", ["inverse_variance", "uniform", lambda t: 1.0 + t.double()])
def test_energy_loss_is_the_librarys(estimator, weight):
    model, part = mlp(torch.float64), batch(torch.float64)
    expected = vf.energy_loss(model, *part, estimator, weight)
    wanted = torch.autograd.grad(expected.total, list(model.parameters()))
    loss = energy_loss(model, *part, estimator, weight)
    for ours, theirs in zip(loss, expected, strict=True):
        torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-11, atol=1e-12)
    (3.0 * loss.total).backward()
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, 3.0 * gradient, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(
        energy_loss(model, part.x_data, 1.5, part.noise).total,
        vf.energy_loss(model, part.x_data, 1.5, part.noise).total,
    )


def test_energy_loss_passes_gradcheck():
    model, part = mlp(torch.float64, activation="tanh"), batch(torch.float64, 5)
    parameters = list(model.parameters())

    def total(*values):
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data = value.data
        return energy_loss(model, *part).total

    loss = total(*[p.detach().clone() for p in parameters])
    gradients = torch.autograd.grad(loss, parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        direction = torch.randn_like(parameter)
        totals = []
        for sign in (1, -1):
            parameter.data += sign * 1e-5 * direction
            totals.append(float(energy_loss(model, *part).total.detach()))
            parameter.data -= sign * 1e-5 * direction
        assert float((gradient * direction).sum()) == pytest.approx((totals[0] - totals[1]) / 2e-5, rel=1e-6, abs=1e-8)


def test_energy_loss_trains_with_lbfgs():
    model, part = mlp(torch.float64), batch(torch.float64, 200)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=20, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = energy_loss(model, *part).total
        loss.backward()
        return loss

    first = float(closure().detach())
    optimizer.step(closure)
    last = float(closure().detach())
    assert last < first - 0.02
    # The same steps with autograd's gradients lead to the same place.
    twin = mlp(torch.float64)
    optimizer = torch.optim.LBFGS(twin.parameters(), max_iter=20, line_search_fn="strong_wolfe")

    def autograd_closure():
        optimizer.zero_grad()
        loss = vf.energy_loss(twin, *part).total
        loss.backward()
        return loss

    optimizer.step(autograd_closure)
    assert float(autograd_closure().detach()) == pytest.approx(last, rel=1e-6)


def test_energy_loss_differentiates_once():
    model, part = mlp(), batch()
    loss = energy_loss(model, *part)
    (gradient,) = torch.autograd.grad(loss.total, model.output.weight, create_graph=True)
    torch.testing.assert_close(gradient, torch.autograd.grad(energy_loss(model, *part).total, model.output.weight)[0])
    # A sum with a part that does have derivatives must not pass the other off as constant.
    for result in (gradient.square().sum(), gradient.square().sum() + model.output.weight.sum()):
        with pytest.raises(RuntimeError, match="has gradients and no second derivatives"):
            result.backward(retain_graph=True)
    assert loss.total.requires_grad
    assert not loss.linear.requires_grad
    assert not loss.quadratic.requires_grad


def test_energy_loss_of_frozen_parameters():
    model, part = mlp(), batch()
    model.hidden[0].requires_grad_(False)
    energy_loss(model, *part).total.backward()
    assert [name for name, p in model.named_parameters() if p.grad is not None] == [
        "hidden.1.weight",
        "hidden.1.bias",
        "output.weight",
    ]
    model.requires_grad_(False)
    assert not energy_loss(model, *part).total.requires_grad
    with torch.no_grad():
        assert not energy_loss(mlp(), *part).total.requires_grad


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (lambda b: (nn.Linear(2, 1), *b), TypeError, "model must be a Potential, got Linear"),
        (lambda b: (mlp(), b.x_data.requires_grad_(), b.t, b.noise), ValueError, "x_data requires grad"),
        (lambda b: (mlp(), b.x_data, b.t.requires_grad_(), b.noise), ValueError, "t requires grad"),
        (lambda b: (mlp(), b.x_data, b.t, b.noise.requires_grad_()), ValueError, "noise requires grad"),
        (
            lambda b: (mlp(), *b, "velocity", lambda t: t * nn.Parameter(torch.ones(()))),
            ValueError,
            r"weight\(t\) requires",
        ),
        (lambda b: (mlp(), b.x_data[:0], b.t[:0], b.noise[:0]), ValueError, "x_data is an empty batch"),
        (lambda b: (mlp(), b.x_data, b.t, b.noise[:3]), ValueError, "noise must have the shape of x_data"),
        (lambda b: (mlp(), b.x_data, b.t, None), ValueError, "noise must have the shape of x_data.*got NoneType"),
        (lambda b: (mlp(), b.x_data, b.t[:3], b.noise), ValueError, "t must be a number or have shape"),
        (lambda b: (mlp(), b.x_data.double(), b.t, b.noise), TypeError, "x_data is torch.float64 on cpu but the model"),
        (lambda b: (mlp(), *b, "distance"), ValueError, "estimator must be one of"),
        (
            lambda b: (mlp(), *b, "velocity", "big"),
            ValueError,
            "weight must be one of 'inverse_variance', 'uniform', got 'big'",
        ),
        (lambda b: (mlp(), *b, "velocity", lambda t: t[:2]), ValueError, r"weight\(t\) must return a tensor of shape"),
        (lambda b: (Own((2,), PATH, (16,)), *b), UnsupportedJobError, "the native engine cannot do this.*Own"),
    ],
)
def test_energy_loss_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        energy_loss(*arguments(batch()))
