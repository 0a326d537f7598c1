"""The energy loss of a batch and its gradient for every parameter, by explicit passes: no graph, no double backward.

For a sample at x = alpha x_data + beta noise with gradient ``A x + C r g``, g being the network's by z = r x, the loss
``w (1/2 |grad Phi|^2 - grad Phi . u)`` depends on the parameters as ``v . g`` does for the fixed direction
``v = w C r (grad Phi - u)``; the covariance estimator has ``v = w C r grad Phi`` and the value's share ``w C
innovation`` beside it. One launch makes the four sweeps that this takes (forward, adjoint, tangent along v, second
adjoint) and leaves, for each layer, the pairs (activation h, tangent h') below and (second adjoint b, adjoint a)
above: the gradient of its weights is ``b h + a h'``, one product over both halves, which is a library's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vapo_fast.potentials.mlp import MLPPotential

from .field import clear_inputs
from .gauge import coefficients, coefficients_reference, path_at
from .launch import Program, refuse_derivatives
from .mlp import PackedMlp
from .perturb import move, perturb_reference
from .shapes import padded, training_arrays
from .sweeps import (
    GRADIENT,
    INPUTS,
    NARROW_ARRAYS,
    TANGENT,
    adjoint,
    adjoint_reference,
    forward,
    forward_reference,
    second_adjoint,
    second_adjoint_reference,
    tangent,
    tangent_reference,
)

ESTIMATORS = ("velocity", "covariance")
WEIGHTS = ("inverse_variance", "uniform", "given")


class Trained(NamedTuple):
    """(linear, quadratic): 0-dim means over the batch; gradients by the names of `MLPPotential`'s parameters."""

    linear: Tensor
    quadratic: Tensor
    gradients: dict[str, Tensor]


