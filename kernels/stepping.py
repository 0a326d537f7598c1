"""Samples on their way: points of evaluation, stages, error norms and decisions of a tile.

Device functions only, shared by `step` and `solve`. Each lane of a tile holds one sample in its own phase
(`tableau.phases`), with its own time and step size. All of it lies in memory between two evaluations, so that the
products have the registers for themselves.

``state`` points at the tile's arrays of a state's size, [rows][columns] each: the state, the point of evaluation
(after the last stage: the new state), and the stages. ``clock`` and ``counts`` point at the tile's numbers, [rows]
each, in the orders below.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import controller
from .controller import is_finite
from .gauge import coefficients
from .sweeps import GRADIENT, INPUTS, TANGENT, adjoint, forward, tangent

# float64: time; size of the next step (in phase 1 the probe's); the error ratio of the last accepted step (in phase 1
# the field's norm).
TIME = tl.constexpr(0)
SIZE = tl.constexpr(1)
PREVIOUS = tl.constexpr(2)
CLOCKS = 3
# int64: number of the sample, -1 for none; phase; whether the last try was rejected; field evaluations; accepted and
# rejected steps; how many output times are behind; the status that a sample ends with, or RUNNING.
SAMPLE = tl.constexpr(0)
PHASE = tl.constexpr(1)
REJECTED_LAST = tl.constexpr(2)
NFE = tl.constexpr(3)
ACCEPTED = tl.constexpr(4)
REJECTED = tl.constexpr(5)
OUTPUT = tl.constexpr(6)
STATUS = tl.constexpr(7)
COUNTS = 8

RUNNING = tl.constexpr(-1)
SUCCESS = tl.constexpr(0)
MAX_STEPS = tl.constexpr(1)
STEP_TOO_SMALL = tl.constexpr(2)
NON_FINITE = tl.constexpr(3)

# Places in `tableau.settings`.
_T0 = tl.constexpr(0)
_T1 = tl.constexpr(1)
_SPAN = tl.constexpr(2)
_DIRECTION = tl.constexpr(3)
_SMALLEST_STEP = tl.constexpr(4)
_RTOL = tl.constexpr(5)
_ATOL = tl.constexpr(6)
_FIRST_STEP = tl.constexpr(7)
_MOST_STEPS = tl.constexpr(8)
_STEPS = tl.constexpr(9)
FIRST_OUTPUT = tl.constexpr(10)
_ACCEPTED_EXPONENT = tl.constexpr(11)
_PREVIOUS_EXPONENT = tl.constexpr(12)
_REJECTED_EXPONENT = tl.constexpr(13)
_ERROR_ORDER_INVERSE = tl.constexpr(14)

_STRETCH = tl.constexpr(1.01)
_TINY = tl.constexpr(1.1754943508222875e-38)


@triton.jit
def _phase_row(table, phase, METHOD: tl.constexpr):
    """Where a phase's coefficients begin in the tableau."""
    return table + phase * METHOD.stages


@triton.jit
def _nodes(table, METHOD: tl.constexpr):
    return table + (METHOD.phases * METHOD.stages)


@triton.jit
def attempt(clock, counts, settings, METHOD: tl.constexpr, TILE: tl.constexpr):
    """The try that each sample is at: (signed size, its time at the end, whether that is the end of the path)."""
    lane = tl.arange(0, TILE.rows)
    t = tl.load(clock + TIME * TILE.rows + lane)
    t1 = tl.load(settings + _T1)
    if METHOD.adaptive:
        size = tl.load(clock + SIZE * TILE.rows + lane)
        direction = tl.load(settings + _DIRECTION)
        remaining = tl.abs(t1 - t)
        last = size * _STRETCH >= remaining
        step = direction * tl.where(last, remaining, size)
        return step, tl.where(last, t1, t + step), last
    else:
        t0 = tl.load(settings + _T0)
        steps = tl.load(settings + _STEPS)
        done = tl.load(counts + ACCEPTED * TILE.rows + lane).to(tl.float64)
        last = done + 1.0 >= steps
        end = tl.where(last, t1, t0 + (t1 - t0) * ((done + 1.0) / steps))
        return end - (t0 + (t1 - t0) * (done / steps)), end, last


