"""The step-size controller and the initial step of `vapo_fast.ode.controller`, with its very bits, in float64."""

from __future__ import annotations

import triton
import triton.language as tl

from vapo_fast.ode.controller import PIController

from . import elementary

_CONTROLLER = PIController()
_SAFETY = tl.constexpr(_CONTROLLER.safety)
_MIN_FACTOR = tl.constexpr(_CONTROLLER.min_factor)
_MAX_FACTOR = tl.constexpr(_CONTROLLER.max_factor)
_SMALLEST_PREVIOUS = tl.constexpr(_CONTROLLER.smallest_previous_ratio)


# Constants are made with tl.full: in a comparison or a choice a plain number may be taken for float32 first.


@triton.jit
def _positive(ratio):
    """``ratio`` held to numbers whose logarithm exists; NaN becomes the largest."""
    largest = tl.full(ratio.shape, 1e300, tl.float64)
    smallest = tl.full(ratio.shape, 1e-300, tl.float64)
    bounded = tl.where(ratio < largest, ratio, largest)  # false for NaN
    return tl.where(bounded > smallest, bounded, smallest)


@triton.jit
def is_finite(x):
    """Whether each number is neither infinite nor NaN."""
    return (x - x) == 0.0


@triton.jit
def factor(ratio, previous, after_rejection, accepted_exponent, previous_exponent, rejected_exponent):
    """By how much to multiply the step size after a try with this error ratio."""
    log_ratio = elementary.log(_positive(ratio))
    log_previous = elementary.log(_positive(previous))
    accepted = ratio <= 1.0
    exponent = tl.where(
        accepted, previous_exponent * log_previous - accepted_exponent * log_ratio, log_ratio * rejected_exponent
    )
    change = _SAFETY * elementary.exp(exponent)
    least = tl.full(ratio.shape, _MIN_FACTOR, tl.float64)
    most = tl.full(ratio.shape, _MAX_FACTOR, tl.float64)
    change = tl.where(change < least, least, change)
    change = tl.where(change > most, most, change)
    return tl.where((accepted & ~after_rejection) | (change <= 1.0), change, 1.0)


@triton.jit
def remember(ratio, previous):
    """The previous ratio of the next step."""
    least = tl.full(ratio.shape, _SMALLEST_PREVIOUS, tl.float64)
    return tl.where(ratio <= 1.0, tl.where(ratio < least, least, ratio), previous)


@triton.jit
def trial_step(state_norm, field_norm, span):
    """An Euler step that changes x by about a hundredth of its own size."""
    small = tl.full(state_norm.shape, 1e-5, tl.float64)
    usable = (state_norm >= small) & (field_norm >= small)
    step = tl.where(usable, 0.01 * (state_norm / field_norm), tl.full(state_norm.shape, 1e-6, tl.float64))
    return tl.where(step > span, span, step)


@triton.jit
def initial_step(field_norm, change_norm, trial, span, error_order_inverse):
    """First step size from scaled norms; see `vapo_fast.ode.controller.initial_step`."""
    change = change_norm / trial
    steepest = tl.where((field_norm > change) | (field_norm != field_norm), field_norm, change)
    aimed = elementary.exp(elementary.log(_positive(1.0 / steepest)) * error_order_inverse)
    flat = trial * 1e-3
    least = tl.full(trial.shape, 1e-6, tl.float64)
    flat = tl.where(flat < least, least, flat)
    chosen = tl.where(steepest <= tl.full(trial.shape, 1e-15, tl.float64), flat, aimed)
    largest = 100.0 * trial
    step = tl.where((largest < chosen) | (largest != largest), largest, chosen)
    step = tl.where(is_finite(change_norm), step, trial)
    return tl.where(step > span, span, step)
