"""The denoiser gauge at each sample's time: ``Phi = a/2 |x|^2 + c f(r x, position)``."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vapo_fast.potentials.gauge import GaugedPotential


class Coefficients(NamedTuple):
    """a, c, r and the noise-level position of `potentials.GaugedPotential`, (B,) each."""

    quadratic: Tensor
    scale: Tensor
    inverse_radius: Tensor
    position: Tensor


def coefficients(potential: GaugedPotential, t: Tensor) -> Coefficients:
    """At times t (B,), in t's type."""
    path, s = potential.homotopy, potential.data_scale
    if not potential.time_dependent:
        radius = (s**2 + path.omega**2) ** 0.5
        start = float(path.gauge(path.t0).quadratic)
        numbers = (start, s * radius, 1.0 / radius, 0.0)
        return Coefficients(*(torch.full_like(t, number) for number in numbers))
    k, gauge = path.kernel(t), path.gauge(t)
    variance = (k.alpha * s).square() + k.beta.square()
    quadratic = gauge.quadratic + gauge.scale * (k.alpha * s**2 / variance)
    return Coefficients(quadratic, gauge.scale * s * k.beta, torch.rsqrt(variance), path.noise_position(t))
