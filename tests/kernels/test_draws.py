"""Noise with the library's bits."""

import pytest
import torch
from vapo_fast.kernels import noise

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
