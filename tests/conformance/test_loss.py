"""The energy loss and its gradient for every parameter, of every engine against the reference in float64."""

import math

import pytest
import torch

from tests.support.tolerances import TOLERANCES, assert_same, job_for
from tests.support.zoo import DTYPES, PATHS, SMALL, ZOO, Network, states, times
from vapo_fast.engines import Batch, Job, LossOptions, ReferenceEngine

REFERENCE = ReferenceEngine()
ESTIMATORS = ("velocity", "covariance")
WEIGHTS = {"inverse_variance": "inverse_variance", "uniform": "uniform", "callable": lambda t: 0.5 + t.square()}


def batch_for(network, rows, dtype):
    path = PATHS[network.path]
    # At the very end of the path the weights dwarf all other rows.
    t = times(rows + 2, path, dtype)[2:]
    return Batch(states(rows, network.dimension, dtype, 11), t, states(rows, network.dimension, dtype, 12))


def compute(engine, device, supported, model, batch, options):
    job = job_for(engine, "loss_and_grads", loss=options)
    supported(model, job)
    result = engine.loss_and_grads(model.to(device), Batch(*(part.to(device) for part in batch)), job)
    model.cpu()
    assert not any(term.requires_grad for term in result.loss)
    return [term.cpu() for term in result.loss], {name: grad.cpu() for name, grad in result.grads.items()}


def compare(engine, device, supported, network, dtype, rows, options):
    model = network.build(dtype)
    batch = batch_for(network, rows, dtype)
    terms, grads = compute(engine, device, supported, model, batch, options)
    shapes = {name: (p.shape, p.dtype) for name, p in model.named_parameters()}
    assert {name: (grad.shape, grad.dtype) for name, grad in grads.items()} == shapes
    exact = REFERENCE.loss_and_grads(
        model.double(), Batch(*(part.double() for part in batch)), Job("loss_and_grads", loss=options)
    )
    tolerance = TOLERANCES[dtype]
    # Each term is a mean over rows of either sign: what it is a sum of is of the size of the quadratic one, or of the
    # row with the largest weight.
    scale = float(exact.loss.linear.abs() + exact.loss.quadratic) * max(1.0, math.sqrt(rows))
    for ours, theirs, name in zip(terms, exact.loss, exact.loss._fields, strict=True):
        assert abs(float(ours) - float(theirs)) <= tolerance.loss * scale, (name, float(ours), float(theirs))
    rounding = 4 * torch.finfo(dtype).eps * float(terms[1].abs() + terms[2].abs())
    torch.testing.assert_close(terms[0], terms[1] + terms[2], rtol=0, atol=rounding)
    overall = max(float(grad.abs().max()) for grad in exact.grads.values())
    for name, expected in exact.grads.items():
        error = (grads[name].double() - expected).abs().max()
        allowed = tolerance.weights * (float(expected.abs().max()) + 1e-3 * overall)
        assert float(error) <= allowed, (name, float(error), allowed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("network", ZOO, ids=str)
def test_zoo(engine, device, supported, network, dtype):
    position = ZOO.index(network)
    options = LossOptions(ESTIMATORS[position % 2], list(WEIGHTS.values())[position % 3])
    compare(engine, device, supported, network, dtype, (1, 7, 33, 64)[position % 4], options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("network", SMALL, ids=str)
def test_estimators_and_weights(engine, device, supported, network, estimator, weight, dtype):
    compare(engine, device, supported, network, dtype, 29, LossOptions(estimator, WEIGHTS[weight]))


@pytest.mark.parametrize("rows", [*range(1, 18), 31, 33, 64, 65, 127, 129, 1000, 10_007])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_batch_sizes(engine, device, supported, rows, estimator):
    compare(engine, device, supported, Network(3, (33, 7)), torch.float32, rows, LossOptions(estimator, "uniform"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large(engine, device, supported, dtype):
    compare(engine, device, supported, Network(512, (512, 100)), dtype, 20, LossOptions())


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_gradient_is_the_losss_own(engine, device, supported, estimator):
    """Central differences of the engine's own loss along random directions: no use of the reference."""
    network = Network(2, (7, 5), "silu", 3)
    model = network.build()
    batch, options = batch_for(network, 13, torch.float64), LossOptions(estimator, "uniform")
    _, grads = compute(engine, device, supported, model, batch, options)
    for name, parameter in model.named_parameters():
        direction = states(1, parameter.numel(), torch.float64, 77).reshape(parameter.shape)
        step = 1e-5
        totals = []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                parameter.add_(sign * step * direction)
            totals.append(float(compute(engine, device, supported, model, batch, options)[0][0]))
            with torch.no_grad():
                parameter.sub_(sign * step * direction)
        slope = (totals[0] - totals[1]) / (2 * step)
        assert float((grads[name] * direction).sum()) == pytest.approx(slope, rel=1e-6, abs=1e-7), name


def test_untrained(engine, device, supported):
    """The output layer starts at zero: hidden gradients are exactly zero, the output's are not."""
    network = Network(2, (16, 16))
    model = network.build(torch.float32, gain=0.0)
    _, grads = compute(engine, device, supported, model, batch_for(network, 50, torch.float32), LossOptions())
    assert bool((grads["output.weight"] != 0).any())
    for name, grad in grads.items():
        if name != "output.weight":
            assert torch.equal(grad, torch.zeros_like(grad)), name


def test_frozen_parameters_are_left_out(engine, device, supported):
    network = Network(2, (16, 7))
    model = network.build(torch.float32)
    batch = batch_for(network, 20, torch.float32)
    _, full = compute(engine, device, supported, model, batch, LossOptions())
    model.hidden[0].weight.requires_grad_(False)
    model.hidden[1].bias.requires_grad_(False)
    _, rest = compute(engine, device, supported, model, batch, LossOptions())
    assert set(full) - set(rest) == {"hidden.0.weight", "hidden.1.bias"}
    for name, grad in rest.items():
        assert_same(engine, grad, full[name], name)


def test_new_weights_are_seen(engine, device, supported):
    """Weights change between two calls in every way that programs change them."""
    network = Network(2, (16, 7))
    model = network.build(torch.float64)
    batch = batch_for(network, 20, torch.float64)
    other = Network(2, (16, 7), "silu").build(torch.float64, gain=0.3)

    def in_place():
        with torch.no_grad():
            model.hidden[0].weight.mul_(1.5)

    def replaced():
        model.hidden[1].bias = torch.nn.Parameter(model.hidden[1].bias.detach() + 0.25)

    def through_data():
        model.output.weight.data[0, 3] += 1.0

    def through_numpy():
        model.hidden[0].bias.detach().numpy()[2] -= 0.5

    def loaded():
        model.load_state_dict(other.state_dict())

    for change in (in_place, replaced, through_data, through_numpy, loaded):
        change()
        terms, _ = compute(engine, device, supported, model, batch, LossOptions())
        exact = REFERENCE.loss_and_grads(model, batch, Job("loss_and_grads", loss=LossOptions()))
        torch.testing.assert_close(terms[0], exact.loss.total, rtol=1e-11, atol=1e-12)
