"""The two-dimensional sets follow their stated formulas and depend on (seed, index) only."""

import math

import pytest
import torch
from scipy import stats

from vapo_fast import data
from vapo_fast.data import toy

NAMES = tuple(toy.TOYS)
N = 20_000


def points(name, **options):
    dataset = data.load(name, n=N, **options)
    return dataset.tensor().double(), dataset.labels


def passes_ks(sample, distribution):
    return stats.kstest(sample.numpy(), distribution).pvalue > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_scale_and_range(name):
    x, _ = points(name)
    rms = x.square().mean(dim=0).sqrt()
    assert x.shape == (N, 2)
    assert ((rms > 0.4) & (rms < 0.9)).all()
    assert (x.abs() > 1.6).any(dim=1).double().mean() < 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_point_depends_on_seed_and_index_only(name):
    few, many = data.load(name, n=50, seed=3), data.load(name, n=500, seed=3)
    assert torch.equal(few.tensor(), many.batch(range(50)))
    assert torch.equal(many.batch([7, 3, 7]), many.tensor()[[7, 3, 7]])
    assert not torch.equal(few.tensor(), data.load(name, n=50, seed=4).tensor())


def test_large_sets_are_not_kept_and_give_the_same_points(monkeypatch):
    kept = data.load("pinwheel", n=300).tensor()
    monkeypatch.setattr(toy, "_KEEP_AT_MOST", 10)
    streaming = data.load("pinwheel", n=300)
    assert torch.equal(streaming.batch([299, 0, 5]), kept[[299, 0, 5]])
    assert streaming._kept is None


@pytest.mark.parametrize("name", NAMES)
def test_test_split_shares_no_point(name):
    train, test = data.load(name, n=2_000).tensor(), data.load(name, n=2_000, split="test").tensor()
    assert not set(map(tuple, train.tolist())) & set(map(tuple, test.tolist()))


def test_eight_gaussians_is_the_stated_mixture():
    x, mode = points("8gaussians")
    mixture = data.eight_gaussians_mixture()
    assert torch.allclose(mixture.means.norm(dim=1), torch.ones(8).double())
    assert torch.allclose(mixture.covariances, 0.0025 * torch.eye(2).double().expand(8, 2, 2))
    assert torch.equal(mixture.weights, torch.full((8,), 0.125).double())
    residual = (x - mixture.means[mode]) / data.EIGHT_GAUSSIANS_SD
    assert passes_ks(residual.flatten(), "norm")
    assert stats.chisquare(torch.bincount(mode, minlength=8).numpy()).pvalue > 1e-4
    # Position within a mode must not tell the mode: normals and uniforms come from separate draws.
    assert abs(float(torch.corrcoef(torch.stack((residual[:, 0], mode.double())))[0, 1])) < 0.03


def test_two_moons_lie_on_reflected_half_circles():
    x, moon = points("2moons")
    upper = x * (1 - 2 * moon[:, None])
    radius = (upper + torch.tensor([0.5, 0.25])).norm(dim=1)
    assert abs(float(radius.mean()) - 1) < 0.005
    assert abs(float(radius.std()) - 0.05) < 0.002
    assert float((upper[:, 1] + 0.25).min()) > -0.25
    assert abs(float(moon.double().mean()) - 0.5) < 0.02


def test_checkerboard_is_uniform_on_dark_squares():
    x, label = points("checkerboard")
    column, row = ((x + 1) * 2).floor().clamp(0, 3).long().T
    assert ((column + row) % 2 == 0).all()
    assert torch.equal(4 * row + column, label)
    squares = torch.bincount(label, minlength=16)
    assert stats.chisquare(squares[squares > 0].numpy()).pvalue > 1e-4
    assert (squares > 0).sum() == 8
    within = ((x + 1) * 2) % 1
    assert passes_ks(within[:, 0], "uniform")
    assert passes_ks(within[:, 1], "uniform")


def test_pinwheel_unwinds_to_gaussian_arms():
    x, arm = points("pinwheel")
    # The turn depends on the unrotated r, so it is found by fixed-point iteration from the radius.
    radius = x.norm(dim=1) / 0.7
    along = radius.clone()
    for _ in range(50):
        angle = 2 * math.pi / 5 * arm + 0.25 * along.exp()
        along = (x[:, 0] * angle.cos() + x[:, 1] * angle.sin()) / 0.7
        across = (x[:, 1] * angle.cos() - x[:, 0] * angle.sin()) / 0.7
    clear = radius > 0.4
    assert abs(float(across[clear].std()) - 0.1) < 0.005
    assert abs(float(along[clear].mean()) - 1) < 0.03
    assert stats.chisquare(torch.bincount(arm, minlength=5).numpy()).pvalue > 1e-4


def test_swissroll_hugs_its_spiral():
    x, labels = points("swissroll")
    a = torch.linspace(1.5 * math.pi, 4.5 * math.pi, 4_000, dtype=torch.float64)
    spiral = torch.stack((a * a.cos(), a * a.sin()), dim=1) / 10
    distance, nearest = torch.cdist(x[:4_000], spiral).min(dim=1)
    assert labels is None
    assert abs(float(distance.square().mean().sqrt()) - 0.05) < 0.003
    assert passes_ks((a[nearest] / math.pi - 1.5) / 3, "uniform")


def test_values_are_pinned_across_platforms():
    """Computed once; a change in the noise, the formulas or the index layout would show here."""
    eight = [[0.06292065232992172, -0.9360091090202332], [0.7222045063972473, 0.7765354514122009]]
    roll = [[0.5809170603752136, 0.5016709566116333], [-0.9055705070495605, 0.3164464831352234]]
    x = data.load("8gaussians", n=2, seed=1).tensor()
    y = data.load("swissroll", n=2, seed=1, split="test").tensor()
    assert torch.allclose(x, torch.tensor(eight), atol=1e-6)
    assert torch.allclose(y, torch.tensor(roll), atol=1e-6)


def test_bad_arguments():
    with pytest.raises(TypeError, match="n must be a positive integer"):
        data.load("2moons", n=2.5)
    with pytest.raises(ValueError, match=r"n must be below 2\*\*40"):
        data.Toy("2moons", n=2**40)
