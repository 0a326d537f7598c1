"""The naive twins of the sweeps, against autograd in float64."""

import pytest
import torch
from vapo_fast.kernels import sweeps

from tests.support.zoo import Network, states, times

NETWORKS = (
    Network(1, (3,)),
    Network(3, (16, 7, 5), "tanh", 6, True, "linear"),
    Network(2, (9, 12), "softplus", 5, False),
)


def exact(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * (1.0 + float(b.abs().max())))


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_sweeps(network):
    """Value, gradient, second derivative along a direction, and the mixed derivative by the pre-activations' biases."""
    model = network.build(torch.float64)
    z, v = (states(7, network.dimension, torch.float64, seed) for seed in (1, 3))
    t = times(9, model.homotopy, torch.float64)[2:]
    position = model.homotopy.noise_position(t)
    share = torch.linspace(-1.0, 1.0, len(t), dtype=torch.float64)
    forward = sweeps.forward_reference(model, z, position)
    adjoint = sweeps.adjoint_reference(model, forward)
    tangent = sweeps.tangent_reference(model, forward, adjoint, v)
    b = sweeps.second_adjoint_reference(model, forward, tangent, share)
    z = z.requires_grad_()
    value = model.network(z, position if network.time_dependent else None)
    (gradient,) = torch.autograd.grad(value.sum(), z, create_graph=True)
    along = (gradient * v).sum(1)
    (hessian_v,) = torch.autograd.grad(along.sum(), z, retain_graph=True)
    exact(adjoint.value, value.detach())
    exact(adjoint.gradient, gradient.detach())
    exact(tangent.curvature, (hessian_v * v).sum(1))
    biases = [layer.bias for layer in model.hidden]
    for ours, theirs in zip(b, torch.autograd.grad(along.sum() + (share * value).sum(), biases), strict=True):
        exact(ours.sum(0), theirs)
