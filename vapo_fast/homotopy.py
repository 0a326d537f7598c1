r"""Gaussian probability paths that carry the prior N(0, omega^2 I) to the data.

Given a data point ``x_data`` and ``noise`` ~ N(0, I), every path is ``x = alpha(t) x_data + beta(t) noise``. Its
conditional velocity is ``u = alpha' x_data + beta' noise`` and its *innovation* ``-d/dt ln rho(x | x_data, t)``.
Samples ascend a potential, ``dx/dt = +grad Phi``, and the best potential has
``grad Phi = (beta'/beta) x + (alpha' - alpha beta'/beta) E[x_data | x]``.

- `DataHomotopy`: the data-likelihood homotopy of VAPO (arXiv 2407.15238), in the time variable tau, where all terms
  are O(1).
- `LinearHomotopy`: the linear path of VPFB (arXiv 2504.16262).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from vapo_fast.core import checks, elementary

Time = float | Tensor


class Kernel(NamedTuple):
    """Coefficients of the path at time t, and their time derivatives; each has the shape of t."""

    alpha: Tensor
    beta: Tensor
    alpha_dot: Tensor
    beta_dot: Tensor


class Gauge(NamedTuple):
    """``Phi = quadratic/2 |x|^2 + scale Psi``. At the optimum, ``grad Psi`` is the posterior mean E[x_data | x]."""

    quadratic: Tensor
    scale: Tensor


class DensityCoefficients(NamedTuple):
    """``ln rho(x, t) = potential * Phi(x, t) + quadratic * |x|^2 + const(t)``."""

    potential: Tensor
    quadratic: Tensor


class Perturbed(NamedTuple):
    """A point of the path: ``x`` and ``velocity`` are (B, *event), ``innovation`` is (B,)."""

    x: Tensor
    velocity: Tensor
    innovation: Tensor


class Homotopy(ABC):
    """A Gaussian probability path; see the module's docstring. Times outside [t0, t1] extrapolate the formulas."""

    omega: float
    t0: float
    t1: float
    balanced_weight: ClassVar[str]
    """Name of the loss weight that counts each noise level about alike when times are uniform in ln beta.

    The loss measures errors of ``grad Phi = ... + scale E[x_data | x]`` (`Gauge`). Given x, x_data is uncertain by
    about beta, so the balanced weight is ``1 / (scale beta)^2``.
    """

    @abstractmethod
    def kernel(self, t: Time) -> Kernel:
        """Coefficients alpha, beta and their derivatives at ``t`` (float or any shape)."""

    @abstractmethod
    def gauge(self, t: Time) -> Gauge:
        """``(beta'/beta, alpha' - alpha beta'/beta)`` at ``t``, in a form that stays accurate at both ends."""

    @abstractmethod
    def density_coefficients(self, t: Time) -> DensityCoefficients:
        """Coefficients of the log-density read-out at ``t``, regular at both ends of the path."""

    @abstractmethod
    def time_at_noise_level(self, beta: Time) -> Tensor:
        """The time at which the path's noise standard deviation is ``beta``: the inverse of ``kernel(t).beta``."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The arguments that rebuild this path, as JSON values, with its class name under ``"class"``."""

    def perturb(self, x_data: Tensor, t: Time, noise: Tensor) -> Perturbed:
        """Move data along the path.

        Args:
            x_data: (B, *event) data points.
            t: float, or (B,) times.
            noise: (B, *event) standard normal draws.
        Returns:
            `Perturbed`: ``x = alpha x_data + beta noise``, ``velocity = alpha' x_data + beta' noise``, and
            ``innovation = (beta'/beta)(D - |noise|^2) - (alpha'/beta) noise . x_data``, of mean zero given x_data.
        Raises:
            ValueError: the shapes of x_data, noise and t do not fit together.
        """
        if noise.shape != x_data.shape:
            raise ValueError(f"noise must have the shape of x_data, {tuple(x_data.shape)}, got {tuple(noise.shape)}")
        checks.time_or_times("t", t, x_data.shape[0])
        k = self.kernel(t)
        a, b, a_dot, b_dot = (expand_time(value, x_data) for value in k)
        flat_noise, flat_data = noise.flatten(1), x_data.flatten(1)
        dimension = flat_noise.shape[1]
        innovation = (k.beta_dot / k.beta) * (dimension - flat_noise.square().sum(1)) - (k.alpha_dot / k.beta) * (
            flat_noise * flat_data
        ).sum(1)
        return Perturbed(a * x_data + b * noise, a_dot * x_data + b_dot * noise, innovation)

    def log_density(self, phi: Tensor, x: Tensor, t: Time) -> Tensor:
        """Read ln rho(x, t) off the value of the potential, up to a constant that depends on t alone.

        Exact for the optimal potential: ``(Phi - |x|^2 alpha'/(2 alpha)) / (beta^2 alpha'/alpha - (beta^2)'/2)``.

        Args:
            phi: (B,) values Phi(x, t). x: (B, *event). t: float or (B,).
        Returns: (B,) nats.
        """
        if phi.shape != x.shape[:1]:
            raise ValueError(f"phi must have shape ({x.shape[0]},), one value a row of x, got {tuple(phi.shape)}")
        c = self.density_coefficients(t)
        return c.potential * phi + c.quadratic * x.flatten(1).square().sum(1)

    def noise_position(self, t: Time) -> Tensor:
        """``ln beta(t)`` mapped linearly so that t0 becomes -1 and t1 becomes +1: the time a network is shown."""
        first, last = self._log_noise_ends
        return (self.kernel(t).beta.log() - first) * (2.0 / (last - first)) - 1.0

    def time_at_noise_position(self, position: Time) -> Tensor:
        """The time whose `noise_position` is ``position``; uniform positions give times uniform in ln beta."""
        return self.time_at_noise_level(torch.exp(self._log_noise_level(position)))

    def _log_noise_level(self, position: Time) -> Tensor:
        first, last = self._log_noise_ends
        return first + (as_time(position) + 1.0) * (0.5 * (last - first))

    @cached_property
    def _log_noise_ends(self) -> tuple[float, float]:
        # Cached, because networks need the noise position at every evaluation.
        first, last = (math.log(float(self.kernel(end).beta)) for end in (self.t0, self.t1))
        return first, last

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Homotopy) and self.config() == other.config()

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.config().items())))

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.config().items() if name != "class")
        return f"{type(self).__name__}({arguments})"


