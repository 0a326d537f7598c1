"""Logarithm, exponential and sine/cosine in float64, with the very bits of `vapo_fast.core.elementary`.

Device functions only. Every kernel that calls them is compiled without fusing multiplies and adds
(`launch.OPTIONS`), because the bits depend on each operation being rounded on its own.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from vapo_fast.core import elementary

_LN2_HIGH = tl.constexpr(elementary._LN2_HIGH)
_LN2_LOW = tl.constexpr(elementary._LN2_LOW)
_SQRT_HALF_BITS = tl.constexpr(elementary._SQRT_HALF_BITS)
_INVERSE_LN2 = tl.constexpr(1.0 / math.log(2.0))
_TWO_PI = tl.constexpr(2.0 * math.pi)
_LOG_COEFFICIENTS = tl.constexpr(elementary._ATANH_COEFFICIENTS)
_EXP_COEFFICIENTS = tl.constexpr(elementary._EXP_COEFFICIENTS)
_SIN_COEFFICIENTS = tl.constexpr(elementary._SIN_COEFFICIENTS)
_COS_COEFFICIENTS = tl.constexpr(elementary._COS_COEFFICIENTS)

_LOG_DEGREE = tl.constexpr(len(elementary._ATANH_COEFFICIENTS) - 1)
_EXP_DEGREE = tl.constexpr(len(elementary._EXP_COEFFICIENTS) - 1)
_SIN_DEGREE = tl.constexpr(len(elementary._SIN_COEFFICIENTS) - 1)
_COS_DEGREE = tl.constexpr(len(elementary._COS_COEFFICIENTS) - 1)


@triton.jit
def _polynomial(x, COEFFICIENTS: tl.constexpr, DEGREE: tl.constexpr):
    total = x * 0.0 + COEFFICIENTS[DEGREE]
    for i in tl.static_range(DEGREE - 1, -1, -1):
        total = total * x + COEFFICIENTS[i]
    return total


@triton.jit
def log(x):
    """Natural logarithm of positive, finite, normal float64 numbers."""
    bits = x.to(tl.int64, bitcast=True)
    exponent = (bits - _SQRT_HALF_BITS) >> 52
    m = (bits - (exponent << 52)).to(tl.float64, bitcast=True)
    s = (m - 1.0) / (m + 1.0)
    e = exponent.to(tl.float64)
    return e * _LN2_HIGH + (2.0 * s * _polynomial(s * s, _LOG_COEFFICIENTS, _LOG_DEGREE) + e * _LN2_LOW)


@triton.jit
def exp(x):
    """Exponential of finite float64 numbers, held to [-700, 700]."""
    x = tl.minimum(tl.maximum(x, -700.0), 700.0)
    k = tl.floor(x * _INVERSE_LN2 + 0.5)
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    power_of_two = ((k.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)
    return _polynomial(r, _EXP_COEFFICIENTS, _EXP_DEGREE) * power_of_two


@triton.jit
def cos_sin_turns(u):
    """``(cos 2 pi u, sin 2 pi u)`` for float64 u in [0, 1]."""
    quarter = tl.floor(4.0 * u + 0.5)
    angle = (u - 0.25 * quarter) * _TWO_PI
    square = angle * angle
    sine = angle * _polynomial(square, _SIN_COEFFICIENTS, _SIN_DEGREE)
    cosine = _polynomial(square, _COS_COEFFICIENTS, _COS_DEGREE)
    quadrant = quarter.to(tl.int64) & 3
    swap = (quadrant & 1) == 1
    negative_cosine = (quadrant == 1) | (quadrant == 2)
    negative_sine = quadrant >= 2
    c = tl.where(swap, sine, cosine)
    s = tl.where(swap, cosine, sine)
    # Not -c, which is 0 - c in Triton and so +0 for 0.
    return tl.where(negative_cosine, c * -1.0, c), tl.where(negative_sine, s * -1.0, s)
