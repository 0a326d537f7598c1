"""The denoiser gauge at each sample's time: ``Phi = A/2 |x|^2 + C f(r x, position)`` (`vapo_fast.potentials.gauge`).

Computed in float64 from correctly rounded operations and then rounded: the same in every kernel, and a few hundred
operations for a sample against the network's tens of thousands.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vapo_fast.potentials.gauge import GaugedPotential

from . import elementary

CONSTANTS = ("omega", "log_omega", "data_scale", "first", "slope", "quadratic", "scale", "inverse_radius")
"""What `coefficients` reads, float64: the path and the noise position's ends; the last three are (A, C, r) of a
time-independent potential."""


_OMEGA = tl.constexpr(CONSTANTS.index("omega"))
_LOG_OMEGA = tl.constexpr(CONSTANTS.index("log_omega"))
_DATA_SCALE = tl.constexpr(CONSTANTS.index("data_scale"))
_FIRST = tl.constexpr(CONSTANTS.index("first"))
_SLOPE = tl.constexpr(CONSTANTS.index("slope"))
_QUADRATIC = tl.constexpr(CONSTANTS.index("quadratic"))
_SCALE = tl.constexpr(CONSTANTS.index("scale"))
_INVERSE_RADIUS = tl.constexpr(CONSTANTS.index("inverse_radius"))


@triton.jit
def path_at(t, constants, NET: tl.constexpr):
    """(alpha, beta, alpha', beta', ln beta) at float64 times."""
    omega = tl.load(constants + _OMEGA)
    if NET.path == "data":
        decay = elementary.exp(-t)
        beta = omega * elementary.exp(-0.5 * t)
        return 1.0 - decay, beta, decay, -0.5 * beta, tl.load(constants + _LOG_OMEGA) - 0.5 * t
    else:
        beta = omega * (1.0 - t)
        smallest = tl.full(t.shape, 2.2250738585072014e-308, tl.float64)
        log_beta = elementary.log(tl.where(beta > smallest, beta, smallest))
        log_beta += 0.0 * tl.sqrt(beta)  # not a number beyond the end, where the noise would be negative
        return t, beta, 1.0 + 0.0 * t, 0.0 * t - omega, log_beta


@triton.jit
def coefficients(t, constants, NET: tl.constexpr):
    """(A, C, r, position) for float32 times [rows], each float32; NaN where a time is not finite."""
    t = t.to(tl.float64)
    if NET.time_dependent:
        nothing = t - t  # not a number if the time is not
        s = tl.load(constants + _DATA_SCALE)
        alpha, beta, alpha_dot, _beta_dot, log_beta = path_at(t, constants, NET)
        if NET.path == "data":
            quadratic = 0.0 * t - 0.5
            scale = 0.5 * (1.0 + alpha_dot)
        else:
            scale = 1.0 / (1.0 - t)
            quadratic = -scale
        scaled = alpha * s
        variance = scaled * scaled + beta * beta
        a = quadratic + scale * (alpha * (s * s)) / variance
        c = scale * s * beta
        r = 1.0 / tl.sqrt(variance)
        position = (log_beta - tl.load(constants + _FIRST)) * tl.load(constants + _SLOPE) - 1.0
        a, c, position = a + nothing, c + nothing, position + nothing
    else:
        a = 0.0 * t + tl.load(constants + _QUADRATIC)
        c = 0.0 * t + tl.load(constants + _SCALE)
        r = 0.0 * t + tl.load(constants + _INVERSE_RADIUS)
        position = 0.0 * t
    return a.to(tl.float32), c.to(tl.float32), r.to(tl.float32), position.to(tl.float32)


def coefficients_reference(potential: GaugedPotential, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The naive twin of `coefficients`, from the path's own functions: times (n,) to (n,) each, in t's dtype."""
    path, s = potential.homotopy, potential.data_scale
    if not potential.time_dependent:
        radius = (s**2 + path.omega**2) ** 0.5
        a, c, r = (
            torch.full_like(t, value) for value in (float(path.gauge(path.t0).quadratic), s * radius, 1 / radius)
        )
        return a, c, r, torch.zeros_like(t)
    k, gauge = path.kernel(t), path.gauge(t)
    variance = (k.alpha * s).square() + k.beta.square()
    a = gauge.quadratic + gauge.scale * k.alpha * s**2 / variance
    return a, gauge.scale * s * k.beta, variance.rsqrt(), path.noise_position(t)
