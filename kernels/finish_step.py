"""The end of a step of the graph engine: error, decision, output times, counts, and accepted states taken over.

One program for each row goes over its numbers once for the new state and the norm of the error, once for each output
time that the step passed, and once to take the new state over; in an order that its size alone sets, so that a row has
the same bits in any batch. Its PyTorch twin is `ode.masked_step.TorchOps.finish_step`, with the same bits but for
the norm, whose squares are added in another order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from vapo_fast.ode.masked_state import ROWS_WITH_MORE_STEPS, RUNNING_ROWS, State
from vapo_fast.ode.masked_step import Plan

from . import controller
from .controller import MAX_STEPS, NON_FINITE, RUNNING, STEP_TOO_SMALL, SUCCESS, is_finite, out_of_steps
from .launch import run
from .stage import block_for, masked_method, row_step, rows_of, step_between, weighted
from .tableau import ATOL, RTOL, SMALLEST_STEP, Numbers

_RUNNING_ROWS, _FAR_ROWS = tl.constexpr(RUNNING_ROWS), tl.constexpr(ROWS_WITH_MORE_STEPS)
_TINY32 = tl.constexpr(1.1754943508222875e-38)
_TINY64 = tl.constexpr(2.2250738585072014e-308)


class Outputs(NamedTuple):
    """States at the output times (count, R, D), the way from one time's to the next, the times (count,), the count."""

    ys: Any
    step: Any
    times: Any
    count: Any


class Decision(NamedTuple):
    """What becomes of a step, (1,) each: whether it is accepted, the next size, the ratio to remember, the status."""

    accepted: Any
    size: Any
    previous_ratio: Any
    status: Any


@triton.jit
def _tiny(like):
    """The smallest normal number of a dtype, without passing through another."""
    if like.dtype == tl.float64:
        return tl.full(like.shape, _TINY64, tl.float64)
    else:
        return tl.full(like.shape, _TINY32, tl.float32)


@triton.jit
def _new_state_and_norm(rows, step, base, width, numbers, dimension, METHOD: tl.constexpr, BLOCK: tl.constexpr):
    """The new state, into ``point`` where no stage has put it there; (scaled error's sum of squares, numbers that are
    not finite), (1,) each."""
    dtype = rows.x.dtype.element_ty
    squares = tl.zeros((BLOCK,), dtype)
    bad = tl.zeros((BLOCK,), tl.int64)
    rtol, atol = tl.load(numbers.settings + RTOL).to(dtype), tl.load(numbers.settings + ATOL).to(dtype)
    for d in tl.range(0, dimension, BLOCK, num_stages=1):
        column = d + tl.arange(0, BLOCK)
        inside = column < dimension
        at = base + column
        old = tl.load(rows.x + at, mask=inside, other=0.0)
        if METHOD.fsal:
            new = tl.load(rows.point + at, mask=inside, other=0.0)
        else:
            weights = numbers.table + METHOD.weights
            new = old + width * weighted(weights, rows, step, at, inside, METHOD.stages, METHOD.weight_mask)
            tl.store(rows.point + at, new, mask=inside)
        bad += (inside & ~is_finite(new)).to(tl.int64)
        if METHOD.adaptive:
            error = weighted(numbers.table + METHOD.errors, rows, step, at, inside, METHOD.stages, METHOD.error_mask)
            # As PyTorch's maximum, NaN for NaN.
            size = tl.where((tl.abs(new) > tl.abs(old)) | (new != new), tl.abs(new), tl.abs(old))
            scale = atol + rtol * size
            tiny = _tiny(scale)
            scale = tl.where(scale < tiny, tiny, scale)
            ratio = width * error / scale
            squares += tl.where(inside, ratio * ratio, 0.0)
    one = tl.zeros((1,), tl.int64)
    return one.to(dtype) + tl.sum(squares, axis=0), one + tl.sum(bad, axis=0)


@triton.jit
def _decide(rows, one, size, squares, bad, numbers, dimension, METHOD: tl.constexpr):
    """Whether the step of this size (of a fixed-step method: unused) stands, and the size of the next one."""
    status = tl.full((1,), RUNNING, tl.int64)
    if METHOD.adaptive:
        mean = squares / dimension
        norm = tl.sqrt(mean) if rows.x.dtype.element_ty == tl.float64 else tl.sqrt_rn(mean)
        ratio = tl.where(bad > 0, tl.full((1,), float("inf"), tl.float64), norm.to(tl.float64))
        accepted = ratio <= 1.0
        previous = tl.load(rows.previous_ratio + one)
        after_rejection = tl.load(rows.after_rejection + one) != 0
        size = size * controller.factor(ratio, previous, after_rejection, numbers.settings)
        hopeless = ~accepted & (size < tl.load(numbers.settings + SMALLEST_STEP))
        status = tl.where(hopeless, tl.where(is_finite(ratio), STEP_TOO_SMALL, NON_FINITE), status)
        return Decision(accepted, size, controller.remember(ratio, previous), status)
    else:
        accepted = bad == 0
        return Decision(accepted, size, size, tl.where(accepted, status, NON_FINITE))


