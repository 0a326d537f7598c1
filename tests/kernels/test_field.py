"""Phi and grad Phi in one launch, against `Potential.field` in float64."""

import math

import pytest
import torch
from vapo_fast.kernels.field import field

from tests.support.tolerances import TOLERANCES, assert_rows_close, field_scales
from tests.support.zoo import Network, states, times

TOLERANCE = TOLERANCES[torch.float32]
# Depths 1 to 4, widths below, at and above a block of 64, dimensions below and above one, features likewise.
NETWORKS = (
    Network(1, (1,)),
    Network(2, (65, 3), "tanh", 0, True, "linear"),
    Network(17, (64, 16, 33), "softplus", 5),
    Network(70, (7, 130, 7, 3), "silu", 70, True, "linear"),
    Network(2, (33, 16), "silu", 5, False),
    Network(3, (7,), "tanh", 65, False, "linear"),
    Network(70, (16,), "softplus", 0, False),
)


def rows_of(network, n):
    model = network.build(torch.float32)
    return model, states(n, network.dimension, torch.float32), times(n, model.homotopy, torch.float32)


def check(device, packed, network, n):
    model, x, t = rows_of(network, n)
    phi, gradient = field(*_arguments(device, packed(model), x, t))
    assert phi.shape == (n,)
    assert gradient.shape == x.shape
    exact = model.cpu().double()
    expected = exact.field(x.double(), t.double())
    scales = field_scales(exact, x.double(), t.double(), expected[1])
    assert_rows_close(phi.cpu(), expected[0], scales[0], TOLERANCE.value, "Phi")
    assert_rows_close(gradient.cpu(), expected[1], scales[1], TOLERANCE.gradient, "grad Phi")


def _arguments(device, loaded, x, t):
    mlp, program = loaded
    return mlp, x.to(device), t.to(device), program


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_networks(device, packed, network):
    check(device, packed, network, 19)


@pytest.mark.parametrize("n", [1, 16, 17, 50])
def test_batch_sizes(device, packed, n):
    check(device, packed, Network(2, (7,)), n)


def test_no_rows(device, packed):
    model, x, t = rows_of(Network(2, (7,)), 0)
    phi, gradient = field(*_arguments(device, packed(model), x, t))
    assert phi.shape == (0,)
    assert gradient.shape == (0, 2)


def test_a_row_does_not_see_its_batch(device, packed):
    """The same bits alone and among others, in tiles of other sizes, however many run at once, and beside bad rows."""
    model, x, t = rows_of(Network(3, (16, 7), "silu", 5), 37)
    whole = field(*_arguments(device, packed(model), x, t))
    for part in (slice(0, 1), slice(30, 37), slice(5, 25)):
        alone = field(*_arguments(device, packed(model, programs=1), x[part], t[part]))
        assert all(torch.equal(a, b[part]) for a, b in zip(alone, whole, strict=True))
    at_once = field(*_arguments(device, packed(model, rows=64, programs=5), x, t))
    assert all(torch.equal(a, b) for a, b in zip(at_once, whole, strict=True))
    spoilt, spoilt_t = x.clone(), t.clone()
    spoilt[[0, 15, 16]] = torch.tensor([[math.nan, 0, 0], [0, math.inf, 0], [3e38, 3e38, -3e38]])
    spoilt_t[36] = math.nan
    bad = [0, 15, 16, 36]
    beside = field(*_arguments(device, packed(model), spoilt, spoilt_t))
    good = [i for i in range(37) if i not in bad]
    assert all(torch.equal(a[good], b[good]) for a, b in zip(beside, whole, strict=True))
    assert not bool(torch.isfinite(beside[1][bad]).all(dim=1).any())


def test_rows_may_lie_apart(device, packed):
    model, x, t = rows_of(Network(3, (7,)), 20)
    wide = torch.full((20, 9), math.nan)
    wide[:, 4:7] = x
    loaded = packed(model)
    apart = field(loaded[0], wide.to(device)[:, 4:7], t.to(device), loaded[1])
    assert all(torch.equal(a, b) for a, b in zip(apart, field(*_arguments(device, loaded, x, t)), strict=True))


def test_what_memory_held_does_not_matter(device, packed, poisoned):
    check(device, packed, Network(3, (16, 7), "softplus", 5), 19)
