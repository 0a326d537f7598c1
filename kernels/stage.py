"""Where a stage is evaluated: ``x + h sum_j a_ij k_j`` with each row's own h, and its time.

Its PyTorch twin is `vapo_fast.ode.masked_step.TorchOps.stage`, whose bits it has. What the kernels of the graph
engine's step share with `finish_step` stands here as well. A row's clock is (1,) tensors, so that nothing is taken for
float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vapo_fast.ode.masked_state import State
from vapo_fast.ode.masked_step import Plan

from .controller import proposed_fixed_step, proposed_step
from .launch import run
from .shapes import MaskedMethod
from .tableau import DIRECTION, STEPS, T0, T1, Numbers


class Rows(NamedTuple):
    """The arrays of `vapo_fast.ode.masked_state.State`; the stages as the first one and the way to the next."""

    x: Any
    stages: Any
    stage_step: Any
    point: Any
    time: Any
    t: Any
    h: Any
    previous_ratio: Any
    after_rejection: Any
    status: Any
    nfe: Any
    accepted: Any
    rejected: Any
    flags: Any


@triton.jit
def row_step(t, h, accepted, settings, METHOD: tl.constexpr):
    """The step of rows at (t, h) after so many accepted ones: (size, signed size, its end, whether that is t1)."""
    t1 = tl.load(settings + T1) + tl.zeros_like(t)
    if METHOD.adaptive:
        return proposed_step(t, h, t1, tl.load(settings + DIRECTION))
    else:
        t0 = tl.load(settings + T0) + tl.zeros_like(t)
        signed, end, last = proposed_fixed_step(accepted, t0, t1, tl.load(settings + STEPS) + tl.zeros_like(t))
        return signed, signed, end, last


@triton.jit
def weighted(weights, rows, step, at, inside, STAGES: tl.constexpr, MASK: tl.constexpr):
    """Sum of weight times stage, left to right, in the state's dtype.

    The stages lie ``step`` apart, an int64. MASK has a bit for each weight that is not 0.
    """
    dtype = rows.x.dtype.element_ty
    for j in tl.static_range(STAGES):
        if (MASK >> j) & 1:
            if MASK % (1 << j) == 0:
                total = tl.load(weights + j).to(dtype) * tl.load(rows.stages + j * step + at, mask=inside, other=0.0)
            else:
                stage = tl.load(rows.stages + j * step + at, mask=inside, other=0.0)
                total += tl.load(weights + j).to(dtype) * stage
    return total


@triton.jit
def _stage(
    rows, numbers, dimension, METHOD: tl.constexpr, INDEX: tl.constexpr, MASK: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    column = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = column < dimension
    at = row * dimension + column  # [BLOCK]
    one = row + tl.arange(0, 1)
    t, h, accepted = tl.load(rows.t + one), tl.load(rows.h + one), tl.load(rows.accepted + one)
    _size, signed, _end, _last = row_step(t, h, accepted, numbers.settings, METHOD)
    new = tl.load(rows.x + at, mask=inside)
    if INDEX > 0:
        slot = INDEX + 1
        step, weights = tl.cast(rows.stage_step, tl.int64), numbers.table + slot * METHOD.stages
        total = weighted(weights, rows, step, at, inside, METHOD.stages, MASK)
        new += signed.to(rows.x.dtype.element_ty) * total
        t += tl.load(numbers.table + METHOD.nodes + slot) * signed
    tl.store(rows.point + at, new, mask=inside)
    if block == 0:
        tl.store(rows.time + one, t.to(rows.time.dtype.element_ty))
    if METHOD.first_stage == INDEX:
        # Nothing is added to the flags before the end of the step.
        zero = tl.zeros((1,), tl.int64)
        if row + block == 0:
            tl.store(rows.flags + tl.arange(0, 1), zero)
            tl.store(rows.flags + 1 + tl.arange(0, 1), zero)


def stage(state: State, settings: Tensor, table: Tensor, plan: Plan, index: int) -> None:
    """Point and time of stage ``index`` of every row; before the first of a step, clear the flags. One launch.

    Args:
        state: rows of it are contiguous in memory, whatever their own layout.
        settings: `vapo_fast.ode.settings.settings`. table: `tableau.slot_table` of the plan's method.
    """
    weights = plan.tableau.a[index - 1] if index else (1.0,)
    dimension = state.x[0].numel()
    block = block_for(dimension)
    grid = (state.rows, triton.cdiv(dimension, block))
    arguments = (rows_of(state), Numbers(table, settings), dimension)
    constants = {"METHOD": masked_method(plan), "INDEX": index, "MASK": mask_of(weights), "BLOCK": block}
    run(_stage, grid, state.x.device, *arguments, **constants, num_warps=4)


def rows_of(state: State) -> Rows:
    """A state as the kernels read it."""
    others = (getattr(state, name) for name in Rows._fields[3:])
    return Rows(state.x, state.stages[0], step_between(state.stages), *others)


def masked_method(plan: Plan) -> MaskedMethod:
    """What of a step is compiled in."""
    tableau = plan.tableau
    return MaskedMethod(
        stages=tableau.stages,
        adaptive=tableau.adaptive,
        degree=len(tableau.dense[0]),
        first_stage=plan.first_stage,
        weight_mask=mask_of(tableau.b),
        error_mask=mask_of(tableau.error),
        fsal=tableau.fsal,
    )


def block_for(dimension: int) -> int:
    """How many of a row's numbers a program takes at a time."""
    return min(1024, int(triton.next_power_of_2(dimension)))


def step_between(arrays: tuple[Tensor, ...] | Tensor) -> int:
    """Numbers from one array of rows to the next, in the memory that they share."""
    if isinstance(arrays, torch.Tensor):
        return int(arrays.stride(0))
    return int(arrays[1].storage_offset()) - int(arrays[0].storage_offset()) if len(arrays) > 1 else 0


def mask_of(weights: tuple[float, ...]) -> int:
    """A bit for each weight that is not 0."""
    return sum(1 << j for j, weight in enumerate(weights) if weight != 0.0)
