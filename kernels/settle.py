"""The end of a step of the graph engine: error, decision, output times, counts, and accepted states taken over.

One program for each row goes over its numbers once for the new state and the norm of the error, once for each output
time that the step passed, and once to take the new state over; in an order that its size alone sets, so that a row has
the same bits in any batch. Its PyTorch twin is `engines.graph.step.TorchOps.settle`, with the same bits but for the
norm, whose squares are added in another order.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from vapo_fast.engines.graph.state import State
from vapo_fast.engines.graph.step import Plan
from vapo_fast.ode.settings import SETTINGS
from vapo_fast.ode.solution import Status

from . import controller
from .attempts import RUNNING, is_last, next_attempt, weighted
from .controller import is_finite
from .launch import OPTIONS, on
from .stage import block_for, first_of, mask_of, step_between

_SMALLEST_STEP = tl.constexpr(SETTINGS.index("smallest_step"))
_RTOL = tl.constexpr(SETTINGS.index("rtol"))
_ATOL = tl.constexpr(SETTINGS.index("atol"))
_MOST_STEPS = tl.constexpr(SETTINGS.index("max_steps"))
_ACCEPTED_EXPONENT = tl.constexpr(SETTINGS.index("accepted_exponent"))
_PREVIOUS_EXPONENT = tl.constexpr(SETTINGS.index("previous_exponent"))
_REJECTED_EXPONENT = tl.constexpr(SETTINGS.index("rejected_exponent"))

_SUCCESS = tl.constexpr(int(Status.SUCCESS))
_MAX_STEPS = tl.constexpr(int(Status.MAX_STEPS))
_STEP_TOO_SMALL = tl.constexpr(int(Status.STEP_TOO_SMALL))
_NON_FINITE = tl.constexpr(int(Status.NON_FINITE))
_TINY32 = tl.constexpr(1.1754943508222875e-38)
_TINY64 = tl.constexpr(2.2250738585072014e-308)


@triton.jit
def _tiny(like):
    """The smallest normal number of a dtype, without passing through another."""
    if like.dtype == tl.float64:
        return tl.full(like.shape, _TINY64, tl.float64)
    else:
        return tl.full(like.shape, _TINY32, tl.float32)


@triton.jit
def _new_state_and_norm(
    x,
    stages,
    stage_step,
    point,
    table,
    settings,
    base,
    dimension,
    width,
    STAGES: tl.constexpr,
    WEIGHTS: tl.constexpr,
    ERRORS: tl.constexpr,
    ADAPTIVE: tl.constexpr,
    FSAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The new state, into ``point`` where no stage has put it there; (scaled error's sum of squares, numbers that are
    not finite), (1,) each."""
    dtype = x.dtype.element_ty
    squares = tl.zeros((BLOCK,), dtype)
    bad = tl.zeros((BLOCK,), tl.int64)
    weights = (STAGES + 1) * (STAGES + 1)
    rtol, atol = tl.load(settings + _RTOL).to(dtype), tl.load(settings + _ATOL).to(dtype)
    for d in tl.range(0, dimension, BLOCK, num_stages=1):
        column = d + tl.arange(0, BLOCK)
        inside = column < dimension
        at = base + column
        old = tl.load(x + at, mask=inside, other=0.0)
        if FSAL:
            new = tl.load(point + at, mask=inside, other=0.0)
        else:
            total = weighted(table, weights, stages, stage_step, at, inside, STAGES, WEIGHTS[0], WEIGHTS[1])
            new = old + width * total
            tl.store(point + at, new, mask=inside)
        bad += (inside & ~is_finite(new)).to(tl.int64)
        if ADAPTIVE:
            error = weighted(table, weights + STAGES, stages, stage_step, at, inside, STAGES, ERRORS[0], ERRORS[1])
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
def _output(
    x,
    stages,
    stage_step,
    point,
    table,
    y,
    base,
    dimension,
    theta,
    width,
    arrived,
    STAGES: tl.constexpr,
    DEGREE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The continuous extension at one time, at ``y``; the new state itself at the end of the step."""
    dtype = x.dtype.element_ty
    dense = table + (STAGES + 1) * (STAGES + 1) + 2 * STAGES
    for d in tl.range(0, dimension, BLOCK, num_stages=1):
        column = d + tl.arange(0, BLOCK)
        inside = column < dimension
        at = base + column
        old = tl.load(x + at, mask=inside, other=0.0)
        increment = tl.zeros((BLOCK,), dtype)
        for j in tl.static_range(STAGES):
            weight = tl.zeros_like(theta)
            for k in tl.static_range(DEGREE):
                weight = (weight + tl.load(dense + (j * DEGREE + DEGREE - 1 - k))) * theta
            stage = tl.load(stages + j * stage_step + at, mask=inside, other=0.0)
            increment += weight.to(dtype) * stage
        new = tl.load(point + at, mask=inside, other=0.0)
        tl.store(y + base + column, tl.where(arrived, new, old + width * increment), mask=inside)


@triton.jit
def _settle(
    x,
    stages,
    stage_step,
    point,
    t_ptr,
    h_ptr,
    previous_ptr,
    after_rejection_ptr,
    status_ptr,
    nfe_ptr,
    accepted_ptr,
    rejected_ptr,
    flags,
    ys,
    ys_step,
    times,
    outputs,
    settings,
    table,
    dimension,
    EVALUATIONS: tl.constexpr,
    STAGES: tl.constexpr,
    WEIGHTS: tl.constexpr,
    ERRORS: tl.constexpr,
    DEGREE: tl.constexpr,
    ADAPTIVE: tl.constexpr,
    FSAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    if tl.load(status_ptr + row) == RUNNING:
        dtype = x.dtype.element_ty
        step = tl.cast(stage_step, tl.int64)
        base = row * dimension
        one = row + tl.arange(0, 1)
        t, h = tl.load(t_ptr + one), tl.load(h_ptr + one)
        accepted_before, rejected_before = tl.load(accepted_ptr + one), tl.load(rejected_ptr + one)
        size, signed, end, last = next_attempt(t, h, accepted_before, settings, ADAPTIVE)
        width = (size if ADAPTIVE else signed).to(dtype)
        squares, bad = _new_state_and_norm(
            x,
            stages,
            step,
            point,
            table,
            settings,
            base,
            dimension,
            width,
            STAGES,
            WEIGHTS,
            ERRORS,
            ADAPTIVE,
            FSAL,
            BLOCK,
        )
        status = tl.full((1,), RUNNING, tl.int64)
        if ADAPTIVE:
            mean = squares / dimension
            norm = tl.sqrt(mean) if dtype == tl.float64 else tl.sqrt_rn(mean)
            ratio = tl.where(bad > 0, tl.full((1,), float("inf"), tl.float64), norm.to(tl.float64))
            accepted = ratio <= 1.0
            previous = tl.load(previous_ptr + one)
            change = controller.factor(
                ratio,
                previous,
                tl.load(after_rejection_ptr + one) != 0,
                tl.load(settings + _ACCEPTED_EXPONENT),
                tl.load(settings + _PREVIOUS_EXPONENT),
                tl.load(settings + _REJECTED_EXPONENT),
            )
            next_size = size * change
            hopeless = ~accepted & (next_size < tl.load(settings + _SMALLEST_STEP))
            status = tl.where(hopeless, tl.where(is_finite(ratio), _STEP_TOO_SMALL, _NON_FINITE), status)
            next_previous = controller.remember(ratio, previous)
        else:
            accepted = bad == 0
            next_size, next_previous = h, h
            status = tl.where(accepted, status, _NON_FINITE)
        accepted_now = accepted_before + accepted.to(tl.int64)
        rejected_now = rejected_before + (~accepted).to(tl.int64)
        status = tl.where(accepted & last, _SUCCESS, status)
        if ADAPTIVE:
            exhausted = (accepted_now + rejected_now).to(tl.float64) >= tl.load(settings + _MOST_STEPS)
            status = tl.where(exhausted & (status == RUNNING), _MAX_STEPS, status)
        # What follows reads what other threads of the program have written.
        tl.debug_barrier()
        stands = tl.max(accepted.to(tl.int32), axis=0) > 0
        if stands:
            for k in range(outputs):
                time = tl.load(times + k) + tl.zeros_like(t)
                due = ((time > t) & (time <= end)) | ((time < t) & (time >= end))
                if tl.max(due.to(tl.int32), axis=0) > 0:
                    _output(
                        x,
                        stages,
                        step,
                        point,
                        table,
                        ys + tl.cast(ys_step, tl.int64) * k,
                        base,
                        dimension,
                        (time - t) / signed,
                        signed.to(dtype),
                        time == end,
                        STAGES,
                        DEGREE,
                        BLOCK,
                    )
            tl.debug_barrier()
            for d in tl.range(0, dimension, BLOCK, num_stages=1):
                column = d + tl.arange(0, BLOCK)
                inside = column < dimension
                at = base + column
                tl.store(x + at, tl.load(point + at, mask=inside), mask=inside)
                if ADAPTIVE:
                    f = tl.load(stages + (STAGES - 1) * step + at, mask=inside)
                    tl.store(stages + at, f, mask=inside)
        t_now = tl.where(accepted, end, t)
        tl.store(t_ptr + one, t_now)
        tl.store(status_ptr + one, status)
        tl.store(nfe_ptr + one, tl.load(nfe_ptr + one) + EVALUATIONS)
        tl.store(accepted_ptr + one, accepted_now)
        tl.store(rejected_ptr + one, rejected_now)
        if ADAPTIVE:
            tl.store(h_ptr + one, next_size)
            tl.store(previous_ptr + one, next_previous)
            tl.store(after_rejection_ptr + one, (~accepted).to(tl.int64))
        goes_on = status == RUNNING
        far = goes_on & ~is_last(t_now, next_size, accepted_now, settings, ADAPTIVE)
        tl.atomic_add(flags + tl.arange(0, 1), goes_on.to(tl.int64))
        tl.atomic_add(flags + 1 + tl.arange(0, 1), far.to(tl.int64))


def settle(state: State, settings: Tensor, table: Tensor, plan: Plan) -> None:
    """The end of a step of every row; adds to the flags, which `stage` has cleared. One launch.

    Arguments as for `stage`.
    """
    tableau = plan.tableau
    dimension = state.x[0].numel()
    errors = tableau.error or (1.0,)
    with on(state.x.device):
        _settle[(state.rows,)](
            state.x,
            state.stages[0],
            step_between(state.stages),
            state.point,
            state.t,
            state.h,
            state.previous_ratio,
            state.after_rejection,
            state.status,
            state.nfe,
            state.accepted,
            state.rejected,
            state.flags,
            state.ys if plan.outputs else state.x,
            step_between(state.ys) if plan.outputs else 0,
            state.times if plan.outputs else state.t,
            plan.outputs,
            settings,
            table,
            dimension,
            EVALUATIONS=tableau.stages - plan.first_stage,
            STAGES=tableau.stages,
            WEIGHTS=(mask_of(tableau.b), first_of(tableau.b)),
            ERRORS=(mask_of(errors), first_of(errors)),
            DEGREE=len(tableau.dense[0]),
            ADAPTIVE=tableau.adaptive,
            FSAL=tableau.fsal,
            BLOCK=block_for(dimension),
            num_warps=4,
            **OPTIONS,
        )
