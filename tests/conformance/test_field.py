"""Phi and grad Phi of every engine against the reference in float64."""

import pytest
import torch

from tests.support.tolerances import TOLERANCES, assert_rows_close, field_scales
from tests.support.zoo import DTYPES, PATHS, ZOO, Network, states, times
from vapo_fast.engines import Job, ReferenceEngine

REFERENCE = ReferenceEngine()


def check(engine, device, supported, network, dtype, rows):
    model = network.build(dtype)
    supported(model, Job("field"))
    x, t = states(rows, network.dimension, dtype), times(rows, model.homotopy, dtype)
    phi, gradient = engine.field(model.to(device), x.to(device), t.to(device))
    assert phi.shape == (rows,)
    assert gradient.shape == x.shape
    assert phi.dtype == gradient.dtype == dtype
    assert not phi.requires_grad
    assert not gradient.requires_grad
    exact = model.cpu().double()
    x, t = x.double(), t.double()
    expected_phi, expected_gradient = REFERENCE.field(exact, x, t)
    value_scale, gradient_scale = field_scales(exact, x, t, expected_gradient)
    tolerance = TOLERANCES[dtype]
    assert_rows_close(phi.cpu(), expected_phi, value_scale, tolerance.value, "Phi")
    assert_rows_close(gradient.cpu(), expected_gradient, gradient_scale, tolerance.gradient, "grad Phi")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("network", ZOO, ids=str)
def test_zoo(engine, device, supported, network, dtype):
    check(engine, device, supported, network, dtype, rows=(1, 2, 5, 33, 64, 97)[len(network.widths) % 6])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [*range(1, 18), 31, 32, 33, 63, 64, 65, 127, 128, 129, 1000, 10_007])
def test_batch_sizes(engine, device, supported, rows, dtype):
    check(engine, device, supported, Network(2, (16, 33)), dtype, rows)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large(engine, device, supported, dtype):
    check(engine, device, supported, Network(512, (512, 512, 512, 512)), dtype, rows=70)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_far_out(engine, device, supported, dtype):
    """Activations saturate smoothly: no overflow, no NaN, right limits, far beyond where exp would overflow."""
    for activation in ("silu", "softplus", "tanh"):
        network = Network(2, (16, 16), activation)
        model = network.build(dtype).to(device)
        supported(model, Job("field"))
        x = states(50, 2, dtype) * torch.logspace(0, 6, 50, dtype=dtype)[:, None]
        t = torch.full((50,), 1.0, dtype=dtype)
        phi, gradient = engine.field(model, x.to(device), t.to(device))
        exact = model.cpu().double()
        expected_phi, expected_gradient = REFERENCE.field(exact, x.double(), t.double())
        scale = field_scales(exact, x.double(), t.double(), expected_gradient)
        # Sums inside the network grow with x too.
        growth = 1.0 + x.double().norm(dim=1)
        assert_rows_close(phi.cpu(), expected_phi, scale[0] * growth, TOLERANCES[dtype].value, activation)
        assert_rows_close(gradient.cpu(), expected_gradient, scale[1] * growth, TOLERANCES[dtype].gradient, activation)


def test_the_gradient_is_the_values_own(engine, device, supported):
    """Central differences of the engine's own Phi: no use of the reference."""
    for network in (Network(3, (33, 16), "silu", 5), Network(2, (7, 7, 7), "tanh", 0, False, "linear")):
        model = network.build().to(device)
        supported(model, Job("field"))
        x, t = states(20, network.dimension, torch.float64), times(22, model.homotopy, torch.float64)[2:]
        _, gradient = engine.field(model, x.to(device), t.to(device))
        step = 1e-5
        for axis in range(network.dimension):
            shift = step * torch.eye(network.dimension, dtype=torch.float64)[axis]
            above, below = (engine.field(model, (x + s).to(device), t.to(device))[0] for s in (shift, -shift))
            torch.testing.assert_close(gradient[:, axis], (above - below) / (2 * step), rtol=1e-6, atol=1e-6)


def test_a_bad_row_does_not_touch_the_others(engine, device, supported):
    model = Network(2, (16, 16)).build(torch.float32).to(device)
    x, t = states(40, 2, torch.float32).to(device), times(40, PATHS["data"], torch.float32).to(device)
    clean_phi, clean_gradient = engine.field(model, x, t)
    spoilt = x.clone()
    bad = [0, 7, 8, 39]
    spoilt[bad] = torch.tensor([[torch.nan, 0.0], [torch.inf, 1.0], [3e38, 3e38], [0.0, -torch.inf]], device=device)
    phi, gradient = engine.field(model, spoilt, t)
    good = [i for i in range(40) if i not in bad]
    assert torch.equal(phi[good], clean_phi[good])
    assert torch.equal(gradient[good], clean_gradient[good])
    for i in (0, 7, 39):
        assert not bool(torch.isfinite(gradient[i]).all())
