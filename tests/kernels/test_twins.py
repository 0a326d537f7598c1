"""The naive twins: against autograd and the library in float64, and the kernels against them."""

import math

import pytest
import torch
from vapo_fast.kernels import noise, sweeps
from vapo_fast.kernels.field import field, field_reference
from vapo_fast.kernels.solve import solve, solve_reference
from vapo_fast.kernels.train import ESTIMATORS, loss_and_gradients, loss_and_gradients_reference

from tests.support.tolerances import TOLERANCES, assert_rows_close, field_scales
from tests.support.zoo import Network, states, times
from vapo_fast import noise as library
from vapo_fast.engines import Batch, Job, LossOptions, ReferenceEngine
from vapo_fast.ode import SolveOptions

TOLERANCE = TOLERANCES[torch.float32]
REFERENCE = ReferenceEngine()
NETWORKS = (
    Network(1, (3,)),
    Network(3, (16, 7, 5), "tanh", 6, True, "linear"),
    Network(2, (9, 12), "softplus", 5, False),
)


def exact(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * (1.0 + float(b.abs().max())))


def case(network, n=7):
    model = network.build(torch.float64)
    x, e, v = (states(n, network.dimension, torch.float64, seed) for seed in (1, 2, 3))
    return model, x, times(n + 2, model.homotopy, torch.float64)[2:], e, v


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_sweeps(network):
    """Value, gradient, second derivative along a direction, and the mixed derivative by the pre-activations' biases."""
    model, z, t, _, v = case(network)
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


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_field(device, packed, network):
    model, x, t, *_ = case(network)
    ours, theirs = field_reference(model, x, t), model.field(x, t)
    for a, b in zip(ours, theirs, strict=True):
        exact(a, b)
    mlp, program = packed(network.build(torch.float32))
    found = field(mlp, x.float().to(device), t.float().to(device), program)
    twin = field_reference(model, x.float().double(), t.float().double())
    scales = field_scales(model, x, t, twin[1])
    for a, b, scale, name in zip(found, twin, scales, ("value", "gradient"), strict=True):
        assert_rows_close(a.cpu(), b, scale, getattr(TOLERANCE, name), name)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_train(device, packed, network, estimator):
    model, x, t, e, _ = case(network)
    weight = 0.5 + t.square()
    twin = loss_and_gradients_reference(model, x, t, e, estimator, weight)
    options = LossOptions(estimator, lambda t: 0.5 + t.square())
    theirs = REFERENCE.loss_and_grads(model, Batch(x, t, e), Job("loss_and_grads", loss=options))
    exact(twin.linear, theirs.loss.linear)
    exact(twin.quadratic, theirs.loss.quadratic)
    assert twin.gradients.keys() == theirs.grads.keys()
    for name, gradient in theirs.grads.items():
        exact(twin.gradients[name], gradient)
    mlp, program = packed(network.build(torch.float32))
    batch = (part.float().to(device) for part in (x, t, e))
    found = loss_and_gradients(mlp, *batch, estimator, weight.float().to(device), program)
    scale = float(twin.linear.abs() + twin.quadratic) * math.sqrt(len(t))
    assert abs(float(found.linear) - float(twin.linear)) <= TOLERANCE.loss * scale
    assert abs(float(found.quadratic) - float(twin.quadratic)) <= TOLERANCE.loss * scale
    overall = max(float(gradient.abs().max()) for gradient in twin.gradients.values())
    for name, gradient in twin.gradients.items():
        error = float((found.gradients[name].cpu().double() - gradient).abs().max())
        assert error <= TOLERANCE.weights * (float(gradient.abs().max()) + 1e-3 * overall), (name, error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_noise(device, dtype):
    seed, stream, index = 2**63 + 2**31 + 5, 2**31, torch.tensor([0, 77, 2**32 - 1, 2**40 + 3, 2**63 - 1])
    key = (seed % 2**32, seed >> 32)
    for size in (1, 4, 7):
        twin = noise.normal_reference(key, index, size, stream, dtype)
        assert torch.equal(twin, library.normal(seed, index, (size,), stream=stream, dtype=dtype))
        assert torch.equal(twin, noise.normal(key, index.to(device), size, stream, dtype).cpu())
        twin = noise.uniform_reference(key, index, size, stream, dtype)
        assert torch.equal(twin, noise.uniform(key, index.to(device), size, stream, dtype).cpu())


@pytest.mark.parametrize(
    "options",
    [SolveOptions("bosh3", rtol=1e-1, t_eval=(0.15, 0.2)), SolveOptions("rk4", steps=2)],
    ids=["bosh3", "rk4"],
)
def test_solve(device, packed, options):
    network = NETWORKS[1]
    model, x0, *_, v = case(network, 4)
    probes = torch.stack((v, -2.0 * v.flip(1)), dim=1)
    twin = solve_reference(model, x0, 0.1, 0.2, options, probes)
    theirs, integrals = REFERENCE.solve_with_trace(model, x0, 0.1, 0.2, Job("solve_with_trace", solve=options), probes)
    exact(twin.x, theirs.x)
    exact(twin.integrals, integrals)
    for name in ("t", "status", "nfe", "accepted", "rejected"):
        assert torch.equal(getattr(twin, name), getattr(theirs, name)), name
    if options.t_eval is not None:
        exact(twin.ys, theirs.ys)
    mlp, program = packed(network.build(torch.float32))
    found = solve(mlp, x0.float().to(device), 0.1, 0.2, options, program, "probes", probes.float().to(device))
    loose = 10.0 * max(options.tolerances) if options.tableau.adaptive else 0.0
    for name in ("x", "integrals"):
        wanted = getattr(twin, name)
        error = float((getattr(found, name).cpu().double() - wanted).abs().max())
        assert error <= max(TOLERANCE.trace, loose) * (1.0 + float(wanted.abs().max())), (name, error)
    assert torch.equal(found.status.cpu(), twin.status)


def test_the_axes_as_probes_add_up_to_the_trace(device, packed):
    network, options = NETWORKS[1], SolveOptions("heun", steps=2)
    model, x0, *_ = case(network, 4)
    axes = torch.eye(3, dtype=torch.float64).expand(4, 3, 3)
    twin = solve_reference(model, x0, 0.1, 0.3, options, axes).integrals.sum(1, keepdim=True)
    mlp, program = packed(network.build(torch.float32))
    found = solve(mlp, x0.float().to(device), 0.1, 0.3, options, program, "exact").integrals.cpu().double()
    assert float((found - twin).abs().max()) <= TOLERANCE.trace * (1.0 + float(twin.abs().max()))


@pytest.mark.parametrize("tries", [1, 2, 3])
def test_a_solve_that_is_cut_short(device, packed, tries):
    """After so many attempted steps the samples are where the twin, stopped there, has them."""
    network = Network(3, (7,), "tanh", 0, True, "linear")
    x0 = states(4, 3, torch.float32)
    x0[1, 2] = math.nan
    options = SolveOptions("bosh3", rtol=1e-2, max_steps=tries)
    mlp, program = packed(network.build(torch.float32))
    found = solve(mlp, x0.to(device), 0.1, 0.6, options, program)
    twin = solve_reference(network.build(torch.float32), x0, 0.1, 0.6, options)
    for name in ("status", "nfe", "accepted", "rejected"):
        assert torch.equal(getattr(found, name).cpu(), getattr(twin, name)), name
    torch.testing.assert_close(found.t.cpu(), twin.t, rtol=1e-3, atol=0)
    torch.testing.assert_close(found.x.cpu(), twin.x, rtol=1e-3, atol=1e-3, equal_nan=True)
