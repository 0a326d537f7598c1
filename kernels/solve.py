"""The whole adaptive solve in one launch: every program keeps a tile of samples going until none are left.

A sample that ends is replaced at once by the next one that waits, so that no lane is idle before the queue is empty,
and nobody waits for a sample that needs more steps. The host learns nothing until the end.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vapo_fast.ode import SolveOptions
from vapo_fast.ode.solve import integrate
from vapo_fast.potentials.mlp import MLPPotential

from .field import clear_inputs
from .gauge import coefficients_reference
from .launch import Program, refuse_derivatives, scratch_for
from .mlp import PackedMlp
from .shapes import Method, field_arrays, padded, trace_arrays
from .stepping import (
    ACCEPTED,
    CLOCKS,
    COUNTS,
    FIRST_OUTPUT,
    NFE,
    OUTPUT,
    PHASE,
    PREVIOUS,
    REJECTED,
    REJECTED_LAST,
    RUNNING,
    SAMPLE,
    SIZE,
    STATUS,
    TIME,
    decide,
    evaluate,
    take_over,
)
from .sweeps import NARROW_ARRAYS, adjoint_reference, forward_reference, tangent_reference
from .tableau import numbers, phases, settings


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


@triton.jit
def _refill(
    ended,
    x0_ptr,
    x0_stride,
    n,
    queue,
    state,
    clock,
    counts,
    settings_ptr,
    NET: tl.constexpr,
    TILE: tl.constexpr,
    METHOD: tl.constexpr,
):
    """New samples from the queue for the lanes whose sample has ended; -1 when there are none left."""
    lane = tl.arange(0, TILE.rows)
    coordinate = tl.arange(0, TILE.block_d)
    wanted = ended.to(tl.int64)
    first = tl.atomic_add(queue, tl.sum(wanted, axis=0))
    sample = first + tl.cumsum(wanted, axis=0) - 1
    sample = tl.where(sample < n, sample, -1)
    for d in tl.range(0, METHOD.columns, TILE.block_d, num_stages=1):
        column = d + coordinate
        there = ended[:, None] & (sample >= 0)[:, None] & (column < NET.dimension)[None, :]
        x = tl.load(x0_ptr + sample[:, None] * x0_stride + column[None, :], mask=there, other=0.0)
        place = state + lane[:, None] * METHOD.columns + column[None, :]
        tl.store(place, x, mask=ended[:, None] & (column < METHOD.columns)[None, :])
    zeros = tl.zeros((TILE.rows,), tl.int64)
    start = tl.load(settings_ptr) + tl.zeros((TILE.rows,), tl.float64)
    tl.store(clock + TIME * TILE.rows + lane, start, mask=ended)
    tl.store(clock + SIZE * TILE.rows + lane, start * 0.0, mask=ended)
    tl.store(clock + PREVIOUS * TILE.rows + lane, start * 0.0 + 1.0, mask=ended)
    tl.store(counts + SAMPLE * TILE.rows + lane, sample, mask=ended)
    tl.store(counts + PHASE * TILE.rows + lane, zeros, mask=ended)
    tl.store(counts + REJECTED_LAST * TILE.rows + lane, zeros, mask=ended)
    tl.store(counts + NFE * TILE.rows + lane, zeros, mask=ended)
    tl.store(counts + ACCEPTED * TILE.rows + lane, zeros, mask=ended)
    tl.store(counts + REJECTED * TILE.rows + lane, zeros, mask=ended)
    tl.store(counts + OUTPUT * TILE.rows + lane, zeros + tl.load(settings_ptr + FIRST_OUTPUT).to(tl.int64), mask=ended)
    tl.debug_barrier()


@triton.jit
def _outputs(
    times,
    time_count,
    ys_ptr,
    n,
    state,
    counts,
    table,
    accepted,
    step,
    t,
    end,
    settings_ptr,
    NET: tl.constexpr,
    TILE: tl.constexpr,
    METHOD: tl.constexpr,
):
    """States at the output times that accepted steps passed, from the method's continuous extension."""
    lane = tl.arange(0, TILE.rows)
    coordinate = tl.arange(0, TILE.block_d)
    array = TILE.rows * METHOD.columns
    sample = tl.load(counts + SAMPLE * TILE.rows + lane)
    output = tl.load(counts + OUTPUT * TILE.rows + lane)
    direction = tl.load(settings_ptr + 3)
    dense = table + (METHOD.phases * METHOD.stages + METHOD.phases + 2 * METHOD.stages)
    time = tl.load(times + output, mask=output < time_count, other=0.0)
    due = accepted & (output < time_count) & (direction * (time - end) <= 0.0)
    while tl.max(due.to(tl.int32), axis=0) > 0:
        theta = (time - t) / step
        for d in tl.range(0, NET.dimension, TILE.block_d, num_stages=1):
            column = d + coordinate
            inside = due[:, None] & (column < NET.dimension)[None, :]
            at = lane[:, None] * METHOD.columns + column[None, :]
            x = tl.load(state + at, mask=inside, other=0.0)
            increment = tl.zeros((TILE.rows, TILE.block_d), tl.float32)
            for j in tl.static_range(METHOD.stages):
                weight = tl.zeros((TILE.rows,), tl.float64)
                for k in tl.static_range(METHOD.degree):
                    weight = (weight + tl.load(dense + (j * METHOD.degree + METHOD.degree - 1 - k))) * theta
                stage = tl.load(state + (2 + j) * array + at, mask=inside, other=0.0)
                increment += weight.to(tl.float32)[:, None] * stage
            between = x + step.to(tl.float32)[:, None] * increment
            # At the end of a step the polynomial is the new state only to rounding.
            new = tl.load(state + array + at, mask=inside, other=0.0)
            y = tl.where((time == end)[:, None], new, between)
            place = (output * n + sample)[:, None] * NET.dimension + column[None, :]
            tl.store(ys_ptr + place, y, mask=inside)
        output += due.to(tl.int64)
        time = tl.load(times + output, mask=output < time_count, other=0.0)
        due = due & (output < time_count) & (direction * (time - end) <= 0.0)
    # Several threads may hold a lane's number: first all have read it, and the stages; then one writes it.
    tl.debug_barrier()
    tl.store(counts + OUTPUT * TILE.rows + lane, output)
    tl.debug_barrier()


