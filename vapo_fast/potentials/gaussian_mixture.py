"""The exact potential of Gaussian-mixture data: ground truth for tests, examples and benchmarks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vapo_fast.core import checks
from vapo_fast.homotopy import Homotopy, Time, as_time
from vapo_fast.potentials.base import Potential


class GaussianMixturePotential(Potential):
    r"""The optimal Phi(x, t), in closed form, for data ``sum_k weights_k N(means_k, covariances_k)``.

    ``Phi = a/2 |x|^2 + b (v/alpha) ln sum_k weights_k N(x; alpha m_k, alpha^2 C_k + v I) / N(x; 0, v I)`` with v =
    beta^2 and the path's `Gauge` (a, b). The factor alpha of each logarithm of a ratio is taken out analytically, so
    that nothing cancels as alpha -> 0. Phi is normalised so that ``path.log_density`` differs from ln rho by the
    log-normaliser of N(0, v I).

    Args:
        weights: (K,) positive, normalised to sum 1.
        means: (K, D).
        covariances: (K, D, D), symmetric positive semi-definite.
        homotopy: the path.
    Raises: ValueError for shapes or values that are not a mixture.
    """

    log_weights: Tensor
    means: Tensor
    axes: Tensor
    variances: Tensor

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor, homotopy: Homotopy) -> None:
        weights, means, covariances = (torch.as_tensor(v, dtype=torch.float64) for v in (weights, means, covariances))
        if means.dim() != 2 or weights.shape != means.shape[:1]:
            raise ValueError(
                f"weights must be (K,) and means (K, D), got {tuple(weights.shape)} and {tuple(means.shape)}"
            )
        count, dimension = means.shape
        if covariances.shape != (count, dimension, dimension):
            raise ValueError(f"covariances must be ({count}, {dimension}, {dimension}), got {tuple(covariances.shape)}")
        for name, value in (("weights", weights), ("means", means), ("covariances", covariances)):
            checks.all_finite(name, value)
        if not bool((weights > 0).all()):
            raise ValueError(f"weights must be positive, got {weights.tolist()}")
        if not torch.allclose(covariances, covariances.mT):
            raise ValueError("covariances must be symmetric")
        super().__init__((dimension,), homotopy, time_dependent=True)
        variances, axes = torch.linalg.eigh(covariances)
        if bool((variances < -1e-12 * variances.abs().amax()).any()):
            raise ValueError(
                f"covariances must be positive semi-definite; smallest eigenvalue {float(variances.min()):.3g}"
            )
        self.register_buffer("log_weights", (weights / weights.sum()).log())
        self.register_buffer("means", means)
        self.register_buffer("axes", axes)
        self.register_buffer("variances", variances.clamp_min(0.0))

    def value(self, x: Tensor, t: Tensor) -> Tensor:
        k = self.homotopy.kernel(t)
        gauge = self.homotopy.gauge(t)
        # At alpha = 0 the smallest alpha that can divide stands for the limit.
        alpha, v = k.alpha.clamp_min(torch.finfo(x.dtype).tiny ** 0.5)[:, None, None], k.beta.square()[:, None, None]
        y = torch.einsum("kji,bj->bki", self.axes, x)
        mean = torch.einsum("kji,kj->ki", self.axes, self.means)
        total = v + alpha.square() * self.variances
        # ln [N(x; alpha m, alpha^2 C + v) / N(x; 0, v)] / alpha, summed over the principal axes.
        per_axis = (alpha * self.variances * y.square() + 2 * v * y * mean - v * alpha * mean.square()) / (
            2 * v * total
        )
        ratio = (per_axis - torch.log1p(alpha.square() * self.variances / v) / (2 * alpha)).sum(2)
        psi = v[:, 0, 0] * _log_mean_exp_over(self.log_weights, ratio, alpha[:, 0, 0])
        return 0.5 * gauge.quadratic * x.square().sum(1) + gauge.scale * psi

    def marginal_log_density(self, x: Tensor, t: Time) -> Tensor:
        """ln rho(x, t) in nats, normalised: x (B, D), t float or (B,); returns (B,)."""
        k = self.homotopy.kernel(as_time(t).to(x.dtype).expand(x.shape[0]))
        total = k.beta.square()[:, None, None] + k.alpha.square()[:, None, None] * self.variances
        centred = torch.einsum("kji,bkj->bki", self.axes, x[:, None] - k.alpha[:, None, None] * self.means)
        log_normal = -0.5 * (centred.square() / total + total.log() + math.log(2 * math.pi)).sum(2)
        return torch.logsumexp(self.log_weights + log_normal, dim=1)

    def sample_data(self, n: int, seed: int = 0) -> Tensor:
        """Draw (n, D) data points of the mixture (not of the path), in the potential's dtype."""
        generator = torch.Generator().manual_seed(seed)
        index = torch.multinomial(self.log_weights.exp().cpu(), n, replacement=True, generator=generator)
        z = torch.randn(n, self.event_shape[0], generator=generator, dtype=self.means.dtype).to(self.means.device)
        index = index.to(self.means.device)
        data = self.means[index]
        for k in range(len(self.means)):
            rows = index == k
            data[rows] += (self.variances[k].sqrt() * z[rows]) @ self.axes[k].T
        return data

    def config(self) -> dict[str, Any]:
        covariances = torch.einsum("kij,kj,klj->kil", self.axes, self.variances, self.axes)
        return {
            "class": type(self).__name__,
            "weights": self.log_weights.exp().tolist(),
            "means": self.means.tolist(),
            "covariances": covariances.tolist(),
            "homotopy": self.homotopy.config(),
        }


def _log_mean_exp_over(log_weights: Tensor, ratio: Tensor, alpha: Tensor) -> Tensor:
    """``ln(sum_k exp(log_weights_k + alpha ratio_k)) / alpha``: ratio (B, K), alpha (B,); accurate as alpha -> 0."""
    exponent = alpha[:, None] * ratio
    small = exponent.abs().amax(1) < 0.5
    # Where the other branch is taken, each gets inputs whose derivative is finite.
    inside = torch.where(small[:, None], exponent, 0.0)
    near = torch.log1p((log_weights.exp() * torch.expm1(inside)).sum(1))
    far = torch.logsumexp(log_weights + torch.where(small[:, None], 0.0, exponent), dim=1)
    return torch.where(small, near, far) / alpha
