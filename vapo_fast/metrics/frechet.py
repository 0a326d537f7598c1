"""Fréchet distance between Gaussian fits of two sets of features."""

from __future__ import annotations

import torch
from torch import Tensor

from vapo_fast.metrics._checks import two_sets


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    r"""Squared Fréchet (2-Wasserstein) distance between Gaussians fitted to two sets of features (n, F) and (m, F).

    ``|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))`` with covariances over n - 1, in float64. It is the FID only
    for features of the Inception network. The estimate is biased upwards by about 1/n, so compare equal sizes.
    (Dowson & Landau, The Fréchet distance between multivariate normal distributions, 1982.)

    Raises: TypeError/ValueError for sets that are not floating point, fewer than two rows, different F, or NaN.
    """
    a, b = two_sets("features_a", features_a, "features_b", features_b, at_least=2)
    return gaussian_frechet_distance(*_moments(a), *_moments(b))


def gaussian_frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """The distance of `frechet_distance` from means (F,) and covariances (F, F), symmetric and positive semi-definite.

    ``tr (C_a C_b)^(1/2)`` is computed as the sum of the singular values of ``C_a^(1/2) C_b^(1/2)``. These symmetric
    roots exist for singular covariances, for which the root of the product is ill-defined, and no small eigenvalue is
    squared. Raises ValueError if the shapes do not fit.
    """
    size = mean_a.numel()
    if mean_a.shape != (size,) or mean_b.shape != (size,) or cov_a.shape != (size, size) or cov_b.shape != (size, size):
        raise ValueError(
            "means must be (F,) and covariances (F, F) of one F, got "
            f"{tuple(mean_a.shape)}, {tuple(cov_a.shape)}, {tuple(mean_b.shape)}, {tuple(cov_b.shape)}"
        )
    shift = (mean_a.to(torch.float64) - mean_b.to(torch.float64)).square().sum()
    root_a, root_b = _square_root(cov_a.to(torch.float64)), _square_root(cov_b.to(torch.float64))
    cross = torch.linalg.svdvals(root_a @ root_b).sum()
    distance = shift + cov_a.to(torch.float64).trace() + cov_b.to(torch.float64).trace() - 2 * cross
    # For equal fits the rounding residue may have either sign; the distance itself is never negative.
    return max(0.0, float(distance))


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    x = features.to(torch.float64)
    mean = x.mean(dim=0)
    centred = x - mean
    return mean, centred.T @ centred / (len(x) - 1)


def _square_root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root
