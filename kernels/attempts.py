"""The step that a row of the graph engine is at, and where its numbers are found.

Device functions only, shared by `stage` and `settle`. A row is one program's, or one program's for each of its columns'
blocks; its clock is (1,) tensors, so that nothing is taken for float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vapo_fast.engines.graph.state import RUNNING as _RUNNING
from vapo_fast.ode.settings import SETTINGS
from vapo_fast.ode.stages import STRETCH

RUNNING = tl.constexpr(_RUNNING)
_STRETCH = tl.constexpr(STRETCH)
_T0 = tl.constexpr(SETTINGS.index("t0"))
_T1 = tl.constexpr(SETTINGS.index("t1"))
_DIRECTION = tl.constexpr(SETTINGS.index("direction"))
_STEPS = tl.constexpr(SETTINGS.index("steps"))


@triton.jit
def next_attempt(t, h, accepted, settings, ADAPTIVE: tl.constexpr):
    """The step of rows at (t, h) after so many accepted ones: (size, signed size, its end, whether that is t1)."""
    t1 = tl.load(settings + _T1) + tl.zeros_like(t)
    if ADAPTIVE:
        direction = tl.load(settings + _DIRECTION)
        remaining = tl.abs(t1 - t)
        last = h * _STRETCH >= remaining
        size = tl.where(last, remaining, h)
        signed = direction * size
        return size, signed, tl.where(last, t1, t + signed), last
    else:
        t0 = tl.load(settings + _T0) + tl.zeros_like(t)
        steps = tl.load(settings + _STEPS) + tl.zeros_like(t)
        done = accepted.to(tl.float64)
        last = done + 1.0 >= steps
        end = tl.where(last, t1, t0 + (t1 - t0) * ((done + 1.0) / steps))
        signed = end - (t0 + (t1 - t0) * (done / steps))
        return signed, signed, end, last


@triton.jit
def is_last(t, h, accepted, settings, ADAPTIVE: tl.constexpr):
    """Whether the step of rows at (t, h) after so many accepted ones would be their last."""
    _size, _signed, _end, last = next_attempt(t, h, accepted, settings, ADAPTIVE)
    return last


@triton.jit
def weighted(
    table, first, stages, stage_step, at, inside, STAGES: tl.constexpr, MASK: tl.constexpr, FIRST: tl.constexpr
):
    """Sum of weight times stage, left to right, in the state's dtype; weights begin at ``table + first``.

    MASK has a bit for each weight that is not 0, FIRST is the first of them.
    """
    dtype = stages.dtype.element_ty
    total = tl.load(table + first + FIRST).to(dtype) * tl.load(stages + FIRST * stage_step + at, mask=inside, other=0.0)
    for j in tl.static_range(FIRST + 1, STAGES):
        if (MASK >> j) & 1:
            stage = tl.load(stages + j * stage_step + at, mask=inside, other=0.0)
            total += tl.load(table + first + j).to(dtype) * stage
    return total
