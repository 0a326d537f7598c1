"""The whole adaptive solve in one launch: every program keeps a tile of samples going until none are left.

A sample that ends is replaced at once by the next one that waits, so that no lane is idle before the queue is empty,
and none waits for a sample that needs more steps. The host learns nothing until the end.
The twin is the reference engine's solve, `vapo_fast.ode.solve.integrate`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vapo_fast.ode import SolveOptions
from vapo_fast.ode.settings import numbers

from .controller import RUNNING
from .launch import Program, refuse_derivatives, scratch_for
from .mlp import PackedMlp
from .shapes import FusedMethod, field_arrays, padded, trace_arrays
from .stepping import (
    ACCEPTED,
    CLOCK,
    COUNTS,
    NFE,
    OUTPUT,
    PREVIOUS,
    REJECTED,
    REJECTED_LAST,
    SAMPLE,
    SIZE,
    SLOT,
    STATUS,
    TIME,
    Samples,
    accept_state,
    clock_of,
    count_of,
    decide,
    evaluate,
)
from .sweeps import INPUT_ARRAYS, clear_inputs, tape_in
from .tableau import DIRECTION, FIRST_OUTPUT, T0, numbers_of

_CLOCKS, _COUNTS, _INPUT_ARRAYS = tl.constexpr(len(CLOCK)), tl.constexpr(len(COUNTS)), tl.constexpr(INPUT_ARRAYS)


class Solved(NamedTuple):
    """Results of a solve, on the device.

    x (n, D) and integrals (n, m) float32; t (n,) float64; status, nfe, accepted, rejected (n,) int64; ys (k, n, D) or
    None.
    """

    x: Tensor
    integrals: Tensor
    t: Tensor
    status: Tensor
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    ys: Tensor | None


class Queue(NamedTuple):
    """Samples that wait: x0 (n, D), rows ``stride`` apart; how many are taken; their probes (n, m, D)."""

    x0: Any
    stride: Any
    taken: Any
    probes: Any


class Scratch(NamedTuple):
    """Memory of the programs: ``memory`` float32, ``step`` numbers for each; clocks and counts of their samples."""

    memory: Any
    step: Any
    clocks: Any
    counts: Any


@triton.jit
def _samples_in(scratch, tape, probes, TILE: tl.constexpr):
    """This program's samples."""
    program = tl.program_id(0).to(tl.int64)
    state = tape.inputs + _INPUT_ARRAYS * tape.inputs_step
    clock = scratch.clocks + program * (_CLOCKS * TILE.rows)
    return Samples(state, clock, scratch.counts + program * (_COUNTS * TILE.rows), probes)


@triton.jit
def _refill(samples, ended, queue, n, settings, NET: tl.constexpr, TILE: tl.constexpr, METHOD: tl.constexpr):
    """New samples from the queue for the lanes whose sample has ended; -1 when there are none left."""
    lane = tl.arange(0, TILE.rows)
    coordinate = tl.arange(0, TILE.block_d)
    wanted = ended.to(tl.int64)
    first = tl.atomic_add(queue.taken, tl.sum(wanted, axis=0))
    sample = first + tl.cumsum(wanted, axis=0) - 1
    sample = tl.where(sample < n, sample, -1)
    for d in tl.range(0, METHOD.columns, TILE.block_d, num_stages=1):
        column = d + coordinate
        there = ended[:, None] & (sample >= 0)[:, None] & (column < NET.dimension)[None, :]
        # [rows, block_d]
        x = tl.load(queue.x0 + sample[:, None] * queue.stride + column[None, :], mask=there, other=0.0)
        place = samples.state + lane[:, None] * METHOD.columns + column[None, :]
        tl.store(place, x, mask=ended[:, None] & (column < METHOD.columns)[None, :])
    zeros = tl.zeros((TILE.rows,), tl.int64)
    start = tl.load(settings + T0) + tl.zeros((TILE.rows,), tl.float64)
    tl.store(clock_of(samples, TIME, TILE), start, mask=ended)
    tl.store(clock_of(samples, SIZE, TILE), start * 0.0, mask=ended)
    tl.store(clock_of(samples, PREVIOUS, TILE), start * 0.0 + 1.0, mask=ended)
    tl.store(count_of(samples, SAMPLE, TILE), sample, mask=ended)
    tl.store(count_of(samples, SLOT, TILE), zeros, mask=ended)
    tl.store(count_of(samples, REJECTED_LAST, TILE), zeros, mask=ended)
    tl.store(count_of(samples, NFE, TILE), zeros, mask=ended)
    tl.store(count_of(samples, ACCEPTED, TILE), zeros, mask=ended)
    tl.store(count_of(samples, REJECTED, TILE), zeros, mask=ended)
    tl.store(count_of(samples, OUTPUT, TILE), zeros + tl.load(settings + FIRST_OUTPUT).to(tl.int64), mask=ended)
    tl.debug_barrier()