@triton.jit(do_not_specialize=["n"])
def _train(
    data_ptr,
    t_ptr,
    noise_ptr,
    weight_ptr,
    linear_ptr,
    quadratic_ptr,
    share_ptr,
    position_ptr,
    n: tl.int64,
    rows,
    wide_arrays,
    narrow_arrays,
    packed,
    sizes,
    constants,
    COVARIANCE: tl.constexpr,
    WEIGHT: tl.constexpr,
    NET: tl.constexpr,
    AT: tl.constexpr,
    TILE: tl.constexpr,
):
    lane = tl.arange(0, TILE.rows)
    coordinate = tl.arange(0, TILE.block_d)
    row = tl.program_id(0).to(tl.int64) * TILE.rows + lane
    there = row < n
    # The arrays are those of the whole batch, side by side; this tile has its rows in each.
    wide = wide_arrays + tl.program_id(0).to(tl.int64) * (TILE.rows * NET.width)
    wide_step = tl.cast(rows, tl.int64) * NET.width
    narrow = narrow_arrays + tl.program_id(0).to(tl.int64) * (TILE.rows * NET.columns)
    narrow_step = tl.cast(rows, tl.int64) * NET.columns
    clear_inputs(narrow, narrow_step, NET, TILE)
    t = tl.load(t_ptr + row, mask=there, other=0.0)
    a, c, r, position = coefficients(t, constants, NET)
    exact_alpha, exact_beta, exact_alpha_dot, exact_beta_dot, _log_beta = path_at(t.to(tl.float64), constants, NET)
    alpha, beta = exact_alpha.to(tl.float32), exact_beta.to(tl.float32)
    alpha_dot, beta_dot = exact_alpha_dot.to(tl.float32), exact_beta_dot.to(tl.float32)
    if WEIGHT == "inverse_variance":
        weight = 1.0 / (beta * beta)
    elif WEIGHT == "uniform":
        weight = tl.zeros((TILE.rows,), tl.float32) + 1.0
    else:
        weight = tl.load(weight_ptr + row, mask=there, other=0.0)
    squared_norm = tl.zeros((TILE.rows,), tl.float32)
    squares = tl.zeros((TILE.rows,), tl.float32)
    products = tl.zeros((TILE.rows,), tl.float32)
    for d in tl.range(0, NET.dimension, TILE.block_d, num_stages=1):
        column = d + coordinate
        inside = there[:, None] & (column < NET.dimension)[None, :]
        at = row[:, None] * NET.dimension + column[None, :]
        data = tl.load(data_ptr + at, mask=inside, other=0.0)
        noise = tl.load(noise_ptr + at, mask=inside, other=0.0)
        x, _velocity = move(data, noise, alpha, beta, alpha_dot, beta_dot)
        squared_norm += tl.sum(x * x, axis=1)
        squares += tl.sum(noise * noise, axis=1)
        products += tl.sum(noise * data, axis=1)
        place = narrow + INPUTS * narrow_step + lane[:, None] * NET.columns + column[None, :]
        tl.store(place, x * r[:, None], mask=(column < NET.dimension)[None, :])
    tl.debug_barrier()
    forward(wide, wide_step, narrow, narrow_step, packed, sizes, position, NET, AT, TILE)
    value = adjoint(wide, wide_step, narrow, narrow_step, packed, sizes, NET, AT, TILE)
    each = tl.where(there, weight / n, 0.0)
    quadratic = tl.zeros((TILE.rows,), tl.float32)
    along = tl.zeros((TILE.rows,), tl.float32)
    for d in tl.range(0, NET.dimension, TILE.block_d, num_stages=1):
        column = d + coordinate
        inside = there[:, None] & (column < NET.dimension)[None, :]
        at = row[:, None] * NET.dimension + column[None, :]
        data = tl.load(data_ptr + at, mask=inside, other=0.0)
        noise = tl.load(noise_ptr + at, mask=inside, other=0.0)
        x, velocity = move(data, noise, alpha, beta, alpha_dot, beta_dot)
        from_row = lane[:, None] * NET.columns + column[None, :]
        g = tl.load(narrow + GRADIENT * narrow_step + from_row, mask=inside, other=0.0)
        gradient = a[:, None] * x + (c * r)[:, None] * g
        quadratic += tl.sum(tl.where(inside, 0.5 * gradient * gradient, 0.0), axis=1)
        if COVARIANCE:
            rest = gradient
        else:
            rest = gradient - velocity
            along += tl.sum(tl.where(inside, gradient * velocity, 0.0), axis=1)
        direction = tl.where(inside, (each * c * r)[:, None] * rest, 0.0)
        tl.store(narrow + TANGENT * narrow_step + from_row, direction, mask=(column < NET.dimension)[None, :])
    if COVARIANCE:
        innovation = (beta_dot / beta) * (NET.dimension - squares) - (alpha_dot / beta) * products
        linear = (0.5 * a * squared_norm + c * value) * innovation
        share = tl.where(there, each * c * innovation, 0.0)
    else:
        linear = -along
        share = tl.zeros((TILE.rows,), tl.float32)
    tl.store(linear_ptr + row, weight * linear, mask=there)
    tl.store(quadratic_ptr + row, weight * quadratic, mask=there)
    tl.store(share_ptr + row, share)
    tl.store(position_ptr + row, tl.where(there, position, 0.0))
    tl.debug_barrier()
    tangent(wide, wide_step, narrow, narrow_step, packed, sizes, NET, AT, TILE, True)
    second_adjoint(wide, wide_step, packed, sizes, share, NET, AT, TILE)


def loss_and_gradients(
    mlp: PackedMlp,
    widths: tuple[int, ...],
    features: int,
    x_data: Tensor,
    t: Tensor,
    noise: Tensor,
    estimator: str,
    weight: str | Tensor,
    program: Program,
) -> Trained:
    """`vapo_fast.energy_loss` and its gradients.

    Args:
        mlp: the potential, packed on the batch's device.
        widths, features: the potential's own sizes, without padding.
        x_data, noise: (n, D) float32, contiguous. t: (n,) float32.
        estimator: one of `ESTIMATORS`. weight: "inverse_variance", "uniform", or (n,) float32.
        program: the tile; there are as many programs as tiles.
    Returns: `Trained`. The same bits whenever called with the same numbers on the same device.
    Raises: ValueError if x_data, t, noise or a weight (n,) requires grad.
    """
    refuse_derivatives(x_data=x_data, t=t, noise=noise, weight=weight if isinstance(weight, Tensor) else None)
    net, tile, device = mlp.net, program.tile, x_data.device
    n = x_data.shape[0]
    rows, arrays = padded(n, tile.rows), training_arrays(net.layers)
    # A program writes all rows of its tile, and the padding of its columns, before anything reads them.
    wide = torch.empty(arrays.count, rows, net.width, dtype=torch.float32, device=device)
    narrow = torch.empty(NARROW_ARRAYS, rows, net.columns, dtype=torch.float32, device=device)
    linear, quadratic = x_data.new_empty(n), x_data.new_empty(n)
    share, position = x_data.new_empty(rows), x_data.new_empty(rows)
    program.launch(
        _train,
        rows // tile.rows,
        x_data,
        t,
        noise,
        weight if isinstance(weight, Tensor) else t,
        linear,
        quadratic,
        share,
        position,
        n,
        rows,
        wide,
        narrow,
        mlp.packed,
        mlp.sizes,
        mlp.constants,
        COVARIANCE=estimator == "covariance",
        WEIGHT=weight if isinstance(weight, str) else "given",
        NET=net,
        AT=arrays,
        TILE=tile,
    )
    exact = tile.precision in ("ieee", "tf32x3")
    with _float32_products() if exact else nullcontext():
        gradients = _weight_gradients(mlp, widths, features, wide, narrow, share, position)
    return Trained(linear.mean(), quadratic.mean(), gradients)


