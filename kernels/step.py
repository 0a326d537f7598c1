"""One attempted step of every sample, fused with the field: stages, error norm, decision, next first stage.

A loop of steps on the host has the bits of `solve`, which is the same functions in a loop on the device. The step is
for who wants to look at, or interfere with, the states between: samples that have ended, and those masked out by a
number of -1, cost no writes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vapo_fast.ode import SolveOptions, Status
from vapo_fast.potentials.mlp import MLPPotential

from .field import clear_inputs
from .launch import Program, refuse_derivatives, scratch_for
from .mlp import PackedMlp
from .shapes import field_arrays
from .solve import Solved, method_for, solve_reference
from .stepping import (
    ACCEPTED,
    CLOCKS,
    COUNTS,
    PHASE,
    REJECTED,
    RUNNING,
    SAMPLE,
    STATUS,
    decide,
    evaluate,
    take_over,
)
from .sweeps import NARROW_ARRAYS
from .tableau import numbers, phases, settings


class Samples(NamedTuple):
    """Samples between two steps; `begin` makes them, `step` moves them in place.

    Attributes:
        x, f: (n, D) float32: states, and the field there (of adaptive methods, once a first step was tried).
        clock: (3, n) float64: time, size of the next step, error ratio of the last accepted one.
        counts: (8, n) int64: the sample's number, or -1 to leave it alone; phase; whether the last try was rejected;
            nfe; accepted; rejected; unused; status, or -1 while it runs.
    """

    x: Tensor
    f: Tensor
    clock: Tensor
    counts: Tensor

    @property
    def t(self) -> Tensor:
        """(n,) float64."""
        return self.clock[0]

    @property
    def status(self) -> Tensor:
        """(n,) int64: -1 while a sample runs, then its `vapo_fast.Status`."""
        return self.counts[7]


def begin(x0: Tensor, t0: float) -> Samples:
    """Samples (n, D) float32 before their first step. Raises: ValueError if x0 requires grad."""
    refuse_derivatives(x0=x0)
    n = x0.shape[0]
    clock = torch.zeros(CLOCKS, n, dtype=torch.float64, device=x0.device)
    clock[0], clock[2] = t0, 1.0
    counts = torch.zeros(COUNTS, n, dtype=torch.int64, device=x0.device)
    counts[0] = torch.arange(n, device=x0.device)
    counts[7] = -1
    x = x0.clone(memory_format=torch.contiguous_format)
    return Samples(x, torch.zeros_like(x), clock, counts)


@triton.jit(do_not_specialize=["n"])
def _step(
    x_ptr,
    f_ptr,
    clock_ptr,
    counts_ptr,
    n: tl.int64,
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
    array = TILE.rows * METHOD.columns
    clock = clocks + program * (3 * TILE.rows)
    counts = all_counts + program * (8 * TILE.rows)
    lane = tl.arange(0, TILE.rows)
    coordinate = tl.arange(0, TILE.block_d)
    array_step = tl.cast(n, tl.int64)  # between two numbers of a sample
    clear_inputs(narrow, narrow_step, NET, TILE)
    for tile in tl.range(tl.program_id(0), tl.cdiv(n, TILE.rows), tl.num_programs(0), num_stages=1):
        row = (tl.zeros((TILE.rows,), tl.int64) + tile) * TILE.rows + lane
        there = row < n
        running = tl.load(counts_ptr + STATUS * array_step + row, mask=there, other=0) == RUNNING
        live = running & (tl.load(counts_ptr + SAMPLE * array_step + row, mask=there, other=-1) >= 0)
        for i in tl.static_range(3):
            tl.store(clock + i * TILE.rows + lane, tl.load(clock_ptr + i * array_step + row, mask=live, other=0.0))
        for i in tl.static_range(8):
            tl.store(counts + i * TILE.rows + lane, tl.load(counts_ptr + i * array_step + row, mask=live, other=0))
        tl.store(counts + SAMPLE * TILE.rows + lane, tl.where(live, row, -1))
        for d in tl.range(0, METHOD.columns, TILE.block_d, num_stages=1):
            column = d + coordinate
            inside = live[:, None] & (column < NET.dimension)[None, :]
            at = lane[:, None] * METHOD.columns + column[None, :]
            from_memory = row[:, None] * NET.dimension + column[None, :]
            tl.store(state + at, tl.load(x_ptr + from_memory, mask=inside, other=0.0))
            tl.store(state + 2 * array + at, tl.load(f_ptr + from_memory, mask=inside, other=0.0))
        tl.debug_barrier()
        tries = tl.load(counts + ACCEPTED * TILE.rows + lane) + tl.load(counts + REJECTED * TILE.rows + lane)
        pending = tl.max(live.to(tl.int32), axis=0) > 0
        while pending:
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
                packed,
                NET,
                AT,
                TILE,
                METHOD,
            )
            accepted, _step_size, _t, end = decide(state, clock, counts, table, settings_ptr, NET, TILE, METHOD)
            take_over(state, clock, accepted, end, NET, TILE, METHOD)
            now = tl.load(counts + ACCEPTED * TILE.rows + lane) + tl.load(counts + REJECTED * TILE.rows + lane)
            status = tl.load(counts + STATUS * TILE.rows + lane)
            sample = tl.load(counts + SAMPLE * TILE.rows + lane)
            done = (sample >= 0) & ((now > tries) | (status != RUNNING))
            for i in tl.static_range(3):
                tl.store(clock_ptr + i * array_step + row, tl.load(clock + i * TILE.rows + lane), mask=done)
            tl.store(counts_ptr + PHASE * array_step + row, tl.load(counts + PHASE * TILE.rows + lane), mask=done)
            for i in tl.static_range(2, 8):
                tl.store(counts_ptr + i * array_step + row, tl.load(counts + i * TILE.rows + lane), mask=done)
            for d in tl.range(0, NET.dimension, TILE.block_d, num_stages=1):
                column = d + coordinate
                inside = done[:, None] & (column < NET.dimension)[None, :]
                at = lane[:, None] * METHOD.columns + column[None, :]
                to_memory = row[:, None] * NET.dimension + column[None, :]
                tl.store(x_ptr + to_memory, tl.load(state + at, mask=inside), mask=inside)
                tl.store(f_ptr + to_memory, tl.load(state + 2 * array + at, mask=inside), mask=inside)
            tl.debug_barrier()
            tl.store(counts + SAMPLE * TILE.rows + lane, tl.where(done, -1, sample))
            tl.debug_barrier()
            pending = tl.max(tl.load(counts + SAMPLE * TILE.rows + lane), axis=0) >= 0
            tl.debug_barrier()


def step(mlp: PackedMlp, samples: Samples, t0: float, t1: float, options: SolveOptions, program: Program) -> None:
    """Try one step for every sample that runs, in place; one launch.

    Args:
        mlp: the potential, packed on the samples' device.
        samples: from `begin`.
        t0, t1, options: of the whole solve; ``t_eval`` is not looked at.
        program: tile and number of programs.
    Raises: ValueError if the samples require grad.
    """
    refuse_derivatives(x=samples.x, f=samples.f)
    n, dimension = samples.x.shape
    if n == 0:
        return
    net, tile, device = mlp.net, program.tile, samples.x.device
    method = method_for(SolveOptions(**{**vars(options), "t_eval": None}), dimension, tile.block_d)
    arrays = field_arrays(net.layers)
    size = tile.rows * (arrays.count * net.width + NARROW_ARRAYS * net.columns + method.arrays * method.columns)
    programs = program.programs(n, size, device)
    program.launch(
        _step,
        programs,
        *samples,
        n,
        scratch_for(programs, size, device),
        size,
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


def steps_reference(
    potential: MLPPotential, x0: Tensor, t0: float, t1: float, options: SolveOptions, tries: int
) -> Solved:
    """The naive twin of ``tries`` calls of `step` after `begin`: the whole solve, stopped there.

    ``status`` is -1 for samples that still run. A fixed-step method stops at the time that it has then reached.
    """
    if not options.tableau.adaptive:
        steps = options.steps or 0
        if tries >= steps:
            return solve_reference(potential, x0, t0, t1, options)
        found = solve_reference(potential, x0, t0, t0 + (t1 - t0) * (tries / steps), replace(options, steps=tries))
        return found._replace(status=torch.where(found.status == Status.SUCCESS, -1, found.status))
    found = solve_reference(potential, x0, t0, t1, replace(options, max_steps=min(tries, options.max_steps)))
    stopped = (found.status == Status.MAX_STEPS) & (tries < options.max_steps)
    return found._replace(status=torch.where(stopped, -1, found.status))
