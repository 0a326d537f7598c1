"""The proposed step, the step-size controller and the initial step, in float64.

Device functions with the very bits of `vapo_fast.ode.stages.next_step` and `vapo_fast.ode.controller`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vapo_fast.ode.controller import PIController
from vapo_fast.ode.masked_state import RUNNING as _RUNNING
from vapo_fast.ode.solution import Status
from vapo_fast.ode.stages import STRETCH

from . import elementary
from .tableau import ACCEPTED_EXPONENT, LARGEST_STEPS, PREVIOUS_EXPONENT, REJECTED_EXPONENT

RUNNING = tl.constexpr(_RUNNING)
SUCCESS = tl.constexpr(int(Status.SUCCESS))
MAX_STEPS = tl.constexpr(int(Status.MAX_STEPS))
STEP_TOO_SMALL = tl.constexpr(int(Status.STEP_TOO_SMALL))
NON_FINITE = tl.constexpr(int(Status.NON_FINITE))

_CONTROLLER = PIController()
_SAFETY = tl.constexpr(_CONTROLLER.safety)
_MIN_FACTOR = tl.constexpr(_CONTROLLER.min_factor)
_MAX_FACTOR = tl.constexpr(_CONTROLLER.max_factor)
_SMALLEST_PREVIOUS = tl.constexpr(_CONTROLLER.smallest_previous_ratio)
_STRETCH = tl.constexpr(STRETCH)


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
def proposed_step(t, size, t1, direction):
    """The step that an adaptive method tries from (t, size): (size, signed size, its end, whether that is t1)."""
    remaining = tl.abs(t1 - t)
    last = size * _STRETCH >= remaining
    size = tl.where(last, remaining, size)
    signed = direction * size
    return size, signed, tl.where(last, t1, t + signed), last


@triton.jit
def proposed_fixed_step(accepted, t0, t1, steps):
    """The step of a fixed-step method after so many: (signed size, its end, whether that is t1)."""
    done = accepted.to(tl.float64)
    last = done + 1.0 >= steps
    end = tl.where(last, t1, t0 + (t1 - t0) * ((done + 1.0) / steps))
    return end - (t0 + (t1 - t0) * (done / steps)), end, last


@triton.jit
def out_of_steps(tries, settings):
    """Whether so many tries are all that there may be."""
    return tries.to(tl.float64) >= tl.load(settings + LARGEST_STEPS)


@triton.jit
def factor(ratio, previous, after_rejection, settings):
    """By how much to multiply the step size after a try with this error ratio."""
    accepted_exponent = tl.load(settings + ACCEPTED_EXPONENT)
    previous_exponent = tl.load(settings + PREVIOUS_EXPONENT)
    rejected_exponent = tl.load(settings + REJECTED_EXPONENT)
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