@triton.jit
def _output(rows, step, y, base, theta, width, arrived, numbers, dimension, METHOD: tl.constexpr, BLOCK: tl.constexpr):
    """The continuous extension at one time, at ``y``; the new state itself at the end of the step."""
    dtype = rows.x.dtype.element_ty
    dense = numbers.table + METHOD.dense
    for d in tl.range(0, dimension, BLOCK, num_stages=1):
        column = d + tl.arange(0, BLOCK)
        inside = column < dimension
        at = base + column
        old = tl.load(rows.x + at, mask=inside, other=0.0)
        increment = tl.zeros((BLOCK,), dtype)
        for j in tl.static_range(METHOD.stages):
            weight = tl.zeros_like(theta)
            for k in tl.static_range(METHOD.degree):
                weight = (weight + tl.load(dense + (j * METHOD.degree + METHOD.degree - 1 - k))) * theta
            stage = tl.load(rows.stages + j * step + at, mask=inside, other=0.0)
            increment += weight.to(dtype) * stage
        new = tl.load(rows.point + at, mask=inside, other=0.0)
        tl.store(y + base + column, tl.where(arrived, new, old + width * increment), mask=inside)


@triton.jit
def _accept_state(rows, step, base, dimension, METHOD: tl.constexpr, BLOCK: tl.constexpr):
    """The new state becomes the state and, in an adaptive method, the last stage the next first one."""
    for d in tl.range(0, dimension, BLOCK, num_stages=1):
        column = d + tl.arange(0, BLOCK)
        inside = column < dimension
        at = base + column
        tl.store(rows.x + at, tl.load(rows.point + at, mask=inside), mask=inside)
        if METHOD.adaptive:
            f = tl.load(rows.stages + (METHOD.stages - 1) * step + at, mask=inside)
            tl.store(rows.stages + at, f, mask=inside)


@triton.jit
def _finish_step(rows, outputs, numbers, dimension, METHOD: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    if tl.load(rows.status + row) == RUNNING:
        dtype = rows.x.dtype.element_ty
        step = tl.cast(rows.stage_step, tl.int64)
        base = row * dimension
        one = row + tl.arange(0, 1)
        t, h = tl.load(rows.t + one), tl.load(rows.h + one)
        accepted_before, rejected_before = tl.load(rows.accepted + one), tl.load(rows.rejected + one)
        size, signed, end, last = row_step(t, h, accepted_before, numbers.settings, METHOD)
        width = (size if METHOD.adaptive else signed).to(dtype)
        squares, bad = _new_state_and_norm(rows, step, base, width, numbers, dimension, METHOD, BLOCK)
        decision = _decide(rows, one, size if METHOD.adaptive else h, squares, bad, numbers, dimension, METHOD)
        accepted = accepted_before + decision.accepted.to(tl.int64)
        rejected = rejected_before + (~decision.accepted).to(tl.int64)
        status = tl.where(decision.accepted & last, SUCCESS, decision.status)
        if METHOD.adaptive:
            exhausted = out_of_steps(accepted + rejected, numbers.settings)
            status = tl.where(exhausted & (status == RUNNING), MAX_STEPS, status)
        # What follows reads what other threads of the program have written.
        tl.debug_barrier()
        if tl.max(decision.accepted.to(tl.int32), axis=0) > 0:
            for k in range(outputs.count):
                time = tl.load(outputs.times + k) + tl.zeros_like(t)
                due = ((time > t) & (time <= end)) | ((time < t) & (time >= end))
                if tl.max(due.to(tl.int32), axis=0) > 0:
                    y = outputs.ys + tl.cast(outputs.step, tl.int64) * k
                    theta = (time - t) / signed
                    _output(
                        rows, step, y, base, theta, signed.to(dtype), time == end, numbers, dimension, METHOD, BLOCK
                    )
            tl.debug_barrier()
            _accept_state(rows, step, base, dimension, METHOD, BLOCK)
        t = tl.where(decision.accepted, end, t)
        tl.store(rows.t + one, t)
        tl.store(rows.status + one, status)
        tl.store(rows.nfe + one, tl.load(rows.nfe + one) + (METHOD.stages - METHOD.first_stage))
        tl.store(rows.accepted + one, accepted)
        tl.store(rows.rejected + one, rejected)
        if METHOD.adaptive:
            tl.store(rows.h + one, decision.size)
            tl.store(rows.previous_ratio + one, decision.previous_ratio)
            tl.store(rows.after_rejection + one, (~decision.accepted).to(tl.int64))
        goes_on = status == RUNNING
        _size, _signed, _end, next_is_last = row_step(t, decision.size, accepted, numbers.settings, METHOD)
        more_than_one_step_left = goes_on & ~next_is_last
        tl.atomic_add(rows.flags + _RUNNING_ROWS + tl.arange(0, 1), goes_on.to(tl.int64))
        tl.atomic_add(rows.flags + _FAR_ROWS + tl.arange(0, 1), more_than_one_step_left.to(tl.int64))


def finish_step(state: State, settings: Tensor, table: Tensor, plan: Plan) -> None:
    """The end of a step of every row; adds to the flags, which `stage` has cleared. One launch.

    Arguments as for `stage`.
    """
    outputs = Outputs(state.x, 0, state.t, 0)
    if plan.outputs:
        outputs = Outputs(state.ys, step_between(state.ys), state.times, plan.outputs)
    dimension = state.x[0].numel()
    arguments = (rows_of(state), outputs, Numbers(table, settings), dimension)
    constants = {"METHOD": masked_method(plan), "BLOCK": block_for(dimension)}
    run(_finish_step, (state.rows,), state.x.device, *arguments, **constants, num_warps=4)
