"""Logarithm, exponential and sine/cosine in float64 from correctly rounded operations only.

The ``log`` or ``pow`` of a maths library may differ in the last bit between machines and devices. It may even differ
between the vector body and the scalar tail of one PyTorch loop, so that a number would depend on its place in the
batch. IEEE 754 fixes the result of ``+ - * / sqrt`` and of bit operations. Functions built from those alone give the
same bits everywhere if the operations keep their order and each is rounded on its own: an engine that repeats them
must not fuse a multiply and an add. Errors are below 1e-15 of max(1, |result|).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_FRACTION_BITS = 52
_EXPONENT_BIAS = 1023
# ln 2 in two parts; the first has 32 significant bits, so that its product with an exponent is exact.
_LN2_HIGH = float.fromhex("0x1.62e42ff000000p-1")
_LN2_LOW = float.fromhex("-0x1.718432a1b0e26p-35")
_SQRT_HALF_BITS = 0x3FE6A09E667F3BCD  # float64 sqrt(1/2), as an integer

_ATANH_COEFFICIENTS = tuple(1.0 / (2 * k + 1) for k in range(12))
_EXP_COEFFICIENTS = tuple(1.0 / math.factorial(k) for k in range(15))
_SIN_COEFFICIENTS = tuple((-1) ** k / math.factorial(2 * k + 1) for k in range(10))
_COS_COEFFICIENTS = tuple((-1) ** k / math.factorial(2 * k) for k in range(10))


def sqrt(x: Tensor) -> Tensor:
    """Square root, correctly rounded in x's dtype, outside autograd.

    On a CPU, PyTorch calls a maths library: one result in five is off by one unit in the last place (float32, MKL).
    """
    return torch.from_numpy(np.sqrt(x.numpy())) if x.device.type == "cpu" else torch.sqrt(x)


def log(x: Tensor) -> Tensor:
    """Natural logarithm of positive, finite, normal float64 numbers.

    ``x = m 2^e`` with m in [sqrt(1/2), sqrt 2) and ``ln m = 2 artanh s``, ``s = (m - 1)/(m + 1)``, by its series.
    """
    bits = x.view(torch.int64)
    # Measured from sqrt(1/2), the exponent field counts the powers of two that bring m into [sqrt(1/2), sqrt 2).
    exponent = (bits - _SQRT_HALF_BITS) >> _FRACTION_BITS
    m = (bits - (exponent << _FRACTION_BITS)).view(torch.float64)
    s = (m - 1.0) / (m + 1.0)
    e = exponent.to(torch.float64)
    return e * _LN2_HIGH + (2.0 * s * _polynomial(s * s, _ATANH_COEFFICIENTS) + e * _LN2_LOW)


def exp(x: Tensor) -> Tensor:
    """Exponential of finite float64 numbers, held to [-700, 700] where it is a normal number.

    ``x = k ln 2 + r`` with |r| <= ln(2)/2, and exp r by its series.
    """
    x = x.clamp(-700.0, 700.0)
    k = torch.floor(x * (1.0 / math.log(2.0)) + 0.5)
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    power_of_two = ((k.to(torch.int64) + _EXPONENT_BIAS) << _FRACTION_BITS).view(torch.float64)
    return _polynomial(r, _EXP_COEFFICIENTS) * power_of_two


def cos_sin_turns(u: Tensor) -> tuple[Tensor, Tensor]:
    """``(cos 2 pi u, sin 2 pi u)`` for float64 u in [0, 1].

    The nearest quarter turn is taken off exactly; the series see an angle of at most pi/4.
    """
    quarter = torch.floor(4.0 * u + 0.5)
    angle = (u - 0.25 * quarter) * (2.0 * math.pi)
    square = angle * angle
    sine = angle * _polynomial(square, _SIN_COEFFICIENTS)
    cosine = _polynomial(square, _COS_COEFFICIENTS)
    quadrant = quarter.to(torch.int64) & 3
    swap = (quadrant & 1) == 1
    cos_sign = torch.where((quadrant == 1) | (quadrant == 2), -1.0, 1.0).to(torch.float64)
    sin_sign = torch.where(quadrant >= 2, -1.0, 1.0).to(torch.float64)
    return cos_sign * torch.where(swap, sine, cosine), sin_sign * torch.where(swap, cosine, sine)


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """Horner's rule, lowest power first in ``coefficients``."""
    total = torch.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total = total * x + coefficient
    return total
