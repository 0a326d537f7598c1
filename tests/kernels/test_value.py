"""Phi as a function that autograd can differentiate once."""

import pytest
import torch
from zoo import Network, states, times

from vapo_fast.potentials import MLPPotential


@pytest.fixture
def case(packed, device):
    network = Network(3, (33, 16), "tanh", 5)
    model: MLPPotential = network.build(torch.float32)
    x = states(5, 3, torch.float32).to(device).requires_grad_()
    t = times(5, model.homotopy, torch.float32).to(device)
    return model, x, t, *packed(model)


def test_first_derivative(case):
    from vapo_fast.kernels.field import field, value

    _, x, t, mlp, program = case
    weights = torch.linspace(-1.0, 2.0, 5, device=x.device)
    phi, gradient = field(mlp, x.detach(), t, program)
    out = value(mlp, x, t, program)
    assert torch.equal(out, phi)
    (out * weights).sum().backward()
    torch.testing.assert_close(x.grad, weights[:, None] * gradient, rtol=0, atol=0)


def test_second_derivative_raises(case):
    from vapo_fast.kernels.field import value

    _, x, t, mlp, program = case
    (first,) = torch.autograd.grad(value(mlp, x, t, program).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(first.square().sum(), x)
