"""The energy loss of a batch and its gradient for every parameter, by explicit passes: no graph, no double backward.

For a sample at x = alpha x_data + beta noise with gradient ``A x + C r g``, g being the network's by z = r x, the loss
``w (1/2 |grad Phi|^2 - grad Phi . u)`` depends on the parameters as ``v . g`` does for the fixed direction
``v = w C r (grad Phi - u)``; the covariance estimator has ``v = w C r grad Phi`` and the value's share ``w C
innovation`` beside it. One launch makes the four sweeps that this takes (forward, adjoint, tangent along v, second
adjoint) and leaves, for each layer, the pairs (activation h, tangent h') below and (second adjoint b, adjoint a)
above: the gradient of its weights is ``b h + a h'``, one product over both halves, which is a library's.

The twins are those of the sweeps, and for the whole `vapo_fast.loss.energy_loss`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .gauge import coefficients, path_at
from .launch import Program, refuse_derivatives
from .mlp import PackedMlp
from .shapes import padded, training_arrays
from .sweeps import (
    GRADIENT,
    INPUT_ARRAYS,
    INPUTS,
    TANGENT,
    Tape,
    adjoint,
    clear_inputs,
    forward,
    second_adjoint,
    tangent,
)

ESTIMATORS = ("velocity", "covariance")


class Trained(NamedTuple):
    """(linear, quadratic): 0-dim means over the batch; gradients by the names of `MLPPotential`'s parameters."""

    linear: Tensor
    quadratic: Tensor
    gradients: dict[str, Tensor]


class TrainingBatch(NamedTuple):
    """Data and noise (n, D), times and weights (n,)."""

    x_data: Any
    t: Any
    noise: Any
    weight: Any


class Terms(NamedTuple):
    """What a launch writes for each sample: the loss's terms (n,); and with padding (rows,) the value's share and the
    noise position, for `_weight_gradients`."""

    linear: Any
    quadratic: Any
    share: Any
    position: Any


class Sweeps(NamedTuple):
    """What the sweeps leave: arrays [count][rows][width] and [INPUT_ARRAYS][rows][columns] of a whole batch."""

    rows: Any
    hidden: Any
    inputs: Any


@triton.jit
def _perturb(data, noise, alpha, beta, alpha_dot, beta_dot):
    """(x, velocity) of a block [rows, columns], from coefficients [rows] in float32."""
    x = alpha[:, None] * data + beta[:, None] * noise
    return x, alpha_dot[:, None] * data + beta_dot[:, None] * noise


@triton.jit(do_not_specialize=["n"])
def _train(
    batch,
    terms,
    n: tl.int64,
    sweeps,
    network,
    COVARIANCE: tl.constexpr,
    WEIGHT: tl.constexpr,
    NET: tl.constexpr,
    AT: tl.constexpr,
    TILE: tl.constexpr,
):
    lane = tl.arange(0, TILE.rows)
    coordinate = tl.arange(0, TILE.block_d)
    program = tl.program_id(0).to(tl.int64)
    row = program * TILE.rows + lane
    there = row < n
    # The arrays are those of the whole batch, side by side; this tile has its rows in each.
    hidden = sweeps.hidden + program * (TILE.rows * NET.width)
    hidden_step = tl.cast(sweeps.rows, tl.int64) * NET.width
    inputs = sweeps.inputs + program * (TILE.rows * NET.columns)
    tape = Tape(hidden, hidden_step, inputs, tl.cast(sweeps.rows, tl.int64) * NET.columns)
    clear_inputs(tape, NET, TILE)
    t = tl.load(batch.t + row, mask=there, other=0.0)
    a, c, r, position = coefficients(t, network.constants, NET)
    alpha64, beta64, alpha_dot64, beta_dot64, _log_beta = path_at(t.to(tl.float64), network.constants, NET)
    alpha, beta = alpha64.to(tl.float32), beta64.to(tl.float32)
    alpha_dot, beta_dot = alpha_dot64.to(tl.float32), beta_dot64.to(tl.float32)
    if WEIGHT == "inverse_variance":
        weight = 1.0 / (beta * beta)
    elif WEIGHT == "uniform":
        weight = tl.zeros((TILE.rows,), tl.float32) + 1.0
    else:
        weight = tl.load(batch.weight + row, mask=there, other=0.0)
    squared_norm = tl.zeros((TILE.rows,), tl.float32)
    squares = tl.zeros((TILE.rows,), tl.float32)
    products = tl.zeros((TILE.rows,), tl.float32)
    for d in tl.range(0, NET.dimension, TILE.block_d, num_stages=1):
        column = d + coordinate
        inside = there[:, None] & (column < NET.dimension)[None, :]
        at = row[:, None] * NET.dimension + column[None, :]  # [rows, block_d]
        data = tl.load(batch.x_data + at, mask=inside, other=0.0)
        noise = tl.load(batch.noise + at, mask=inside, other=0.0)
        x, _velocity = _perturb(data, noise, alpha, beta, alpha_dot, beta_dot)
        squared_norm += tl.sum(x * x, axis=1)
        squares += tl.sum(noise * noise, axis=1)
        products += tl.sum(noise * data, axis=1)
        place = tape.inputs + INPUTS * tape.inputs_step + lane[:, None] * NET.columns + column[None, :]
        tl.store(place, x * r[:, None], mask=(column < NET.dimension)[None, :])
    tl.debug_barrier()
    forward(tape, network, position, NET, AT, TILE)
    value = adjoint(tape, network, NET, AT, TILE)
    each = tl.where(there, weight / n, 0.0)
    quadratic = tl.zeros((TILE.rows,), tl.float32)
    along = tl.zeros((TILE.rows,), tl.float32)
    for d in tl.range(0, NET.dimension, TILE.block_d, num_stages=1):
        column = d + coordinate
        inside = there[:, None] & (column < NET.dimension)[None, :]
        at = row[:, None] * NET.dimension + column[None, :]
        data = tl.load(batch.x_data + at, mask=inside, other=0.0)
        noise = tl.load(batch.noise + at, mask=inside, other=0.0)
        x, velocity = _perturb(data, noise, alpha, beta, alpha_dot, beta_dot)
        from_row = lane[:, None] * NET.columns + column[None, :]
        g = tl.load(tape.inputs + GRADIENT * tape.inputs_step + from_row, mask=inside, other=0.0)
        gradient = a[:, None] * x + (c * r)[:, None] * g
        quadratic += tl.sum(tl.where(inside, 0.5 * gradient * gradient, 0.0), axis=1)
        if COVARIANCE:
            rest = gradient
        else:
            rest = gradient - velocity
            along += tl.sum(tl.where(inside, gradient * velocity, 0.0), axis=1)
        direction = tl.where(inside, (each * c * r)[:, None] * rest, 0.0)
        tl.store(tape.inputs + TANGENT * tape.inputs_step + from_row, direction, mask=(column < NET.dimension)[None, :])
    if COVARIANCE:
        innovation = (beta_dot / beta) * (NET.dimension - squares) - (alpha_dot / beta) * products
        linear = (0.5 * a * squared_norm + c * value) * innovation
        share = tl.where(there, each * c * innovation, 0.0)
    else:
        linear = -along
        share = tl.zeros((TILE.rows,), tl.float32)
    tl.store(terms.linear + row, weight * linear, mask=there)
    tl.store(terms.quadratic + row, weight * quadratic, mask=there)
    tl.store(terms.share + row, share)
    tl.store(terms.position + row, tl.where(there, position, 0.0))
    tl.debug_barrier()
    tangent(tape, network, NET, AT, TILE, True)
    second_adjoint(tape, network, share, NET, AT, TILE)