@triton.jit
def evaluate(
    wide,
    wide_step,
    narrow,
    narrow_step,
    state,
    clock,
    counts,
    packed,
    sizes,
    constants,
    table,
    settings,
    probes,
    NET: tl.constexpr,
    AT: tl.constexpr,
    TILE: tl.constexpr,
    METHOD: tl.constexpr,
):
    """One evaluation of the field for every sample, at its phase's point and time, into its phase's stage."""
    lane = tl.arange(0, TILE.rows)
    coordinate = tl.arange(0, TILE.block_d)
    array = TILE.rows * METHOD.columns
    sample = tl.load(counts + SAMPLE * TILE.rows + lane)
    phase = tl.load(counts + PHASE * TILE.rows + lane)
    step, _end, _last = attempt(clock, counts, settings, METHOD, TILE)
    if METHOD.adaptive:
        size = tl.load(clock + SIZE * TILE.rows + lane)
        step = tl.where(phase == 1, tl.load(settings + _DIRECTION) * size, step)
    t = tl.load(clock + TIME * TILE.rows + lane) + tl.load(_nodes(table, METHOD) + phase) * step
    a, c, r, position = coefficients(t.to(tl.float32), constants, NET)
    width = step.to(tl.float32)[:, None]
    row = _phase_row(table, phase, METHOD)
    for d in tl.range(0, METHOD.columns, TILE.block_d, num_stages=1):
        column = d + coordinate
        at = lane[:, None] * METHOD.columns + column[None, :]
        point = tl.load(state + at)
        total = tl.zeros((TILE.rows, TILE.block_d), tl.float32)
        for j in tl.static_range(METHOD.stages):
            weight = tl.load(row + j).to(tl.float32)[:, None]
            stage = tl.load(state + (2 + j) * array + at, mask=weight != 0.0, other=0.0)
            total += weight * stage
        point += width * total
        tl.store(state + array + at, point)
        z = narrow + INPUTS * narrow_step + lane[:, None] * NET.columns + column[None, :]
        tl.store(z, point * r[:, None], mask=(column < NET.dimension)[None, :])
    tl.debug_barrier()
    forward(wide, wide_step, narrow, narrow_step, packed, sizes, position, NET, AT, TILE)
    adjoint(wide, wide_step, narrow, narrow_step, packed, sizes, NET, AT, TILE)
    # Phase 1 writes the second stage, which its owner fills later.
    slot = tl.where(phase == 1, 1, tl.where(phase > 1, phase - 1, 0))
    place = state + (2 + slot)[:, None] * array + lane[:, None] * METHOD.columns
    for d in tl.range(0, NET.dimension, TILE.block_d, num_stages=1):
        column = d + coordinate
        inside = (column < NET.dimension)[None, :]
        at = lane[:, None] * METHOD.columns + column[None, :]
        point = tl.load(state + array + at)
        g = tl.load(narrow + GRADIENT * narrow_step + lane[:, None] * NET.columns + column[None, :], mask=inside)
        tl.store(place + column[None, :], a[:, None] * point + (c * r)[:, None] * g, mask=inside)
    if METHOD.trace != "none":
        _traces(
            wide, wide_step, narrow, narrow_step, place, sample, a, c, r, packed, sizes, probes, NET, AT, TILE, METHOD
        )
    tl.debug_barrier()


@triton.jit
def _traces(
    wide,
    wide_step,
    narrow,
    narrow_step,
    place,
    sample,
    a,
    c,
    r,
    packed,
    sizes,
    probes,
    NET: tl.constexpr,
    AT: tl.constexpr,
    TILE: tl.constexpr,
    METHOD: tl.constexpr,
):
    """``v . Hessian(Phi) v`` into the columns behind the coordinates: for each probe, or summed over the axes."""
    lane = tl.arange(0, TILE.rows)
    coordinate = tl.arange(0, TILE.block_d)
    tangents = narrow + TANGENT * narrow_step + lane[:, None] * NET.columns
    summed = tl.zeros((TILE.rows,), tl.float32)
    directions = NET.dimension if METHOD.trace == "exact" else METHOD.traces
    for i in tl.range(0, directions, num_stages=1):
        squared_norm = tl.zeros((TILE.rows,), tl.float32)
        for d in tl.range(0, NET.dimension, TILE.block_d, num_stages=1):
            column = d + coordinate
            inside = (column < NET.dimension)[None, :]
            if METHOD.trace == "exact":
                v = tl.where((column == i)[None, :], 1.0, tl.zeros((TILE.rows, TILE.block_d), tl.float32))
            else:
                at = (sample[:, None] * METHOD.traces + i) * NET.dimension + column[None, :]
                v = tl.load(probes + at, mask=inside & (sample >= 0)[:, None], other=0.0)
            squared_norm += tl.sum(v * v, axis=1)
            tl.store(tangents + column[None, :], v * r[:, None], mask=inside)
        tl.debug_barrier()
        curvature = tangent(wide, wide_step, narrow, narrow_step, packed, sizes, NET, AT, TILE, False)
        along = a * squared_norm + c * curvature
        if METHOD.trace == "exact":
            summed += along
        else:
            tl.store(place + (NET.dimension + i), along[:, None])
    if METHOD.trace == "exact":
        tl.store(place + NET.dimension, summed[:, None])


