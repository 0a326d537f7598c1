"""The activations of an MLP potential with their first and second derivatives, in float32.

Everything is made of ``exp(-|z|)``, which neither overflows nor cancels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _log1p(e):
    """``log(1 + e)`` for e in [0, 1]: ``2 artanh(e / (2 + e))``, whose argument is at most 1/3."""
    u = e / (2.0 + e)
    s = u * u
    p = 1.0 / 15.0 * s + 1.0 / 13.0
    p = p * s + 1.0 / 11.0
    p = p * s + 1.0 / 9.0
    p = p * s + 1.0 / 7.0
    p = p * s + 1.0 / 5.0
    p = p * s + 1.0 / 3.0
    return 2.0 * u * (p * s + 1.0)


@triton.jit
def _tanh_over_z(s):
    """``tanh(z) / z`` for ``s = z^2`` at most 1/4, by its series."""
    p = -929569.0 / 638512875.0 * s + 21844.0 / 6081075.0
    p = p * s - 1382.0 / 155925.0
    p = p * s + 62.0 / 2835.0
    p = p * s - 17.0 / 315.0
    p = p * s + 2.0 / 15.0
    p = p * s - 1.0 / 3.0
    return p * s + 1.0


@triton.jit
def activate(z, ACTIVATION: tl.constexpr, CURVED: tl.constexpr):
    """(value, first derivative, second derivative); the last only if CURVED, else the first again."""
    if ACTIVATION == "tanh":
        e = tl.exp(-2.0 * tl.abs(z))
        q = 1.0 / (1.0 + e)
        large = (1.0 - e) * q
        h = tl.where(tl.abs(z) < 0.5, z * _tanh_over_z(z * z), tl.where(z < 0.0, -large, large))
        d = 4.0 * e * q * q
        # A comparison with NaN is false; what is not a number must stay so.
        h = tl.where(z == z, h, z)
        c = -2.0 * h * d if CURVED else d
    else:
        e = tl.exp(-tl.abs(z))
        q = 1.0 / (1.0 + e)
        s = tl.where(z < 0.0, e * q, q)
        rest = tl.where(z < 0.0, q, e * q)
        if ACTIVATION == "softplus":
            h = tl.where(z > 0.0, z, 0.0) + _log1p(e)
            d = s
            c = s * rest if CURVED else d
        else:
            h = z * s
            d = s * (1.0 + z * rest)
            c = s * rest * (2.0 + z * (rest - s)) if CURVED else d
    return h, d, c


def activate_reference(z: Tensor, activation: str) -> tuple[Tensor, Tensor, Tensor]:
    """The naive twin of `activate`, in z's dtype: value, first and second derivative."""
    if activation == "tanh":
        h, d = torch.tanh(z), torch.cosh(z).pow(-2)
        return h, d, -2.0 * h * d
    s, rest = torch.sigmoid(z), torch.sigmoid(-z)
    if activation == "softplus":
        return torch.logaddexp(z, torch.zeros_like(z)), s, s * rest
    return z * s, s * (1.0 + z * rest), s * rest * (2.0 + z * (rest - s))
