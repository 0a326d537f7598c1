"""Phi as a function that autograd can differentiate once."""

import pytest
import torch

from tests.support.zoo import Network, states, times
from vapo_fast.potentials import MLPPotential


@pytest.fixture
def case(packed, device):
    network = Network(3, (33, 16), "tanh", 5)
    model: MLPPotential = network.build(torch.float32).requires_grad_(False)
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


def test_derivatives_that_are_not_made_are_refused(case, packed):
    from vapo_fast.kernels.field import value

    model, x, t, mlp, program = case
    with pytest.raises(ValueError, match="t requires grad, and this kernel makes no derivatives by it"):
        value(mlp, x, t.clone().requires_grad_(), program)
    model.output.weight.requires_grad_()
    mlp, program = packed(model)
    with pytest.raises(ValueError, match="a weight of the potential requires grad"):
        value(mlp, x, t, program)
    with torch.no_grad():
        assert not value(mlp, x, t, program).requires_grad
    mlp.load(model.requires_grad_(False))
    assert value(mlp, x, t, program).requires_grad


def test_kernels_refuse_derivatives_that_they_do_not_make(case):
    from vapo_fast.kernels.field import field
    from vapo_fast.kernels.perturb import perturb
    from vapo_fast.kernels.solve import solve
    from vapo_fast.kernels.step import begin, step
    from vapo_fast.kernels.train import loss_and_gradients

    from vapo_fast.ode import SolveOptions

    _, x, t, mlp, program = case
    options, plain = SolveOptions("euler", steps=1), x.detach()
    probes = x.detach()[:, None].clone().requires_grad_()
    of_t = t.clone().requires_grad_()
    samples = begin(plain, 0.1)
    samples.x.requires_grad_()
    train = (mlp, (33, 16), 5)
    for name, call in (
        ("x", lambda: field(mlp, x, t, program)),
        ("t", lambda: field(mlp, plain, of_t, program)),
        ("x0", lambda: solve(mlp, x, 0.1, 0.3, options, program)),
        ("probes", lambda: solve(mlp, plain, 0.1, 0.3, options, program, "probes", probes)),
        ("x0", lambda: begin(x, 0.1)),
        ("x", lambda: step(mlp, samples, 0.1, 0.3, options, program)),
        ("x_data", lambda: perturb(mlp.net, mlp.constants, x, t, plain)),
        ("t", lambda: perturb(mlp.net, mlp.constants, plain, of_t, plain)),
        ("noise", lambda: perturb(mlp.net, mlp.constants, plain, t, x)),
        ("x_data", lambda: loss_and_gradients(*train, x, t, plain, "velocity", "uniform", program)),
        ("weight", lambda: loss_and_gradients(*train, plain, t, plain, "velocity", of_t, program)),
    ):
        with pytest.raises(ValueError, match=f"^{name} requires grad"):
            call()
    with torch.no_grad():
        assert bool(torch.isfinite(field(mlp, x, t, program)[0]).all())