@triton.jit
def _write(
    ended,
    x_ptr,
    integrals_ptr,
    t_ptr,
    status_ptr,
    nfe_ptr,
    accepted_ptr,
    rejected_ptr,
    state,
    clock,
    counts,
    NET: tl.constexpr,
    TILE: tl.constexpr,
    METHOD: tl.constexpr,
):
    """Results of the samples that have ended."""
    lane = tl.arange(0, TILE.rows)
    coordinate = tl.arange(0, TILE.block_d)
    sample = tl.load(counts + SAMPLE * TILE.rows + lane)
    for d in tl.range(0, METHOD.columns, TILE.block_d, num_stages=1):
        column = d + coordinate
        at = lane[:, None] * METHOD.columns + column[None, :]
        mine = ended[:, None] & (column < NET.dimension)[None, :]
        x = tl.load(state + at, mask=ended[:, None] & (column < NET.dimension + METHOD.traces)[None, :], other=0.0)
        tl.store(x_ptr + sample[:, None] * NET.dimension + column[None, :], x, mask=mine)
        if METHOD.traces > 0:
            trace = column - NET.dimension
            mine = ended[:, None] & ((trace >= 0) & (trace < METHOD.traces))[None, :]
            tl.store(integrals_ptr + sample[:, None] * METHOD.traces + trace[None, :], x, mask=mine)
    tl.store(t_ptr + sample, tl.load(clock + TIME * TILE.rows + lane), mask=ended)
    tl.store(status_ptr + sample, tl.load(counts + STATUS * TILE.rows + lane), mask=ended)
    tl.store(nfe_ptr + sample, tl.load(counts + NFE * TILE.rows + lane), mask=ended)
    tl.store(accepted_ptr + sample, tl.load(counts + ACCEPTED * TILE.rows + lane), mask=ended)
    tl.store(rejected_ptr + sample, tl.load(counts + REJECTED * TILE.rows + lane), mask=ended)