class DataHomotopy(Homotopy):
    r"""VAPO's data-likelihood homotopy, ``rho(x; x_data, t) ∝ N(x; 0, omega^2 I) N(x_data; x, sigma^2 I)^t``.

    The paper's t is in [0, 1], and nearly all transport happens for t below about sigma^2/omega^2. Times of this class
    are ``tau = ln(1 + t omega^2/sigma^2)`` in ``[0, ln(1 + omega^2/sigma^2)]``. There ``alpha = 1 - e^-tau``,
    ``beta = omega e^(-tau/2)``, and the velocity ``-x/2 + (1 + e^-tau) x_data/2`` is O(1) throughout.
    `to_paper_time` and `from_paper_time` convert.

    Args:
        omega: standard deviation of the prior, > 0.
        sigma: standard deviation of the data likelihood, between omega/1e15 and 1000 omega: the noise left at the end
            is sigma/sqrt(1 + sigma^2/omega^2).
    Raises: TypeError, ValueError for other values.
    """

    # scale is between 1/2 and 1.
    balanced_weight = "inverse_variance"

    def __init__(self, omega: float = 1.0, sigma: float = 0.01) -> None:
        self.omega = checks.positive_float("omega", omega)
        self.sigma = checks.positive_float("sigma", sigma)
        self.t0 = 0.0
        ratio = self.omega / self.sigma
        # Closer together, no noise is removed along the path; further apart, 1/beta^2 overflows in float32.
        if not 1e-3 <= ratio <= 1e15:
            raise ValueError(
                f"sigma must be between omega/1e15 and 1000 omega, got sigma={sigma!r} with omega={omega!r}"
            )
        self.t1 = math.log1p(ratio**2)

    def kernel(self, t: Time) -> Kernel:
        t = as_time(t)
        beta = self.omega * torch.exp(-0.5 * t)
        return Kernel(-torch.expm1(-t), beta, torch.exp(-t), -0.5 * beta)

    def gauge(self, t: Time) -> Gauge:
        t = as_time(t)
        return Gauge(torch.full_like(t, -0.5), 0.5 * (1.0 + torch.exp(-t)))

    def density_coefficients(self, t: Time) -> DensityCoefficients:
        t = as_time(t)
        # coth(tau/2) and 1/(e^tau - 1) both diverge at tau = 0; multiplied through by tanh(tau/2) nothing does.
        scale = torch.exp(t) / self.omega**2
        return DensityCoefficients(2.0 * torch.tanh(0.5 * t) * scale, -1.0 / (self.omega**2 * (1.0 + torch.exp(-t))))

    def time_at_noise_level(self, beta: Time) -> Tensor:
        return -2.0 * torch.log(as_time(beta) / self.omega)

    def time_at_noise_position(self, position: Time) -> Tensor:
        # The exponential and its logarithm, which differ between devices in the last bit, cancel here.
        return 2.0 * (math.log(self.omega) - self._log_noise_level(position))

    def to_paper_time(self, tau: Time) -> Tensor:
        """The paper's t = (sigma/omega)^2 (e^tau - 1) in [0, 1]."""
        return torch.expm1(as_time(tau)) * (self.sigma / self.omega) ** 2

    def from_paper_time(self, t: Time) -> Tensor:
        """tau = ln(1 + t omega^2/sigma^2) for the paper's t in [0, 1]."""
        return torch.log1p(as_time(t) * (self.omega / self.sigma) ** 2)

    def config(self) -> dict[str, Any]:
        return {"class": "DataHomotopy", "omega": self.omega, "sigma": self.sigma}