@triton.jit
def decide(
    state,
    clock,
    counts,
    table,
    settings,
    NET: tl.constexpr,
    TILE: tl.constexpr,
    METHOD: tl.constexpr,
):
    """After an evaluation: error norms and decisions of samples that are at a turning point, the next phase of all.

    A sample that has ended has its status; one that goes on keeps RUNNING. Where a step was completed the new state
    stands in the point's array, whether it was accepted or not. Returns (accepted [rows], signed size, time before,
    time after), for `outputs` and `take_over`, which must follow.
    """
    lane = tl.arange(0, TILE.rows)
    coordinate = tl.arange(0, TILE.block_d)
    array = TILE.rows * METHOD.columns
    live = tl.load(counts + SAMPLE * TILE.rows + lane) >= 0
    phase = tl.load(counts + PHASE * TILE.rows + lane)
    t = tl.load(clock + TIME * TILE.rows + lane)
    previous = tl.load(clock + PREVIOUS * TILE.rows + lane)
    size = tl.load(clock + SIZE * TILE.rows + lane)
    nfe = tl.load(counts + NFE * TILE.rows + lane)
    accepted_steps = tl.load(counts + ACCEPTED * TILE.rows + lane)
    rejected_steps = tl.load(counts + REJECTED * TILE.rows + lane)
    step, end, last = attempt(clock, counts, settings, METHOD, TILE)
    starting = live & (phase == 0)
    finishing = live & (phase == METHOD.finish)
    probing = live & (phase == 1) & METHOD.adaptive

    weights = _nodes(table, METHOD) + METHOD.phases
    width = step.to(tl.float32)[:, None]
    rtol, atol = tl.load(settings + _RTOL).to(tl.float32), tl.load(settings + _ATOL).to(tl.float32)
    norm = tl.zeros((TILE.rows,), tl.float32)
    field_norm = tl.zeros((TILE.rows,), tl.float32)
    bad_state = tl.zeros((TILE.rows,), tl.int32)
    bad_new = tl.zeros((TILE.rows,), tl.int32)
    bad_field = tl.zeros((TILE.rows,), tl.int32)
    turning = starting | finishing | probing
    if tl.max(turning.to(tl.int32), axis=0) > 0:
        for d in tl.range(0, METHOD.columns, TILE.block_d, num_stages=1):
            column = d + coordinate
            at = lane[:, None] * METHOD.columns + column[None, :]
            inside = turning[:, None] & (column < NET.dimension + METHOD.traces)[None, :]
            x = tl.load(state + at, mask=inside, other=0.0)
            f = tl.load(state + 2 * array + at, mask=inside, other=0.0)
            ends = inside & finishing[:, None]
            change = tl.zeros((TILE.rows, TILE.block_d), tl.float32)
            error = tl.zeros((TILE.rows, TILE.block_d), tl.float32)
            for j in tl.static_range(METHOD.stages):
                stage = tl.load(state + (2 + j) * array + at, mask=ends, other=0.0)
                change += tl.load(weights + j).to(tl.float32) * stage
                if METHOD.adaptive:
                    error += tl.load(weights + METHOD.stages + j).to(tl.float32) * stage
            new = x + width * change
            tl.store(state + array + at, new, mask=ends)
            bad_state += tl.sum((inside & ~is_finite(x)).to(tl.int32), axis=1)
            bad_new += tl.sum((ends & ~is_finite(new)).to(tl.int32), axis=1)
            bad_field += tl.sum((inside & ~is_finite(f)).to(tl.int32), axis=1)
            if METHOD.adaptive:
                largest = tl.where(ends & (tl.abs(new) > tl.abs(x)), tl.abs(new), tl.abs(x))
                scale = atol + rtol * largest
                scale = tl.where(scale < _TINY, _TINY, scale)
                probe = tl.load(state + 3 * array + at, mask=inside & probing[:, None], other=0.0)
                moved = tl.where(ends, width * error, tl.where(probing[:, None], probe - f, x)) / scale
                norm += tl.sum(tl.where(inside, moved * moved, 0.0), axis=1)
                slope = tl.where(inside, f / scale, 0.0)
                field_norm += tl.sum(slope * slope, axis=1)
    entries = 1.0 * (NET.dimension + METHOD.traces)
    status = tl.zeros((TILE.rows,), tl.int64) + RUNNING
    next_phase = tl.where(phase == 0, 2, phase + 1)
    if METHOD.adaptive:
        norms = tl.sqrt_rn(norm / entries).to(tl.float64)
        field_norms = tl.sqrt_rn(field_norm / entries).to(tl.float64)
        span = tl.load(settings + _SPAN) + tl.zeros_like(t)
        first = tl.load(settings + _FIRST_STEP) + tl.zeros_like(t)
        chosen = first <= 0.0
        # The start, and the probe of the first step.
        trial = controller.trial_step(norms, field_norms, span)
        begun = controller.initial_step(previous, norms, size, span, tl.load(settings + _ERROR_ORDER_INVERSE))
        # The end of a step.
        ratio = tl.where(bad_new > 0, float("inf"), norms)
        accepted = finishing & (ratio <= 1.0)
        after_rejection = tl.load(counts + REJECTED_LAST * TILE.rows + lane) != 0
        change = controller.factor(
            ratio,
            previous,
            after_rejection,
            tl.load(settings + _ACCEPTED_EXPONENT),
            tl.load(settings + _PREVIOUS_EXPONENT),
            tl.load(settings + _REJECTED_EXPONENT),
        )
        changed = tl.abs(step) * change
        next_size = tl.where(
            starting, tl.where(chosen, trial, first), tl.where(probing, begun, tl.where(finishing, changed, size))
        )
        next_previous = tl.where(
            starting & chosen,
            field_norms,
            tl.where(finishing, controller.remember(ratio, previous), tl.where(probing | starting, 1.0, previous)),
        )
        next_phase = tl.where(starting & chosen, 1, tl.where(probing | finishing, 2, next_phase))
        knows_field = (starting & ~chosen) | probing
        status = tl.where(knows_field & (bad_field > 0), NON_FINITE, status)
        hopeless = finishing & ~accepted & (changed < tl.load(settings + _SMALLEST_STEP))
        status = tl.where(hopeless, tl.where(is_finite(ratio), STEP_TOO_SMALL, NON_FINITE), status)
    else:
        accepted = finishing & (bad_new == 0)
        next_size, next_previous = size, previous
        next_phase = tl.where(finishing, 0, next_phase)
        status = tl.where(finishing & ~accepted, NON_FINITE, status)
    rejected = finishing & ~accepted
    accepted_steps += accepted.to(tl.int64)
    rejected_steps += rejected.to(tl.int64)
    if METHOD.adaptive:
        exhausted = (accepted_steps + rejected_steps).to(tl.float64) >= tl.load(settings + _MOST_STEPS)
        status = tl.where(finishing & exhausted & (status == RUNNING), MAX_STEPS, status)
    status = tl.where(accepted & last, SUCCESS, status)
    unusable = starting & (bad_state > 0)
    status = tl.where(unusable, NON_FINITE, status)
    accepted = accepted & ~unusable
    nothing = unusable & (nfe == 0)
    was = tl.load(counts + REJECTED_LAST * TILE.rows + lane)
    # A lane's numbers may be held by several threads, one of which writes them: first all have read.
    tl.debug_barrier()
    tl.store(counts + NFE * TILE.rows + lane, tl.where(nothing, 0, nfe + live.to(tl.int64)))
    tl.store(counts + ACCEPTED * TILE.rows + lane, tl.where(nothing, 0, accepted_steps))
    tl.store(counts + REJECTED * TILE.rows + lane, tl.where(nothing, 0, rejected_steps))
    # Lanes without a sample stand still: there are no coefficients and no stages beyond the last phase.
    tl.store(counts + PHASE * TILE.rows + lane, tl.where(live, next_phase, 0))
    tl.store(counts + STATUS * TILE.rows + lane, status)
    if METHOD.adaptive:
        tl.store(counts + REJECTED_LAST * TILE.rows + lane, tl.where(finishing, rejected.to(tl.int64), was))
        tl.store(clock + SIZE * TILE.rows + lane, next_size)
        tl.store(clock + PREVIOUS * TILE.rows + lane, next_previous)
    tl.debug_barrier()
    return accepted, step, t, end


@triton.jit
def take_over(state, clock, accepted, end, NET: tl.constexpr, TILE: tl.constexpr, METHOD: tl.constexpr):
    """Accepted steps become the state; where the last stage is the next first one, it becomes that."""
    lane = tl.arange(0, TILE.rows)
    coordinate = tl.arange(0, TILE.block_d)
    array = TILE.rows * METHOD.columns
    if tl.max(accepted.to(tl.int32), axis=0) > 0:
        for d in tl.range(0, METHOD.columns, TILE.block_d, num_stages=1):
            at = lane[:, None] * METHOD.columns + (d + coordinate)[None, :]
            moved = accepted[:, None] & (d + coordinate < NET.dimension + METHOD.traces)[None, :]
            tl.store(state + at, tl.load(state + array + at, mask=moved), mask=moved)
            if METHOD.adaptive:
                f = tl.load(state + (1 + METHOD.stages) * array + at, mask=moved)
                tl.store(state + 2 * array + at, f, mask=moved)
    tl.store(clock + TIME * TILE.rows + lane, end, mask=accepted)
    tl.debug_barrier()
