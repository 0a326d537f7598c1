"""Step-size control: pure functions of error ratios, one per sample.

All arithmetic is float64 from correctly rounded operations (`vapo_fast.core.elementary`), so that a sample's step
does not depend on its place in the batch and other engines can repeat it to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vapo_fast.core import elementary

_SMALLEST_RATIO = 1e-300
_LARGEST_RATIO = 1e300


class Exponents(NamedTuple):
    """Of the ratio after acceptance (its negative), of the previous ratio, and of the ratio after rejection.

    Numbers, or tensors of no dimension.
    """

    accepted: float | Tensor
    previous: float | Tensor
    rejected: float | Tensor


@dataclass(frozen=True)
class PIController:
    """The proportional-integral controller of Hairer and Wanner, "Solving ODEs II", IV.2.

    Attributes:
        proportional_share: beta q; the exponents are ``alpha = (1 - 0.75 proportional_share)/q`` and ``beta =
            proportional_share/q`` for an error estimate O(h^q). 0 is integral control alone, which needs fewest
            evaluations from the noise to the data; 0.2 is the book's, which saves rejections the other way
            (docs/notes/performance.md).
        safety: aim at an error ratio of about safety^error_order.
        min_factor, max_factor: limits of the change from one step to the next.
        smallest_previous_ratio: a very good step is remembered as no better than this.
    """

    proportional_share: float = 0.0
    safety: float = 0.9
    min_factor: float = 0.2
    max_factor: float = 10.0
    smallest_previous_ratio: float = 1e-4

    def accepts(self, ratio: Tensor) -> Tensor:
        """Whether a step with this error ratio stands: only if ``ratio <= 1`` is true, so NaN rejects."""
        return ratio <= 1.0

    def exponents(self, error_order: int) -> Exponents:
        """(alpha, beta, -1/q) for error_order q."""
        beta = self.proportional_share / error_order
        return Exponents(1.0 / error_order - 0.75 * beta, beta, -1.0 / error_order)

    def factor(self, ratio: Tensor, previous_ratio: Tensor, after_rejection: Tensor, exponents: Exponents) -> Tensor:
        """By how much to multiply the step size.

        After acceptance ``safety ratio^-alpha previous_ratio^beta``, not above 1 right after a rejection; after
        rejection ``safety ratio^(-1/q)``, not above 1. A ratio that is NaN counts as infinite: the smallest factor.

        Args:
            ratio: (B,) float64 error ratio of the step just tried.
            previous_ratio: (B,) ratio remembered from the last accepted step (`remember`); 1 at the start has no
                effect.
            after_rejection: (B,) bool, whether the try before this one was rejected.
            exponents: `exponents` of this or another share.
        Returns: (B,) float64 in [min_factor, max_factor].
        """
        log_ratio, log_previous = elementary.log(_positive(torch.stack((ratio, previous_ratio)))).unbind(0)
        accepted = self.accepts(ratio)
        after_acceptance = exponents.previous * log_previous - exponents.accepted * log_ratio
        exponent = torch.where(accepted, after_acceptance, log_ratio * exponents.rejected)
        factor = (self.safety * elementary.exp(exponent)).clamp(self.min_factor, self.max_factor)
        return torch.where(accepted & ~after_rejection, factor, factor.clamp_max(1.0))

    def remember(self, ratio: Tensor, previous_ratio: Tensor) -> Tensor:
        """The ``previous_ratio`` of the next step."""
        return torch.where(self.accepts(ratio), ratio.clamp_min(self.smallest_previous_ratio), previous_ratio)


def initial_step(
    field_norm: Tensor, change_norm: Tensor, trial: Tensor, span: float | Tensor, error_order: int
) -> Tensor:
    """First step size of Hairer, Norsett and Wanner, "Solving ODEs I", II.4, from scaled norms (B,) in float64.

    It aims at a scaled error of 1 and not, as theirs, of 0.01: a rejection costs the one sample only, and longer first
    steps save evaluations at the same error (docs/notes/performance.md).

    Args:
        field_norm: norm of f(x0, t0) divided by atol + rtol |x0|.
        change_norm: norm of f(x0 + trial f, t0 + trial) - f(x0, t0), scaled likewise.
        trial: `trial_step`. span: |t1 - t0|. error_order: q.
    Returns: (B,) in (0, span].
    """
    steepest = torch.maximum(field_norm, change_norm / trial)
    aimed = elementary.exp(elementary.log(_positive(1.0 / steepest)) * (1.0 / error_order))
    flat = torch.clamp_min(trial * 1e-3, 1e-6)
    step = torch.minimum(100.0 * trial, torch.where(steepest <= 1e-15, flat, aimed))
    # A field that is not finite one trial step away says nothing about the step; rejections will shorten the trial.
    return torch.where(torch.isfinite(change_norm), step, trial).clamp_max(span)


def trial_step(state_norm: Tensor, field_norm: Tensor, span: float | Tensor) -> Tensor:
    """An Euler step that changes x by about a hundredth of its own size; the probe that `initial_step` needs."""
    usable = (state_norm >= 1e-5) & (field_norm >= 1e-5)
    return torch.where(usable, 0.01 * (state_norm / field_norm), 1e-6).clamp_max(span)


def _positive(ratio: Tensor) -> Tensor:
    """``ratio`` held to numbers whose logarithm exists; NaN becomes the largest."""
    return torch.nan_to_num(ratio, nan=_LARGEST_RATIO, posinf=_LARGEST_RATIO).clamp(_SMALLEST_RATIO, _LARGEST_RATIO)
