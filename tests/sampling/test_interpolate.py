"""Interpolation through the prior, and the spherical path that it takes there."""

import math

import pytest
import torch

from tests.support.exact import gaussian, well
from vapo_fast import noise
from vapo_fast.homotopy import DataHomotopy
from vapo_fast.sampling.sample import interpolate, sample, spherical

PATH = DataHomotopy(1.0, 0.1)
MEAN, SD = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), 0.5


def test_interpolation_keeps_its_ends_and_goes_through_the_prior():
    model = gaussian(MEAN, SD**2, PATH)
    ends = sample(model, 4, rtol=1e-9)
    a, b = ends[:2], ends[2:]
    frames = interpolate(model, a, b, 5, rtol=1e-9)
    assert frames.shape == (2, 5, 3)
    assert torch.equal(frames[:, 0], a)
    assert torch.equal(frames[:, -1], b)
    z = noise.normal(0, range(4), (3,), dtype=torch.float64)
    k = PATH.kernel(PATH.t1)
    spread = (k.beta**2 + k.alpha**2 * SD**2).sqrt()
    for i in range(1, 4):
        torch.testing.assert_close(
            frames[:, i], k.alpha * MEAN + spread * spherical(z[:2], z[2:], i / 4), rtol=0, atol=1e-6
        )
    single = interpolate(model, a[0], b[0], 5, rtol=1e-9)
    torch.testing.assert_close(single, frames[0], rtol=1e-10, atol=1e-10)
    assert torch.equal(interpolate(model, a, b, 2), torch.stack((a, b), 1))


def test_spherical():
    a = torch.tensor([[3.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    b = torch.tensor([[0.0, 1.0], [-1.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    half = spherical(a, b, 0.5)
    root = math.sqrt(0.5)
    expected = [[2 * root, 2 * root], [0.0, 1.0], [1.5, 0.0], [1.0, 0.0], [0.0, 0.0]]
    torch.testing.assert_close(half, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    for s, end in ((0.0, a), (1.0, b)):
        torch.testing.assert_close(spherical(a, b, s), end, rtol=1e-12, atol=1e-12)
    line = spherical(torch.tensor([[1.0]]), torch.tensor([[-1.0]]), 0.25)
    assert line.tolist() == [[0.5]]


def test_spherical_is_smooth_near_opposite_and_equal_points():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(50, 8, generator=generator)
    for b in (-a + 1e-6 * torch.randn(50, 8, generator=generator), a + 1e-7 * torch.randn(50, 8, generator=generator)):
        middle = spherical(a, b, 0.5)
        assert middle.isfinite().all()
        torch.testing.assert_close(middle.norm(dim=1), a.norm(dim=1), rtol=1e-4, atol=0.0)


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (torch.zeros(3), r"x_a must have shape \(B, 2\)"),
        (torch.zeros(0, 2), "x_a must hold at least one sample"),
    ],
)
def test_ends_must_be_events(end, message):
    with pytest.raises(ValueError, match=message):
        interpolate(well(), end, end, 3)