@contextmanager
def _float32_products() -> Iterator[None]:
    """The library's float32 products are that, whatever `torch.set_float32_matmul_precision` allows elsewhere.

    Its own function for reading the setting raises where a program has set one backend's only.
    """
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        overall = torch.get_float32_matmul_precision()
    except RuntimeError:
        overall = "highest"
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(overall)
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def _weight_gradients(
    mlp: PackedMlp,
    widths: tuple[int, ...],
    features: int,
    wide: Tensor,
    narrow: Tensor,
    share: Tensor,
    position: Tensor,
) -> dict[str, Tensor]:
    net, layers, timed = mlp.net, len(widths), int(mlp.net.time_dependent)
    rows, d = wide.shape[1], mlp.net.dimension
    found: dict[str, Tensor] = {}
    for layer, width in enumerate(widths):
        above = wide[2 * (layers + layer) : 2 * (layers + layer) + 2].reshape(2 * rows, net.width)[:, :width]
        second = above[:rows]
        if layer:
            below = wide[2 * (layer - 1) : 2 * layer].reshape(2 * rows, net.width)[:, : widths[layer - 1]]
            found[f"hidden.{layer}.weight"] = above.T @ below
        else:
            by_column = above.T @ narrow[:2].reshape(2 * rows, net.columns)
            parts = [by_column[:, :d]]
            if timed:
                parts.append((second.T @ position)[:, None])
            if features:
                sine = net.inputs + net.features
                parts += [by_column[:, net.inputs : net.inputs + features], by_column[:, sine : sine + features]]
            found["hidden.0.weight"] = torch.cat(parts, dim=1)
        found[f"hidden.{layer}.bias"] = second.sum(0)
    top, of_top = wide[2 * layers - 2], wide[2 * layers - 1]
    found["output.weight"] = (of_top.sum(0) + top.T @ share)[: widths[-1]][None]
    return found


def loss_and_gradients_reference(
    potential: MLPPotential, x_data: Tensor, t: Tensor, noise: Tensor, estimator: str, weight: Tensor
) -> Trained:
    """The naive twin of `loss_and_gradients`, in x_data's dtype, for a weight (n,): the passes in plain PyTorch."""
    x, velocity, innovation = perturb_reference(potential.homotopy, x_data, t, noise)
    a, c, r, position = coefficients_reference(potential, t)
    swept = forward_reference(potential, r[:, None] * x, position)
    back = adjoint_reference(potential, swept)
    gradient = a[:, None] * x + (c * r)[:, None] * back.gradient
    each = weight / len(t)
    quadratic = 0.5 * weight * gradient.square().sum(1)
    if estimator == "covariance":
        linear = weight * (0.5 * a * x.square().sum(1) + c * back.value) * innovation
        rest, share = gradient, each * c * innovation
    else:
        linear = -weight * (gradient * velocity).sum(1)
        rest, share = gradient - velocity, torch.zeros_like(t)
    moved = tangent_reference(potential, swept, back, (each * c * r)[:, None] * rest)
    b = second_adjoint_reference(potential, swept, moved, share)
    found: dict[str, Tensor] = {}
    below = zip((swept.inputs, *swept.h), (moved.inputs, *moved.h), strict=True)
    for layer, ((h, h_tangent), adjoint_, second) in enumerate(zip(below, back.a, b, strict=False)):
        found[f"hidden.{layer}.weight"] = second.T @ h + adjoint_.T @ h_tangent
        found[f"hidden.{layer}.bias"] = second.sum(0)
    found["output.weight"] = (moved.h[-1].sum(0) + swept.h[-1].T @ share)[None]
    return Trained(linear.mean(), quadratic.mean(), found)