@triton.jit(do_not_specialize=["n", "time_count"])
def _solve(
    x0_ptr,
    x0_stride,
    n: tl.int64,
    x_ptr,
    integrals_ptr,
    t_ptr,
    status_ptr,
    nfe_ptr,
    accepted_ptr,
    rejected_ptr,
    times,
    time_count: tl.int64,
    ys_ptr,
    probes,
    queue,
    scratch,
    scratch_step,
    clocks,
    all_counts,
    packed,
    sizes,
    constants,
    table,
    settings_ptr,
    NET: tl.constexpr,
    AT: tl.constexpr,
    TILE: tl.constexpr,
    METHOD: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    wide = scratch + program * scratch_step
    wide_step = TILE.rows * NET.width
    narrow = wide + AT.count * wide_step
    narrow_step = TILE.rows * NET.columns
    state = narrow + 3 * narrow_step
    clock = clocks + program * (3 * TILE.rows)
    counts = all_counts + program * (8 * TILE.rows)
    lane = tl.arange(0, TILE.rows)
    clear_inputs(narrow, narrow_step, NET, TILE)
    ended = lane >= 0
    _refill(ended, x0_ptr, x0_stride, n, queue, state, clock, counts, settings_ptr, NET, TILE, METHOD)
    active = tl.max(tl.load(counts + SAMPLE * TILE.rows + lane), axis=0) >= 0
    while active:
        evaluate(
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
            settings_ptr,
            probes,
            NET,
            AT,
            TILE,
            METHOD,
        )
        accepted, step, t, end = decide(state, clock, counts, table, settings_ptr, NET, TILE, METHOD)
        if METHOD.outputs:
            _outputs(
                times,
                time_count,
                ys_ptr,
                n,
                state,
                counts,
                table,
                accepted,
                step,
                t,
                end,
                settings_ptr,
                NET,
                TILE,
                METHOD,
            )
        take_over(state, clock, accepted, end, NET, TILE, METHOD)
        ended = tl.load(counts + STATUS * TILE.rows + lane) != RUNNING
        ended = ended & (tl.load(counts + SAMPLE * TILE.rows + lane) >= 0)
        if tl.max(ended.to(tl.int32), axis=0) > 0:
            _write(
                ended,
                x_ptr,
                integrals_ptr,
                t_ptr,
                status_ptr,
                nfe_ptr,
                accepted_ptr,
                rejected_ptr,
                state,
                clock,
                counts,
                NET,
                TILE,
                METHOD,
            )
            tl.debug_barrier()
            _refill(ended, x0_ptr, x0_stride, n, queue, state, clock, counts, settings_ptr, NET, TILE, METHOD)
        active = tl.max(tl.load(counts + SAMPLE * TILE.rows + lane), axis=0) >= 0
        tl.debug_barrier()


def method_for(options: SolveOptions, dimension: int, block_d: int, trace: str = "none", traces: int = 0) -> Method:
    """What of a solve is compiled in."""
    tableau = options.tableau
    return Method(
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
    step = tile.rows * (arrays.count * net.width + NARROW_ARRAYS * net.columns + method.arrays * method.columns)
    programs = program.programs(n, step, device)
    program.launch(
        _solve,
        programs,
        x0,
        x0.stride(0),
        n,
        x,
        integrals,
        t,
        status,
        nfe,
        accepted,
        rejected,
        numbers(list(times) or [t0], device),
        len(times),
        x if ys is None else ys,
        x if probes is None else probes,
        torch.zeros(1, dtype=torch.int64, device=device),
        scratch_for(programs, step, device),
        step,
        torch.empty(programs * CLOCKS * tile.rows, dtype=torch.float64, device=device),
        torch.empty(programs * COUNTS * tile.rows, dtype=torch.int64, device=device),
        mlp.packed,
        mlp.sizes,
        mlp.constants,
        numbers(phases(options.tableau), device),
        numbers(settings(options, t0, t1), device),
        NET=net,
        AT=arrays,
        TILE=tile,
        METHOD=method,
    )
    return result


def solve_reference(
    potential: MLPPotential,
    x0: Tensor,
    t0: float,
    t1: float,
    options: SolveOptions,
    probes: Tensor | None = None,
) -> Solved:
    """The naive twin of `solve`, in x0's dtype: the library's solver on x with an integral for each probe beside it.

    With the axes as probes the integrals add up to the trace, whose kernel integrates the sum alone.
    """
    n, dimension = x0.shape
    probes = x0.new_zeros(n, 0, dimension) if probes is None else probes

    def slope(y: Tensor, t: Tensor, v: Tensor) -> Tensor:
        x = y[:, :dimension]
        a, c, r, position = (part.to(x.dtype)[:, None] for part in coefficients_reference(potential, t))
        swept = forward_reference(potential, r * x, position[:, 0])
        back = adjoint_reference(potential, swept)
        moved = [tangent_reference(potential, swept, back, r * v[:, i]).curvature for i in range(v.shape[1])]
        traces = [a[:, 0] * v[:, i].square().sum(1) + c[:, 0] * found for i, found in enumerate(moved)]
        return torch.cat([a * x + c * r * back.gradient, *(trace[:, None] for trace in traces)], dim=1)

    start = torch.cat([x0, x0.new_zeros(n, probes.shape[1])], dim=1)
    found = integrate(slope, start, t0, t1, options, (probes,))
    ys = None if found.ys is None else found.ys[..., :dimension]
    x, integrals = found.x[:, :dimension], found.x[:, dimension:]
    return Solved(x, integrals, found.t, found.status, found.nfe, found.accepted, found.rejected, ys)
