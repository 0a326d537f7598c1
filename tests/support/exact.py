"""Potentials whose densities or flows are known in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vapo_fast.homotopy import DataHomotopy, Homotopy, LinearHomotopy
from vapo_fast.potentials import GaussianMixturePotential, Potential

# Gaussian data N(m, s^2 I), D = 3, |m|^2 = 5.25, s = .5, omega = 1, sigma = .1: alpha, v, S, S'/2S, alpha', L*.
GAUSSIAN_TABLE = [
    (DataHomotopy(1.0, 0.1), math.log(2), (0.5, 0.5, 0.5625, -0.33333333, 0.5, -0.75)),
    (
        DataHomotopy(1.0, 0.1),
        math.log(101),
        (0.99009901, 0.0099009901, 0.254975, -0.0098039216, 0.0099009901, -2.9408881e-4),
    ),
    (LinearHomotopy(), 0.25, (0.25, 0.5625, 0.578125, -1.1891892, 1.0, -3.8513514)),
    (LinearHomotopy(), 0.5, (0.5, 0.25, 0.3125, -1.2, 1.0, -3.3)),
    (LinearHomotopy(), 0.9, (0.9, 0.01, 0.2125, 0.58823529, 1.0, -2.7352941)),
]


def gaussian(mean: Tensor | Sequence[float], variance: float, path: Homotopy) -> GaussianMixturePotential:
    """The exact potential of data N(mean, variance I)."""
    mean = torch.as_tensor(mean, dtype=torch.float64)
    covariance = variance * torch.eye(len(mean), dtype=torch.float64)
    return GaussianMixturePotential(torch.ones(1), mean[None], covariance[None], path)


def line_mixture(path: Homotopy) -> GaussianMixturePotential:
    """The one-dimensional mixture of METHOD 5."""
    return _mixture([0.3, 0.7], [[-2.0], [1.0]], [[[0.09]], [[0.25]]], path)


def plane_mixture(path: Homotopy) -> GaussianMixturePotential:
    """The two-dimensional mixture of METHOD 5; one covariance is not diagonal."""
    covariances = [[[0.04, 0.0], [0.0, 0.04]], [[0.2, 0.1], [0.1, 0.15]]]
    return _mixture([0.25, 0.75], [[-1.0, 0.0], [1.0, 0.5]], covariances, path)


def _mixture(weights: object, means: object, covariances: object, path: Homotopy) -> GaussianMixturePotential:
    arrays = (torch.tensor(value, dtype=torch.float64) for value in (weights, means, covariances))
    return GaussianMixturePotential(*arrays, path)


class Quadratic(nn.Module):
    """Phi = c |x|^2 / 2, whose flow is x(t) = x0 e^(c t)."""

    def __init__(self, curvature: float = -1.0) -> None:
        super().__init__()
        self.curvature = nn.Parameter(torch.tensor(curvature))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * self.curvature * x.flatten(1).square().sum(1)


def well(shape: Sequence[int] = (2,), path: Homotopy | None = None) -> Potential:
    """Phi = -|x|^2 / 2 as a time-independent potential."""
    return Potential.from_module(Quadratic(), shape, DataHomotopy(1.0, 0.1) if path is None else path)
