"""The engine's loss as a differentiable function: once, and for parameters only."""

import pytest
import torch
from zoo import Network, states, times

from vapo_fast.engines import Batch, Job, LossOptions, ReferenceEngine
from vapo_fast.engines.energy_loss import energy_loss_of
from vapo_fast.engines.triton import TritonEngine
from vapo_fast.loss import energy_loss

NETWORK = Network(2, (7,))


@pytest.fixture
def engine(device):
    return TritonEngine(device.type)


@pytest.fixture
def case(device):
    model = NETWORK.build(torch.float32).to(device)
    t = times(9, model.homotopy, torch.float32)[2:].to(device)
    return model, states(7, 2, torch.float32, 1).to(device), t, states(7, 2, torch.float32, 2).to(device)


def test_backward_fills_the_gradients(engine, case):
    model, *batch = case
    loss = energy_loss_of(engine, model, *batch, "covariance", "uniform")
    (3.0 * loss.total).backward()
    expected = ReferenceEngine().loss_and_grads(
        model, Batch(*batch), Job("loss_and_grads", loss=LossOptions("covariance", "uniform"))
    )
    torch.testing.assert_close(loss.total.detach(), expected.loss.total, rtol=1e-4, atol=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, 3.0 * expected.grads[name], rtol=1e-4, atol=1e-4)


def test_a_second_derivative_raises(engine, case):
    model, *batch = case
    loss = energy_loss_of(engine, model, *batch)
    assert not loss.linear.requires_grad
    assert not loss.quadratic.requires_grad
    grads = torch.autograd.grad(loss.total, list(model.parameters()), create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(sum(grad.sum() for grad in grads), list(model.parameters()))


def test_points_are_no_parameters(engine, case):
    model, x_data, t, noise = case
    with pytest.raises(ValueError, match="noise requires grad"):
        energy_loss_of(engine, model, x_data, t, noise.requires_grad_())
    assert energy_loss(model, x_data, t, noise).total.requires_grad