class LinearHomotopy(Homotopy):
    """VPFB's linear path ``x = t x_data + (1 - t) omega noise``, t in [0, t1].

    Args:
        omega: standard deviation of the prior, > 0.
        t1: end of the path, 1e-6 <= t1 < 1; (1 - t1) omega is the noise left there.
    Raises: TypeError, ValueError for other values.
    """

    # scale beta = omega. (1/beta^2 would leave all but the end of the path untrained.)
    balanced_weight = "uniform"

    def __init__(self, omega: float = 1.0, t1: float = 0.99) -> None:
        self.omega = checks.positive_float("omega", omega)
        self.t0 = 0.0
        self.t1 = checks.positive_float("t1", t1)
        if self.t1 >= 1.0:
            raise ValueError(
                f"t1 must be below 1, where the path's noise vanishes and its log-density with it; got {t1!r}"
            )
        if self.t1 < 1e-6:
            raise ValueError(f"t1 must be at least 1e-6, a path of no length carries no sample; got {t1!r}")

    def kernel(self, t: Time) -> Kernel:
        t = as_time(t)
        return Kernel(t, self.omega * (1.0 - t), torch.ones_like(t), torch.full_like(t, -self.omega))

    def gauge(self, t: Time) -> Gauge:
        inverse = 1.0 / (1.0 - as_time(t))
        return Gauge(-inverse, inverse)

    def density_coefficients(self, t: Time) -> DensityCoefficients:
        t = as_time(t)
        inverse = 1.0 / ((1.0 - t) * self.omega**2)
        return DensityCoefficients(t * inverse, -0.5 * inverse)

    def time_at_noise_level(self, beta: Time) -> Tensor:
        return 1.0 - as_time(beta) / self.omega

    def time_at_noise_position(self, position: Time) -> Tensor:
        level = self._log_noise_level(position)
        # From correctly rounded operations, so that all devices have the same times.
        return self.time_at_noise_level(elementary.exp(level.to(torch.float64)).to(level.dtype))

    def config(self) -> dict[str, Any]:
        return {"class": "LinearHomotopy", "omega": self.omega, "t1": self.t1}


def homotopy_from_config(config: dict[str, Any]) -> Homotopy:
    """Rebuild a path from its ``config()``. ValueError if the class is unknown or arguments do not fit."""
    arguments = dict(config)
    name = checks.one_of("homotopy class", arguments.pop("class", None), _CLASSES)
    try:
        return _CLASSES[name](**arguments)
    except TypeError as error:
        raise ValueError(f"homotopy {name} cannot be built from {arguments!r}: {error}") from error


_CLASSES: dict[str, Callable[..., Homotopy]] = {
    "DataHomotopy": DataHomotopy,
    "LinearHomotopy": LinearHomotopy,
}


def as_time(t: Time) -> Tensor:
    """``t`` as a floating-point tensor. A Python number becomes 0-dim float64, which never widens a float32 result."""
    if isinstance(t, Tensor):
        return t if t.is_floating_point() else t.to(torch.get_default_dtype())
    return torch.tensor(checks.finite_float("t", t), dtype=torch.float64)


def expand_time(value: Tensor, x: Tensor) -> Tensor:
    """Reshape a per-time value, () or (B,), so that it broadcasts against ``x`` (B, *event)."""
    return value if value.dim() == 0 else value.reshape(-1, *([1] * (x.dim() - 1)))