def loss_and_gradients(
    mlp: PackedMlp,
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
    sweeps = Sweeps(
        rows,
        torch.empty(arrays.count, rows, net.width, dtype=torch.float32, device=device),
        torch.empty(INPUT_ARRAYS, rows, net.columns, dtype=torch.float32, device=device),
    )
    terms = Terms(x_data.new_empty(n), x_data.new_empty(n), x_data.new_empty(rows), x_data.new_empty(rows))
    batch = TrainingBatch(x_data, t, noise, weight if isinstance(weight, Tensor) else t)
    constants = {"COVARIANCE": estimator == "covariance", "WEIGHT": weight if isinstance(weight, str) else "given"}
    arguments = (batch, terms, n, sweeps, mlp.network)
    program.launch(_train, rows // tile.rows, device, *arguments, **constants, NET=net, AT=arrays)
    exact = tile.precision in ("ieee", "tf32x3")
    with _float32_products() if exact else nullcontext():
        gradients = _weight_gradients(mlp, sweeps, terms)
    return Trained(terms.linear.mean(), terms.quadratic.mean(), gradients)


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


def _weight_gradients(mlp: PackedMlp, sweeps: Sweeps, terms: Terms) -> dict[str, Tensor]:
    net, layers, timed = mlp.net, len(mlp.widths), int(mlp.net.time_dependent)
    rows, d, features = sweeps.rows, net.dimension, mlp.features
    found: dict[str, Tensor] = {}
    for layer, width in enumerate(mlp.widths):
        above = sweeps.hidden[2 * (layers + layer) : 2 * (layers + layer) + 2].reshape(2 * rows, net.width)[:, :width]
        second = above[:rows]
        if layer:
            below = sweeps.hidden[2 * (layer - 1) : 2 * layer].reshape(2 * rows, net.width)
            found[f"hidden.{layer}.weight"] = above.T @ below[:, : mlp.widths[layer - 1]]
        else:
            by_column = above.T @ sweeps.inputs[:2].reshape(2 * rows, net.columns)
            parts = [by_column[:, :d]]
            if timed:
                parts.append((second.T @ terms.position)[:, None])
            if features:
                sine = net.inputs + net.features
                parts += [by_column[:, net.inputs : net.inputs + features], by_column[:, sine : sine + features]]
            found["hidden.0.weight"] = torch.cat(parts, dim=1)
        found[f"hidden.{layer}.bias"] = second.sum(0)
    top, of_top = sweeps.hidden[2 * layers - 2], sweeps.hidden[2 * layers - 1]
    found["output.weight"] = (of_top.sum(0) + top.T @ terms.share)[: mlp.widths[-1]][None]
    return found
