"""The arithmetic of one step, row by row: sums of stages, error norms, the first step, the continuous extension.

Pure functions of tensors with one row for each sample, shared by `solve` and the graph engine's step. Everything of the
state's size is in the state's dtype, everything of a sample's clock in float64; ``Number`` may be a Python number or a
0-dim float64 tensor, with the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vapo_fast.core import elementary
from vapo_fast.ode.controller import initial_step, trial_step
from vapo_fast.ode.tableaus import Row, Tableau

Number = float | Tensor

# A step that would leave less than this fraction of itself before t1 is stretched to t1.
STRETCH = 1.01
# Steps below this many units in the last place of the times are not worth taking.
SMALLEST_STEP_ULPS = 16.0


def expand(value: Tensor, like: Tensor) -> Tensor:
    """(n,) as (n, 1, ...), to be multiplied with ``like`` (n, *event)."""
    return value.reshape(-1, *([1] * (like.dim() - 1)))


def finite_rows(x: Tensor) -> Tensor:
    """(n,) bool: whether every entry of a row is finite."""
    return torch.isfinite(x).reshape(x.shape[0], -1).all(dim=1)


def combine(weights: Row, stages: Sequence[Tensor]) -> Tensor:
    """Sum of weight times stage, left to right; a zero weight is left out."""
    terms = [(weight, stage) for weight, stage in zip(weights, stages, strict=True) if weight != 0.0]
    total = terms[0][0] * terms[0][1]
    for weight, stage in terms[1:]:
        total = total + weight * stage
    return total


def next_step(t: Tensor, h: Tensor, t1: Number, direction: Number) -> tuple[Tensor, Tensor, Tensor]:
    """The step that an adaptive method tries from (t, h): its size, its end, and whether that is t1; (n,) each."""
    remaining = (t1 - t).abs()
    last = h * STRETCH >= remaining
    size = torch.where(last, remaining, h)
    return size, torch.where(last, t1, t + direction * size), last


def row_rms(x: Tensor) -> Tensor:
    """(n, *event) -> (n,): root mean square over the event, in x's dtype.

    The squares are added in halves (the first half of the columns to the second, an odd last column kept) until one is
    left: a library's own sum may change its order with the number of rows.
    """
    squares = x.reshape(x.shape[0], -1).square()
    size = squares.shape[1]
    while squares.shape[1] > 1:
        half = squares.shape[1] // 2
        folded = squares[:, :half] + squares[:, half : 2 * half]
        squares = folded if squares.shape[1] % 2 == 0 else torch.cat((folded, squares[:, -1:]), dim=1)
    return elementary.sqrt(squares[:, 0] / size)


def scale(size: Tensor, tolerances: tuple[Number, Number]) -> Tensor:
    """``atol + rtol size`` for (rtol, atol), what errors are measured by."""
    rtol, atol = tolerances
    # With atol = 0 a component that is exactly 0 would divide 0 by 0.
    return (atol + rtol * size).clamp_min(torch.finfo(size.dtype).tiny)


def error_ratio(
    tableau: Tableau,
    stages: Sequence[Tensor],
    x: Tensor,
    x_new: Tensor,
    h: Tensor,
    tolerances: tuple[Number, Number],
) -> Tensor:
    """(n,) float64: scaled error of a step; infinite where the new state is not finite, which no scaling can hide."""
    error = expand(h.to(x.dtype), x) * combine(tableau.error, stages)
    ratio = row_rms(error / scale(torch.maximum(x.abs(), x_new.abs()), tolerances)).to(torch.float64)
    return torch.where(finite_rows(x_new), ratio, torch.inf)


class FirstStep:
    """The choice of the first step size from the field at the start and at one probe.

    Args:
        x, f: (n, *event) start, and the field there. tolerances: (rtol, atol). span: |t1 - t0|.

    Attributes:
        trial: (n,) float64, how far away the probe is: at ``x + direction trial f``.
    """

    def __init__(self, x: Tensor, f: Tensor, tolerances: tuple[Number, Number], span: Number) -> None:
        self._x, self._f, self._span = x, f, span
        self._scale = scale(x.abs(), tolerances)
        self._field_norm = row_rms(f / self._scale).to(torch.float64)
        self.trial = trial_step(row_rms(x / self._scale).to(torch.float64), self._field_norm, span)

    def probe(self, direction: Number) -> Tensor:
        """(n, *event): where the field is to be evaluated, at time t0 + direction trial."""
        return self._x + expand((direction * self.trial).to(self._x.dtype), self._x) * self._f

    def size(self, at_probe: Tensor, error_order: int) -> Tensor:
        """(n,) float64 in (0, span], from the field at the probe."""
        change_norm = row_rms((at_probe - self._f) / self._scale).to(torch.float64)
        return initial_step(self._field_norm, change_norm, self.trial, self._span, error_order)


def between(
    tableau: Tableau,
    stages: Sequence[Tensor],
    x: Tensor,
    x_new: Tensor,
    h: Tensor,
    t: Tensor,
    t_new: Tensor,
    times: Tensor,
) -> Tensor:
    """(n, *event): the continuous extension ``x + h sum_i b_i(theta) k_i`` of each row's step, at one time for each.

    Args:
        x, x_new, stages: (n, *event) before and after the step, and its stages.
        h, t, t_new: (n,) float64: signed size, start and end of the step. times: (n,) or 0-dim, inside the step.
    """
    theta = (times - t) / h
    increment = torch.zeros_like(x)
    for coefficients, stage in zip(tableau.dense, stages, strict=True):
        weight = torch.zeros_like(theta)
        for coefficient in reversed(coefficients):
            weight = (weight + coefficient) * theta
        increment = increment + expand(weight.to(x.dtype), x) * stage
    inside = x + expand(h.to(x.dtype), x) * increment
    # At the end of a step the polynomial is x_new only to rounding; hand out the very state.
    return torch.where(expand(times == t_new, x), x_new, inside)


def passed(times: Tensor, t: Tensor, t_new: Tensor) -> Tensor:
    """Whether a step from t to t_new, in either direction, passed a time; each belongs to exactly one step."""
    return ((times > t) & (times <= t_new)) | ((times < t) & (times >= t_new))