@triton.jit
def _outputs(
    samples, step, ys, n, times, time_count, numbers, NET: tl.constexpr, TILE: tl.constexpr, METHOD: tl.constexpr
):
    """States at the output times that accepted steps passed, from the method's continuous extension."""
    lane = tl.arange(0, TILE.rows)
    coordinate = tl.arange(0, TILE.block_d)
    array = TILE.rows * METHOD.columns
    sample = tl.load(count_of(samples, SAMPLE, TILE))
    output = tl.load(count_of(samples, OUTPUT, TILE))
    direction = tl.load(numbers.settings + DIRECTION)
    dense = numbers.table + METHOD.dense
    time = tl.load(times + output, mask=output < time_count, other=0.0)
    due = step.accepted & (output < time_count) & (direction * (time - step.end) <= 0.0)
    while tl.max(due.to(tl.int32), axis=0) > 0:
        theta = (time - step.t) / step.size
        for d in tl.range(0, NET.dimension, TILE.block_d, num_stages=1):
            column = d + coordinate
            inside = due[:, None] & (column < NET.dimension)[None, :]
            at = lane[:, None] * METHOD.columns + column[None, :]  # [rows, block_d]
            x = tl.load(samples.state + at, mask=inside, other=0.0)
            increment = tl.zeros((TILE.rows, TILE.block_d), tl.float32)
            for j in tl.static_range(METHOD.stages):
                weight = tl.zeros((TILE.rows,), tl.float64)
                for k in tl.static_range(METHOD.degree):
                    weight = (weight + tl.load(dense + (j * METHOD.degree + METHOD.degree - 1 - k))) * theta
                stage = tl.load(samples.state + (2 + j) * array + at, mask=inside, other=0.0)
                increment += weight.to(tl.float32)[:, None] * stage
            between = x + step.size.to(tl.float32)[:, None] * increment
            # At the end of a step the polynomial is the new state only to rounding.
            new = tl.load(samples.state + array + at, mask=inside, other=0.0)
            y = tl.where((time == step.end)[:, None], new, between)
            place = (output * n + sample)[:, None] * NET.dimension + column[None, :]
            tl.store(ys + place, y, mask=inside)
        output += due.to(tl.int64)
        time = tl.load(times + output, mask=output < time_count, other=0.0)
        due = due & (output < time_count) & (direction * (time - step.end) <= 0.0)
    # Several threads may hold a lane's number: first all have read it, and the stages; then one writes it.
    tl.debug_barrier()
    tl.store(count_of(samples, OUTPUT, TILE), output)
    tl.debug_barrier()


@triton.jit
def _write(samples, ended, results, NET: tl.constexpr, TILE: tl.constexpr, METHOD: tl.constexpr):
    """Results of the samples that have ended."""
    lane = tl.arange(0, TILE.rows)
    coordinate = tl.arange(0, TILE.block_d)
    sample = tl.load(count_of(samples, SAMPLE, TILE))
    for d in tl.range(0, METHOD.columns, TILE.block_d, num_stages=1):
        column = d + coordinate
        at = lane[:, None] * METHOD.columns + column[None, :]
        mine = ended[:, None] & (column < NET.dimension)[None, :]
        inside = ended[:, None] & (column < NET.dimension + METHOD.traces)[None, :]
        x = tl.load(samples.state + at, mask=inside, other=0.0)  # [rows, block_d]
        tl.store(results.x + sample[:, None] * NET.dimension + column[None, :], x, mask=mine)
        if METHOD.traces > 0:
            trace = column - NET.dimension
            mine = ended[:, None] & ((trace >= 0) & (trace < METHOD.traces))[None, :]
            tl.store(results.integrals + sample[:, None] * METHOD.traces + trace[None, :], x, mask=mine)
    tl.store(results.t + sample, tl.load(clock_of(samples, TIME, TILE)), mask=ended)
    tl.store(results.status + sample, tl.load(count_of(samples, STATUS, TILE)), mask=ended)
    tl.store(results.nfe + sample, tl.load(count_of(samples, NFE, TILE)), mask=ended)
    tl.store(results.accepted + sample, tl.load(count_of(samples, ACCEPTED, TILE)), mask=ended)
    tl.store(results.rejected + sample, tl.load(count_of(samples, REJECTED, TILE)), mask=ended)


