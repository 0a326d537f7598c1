"""Where a stage is evaluated: ``x + h sum_j a_ij k_j`` with each row's own h, and its time.

Its PyTorch twin is `vapo_fast.engines.graph.step.TorchOps.stage`, whose bits it has.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from vapo_fast.engines.graph.state import State
from vapo_fast.engines.graph.step import Plan

from .attempts import next_attempt, weighted
from .launch import OPTIONS, on


@triton.jit
def _stage(
    x,
    stages,
    stage_step,
    point,
    time,
    t_ptr,
    h_ptr,
    accepted_ptr,
    flags,
    settings,
    table,
    dimension,
    INDEX: tl.constexpr,
    STAGES: tl.constexpr,
    MASK: tl.constexpr,
    FIRST: tl.constexpr,
    ADAPTIVE: tl.constexpr,
    CLEARS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    column = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = column < dimension
    at = row * dimension + column
    one = row + tl.arange(0, 1)
    t = tl.load(t_ptr + one)
    _size, signed, _end, _last = next_attempt(t, tl.load(h_ptr + one), tl.load(accepted_ptr + one), settings, ADAPTIVE)
    new = tl.load(x + at, mask=inside)
    if INDEX > 0:
        # A stage's coefficients are its phase's, which is one more.
        total = weighted(
            table, (INDEX + 1) * STAGES, stages, tl.cast(stage_step, tl.int64), at, inside, STAGES, MASK, FIRST
        )
        new += signed.to(x.dtype.element_ty) * total
        node = tl.load(table + (STAGES + 1) * STAGES + INDEX + 1)
        t += node * signed
    tl.store(point + at, new, mask=inside)
    if block == 0:
        tl.store(time + one, t.to(time.dtype.element_ty))
    if CLEARS:
        # Nobody adds to the flags before the end of the step.
        zero = tl.zeros((1,), tl.int64)
        if row + block == 0:
            tl.store(flags + tl.arange(0, 1), zero)
            tl.store(flags + 1 + tl.arange(0, 1), zero)


def stage(state: State, settings: Tensor, table: Tensor, plan: Plan, index: int) -> None:
    """Point and time of stage ``index`` of every row; before the first of a step, clear the flags. One launch.

    Args:
        state: rows of it are contiguous in memory, whatever their own layout.
        settings: `vapo_fast.ode.settings.settings`. table: `tableau.phases` of the plan's method, float64.
    """
    tableau = plan.tableau
    weights = tableau.a[index - 1] if index else (1.0,)
    rows, dimension = state.rows, state.x[0].numel()
    block = block_for(dimension)
    with on(state.x.device):
        _stage[(rows, triton.cdiv(dimension, block))](
            state.x,
            state.stages[0],
            step_between(state.stages),
            state.point,
            state.time,
            state.t,
            state.h,
            state.accepted,
            state.flags,
            settings,
            table,
            dimension,
            INDEX=index,
            STAGES=tableau.stages,
            MASK=mask_of(weights),
            FIRST=first_of(weights),
            ADAPTIVE=tableau.adaptive,
            CLEARS=index == plan.first_stage,
            BLOCK=block,
            num_warps=4,
            **OPTIONS,
        )


def block_for(dimension: int) -> int:
    """How many of a row's numbers a program takes at a time."""
    return min(1024, int(triton.next_power_of_2(dimension)))


def step_between(arrays: tuple[Tensor, ...] | Tensor) -> int:
    """Numbers from one array of rows to the next, in the memory that they share."""
    if isinstance(arrays, Tensor):
        return int(arrays.stride(0))
    return int(arrays[1].storage_offset()) - int(arrays[0].storage_offset()) if len(arrays) > 1 else 0


def mask_of(weights: tuple[float, ...]) -> int:
    """A bit for each weight that is not 0."""
    return sum(1 << j for j, weight in enumerate(weights) if weight != 0.0)


def first_of(weights: tuple[float, ...]) -> int:
    """The first weight that is not 0."""
    return next(j for j, weight in enumerate(weights) if weight != 0.0)
