"""Noise with the library's bits, and points of the path made from it."""

import pytest
import torch
from vapo_fast.kernels import noise
from vapo_fast.kernels.perturb import perturb

from tests.support.tolerances import TOLERANCES
from tests.support.zoo import Network, states, times
from vapo_fast import noise as library

INDICES = torch.tensor([0, 1, 2, 77, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40 + 3, 2**63 - 1])
EPS = torch.finfo(torch.float32).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("seed", "stream"), [(0, 0), (2**64 - 1, 2**32 - 1), (2**63 + 2**31, 1), (1, 2**31)])
def test_draws_have_the_librarys_bits(device, poisoned, seed, stream, dtype):
    key = (seed % 2**32, seed >> 32)
    for size in (1, 3, 4, 70):
        drawn = noise.normal(key, INDICES.to(device), size, stream, dtype)
        assert drawn.dtype == dtype
        assert torch.equal(drawn.cpu(), library.normal(seed, INDICES, (size,), stream=stream, dtype=dtype))
        drawn = noise.uniform(key, INDICES.to(device), size, stream, dtype)
        inside = drawn.clamp(torch.finfo(dtype).tiny, 1.0 - 0.5 * torch.finfo(dtype).eps)
        assert torch.equal(inside.cpu(), library.uniform(seed, INDICES, (size,), stream=stream, dtype=dtype))
    assert noise.normal(key, INDICES[:0].to(device), 3, stream, dtype).shape == (0, 3)


@pytest.mark.parametrize(("seed", "stream"), [(0, 2), (2**64 - 1, 2**32 - 1)])
def test_permutations_are_the_librarys(device, poisoned, seed, stream):
    key = (seed % 2**32, seed >> 32)
    for n, number in ((1, 0), (2, 5), (257, 2**31), (1000, 2**40 + 3)):
        epoch = torch.tensor([number])
        expected = library.permutation(seed, n, number, stream=stream)
        assert torch.equal(noise.permutation(key, n, epoch.to(device), stream).cpu(), expected)
        assert torch.equal(noise.permutation_reference(key, n, epoch, stream), expected)


@pytest.mark.parametrize(
    "network",
    [Network(1, (7,)), Network(3, (7,), path="linear"), Network(70, (7,)), Network(64, (7,), path="linear")],
    ids=str,
)
def test_perturb(device, packed, poisoned, network):
    model = network.build(torch.float32)
    mlp, _ = packed(model)
    n, dimension = 37, network.dimension
    x_data, t = states(n, dimension, torch.float32, 3), times(n, model.homotopy, torch.float32)
    drawn = library.normal(9, range(n), (dimension,), stream=1)
    found = perturb(mlp.net, mlp.constants, x_data.to(device), t.to(device), drawn.to(device))
    exact = model.homotopy.perturb(x_data.double(), t.double(), drawn.double())
    k = model.homotopy.kernel(t.double())
    sizes = (x_data.abs() + 2 * drawn.abs() + 1e-6).double()
    assert bool(((found.x.cpu() - exact.x).abs() <= 4 * EPS * sizes).all())
    assert bool(((found.velocity.cpu() - exact.velocity).abs() <= 4 * EPS * sizes).all())
    terms = (k.beta_dot / k.beta).abs() * (dimension + drawn.double().square().sum(1))
    terms += (k.alpha_dot / k.beta).abs() * (drawn * x_data).double().abs().sum(1)
    assert bool(((found.innovation.cpu() - exact.innovation).abs() <= TOLERANCES[torch.float32].value * terms).all())
    # Drawn on the way, the noise has the same bits, and so has what is made of it.
    index = torch.arange(n)
    own = perturb(mlp.net, mlp.constants, x_data.to(device), t.to(device), None, ((9, 0), index.to(device), 1))
    for ours, theirs in zip(own, found, strict=True):
        assert torch.equal(ours, theirs)
    assert perturb(mlp.net, mlp.constants, x_data[:0].to(device), t[:0].to(device), None).x.shape == (0, dimension)
