"""Phi and its gradient in one launch: forward and adjoint sweep of an MLP potential, tile by tile."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vapo_fast.potentials.mlp import MLPPotential

from .gauge import coefficients, coefficients_reference
from .launch import Program, refuse_derivatives, scratch_for
from .mlp import PackedMlp
from .shapes import field_arrays
from .sweeps import GRADIENT, INPUTS, NARROW_ARRAYS, TANGENT, adjoint, forward


@triton.jit
def clear_inputs(narrow, narrow_step, NET: tl.constexpr, TILE: tl.constexpr):
    """Zeros in the columns that pad z, where the scratch memory may hold anything."""
    rows, columns = tl.arange(0, TILE.rows), tl.arange(0, TILE.block_k)
    for n in tl.range(0, NET.inputs, TILE.block_k):
        place = narrow + rows[:, None] * NET.columns + (n + columns)[None, :]
        tl.store(place + INPUTS * narrow_step, tl.zeros((TILE.rows, TILE.block_k), tl.float32))
        tl.store(place + TANGENT * narrow_step, tl.zeros((TILE.rows, TILE.block_k), tl.float32))
    tl.debug_barrier()


@triton.jit(do_not_specialize=["n"])
def _field(
    x_ptr,
    x_stride,
    t_ptr,
    phi_ptr,
    gradient_ptr,
    n: tl.int64,
    scratch,
    scratch_step,
    packed,
    sizes,
    constants,
    NET: tl.constexpr,
    AT: tl.constexpr,
    TILE: tl.constexpr,
):
    wide = scratch + tl.program_id(0).to(tl.int64) * scratch_step
    wide_step = TILE.rows * NET.width
    narrow = wide + AT.count * wide_step
    narrow_step = TILE.rows * NET.columns
    clear_inputs(narrow, narrow_step, NET, TILE)
    lane = tl.arange(0, TILE.rows)
    coordinate = tl.arange(0, TILE.block_d)
    for tile in tl.range(tl.program_id(0), tl.cdiv(n, TILE.rows), tl.num_programs(0), num_stages=1):
        row = (tl.zeros((TILE.rows,), tl.int64) + tile) * TILE.rows + lane
        there = row < n
        a, c, r, position = coefficients(tl.load(t_ptr + row, mask=there, other=0.0), constants, NET)
        squared_norm = tl.zeros((TILE.rows,), tl.float32)
        for d in tl.range(0, NET.dimension, TILE.block_d, num_stages=1):
            column = d + coordinate
            inside = there[:, None] & (column < NET.dimension)[None, :]
            x = tl.load(x_ptr + row[:, None] * x_stride + column[None, :], mask=inside, other=0.0)
            squared_norm += tl.sum(x * x, axis=1)
            place = narrow + INPUTS * narrow_step + lane[:, None] * NET.columns + column[None, :]
            tl.store(place, x * r[:, None], mask=(column < NET.dimension)[None, :])
        tl.debug_barrier()
        forward(wide, wide_step, narrow, narrow_step, packed, sizes, position, NET, AT, TILE)
        value = adjoint(wide, wide_step, narrow, narrow_step, packed, sizes, NET, AT, TILE)
        tl.store(phi_ptr + row, 0.5 * a * squared_norm + c * value, mask=there)
        for d in tl.range(0, NET.dimension, TILE.block_d, num_stages=1):
            column = d + coordinate
            inside = there[:, None] & (column < NET.dimension)[None, :]
            x = tl.load(x_ptr + row[:, None] * x_stride + column[None, :], mask=inside, other=0.0)
            place = narrow + GRADIENT * narrow_step + lane[:, None] * NET.columns + column[None, :]
            g = tl.load(place, mask=inside, other=0.0)
            gradient = a[:, None] * x + (c * r)[:, None] * g
            tl.store(gradient_ptr + row[:, None] * NET.dimension + column[None, :], gradient, mask=inside)
        tl.debug_barrier()


def field(mlp: PackedMlp, x: Tensor, t: Tensor, program: Program) -> tuple[Tensor, Tensor]:
    """Phi and grad Phi of a batch.

    Args:
        mlp: the potential, packed on x's device.
        x: (n, D) float32; rows may lie any distance apart.
        t: (n,) float32, contiguous.
        program: tile and number of programs.
    Returns: (n,) and (n, D), float32. Rows have the same bits in any batch.
    Raises: ValueError if x or t requires grad: see `value`.
    """
    refuse_derivatives(x=x, t=t)
    n = x.shape[0]
    phi, gradient = x.new_empty(n), torch.empty(n, mlp.net.dimension, dtype=x.dtype, device=x.device)
    if n == 0:
        return phi, gradient
    net, tile, arrays = mlp.net, program.tile, field_arrays(mlp.net.layers)
    step = tile.rows * (arrays.count * net.width + NARROW_ARRAYS * net.columns)
    programs = program.programs(n, step, x.device)
    program.launch(
        _field,
        programs,
        x,
        x.stride(0),
        t,
        phi,
        gradient,
        n,
        scratch_for(programs, step, x.device),
        step,
        mlp.packed,
        mlp.sizes,
        mlp.constants,
        NET=net,
        AT=arrays,
        TILE=tile,
    )
    return phi, gradient


def field_reference(potential: MLPPotential, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The naive twin of `field`, in x's dtype: ``Phi = A/2 |x|^2 + C f(r x, position)``, and autograd."""
    a, c, r, position = coefficients_reference(potential, t)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = potential.network(r[:, None] * x, position if potential.time_dependent else None)
        phi = 0.5 * a * x.square().sum(1) + c * value
        (gradient,) = torch.autograd.grad(phi.sum(), x)
    return phi.detach(), gradient


def value(mlp: PackedMlp, x: Tensor, t: Tensor, program: Program) -> Tensor:
    """Phi (n,), once differentiable with respect to x; arguments as for `field`.

    Raises: ValueError if t or a weight of the potential requires grad; RuntimeError at a second derivative.
    """
    refuse_derivatives(t=t)
    if mlp.trainable and torch.is_grad_enabled():
        raise ValueError(
            "a weight of the potential requires grad, and this Phi has a derivative by x alone: call "
            "potential.requires_grad_(False) before it is packed, or use the potential itself"
        )
    phi: Tensor = _Value.apply(x, t, mlp, program)
    return phi


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, t: Tensor, mlp: PackedMlp, program: Program) -> Tensor:
        phi, gradient = field(mlp, x.detach(), t, program)
        ctx.save_for_backward(gradient, x)
        return phi

    @staticmethod
    def backward(ctx: Any, of_phi: Tensor) -> tuple[Tensor | None, ...]:
        gradient, x = ctx.saved_tensors
        first = of_phi[:, None] * gradient
        # With create_graph it would pass for a constant in whatever is made of it.
        return _Last.apply(first, x) if torch.is_grad_enabled() else first, None, None, None


class _Last(torch.autograd.Function):
    """The first argument; its derivative with respect to the second is not known and raises."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, x: Tensor) -> Tensor:
        return first.clone()

    @staticmethod
    def backward(ctx: Any, of_first: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError("this Phi, of a kernel, has a gradient and no second derivatives; use the potential itself")
