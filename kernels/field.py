"""Phi and its gradient in one launch: forward and adjoint sweep of an MLP potential, tile by tile.

The twin is `vapo_fast.potentials.base.Potential.field`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .gauge import coefficients
from .launch import Program, Scratch, refuse_derivatives, scratch_for
from .mlp import PackedMlp
from .shapes import field_arrays
from .sweeps import GRADIENT, INPUT_ARRAYS, INPUTS, adjoint, clear_inputs, forward, tape_in


class Points(NamedTuple):
    """x (n, D), rows ``stride`` apart, and times (n,)."""

    x: Any
    stride: Any
    t: Any


class Results(NamedTuple):
    """Where Phi (n,) and its gradient (n, D) are written."""

    phi: Any
    gradient: Any


@triton.jit(do_not_specialize=["n"])
def _field(points, results, n: tl.int64, scratch, network, NET: tl.constexpr, AT: tl.constexpr, TILE: tl.constexpr):
    tape = tape_in(scratch, NET, AT, TILE)
    clear_inputs(tape, NET, TILE)
    lane = tl.arange(0, TILE.rows)
    coordinate = tl.arange(0, TILE.block_d)
    for tile in tl.range(tl.program_id(0), tl.cdiv(n, TILE.rows), tl.num_programs(0), num_stages=1):
        row = (tl.zeros((TILE.rows,), tl.int64) + tile) * TILE.rows + lane
        there = row < n
        t = tl.load(points.t + row, mask=there, other=0.0)
        a, c, r, position = coefficients(t, network.constants, NET)
        squared_norm = tl.zeros((TILE.rows,), tl.float32)
        for d in tl.range(0, NET.dimension, TILE.block_d, num_stages=1):
            column = d + coordinate
            inside = there[:, None] & (column < NET.dimension)[None, :]
            # [rows, block_d]
            x = tl.load(points.x + row[:, None] * points.stride + column[None, :], mask=inside, other=0.0)
            squared_norm += tl.sum(x * x, axis=1)
            place = tape.inputs + INPUTS * tape.inputs_step + lane[:, None] * NET.columns + column[None, :]
            tl.store(place, x * r[:, None], mask=(column < NET.dimension)[None, :])
        tl.debug_barrier()
        forward(tape, network, position, NET, AT, TILE)
        value = adjoint(tape, network, NET, AT, TILE)
        tl.store(results.phi + row, 0.5 * a * squared_norm + c * value, mask=there)
        for d in tl.range(0, NET.dimension, TILE.block_d, num_stages=1):
            column = d + coordinate
            inside = there[:, None] & (column < NET.dimension)[None, :]
            x = tl.load(points.x + row[:, None] * points.stride + column[None, :], mask=inside, other=0.0)
            place = tape.inputs + GRADIENT * tape.inputs_step + lane[:, None] * NET.columns + column[None, :]
            g = tl.load(place, mask=inside, other=0.0)
            gradient = a[:, None] * x + (c * r)[:, None] * g
            tl.store(results.gradient + row[:, None] * NET.dimension + column[None, :], gradient, mask=inside)
        tl.debug_barrier()


def field(mlp: PackedMlp, x: Tensor, t: Tensor, program: Program) -> tuple[Tensor, Tensor]:
    """Phi and grad Phi of a batch.

    Args:
        mlp: the potential, packed on x's device.
        x: (n, D) float32; rows may lie any distance apart.
        t: (n,) float32, contiguous.
        program: tile and number of programs.
    Returns: (n,) and (n, D), float32. Rows have the same bits in any batch.
    Raises: ValueError if x or t requires grad.
    """
    refuse_derivatives(x=x, t=t)
    n = x.shape[0]
    phi, gradient = x.new_empty(n), torch.empty(n, mlp.net.dimension, dtype=x.dtype, device=x.device)
    if n == 0:
        return phi, gradient
    net, tile, arrays = mlp.net, program.tile, field_arrays(mlp.net.layers)
    step = tile.rows * (arrays.count * net.width + INPUT_ARRAYS * net.columns)
    programs = program.programs(n, step, x.device)
    points, results = Points(x, x.stride(0), t), Results(phi, gradient)
    scratch = Scratch(scratch_for(programs, step, x.device), step)
    program.launch(_field, programs, x.device, points, results, n, scratch, mlp.network, NET=net, AT=arrays)
    return phi, gradient
