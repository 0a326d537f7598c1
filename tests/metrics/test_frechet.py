"""Fréchet distance against closed forms and scipy's matrix square root."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from vapo_fast.metrics import frechet_distance, gaussian_frechet_distance


def features(n, size, seed=0, scale=1.0, shift=0.0):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(size, size)) * scale
    return torch.from_numpy(rng.normal(size=(n, size)) @ mixing + shift)


def by_sqrtm(a, b):
    cov_a, cov_b = np.cov(a.numpy(), rowvar=False), np.cov(b.numpy(), rowvar=False)
    shift = ((a.numpy().mean(0) - b.numpy().mean(0)) ** 2).sum()
    return shift + np.trace(cov_a + cov_b) - 2 * np.trace(sqrtm(cov_a @ cov_b)).real


def test_equals_scipy():
    a, b = features(300, 12), features(200, 12, seed=1, scale=1.5, shift=0.3)
    assert frechet_distance(a, b) == pytest.approx(by_sqrtm(a, b), rel=1e-8)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)


def test_diagonal_gaussians_have_a_closed_form():
    mean_a, mean_b = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 1.0, 0.5])
    sd_a, sd_b = torch.tensor([1.0, 0.1, 3.0]), torch.tensor([2.0, 0.0, 1.0])
    found = gaussian_frechet_distance(mean_a, torch.diag(sd_a**2), mean_b, torch.diag(sd_b**2))
    assert found == pytest.approx(float((mean_a - mean_b).square().sum() + (sd_a - sd_b).square().sum()), rel=1e-6)


def test_commuting_covariances_have_a_closed_form():
    basis = torch.linalg.qr(features(8, 8))[0]
    one, two = torch.linspace(0, 3, 8).double(), torch.linspace(2, 0.5, 8).double()
    found = gaussian_frechet_distance(
        torch.zeros(8), basis @ torch.diag(one) @ basis.T, torch.zeros(8), basis @ torch.diag(two) @ basis.T
    )
    assert found == pytest.approx(float((one.sqrt() - two.sqrt()).square().sum()), rel=1e-9)


def test_scaling_and_translation():
    a = features(400, 6)
    centred = a - a.mean(dim=0)
    trace = float(centred.square().sum() / (len(a) - 1))
    assert frechet_distance(centred, 3 * centred) == pytest.approx(4 * trace, rel=1e-9)
    assert frechet_distance(a, a + 0.5) == pytest.approx(6 * 0.25, rel=1e-8)


def test_rank_deficient_fits_stay_finite_and_exact():
    """Fewer rows than features: scipy's square root of the product is unreliable, the closed form is not."""
    thin = features(6, 40)
    assert frechet_distance(thin, thin) == pytest.approx(0, abs=1e-8 * float(thin.var() * 40))
    assert frechet_distance(thin, 2 * thin - thin.mean(dim=0)) == pytest.approx(
        float((thin - thin.mean(dim=0)).square().sum() / 5), rel=1e-8
    )
    constant = torch.ones(10, 4)
    assert frechet_distance(constant, constant + 2) == pytest.approx(16)
    disjoint_a, disjoint_b = torch.zeros(50, 4).double(), torch.zeros(50, 4).double()
    disjoint_a[:, :2], disjoint_b[:, 2:] = features(50, 2), features(50, 2, seed=1)
    expected = float(disjoint_a.var(dim=0).sum() + disjoint_b.var(dim=0).sum())
    expected += float((disjoint_a.mean(dim=0) - disjoint_b.mean(dim=0)).square().sum())
    assert frechet_distance(disjoint_a, disjoint_b) == pytest.approx(expected, rel=1e-9)


def test_features_of_very_different_scales():
    scale = torch.logspace(-6, 3, 10).double()
    a, b = features(500, 10) * scale, features(500, 10) * scale
    assert frechet_distance(a, b) == pytest.approx(0, abs=1e-7)
    assert frechet_distance(a, b + scale) == pytest.approx(float(scale.square().sum()), rel=1e-8)


def test_never_negative_and_single_precision_accepted():
    a = features(100, 5).float()
    assert 0 <= frechet_distance(a, a) < 1e-9
    assert isinstance(frechet_distance(a, a), float)


def test_bad_inputs():
    a = features(10, 3)
    with pytest.raises(ValueError, match=r"got \(3,\) and \(4,\)"):
        frechet_distance(a, features(10, 4))
    bad = a.clone()
    bad[0, 0] = math.inf
    with pytest.raises(ValueError, match="features_a has NaN or infinite"):
        frechet_distance(bad, a)
    with pytest.raises(ValueError, match=r"means must be \(F,\)"):
        gaussian_frechet_distance(torch.zeros(3), torch.eye(2), torch.zeros(3), torch.eye(3))
