"""Loss and parameter gradients by explicit passes, against double backward in float64."""

import math

import pytest
import torch
from vapo_fast.kernels import train as module
from vapo_fast.kernels.train import ESTIMATORS, loss_and_gradients

from tests.support.tolerances import TOLERANCES
from tests.support.zoo import Network, states, times
from vapo_fast.engines import Batch, Job, LossOptions, ReferenceEngine

TOLERANCE = TOLERANCES[torch.float32]
REFERENCE = ReferenceEngine()
CASES = (
    (Network(1, (1,)), "velocity", "uniform"),
    (Network(2, (65,), "tanh", 0, True, "linear"), "covariance", "uniform"),
    (Network(17, (7, 33), "softplus", 5), "velocity", "inverse_variance"),
    (Network(3, (16, 7, 65), "silu", 70, True, "linear"), "covariance", "given"),
    (Network(2, (33, 16), "silu", 5, False), "covariance", "inverse_variance"),
    (Network(70, (7, 3, 7, 3), "tanh", 0, False, "linear"), "velocity", "given"),
    (Network(3, (3,), "softplus", 65, False), "velocity", "uniform"),
)


def batch_of(network, model, n):
    # At the very end of the path the weights dwarf all other rows.
    t = times(n + 2, model.homotopy, torch.float32)[2:]
    return Batch(states(n, network.dimension, torch.float32, 11), t, states(n, network.dimension, torch.float32, 12))


def train(device, loaded, network, batch, estimator, weight):
    mlp, program = loaded
    if weight == "given":
        weight = 0.5 + batch.t.square()
    on_device = [part.to(device) for part in batch]
    weight = weight.to(device) if isinstance(weight, torch.Tensor) else weight
    return loss_and_gradients(mlp, *on_device, estimator, weight, program)


def check(device, packed, network, n, estimator, weight):
    model = network.build(torch.float32)
    batch = batch_of(network, model, n)
    found = train(device, packed(model), network, batch, estimator, weight)
    options = LossOptions(estimator, (lambda t: 0.5 + t.square()) if weight == "given" else weight)
    exact = REFERENCE.loss_and_grads(
        model.cpu().double(), Batch(*(part.double() for part in batch)), Job("loss_and_grads", loss=options)
    )
    scale = float(exact.loss.linear.abs() + exact.loss.quadratic) * math.sqrt(n)
    assert abs(float(found.linear) - float(exact.loss.linear)) <= TOLERANCE.loss * scale
    assert abs(float(found.quadratic) - float(exact.loss.quadratic)) <= TOLERANCE.loss * scale
    overall = max(float(grad.abs().max()) for grad in exact.grads.values())
    assert set(found.gradients) == set(exact.grads)
    for name, expected in exact.grads.items():
        assert found.gradients[name].shape == expected.shape, name
        error = float((found.gradients[name].cpu().double() - expected).abs().max())
        assert error <= TOLERANCE.weights * (float(expected.abs().max()) + 1e-3 * overall), (name, error)


@pytest.mark.parametrize(("network", "estimator", "weight"), CASES, ids=str)
def test_cases(device, packed, network, estimator, weight):
    check(device, packed, network, 19, estimator, weight)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("n", [1, 16, 33])
def test_batch_sizes(device, packed, n, estimator):
    check(device, packed, Network(2, (7, 5)), n, estimator, "uniform")


def test_what_memory_held_does_not_matter(device, packed, poisoned):
    check(device, packed, Network(3, (16, 7), "softplus", 5), 19, "covariance", "inverse_variance")


def test_the_same_bits_again(device, packed):
    network = Network(3, (16, 7), "silu", 5)
    model = network.build(torch.float32)
    batch = batch_of(network, model, 35)
    first, second = (train(device, packed(model), network, batch, "covariance", "uniform") for _ in range(2))
    assert torch.equal(first.linear, second.linear)
    assert torch.equal(first.quadratic, second.quadratic)
    for name, grad in first.gradients.items():
        assert torch.equal(grad, second.gradients[name]), name


@pytest.fixture
def products():
    """How the library's float32 products are computed, as (legacy, CUDA's, the CPU's); put back afterwards."""

    def settings():
        try:
            overall = torch.get_float32_matmul_precision()
        except RuntimeError:
            overall = "mixed"
        return overall, torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision

    before = settings()
    yield settings
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision = before[1:]


@pytest.mark.parametrize("allow", ["high", "medium", "highest", "cuda only"])
def test_products_are_float32_whatever_the_program_allows(device, packed, products, monkeypatch, allow):
    network = Network(2, (7, 5))
    model, seen = network.build(torch.float32), []
    weight_gradients = module._weight_gradients
    monkeypatch.setattr(module, "_weight_gradients", lambda *of: (seen.append(products()), weight_gradients(*of))[1])
    if allow == "cuda only":
        torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    else:
        torch.set_float32_matmul_precision(allow)
    before = products()
    train(device, packed(model), network, batch_of(network, model, 5), "velocity", "uniform")
    assert seen == [("highest", "ieee", "ieee")]
    assert products() == before
