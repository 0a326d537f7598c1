"""Samples on their way: points of evaluation, stages, error norms and decisions of a tile.

Device functions only. Each lane of a tile holds one sample at its own stage slot (`tableau`), with its own time and
step size. All of it lies in memory between two evaluations, so that the products have the registers for themselves.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from . import controller
from .controller import (
    MAX_STEPS,
    NON_FINITE,
    RUNNING,
    STEP_TOO_SMALL,
    SUCCESS,
    is_finite,
    out_of_steps,
    proposed_fixed_step,
    proposed_step,
)
from .gauge import coefficients
from .sweeps import GRADIENT, INPUTS, TANGENT, adjoint, forward, tangent
from .tableau import ATOL, DIRECTION, ERROR_ORDER_INVERSE, FIRST_STEP, RTOL, SMALLEST_STEP, SPAN, STEPS, T0, T1

CLOCK = ("time", "size", "previous")
"""float64: time; size of the next step (at slot 1 the probe's); the error ratio of the last accepted step (at slot 1
the field's norm)."""
COUNTS = ("sample", "slot", "rejected_last", "nfe", "accepted", "rejected", "output", "status")
"""int64: number of the sample, -1 for none; stage slot; whether the last try was rejected; field evaluations; accepted
and rejected steps; how many output times are behind; the status that a sample ends with, or RUNNING."""

TIME = tl.constexpr(CLOCK.index("time"))
SIZE = tl.constexpr(CLOCK.index("size"))
PREVIOUS = tl.constexpr(CLOCK.index("previous"))
SAMPLE = tl.constexpr(COUNTS.index("sample"))
SLOT = tl.constexpr(COUNTS.index("slot"))
REJECTED_LAST = tl.constexpr(COUNTS.index("rejected_last"))
NFE = tl.constexpr(COUNTS.index("nfe"))
ACCEPTED = tl.constexpr(COUNTS.index("accepted"))
REJECTED = tl.constexpr(COUNTS.index("rejected"))
OUTPUT = tl.constexpr(COUNTS.index("output"))
STATUS = tl.constexpr(COUNTS.index("status"))

# Arrays of a state's size.
_POINT = tl.constexpr(1)
_STAGES = tl.constexpr(2)
_TINY = tl.constexpr(1.1754943508222875e-38)


class Samples(NamedTuple):
    """Pointers to a tile's samples, and to the probes of all.

    ``state`` has [rows][columns] for each of the state, the point of evaluation (after the last stage: the new state)
    and the stages; ``clock`` and ``counts`` have [rows] for each of `CLOCK` and `COUNTS`.
    """

    state: Any
    clock: Any
    counts: Any
    probes: Any


class Step(NamedTuple):
    """What each sample has done, [rows] each: whether it completed a step that is accepted; signed size, time before,
    time after."""

    accepted: Any
    size: Any
    t: Any
    end: Any


class Progress(NamedTuple):
    """Where each sample is, [rows] each: its slot; `CLOCK`'s size and previous; whether the slot is its first, the last
    of a step, or the probe of the initial step."""

    slot: Any
    size: Any
    previous: Any
    starting: Any
    finishing: Any
    probing: Any


class Norms(NamedTuple):
    """What `decide` looks at, [rows] each: sums of scaled squares (of the state, the change to the probe, or the error;
    of the field), and how many numbers of state, new state and field are not finite."""

    norm: Any
    field_norm: Any
    bad_state: Any
    bad_new: Any
    bad_field: Any


class Decision(NamedTuple):
    """What becomes of a sample, [rows] each."""

    accepted: Any
    size: Any
    previous: Any
    slot: Any
    status: Any


@triton.jit
def clock_of(samples, FIELD: tl.constexpr, TILE: tl.constexpr):
    """Pointers [rows] to one of `CLOCK`."""
    return samples.clock + FIELD * TILE.rows + tl.arange(0, TILE.rows)


@triton.jit
def count_of(samples, FIELD: tl.constexpr, TILE: tl.constexpr):
    """Pointers [rows] to one of `COUNTS`."""
    return samples.counts + FIELD * TILE.rows + tl.arange(0, TILE.rows)


@triton.jit
def attempt_of(samples, settings, TILE: tl.constexpr, METHOD: tl.constexpr):
    """The step that each sample is at, [rows] each: (signed size, time at its end, whether that is t1)."""
    t = tl.load(clock_of(samples, TIME, TILE))
    t1 = tl.load(settings + T1)
    if METHOD.adaptive:
        size = tl.load(clock_of(samples, SIZE, TILE))
        _size, step, end, last = proposed_step(t, size, t1, tl.load(settings + DIRECTION))
        return step, end, last
    else:
        t0, steps = tl.load(settings + T0), tl.load(settings + STEPS)
        return proposed_fixed_step(tl.load(count_of(samples, ACCEPTED, TILE)), t0, t1, steps)


@triton.jit
def evaluate(
    samples, tape, network, numbers, NET: tl.constexpr, AT: tl.constexpr, TILE: tl.constexpr, METHOD: tl.constexpr
):
    """One evaluation of the field for every sample, at its slot's point and time, into its slot's stage."""
    lane = tl.arange(0, TILE.rows)
    coordinate = tl.arange(0, TILE.block_d)
    array = TILE.rows * METHOD.columns
    sample = tl.load(count_of(samples, SAMPLE, TILE))
    slot = tl.load(count_of(samples, SLOT, TILE))
    step, _end, _last = attempt_of(samples, numbers.settings, TILE, METHOD)
    if METHOD.adaptive:
        size = tl.load(clock_of(samples, SIZE, TILE))
        step = tl.where(slot == 1, tl.load(numbers.settings + DIRECTION) * size, step)
    t = tl.load(clock_of(samples, TIME, TILE)) + tl.load(numbers.table + METHOD.nodes + slot) * step
    a, c, r, position = coefficients(t.to(tl.float32), network.constants, NET)
    width = step.to(tl.float32)[:, None]
    row = numbers.table + slot * METHOD.stages
    for d in tl.range(0, METHOD.columns, TILE.block_d, num_stages=1):
        column = d + coordinate
        at = lane[:, None] * METHOD.columns + column[None, :]  # [rows, block_d]
        point = tl.load(samples.state + at)
        total = tl.zeros((TILE.rows, TILE.block_d), tl.float32)
        for j in tl.static_range(METHOD.stages):
            weight = tl.load(row + j).to(tl.float32)[:, None]
            stage = tl.load(samples.state + (_STAGES + j) * array + at, mask=weight != 0.0, other=0.0)
            total += weight * stage
        point += width * total
        tl.store(samples.state + _POINT * array + at, point)
        z = tape.inputs + INPUTS * tape.inputs_step + lane[:, None] * NET.columns + column[None, :]
        tl.store(z, point * r[:, None], mask=(column < NET.dimension)[None, :])
    tl.debug_barrier()
    forward(tape, network, position, NET, AT, TILE)
    adjoint(tape, network, NET, AT, TILE)
    # Slot 1 writes the second stage, which its own slot fills later.
    stage_index = tl.where(slot == 1, 1, tl.where(slot > 1, slot - 1, 0))
    place = samples.state + (stage_index + _STAGES)[:, None] * array + lane[:, None] * METHOD.columns
    for d in tl.range(0, NET.dimension, TILE.block_d, num_stages=1):
        column = d + coordinate
        inside = (column < NET.dimension)[None, :]
        at = lane[:, None] * METHOD.columns + column[None, :]
        point = tl.load(samples.state + _POINT * array + at)
        by_z = tape.inputs + GRADIENT * tape.inputs_step + lane[:, None] * NET.columns + column[None, :]
        g = tl.load(by_z, mask=inside)
        tl.store(place + column[None, :], a[:, None] * point + (c * r)[:, None] * g, mask=inside)
    if METHOD.trace != "none":
        _traces(samples.probes, sample, tape, network, place, a, c, r, NET, AT, TILE, METHOD)
    tl.debug_barrier()


@triton.jit
def _traces(
    probes,
    sample,
    tape,
    network,
    to,
    a,
    c,
    r,
    NET: tl.constexpr,
    AT: tl.constexpr,
    TILE: tl.constexpr,
    METHOD: tl.constexpr,
):
    """``v . Hessian(Phi) v`` into the columns behind the coordinates: for each probe, or summed over the axes."""
    lane = tl.arange(0, TILE.rows)
    coordinate = tl.arange(0, TILE.block_d)
    tangents = tape.inputs + TANGENT * tape.inputs_step + lane[:, None] * NET.columns
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
        curvature = tangent(tape, network, NET, AT, TILE, False)
        along = a * squared_norm + c * curvature
        if METHOD.trace == "exact":
            summed += along
        else:
            tl.store(to + (NET.dimension + i), along[:, None])
    if METHOD.trace == "exact":
        tl.store(to + NET.dimension, summed[:, None])


@triton.jit
def decide(samples, numbers, NET: tl.constexpr, TILE: tl.constexpr, METHOD: tl.constexpr):
    """After an evaluation: error norms and decisions of samples at the start, the probe or the end of a step.

    A sample that has ended has its status; one that goes on keeps RUNNING; all have their next slot. Where a step was
    completed the new state stands in the point's array, whether it was accepted or not. Returns the
    `Step` for `solve._outputs` and `accept_state`, which must follow.
    """
    live = tl.load(count_of(samples, SAMPLE, TILE)) >= 0
    slot = tl.load(count_of(samples, SLOT, TILE))
    t = tl.load(clock_of(samples, TIME, TILE))
    previous = tl.load(clock_of(samples, PREVIOUS, TILE))
    size = tl.load(clock_of(samples, SIZE, TILE))
    nfe = tl.load(count_of(samples, NFE, TILE))
    accepted_steps = tl.load(count_of(samples, ACCEPTED, TILE))
    rejected_steps = tl.load(count_of(samples, REJECTED, TILE))
    step, end, last = attempt_of(samples, numbers.settings, TILE, METHOD)
    starting, finishing = live & (slot == 0), live & (slot == METHOD.last_slot)
    probing = live & (slot == 1) & METHOD.adaptive
    progress = Progress(slot, size, previous, starting, finishing, probing)
    norms = _norms(samples, numbers, step, progress, NET, TILE, METHOD)
    decision = _decision(samples, numbers, step, progress, norms, NET, TILE, METHOD)
    rejected = finishing & ~decision.accepted
    accepted_steps += decision.accepted.to(tl.int64)
    rejected_steps += rejected.to(tl.int64)
    status = decision.status
    if METHOD.adaptive:
        exhausted = out_of_steps(accepted_steps + rejected_steps, numbers.settings)
        status = tl.where(finishing & exhausted & (status == RUNNING), MAX_STEPS, status)
    status = tl.where(decision.accepted & last, SUCCESS, status)
    unusable = starting & (norms.bad_state > 0)
    status = tl.where(unusable, NON_FINITE, status)
    accepted = decision.accepted & ~unusable
    nothing = unusable & (nfe == 0)
    was = tl.load(count_of(samples, REJECTED_LAST, TILE))
    # A lane's numbers may be held by several threads, one of which writes them: first all have read.
    tl.debug_barrier()
    tl.store(count_of(samples, NFE, TILE), tl.where(nothing, 0, nfe + live.to(tl.int64)))
    tl.store(count_of(samples, ACCEPTED, TILE), tl.where(nothing, 0, accepted_steps))
    tl.store(count_of(samples, REJECTED, TILE), tl.where(nothing, 0, rejected_steps))
    # Lanes without a sample stand still: there are no coefficients and no stages beyond the last slot.
    tl.store(count_of(samples, SLOT, TILE), tl.where(live, decision.slot, 0))
    tl.store(count_of(samples, STATUS, TILE), status)
    if METHOD.adaptive:
        tl.store(count_of(samples, REJECTED_LAST, TILE), tl.where(finishing, rejected.to(tl.int64), was))
        tl.store(clock_of(samples, SIZE, TILE), decision.size)
        tl.store(clock_of(samples, PREVIOUS, TILE), decision.previous)
    tl.debug_barrier()
    return Step(accepted, step, t, end)


@triton.jit
def _norms(samples, numbers, step, progress, NET: tl.constexpr, TILE: tl.constexpr, METHOD: tl.constexpr):
    """The new state of samples that complete a step, and `Norms` of all that are to be decided about."""
    lane = tl.arange(0, TILE.rows)
    coordinate = tl.arange(0, TILE.block_d)
    array = TILE.rows * METHOD.columns
    weights = numbers.table + METHOD.weights
    width = step.to(tl.float32)[:, None]
    rtol = tl.load(numbers.settings + RTOL).to(tl.float32)
    atol = tl.load(numbers.settings + ATOL).to(tl.float32)
    norm = tl.zeros((TILE.rows,), tl.float32)
    field_norm = tl.zeros((TILE.rows,), tl.float32)
    bad_state = tl.zeros((TILE.rows,), tl.int32)
    bad_new = tl.zeros((TILE.rows,), tl.int32)
    bad_field = tl.zeros((TILE.rows,), tl.int32)
    finishing, probing = progress.finishing, progress.probing
    due = progress.starting | finishing | probing
    if tl.max(due.to(tl.int32), axis=0) > 0:
        for d in tl.range(0, METHOD.columns, TILE.block_d, num_stages=1):
            column = d + coordinate
            at = lane[:, None] * METHOD.columns + column[None, :]  # [rows, block_d]
            inside = due[:, None] & (column < NET.dimension + METHOD.traces)[None, :]
            x = tl.load(samples.state + at, mask=inside, other=0.0)
            f = tl.load(samples.state + _STAGES * array + at, mask=inside, other=0.0)
            ends = inside & finishing[:, None]
            change = tl.zeros((TILE.rows, TILE.block_d), tl.float32)
            error = tl.zeros((TILE.rows, TILE.block_d), tl.float32)
            for j in tl.static_range(METHOD.stages):
                stage = tl.load(samples.state + (_STAGES + j) * array + at, mask=ends, other=0.0)
                change += tl.load(weights + j).to(tl.float32) * stage
                if METHOD.adaptive:
                    error += tl.load(numbers.table + METHOD.errors + j).to(tl.float32) * stage
            new = x + width * change
            tl.store(samples.state + _POINT * array + at, new, mask=ends)
            bad_state += tl.sum((inside & ~is_finite(x)).to(tl.int32), axis=1)
            bad_new += tl.sum((ends & ~is_finite(new)).to(tl.int32), axis=1)
            bad_field += tl.sum((inside & ~is_finite(f)).to(tl.int32), axis=1)
            if METHOD.adaptive:
                largest = tl.where(ends & (tl.abs(new) > tl.abs(x)), tl.abs(new), tl.abs(x))
                scale = atol + rtol * largest
                scale = tl.where(scale < _TINY, _TINY, scale)
                mask = inside & probing[:, None]
                probe = tl.load(samples.state + (_STAGES + 1) * array + at, mask=mask, other=0.0)
                measured = tl.where(ends, width * error, tl.where(probing[:, None], probe - f, x)) / scale
                norm += tl.sum(tl.where(inside, measured * measured, 0.0), axis=1)
                slope = tl.where(inside, f / scale, 0.0)
                field_norm += tl.sum(slope * slope, axis=1)
    return Norms(norm, field_norm, bad_state, bad_new, bad_field)


@triton.jit
def _decision(samples, numbers, step, progress, norms, NET: tl.constexpr, TILE: tl.constexpr, METHOD: tl.constexpr):
    """Whether steps are accepted, the sizes of the next ones, and what every sample does next."""
    slot, size, previous, starting, finishing, probing = progress
    status = tl.zeros((TILE.rows,), tl.int64) + RUNNING
    next_slot = tl.where(slot == 0, 2, slot + 1)
    if METHOD.adaptive:
        entries = 1.0 * (NET.dimension + METHOD.traces)
        norm = tl.sqrt_rn(norms.norm / entries).to(tl.float64)
        field_norm = tl.sqrt_rn(norms.field_norm / entries).to(tl.float64)
        span = tl.load(numbers.settings + SPAN) + tl.zeros_like(step)
        first = tl.load(numbers.settings + FIRST_STEP) + tl.zeros_like(step)
        chosen = first <= 0.0
        # The start, and the probe of the first step.
        trial = controller.trial_step(norm, field_norm, span)
        order_inverse = tl.load(numbers.settings + ERROR_ORDER_INVERSE)
        begun = controller.initial_step(previous, norm, size, span, order_inverse)
        # The end of a step.
        ratio = tl.where(norms.bad_new > 0, float("inf"), norm)
        accepted = finishing & (ratio <= 1.0)
        after_rejection = tl.load(count_of(samples, REJECTED_LAST, TILE)) != 0
        change = controller.factor(ratio, previous, after_rejection, numbers.settings)
        changed = tl.abs(step) * change
        next_size = tl.where(
            starting, tl.where(chosen, trial, first), tl.where(probing, begun, tl.where(finishing, changed, size))
        )
        next_previous = tl.where(
            starting & chosen,
            field_norm,
            tl.where(finishing, controller.remember(ratio, previous), tl.where(probing | starting, 1.0, previous)),
        )
        next_slot = tl.where(starting & chosen, 1, tl.where(probing | finishing, 2, next_slot))
        knows_field = (starting & ~chosen) | probing
        status = tl.where(knows_field & (norms.bad_field > 0), NON_FINITE, status)
        hopeless = finishing & ~accepted & (changed < tl.load(numbers.settings + SMALLEST_STEP))
        status = tl.where(hopeless, tl.where(is_finite(ratio), STEP_TOO_SMALL, NON_FINITE), status)
        return Decision(accepted, next_size, next_previous, next_slot, status)
    else:
        accepted = finishing & (norms.bad_new == 0)
        next_slot = tl.where(finishing, 0, next_slot)
        status = tl.where(finishing & ~accepted, NON_FINITE, status)
        return Decision(accepted, size, previous, next_slot, status)


@triton.jit
def accept_state(samples, step, NET: tl.constexpr, TILE: tl.constexpr, METHOD: tl.constexpr):
    """Accepted steps become the state; where the last stage is the next first one, it becomes that."""
    lane = tl.arange(0, TILE.rows)
    coordinate = tl.arange(0, TILE.block_d)
    array = TILE.rows * METHOD.columns
    if tl.max(step.accepted.to(tl.int32), axis=0) > 0:
        for d in tl.range(0, METHOD.columns, TILE.block_d, num_stages=1):
            at = lane[:, None] * METHOD.columns + (d + coordinate)[None, :]
            mask = step.accepted[:, None] & (d + coordinate < NET.dimension + METHOD.traces)[None, :]
            tl.store(samples.state + at, tl.load(samples.state + _POINT * array + at, mask=mask), mask=mask)
            if METHOD.adaptive:
                f = tl.load(samples.state + (_POINT + METHOD.stages) * array + at, mask=mask)
                tl.store(samples.state + _STAGES * array + at, f, mask=mask)
    tl.store(clock_of(samples, TIME, TILE), step.end, mask=step.accepted)
    tl.debug_barrier()