@triton.jit(do_not_specialize=["n", "time_count"])
def _solve(
    queue,
    n: tl.int64,
    results,
    times,
    time_count: tl.int64,
    scratch,
    network,
    numbers,
    NET: tl.constexpr,
    AT: tl.constexpr,
    TILE: tl.constexpr,
    METHOD: tl.constexpr,
):
    tape = tape_in(scratch, NET, AT, TILE)
    samples = _samples_in(scratch, tape, queue.probes, TILE)
    clear_inputs(tape, NET, TILE)
    ended = tl.arange(0, TILE.rows) >= 0
    _refill(samples, ended, queue, n, numbers.settings, NET, TILE, METHOD)
    active = tl.max(tl.load(count_of(samples, SAMPLE, TILE)), axis=0) >= 0
    while active:
        evaluate(samples, tape, network, numbers, NET, AT, TILE, METHOD)
        step = decide(samples, numbers, NET, TILE, METHOD)
        if METHOD.outputs:
            _outputs(samples, step, results.ys, n, times, time_count, numbers, NET, TILE, METHOD)
        accept_state(samples, step, NET, TILE, METHOD)
        ended = tl.load(count_of(samples, STATUS, TILE)) != RUNNING
        ended = ended & (tl.load(count_of(samples, SAMPLE, TILE)) >= 0)
        if tl.max(ended.to(tl.int32), axis=0) > 0:
            _write(samples, ended, results, NET, TILE, METHOD)
            tl.debug_barrier()
            _refill(samples, ended, queue, n, numbers.settings, NET, TILE, METHOD)
        active = tl.max(tl.load(count_of(samples, SAMPLE, TILE)), axis=0) >= 0
        tl.debug_barrier()


def method_for(
    options: SolveOptions, dimension: int, block_d: int, trace: str = "none", traces: int = 0
) -> FusedMethod:
    """What of a solve is compiled in."""
    tableau = options.tableau
    return FusedMethod(
        stages=tableau.stages,
        adaptive=tableau.adaptive,
        degree=len(tableau.dense[0]),
        outputs=options.t_eval is not None,
        trace=trace,
        traces=traces,
        columns=padded(dimension + traces, block_d),
    )


def solve(
    mlp: PackedMlp,
    x0: Tensor,
    t0: float,
    t1: float,
    options: SolveOptions,
    program: Program,
    trace: str = "none",
    probes: Tensor | None = None,
) -> Solved:
    """Integrate ``dx/dt = grad Phi`` from t0 to t1 != t0, with the trace of the Hessian if asked for.

    Args:
        mlp: the potential, packed on x0's device.
        x0: (n, D) float32; rows may lie any distance apart.
        options: method, tolerances, limits, output times.
        program: tile and number of programs.
        trace: "none", "exact" (one integral: of the Laplacian) or "probes".
        probes: (n, m, D) float32, contiguous, for "probes": m integrals of ``v . Hessian v``.
    Returns: `Solved`, not waited for.
    Raises: ValueError if x0 or probes requires grad.
    """
    refuse_derivatives(x0=x0, probes=probes)
    net, tile, device = mlp.net, program.tile, x0.device
    n, dimension = x0.shape[0], net.dimension
    traces = 1 if trace == "exact" else 0 if probes is None else probes.shape[1]
    method = method_for(options, dimension, tile.block_d, trace, traces)
    arrays = field_arrays(net.layers) if trace == "none" else trace_arrays(net.layers)
    times = options.t_eval or ()
    ys = None
    if options.t_eval is not None:
        ys = torch.full((len(times), n, dimension), torch.nan, dtype=x0.dtype, device=device)
        ys[: sum(time == t0 for time in times)] = x0
    x = torch.empty(n, dimension, dtype=x0.dtype, device=device)
    integrals = torch.empty(n, traces, dtype=x0.dtype, device=device)
    t = torch.empty(n, dtype=torch.float64, device=device)
    status, nfe, accepted, rejected = (torch.empty(n, dtype=torch.int64, device=device) for _ in range(4))
    result = Solved(x, integrals, t, status, nfe, accepted, rejected, ys)
    if n == 0:
        return result
    step = tile.rows * (arrays.count * net.width + INPUT_ARRAYS * net.columns + method.arrays * method.columns)
    programs = program.programs(n, step, device)
    taken = torch.zeros(1, dtype=torch.int64, device=device)
    scratch = Scratch(
        scratch_for(programs, step, device),
        step,
        torch.empty(programs * len(CLOCK) * tile.rows, dtype=torch.float64, device=device),
        torch.empty(programs * len(COUNTS) * tile.rows, dtype=torch.int64, device=device),
    )
    # Of what there is none, another array's address: a kernel that is compiled without it reads none.
    queue = Queue(x0, x0.stride(0), taken, x0 if probes is None else probes)
    written = result if ys is not None else result._replace(ys=x)
    waypoints = numbers(list(times) or [t0], device)
    arguments = (queue, n, written, waypoints, len(times), scratch, mlp.network, numbers_of(options, t0, t1, device))
    program.launch(_solve, programs, device, *arguments, NET=net, AT=arrays, METHOD=method)
    return result
