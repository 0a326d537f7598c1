"""Likelihood of quantised data, such as 8-bit images, in bits per dimension."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vapo_fast import noise
from vapo_fast.core import checks
from vapo_fast.potentials.base import Potential, check_events, check_model
from vapo_fast.sampling.density import log_likelihood

# Allowed distance from a level, in steps. Conversions of 8-bit images to float32 are a thousand times more exact.
_OFF_GRID = 1e-2


class BitsPerDim(NamedTuple):
    """Bits per dimension of each event, and the standard error of each that Hutchinson's trace adds (0 if exact)."""

    values: Tensor
    standard_error: Tensor


def bits_per_dim(
    model: Potential, x: Tensor, *, levels: int = 256, seed: int = 0, trace: str = "exact", **options: Any
) -> BitsPerDim:
    r"""Negative log-likelihood of quantised events in bits per dimension, by uniform dequantisation: lower is better.

    Events have values ``-1 + 2 k / (levels - 1)``, k = 0 .. levels - 1, one step being ``h = 2 / (levels - 1)``. With
    ``y = x + h (u - 1/2)``, u uniform in (0, 1)^D, and rho the density of the model's samples at the end of the path,
    Jensen's inequality gives ``ln P(x) = ln E_u[rho(y)] + D ln h >= E_u[ln rho(y)] + D ln h``. The result,
    ``-(ln rho(y) + D ln h) / (D ln 2)`` for one draw of u, therefore bounds the bits from above in expectation. (Theis
    et al., A note on the evaluation of generative models, 2016, section 3.1.) Samples at the path's end carry noise of
    ``kernel(t1).beta``, which costs bits unless it is far below h.

    Args:
        model: the potential.
        x: (B, *event_shape) in [-1, 1], quantised, in the model's dtype and on its device.
        levels: number of grey levels, >= 2: 256 for 8-bit images.
        seed: of the dequantisation (row i depends on seed and i only) and of Hutchinson's probes.
        trace, options: as for `vapo_fast.log_likelihood`.
    Returns: `BitsPerDim`, two (B,) tensors in x's dtype; NaN where a solve failed and ``throw=False``.
    Raises: ValueError if x is not quantised to these levels; others as `vapo_fast.log_likelihood`.
    """
    check_model(model)
    check_events(model, "x", x)
    y = dequantise(x, levels=levels, seed=seed)
    options.setdefault("probes", 16)
    several = trace == "exact" or options["probes"] > 1
    result = log_likelihood(model, y, trace=trace, seed=seed, return_standard_error=several, **options)
    values, error = result if isinstance(result, tuple) else (result, torch.full_like(result, torch.nan))
    dimension = math.prod(model.event_shape)
    scale = dimension * math.log(2.0)
    bits = -(values.double() + dimension * math.log(_step(levels))) / scale
    return BitsPerDim(bits.to(x.dtype), error / scale)


def dequantise(x: Tensor, *, levels: int = 256, seed: int = 0) -> Tensor:
    """Quantised events in [-1, 1] with uniform noise of one step's width added: ``x + h (u - 1/2)``.

    Args: as for `bits_per_dim`.
    Returns: as x; row i depends on (seed, i) only.
    Raises: ValueError naming the first value that is not one of the levels, TypeError for integers.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2:
        raise TypeError(
            f"x must be a floating-point tensor (B, *event) with values in [-1, 1], got {checks.kind_of(x)}"
        )
    step = _step(levels)
    position = (x.detach().double() + 1.0) / step
    nearest = position.round().clamp(0.0, levels - 1.0)
    wrong = ~((position - nearest).abs() <= _OFF_GRID)
    if bool(wrong.any()):
        value, row = float(x[wrong][0]), int(wrong.flatten(1).any(1).nonzero()[0])
        raise ValueError(
            f"x must be quantised to levels={levels} values from -1 to 1 (steps of {step:.6g}), and {value!r} in row "
            f"{row} is not one of them; resized images, for one, are not quantised"
        )
    u = noise.uniform(
        seed,
        range(len(x)),
        tuple(x.shape[1:]),
        stream=noise.Stream.DEQUANTISATION,
        dtype=torch.float64,
        device=x.device,
    )
    return (x.detach().double() + step * (u - 0.5)).to(x.dtype)


def _step(levels: int) -> float:
    if checks.positive_int("levels", levels) < 2:
        raise ValueError(f"levels must be at least 2, got {levels}")
    return 2.0 / (levels - 1)
