"""The denoiser gauge: the parametrisation shared by the library's own networks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vapo_fast.core import checks
from vapo_fast.homotopy import Homotopy, expand_time
from vapo_fast.potentials.base import Potential


class GaugedPotential(Potential):
    r"""A potential that contains the path's known terms, so that its network learns targets of unit size.

    The optimum is ``grad Phi = (beta'/beta) x + (alpha' - alpha beta'/beta) E[x_data | x]``. Hence
    ``Phi = a/2 |x|^2 + b Psi`` with the path's `Gauge` (a, b). ``grad Psi`` is the posterior mean, which is bounded by
    the data and regular at both ends. Psi is preconditioned as denoisers are. With s the data scale and
    ``S = alpha^2 s^2 + beta^2``,

        ``Psi = c_skip/2 |x|^2 + s beta f(x / sqrt(S), position(t))``,  ``c_skip = alpha s^2 / S``,

    For data N(0, s^2 I) the optimal f is then constant. For other data the target of ``grad f`` has about unit size at
    every noise level. (A plain network would have to represent a quadratic of curvature ~1/2 to a precision of beta^2
    late in the path.) The quadratic parts cost nothing, and are exact in the log-density read-out and the Laplacian.

    A time-independent potential cannot follow (a, b, S) in t; it uses ``Phi = a(t0)/2 |x|^2 + s r f(x / r)``,
    ``r = sqrt(s^2 + omega^2)``.

    Args:
        event_shape, homotopy, time_dependent: as for `Potential`.
        data_scale: root-mean-square of one coordinate of the data, > 0; within a factor of 2 is near enough.
    """

    def __init__(
        self, event_shape: Sequence[int], homotopy: Homotopy, time_dependent: bool = True, data_scale: float = 1.0
    ) -> None:
        super().__init__(event_shape, homotopy, time_dependent)
        self.data_scale = checks.positive_float("data_scale", data_scale)

    @abstractmethod
    def network(self, z: Tensor, position: Tensor | None) -> Tensor:
        """f (B,) of z (B, *event) of about unit scale and position (B,) in [-1, 1], None if time-independent."""

    def value(self, x: Tensor, t: Tensor) -> Tensor:
        squared_norm = x.flatten(1).square().sum(1)
        s = self.data_scale
        if not self.time_dependent:
            start = self.homotopy.gauge(self.homotopy.t0)
            radius = (s**2 + self.homotopy.omega**2) ** 0.5
            phi: Tensor = 0.5 * start.quadratic * squared_norm + s * radius * self.network(x / radius, None).to(x.dtype)
            return phi
        k = self.homotopy.kernel(t)
        gauge = self.homotopy.gauge(t)
        variance = (k.alpha * s).square() + k.beta.square()
        c_skip = k.alpha * s**2 / variance
        f = self.network(x * expand_time(torch.rsqrt(variance), x), self.homotopy.noise_position(t)).to(x.dtype)
        return 0.5 * (gauge.quadratic + gauge.scale * c_skip) * squared_norm + gauge.scale * s * k.beta * f

    def config(self) -> dict[str, Any]:
        return {**super().config(), "data_scale": self.data_scale}
