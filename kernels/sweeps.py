"""The sweeps through an MLP on one tile of samples: forward, adjoint, tangent, second adjoint.

Device functions, and their naive twins below. Every array of a tile lies in global memory: a tile's activations are too
many for registers, and whole weight matrices for shared memory. The L2 cache holds all tiles' arrays for small
networks, and for larger ones a part of them (docs/notes/performance.md has the arithmetic). Each product makes
``block_n`` columns at a time, with a loop over ``block_k`` terms; what follows it (bias, activation and derivatives,
the adjoint's factor) is done on the block while it is in registers. Between two products lies a barrier, because each
reads what other threads wrote.

A sweep gets the tile's arrays (`Tape`) and the potential (`mlp.Network`): ``packed`` holds the weights in the layout of
`shapes.Net`, ``sizes`` each layer's width rounded up to whole blocks.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vapo_fast.potentials.mlp import MLPPotential

from .activation import activate, activate_reference

INPUTS = tl.constexpr(0)
TANGENT = tl.constexpr(1)
GRADIENT = tl.constexpr(2)
INPUT_ARRAYS = 3

_TWO_PI = tl.constexpr(2.0 * math.pi)


class Tape(NamedTuple):
    """Where a tile's arrays lie. Pointers to its first row in the first array of either width, and what lies between
    two arrays: those of the hidden layers' width are told apart by `shapes.Arrays`, those of the first layer's inputs
    by the constants above (z, cosines, sines; their tangents; derivatives by them).
    """

    hidden: Any
    hidden_step: Any
    inputs: Any
    inputs_step: Any


@triton.jit
def tape_in(scratch, NET: tl.constexpr, AT: tl.constexpr, TILE: tl.constexpr):
    """The arrays of this program's tile in its scratch memory (`launch.Scratch`), [rows][width or columns] each."""
    hidden = scratch.memory + tl.program_id(0).to(tl.int64) * scratch.step
    hidden_step = TILE.rows * NET.width
    return Tape(hidden, hidden_step, hidden + AT.count * hidden_step, TILE.rows * NET.columns)


@triton.jit
def _array(tape, ROLE: tl.constexpr, layer):
    return tape.hidden + (ROLE.first + (layer % ROLE.count) * ROLE.step) * tape.hidden_step


@triton.jit
def _block(array, column, STRIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Pointers [ROWS, COLUMNS] to a block of an array that starts at a column."""
    return array + tl.arange(0, ROWS)[:, None] * STRIDE + (column + tl.arange(0, COLUMNS))[None, :]


@triton.jit
def _hidden_block(tape, ROLE: tl.constexpr, layer, n, NET: tl.constexpr, TILE: tl.constexpr):
    """Pointers [rows, block_n] to a layer's block, from column n on, in the arrays of a role."""
    return _block(_array(tape, ROLE, layer), n, NET.width, TILE.rows, TILE.block_n)


@triton.jit
def _product(
    source, weights, terms, STRIDE: tl.constexpr, WEIGHT_STRIDE: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr
):
    """``sum over k < terms of source[b, k] weights[n, k]``, [rows, COLUMNS], for the first COLUMNS n."""
    k = tl.arange(0, TILE.block_k)
    left = source + tl.arange(0, TILE.rows)[:, None] * STRIDE + k[None, :]  # [rows, block_k]
    right = weights + tl.arange(0, COLUMNS)[None, :] * WEIGHT_STRIDE + k[:, None]  # [block_k, COLUMNS]
    total = tl.zeros((TILE.rows, COLUMNS), tl.float32)
    for _ in tl.range(0, terms, TILE.block_k, num_stages=TILE.stages):
        x = tl.load(left)
        w = tl.load(right)
        if TILE.precision == "bf16":
            total = tl.dot(x.to(tl.bfloat16), w.to(tl.bfloat16), total)
        else:
            total = tl.dot(x, w, total, input_precision=TILE.precision)
        left += TILE.block_k
        right += TILE.block_k
    return total


@triton.jit
def _first_product(tape, ARRAY: tl.constexpr, network, n, NET: tl.constexpr, TILE: tl.constexpr):
    """The first layer's product with an array of the inputs, [rows, block_n]."""
    source = tape.inputs + ARRAY * tape.inputs_step
    weights = network.packed + NET.parts.first_forward + n * NET.columns
    return _product(source, weights, NET.columns, NET.columns, NET.columns, TILE.block_n, TILE)


@triton.jit
def _hidden_product(tape, ROLE: tl.constexpr, layer, weights, n, terms, NET: tl.constexpr, TILE: tl.constexpr):
    """The product of a layer's array with the rows of hidden weights from n on, [rows, block_n]."""
    source = _array(tape, ROLE, layer)
    return _product(source, weights + n * NET.width, terms, NET.width, NET.width, TILE.block_n, TILE)


@triton.jit
def clear_inputs(tape, NET: tl.constexpr, TILE: tl.constexpr):
    """Zeros in the columns that pad z, where the scratch memory may hold anything. Ends with a barrier."""
    rows, columns = tl.arange(0, TILE.rows), tl.arange(0, TILE.block_k)
    for n in tl.range(0, NET.inputs, TILE.block_k):
        place = tape.inputs + rows[:, None] * NET.columns + (n + columns)[None, :]
        tl.store(place + INPUTS * tape.inputs_step, tl.zeros((TILE.rows, TILE.block_k), tl.float32))
        tl.store(place + TANGENT * tape.inputs_step, tl.zeros((TILE.rows, TILE.block_k), tl.float32))
    tl.debug_barrier()


@triton.jit
def _features(tape, network, position, NET: tl.constexpr, TILE: tl.constexpr):
    """Cosines and sines of the input's products with the frequencies, which are in turns."""
    inputs = tape.inputs + INPUTS * tape.inputs_step
    for n in tl.range(0, NET.features, TILE.block_k):
        frequencies = network.packed + NET.parts.frequencies + n * NET.inputs
        turns = _product(inputs, frequencies, NET.inputs, NET.columns, NET.inputs, TILE.block_k, TILE)
        if NET.time_dependent:
            column = tl.load(network.packed + NET.parts.frequencies_time + n + tl.arange(0, TILE.block_k))
            turns += position[:, None] * column[None, :]
        angle = (turns - tl.floor(turns + 0.5)) * _TWO_PI
        cosine = _block(inputs, NET.inputs + n, NET.columns, TILE.rows, TILE.block_k)
        tl.store(cosine, tl.cos(angle))
        tl.store(cosine + NET.features, tl.sin(angle))
    tl.debug_barrier()


@triton.jit
def _activate_block(z, tape, layer, n, NET: tl.constexpr, AT: tl.constexpr, TILE: tl.constexpr):
    h, d, c = activate(z, NET.activation, AT.c.step > 0)
    tl.store(_hidden_block(tape, AT.h, layer, n, NET, TILE), h)
    tl.store(_hidden_block(tape, AT.d, layer, n, NET, TILE), d)
    if AT.c.step > 0:
        tl.store(_hidden_block(tape, AT.c, layer, n, NET, TILE), c)


@triton.jit
def forward(tape, network, position, NET: tl.constexpr, AT: tl.constexpr, TILE: tl.constexpr):
    """Activations and their derivatives in every layer, from z in the inputs and the noise position [rows].

    Ends with a barrier.
    """
    if NET.features > 0:
        _features(tape, network, position, NET, TILE)
    columns = tl.arange(0, TILE.block_n)
    for n in tl.range(0, tl.load(network.sizes), TILE.block_n):
        z = _first_product(tape, INPUTS, network, n, NET, TILE)
        z += tl.load(network.packed + NET.parts.bias + n + columns)[None, :]
        if NET.time_dependent:
            z += position[:, None] * tl.load(network.packed + NET.parts.time + n + columns)[None, :]
        _activate_block(z, tape, 0, n, NET, AT, TILE)
    tl.debug_barrier()
    for layer in tl.range(1, NET.layers):
        weights = network.packed + NET.parts.hidden_forward + (layer - 1) * (NET.width * NET.width)
        terms = tl.load(network.sizes + layer - 1)
        for n in tl.range(0, tl.load(network.sizes + layer), TILE.block_n):
            z = _hidden_product(tape, AT.h, layer - 1, weights, n, terms, NET, TILE)
            z += tl.load(network.packed + NET.parts.bias + layer * NET.width + n + columns)[None, :]
            _activate_block(z, tape, layer, n, NET, AT, TILE)
        tl.debug_barrier()


@triton.jit
def adjoint(tape, network, NET: tl.constexpr, AT: tl.constexpr, TILE: tl.constexpr):
    """The network's value [rows], and its derivatives by the inputs in their array. Ends with a barrier.

    Where there are second derivatives of the activations, they are multiplied by the derivative by the activation.
    """
    columns = tl.arange(0, TILE.block_n)
    value = tl.zeros((TILE.rows,), tl.float32)
    for n in tl.range(0, tl.load(network.sizes + NET.layers - 1), TILE.block_n):
        w = tl.load(network.packed + NET.parts.output + n + columns)[None, :]
        h = tl.load(_hidden_block(tape, AT.h, NET.layers - 1, n, NET, TILE))
        value += tl.sum(h * w, axis=1)
        _adjoint_block(w + tl.zeros_like(h), tape, NET.layers - 1, n, NET, AT, TILE)
    tl.debug_barrier()
    for i in tl.range(1, NET.layers):
        layer = NET.layers - i
        weights = network.packed + NET.parts.hidden_backward + (layer - 1) * (NET.width * NET.width)
        terms = tl.load(network.sizes + layer)
        for n in tl.range(0, tl.load(network.sizes + layer - 1), TILE.block_n):
            g = _hidden_product(tape, AT.a, layer, weights, n, terms, NET, TILE)
            _adjoint_block(g, tape, layer - 1, n, NET, AT, TILE)
        tl.debug_barrier()
    gradient = tape.inputs + GRADIENT * tape.inputs_step
    terms = tl.load(network.sizes)
    for n in tl.range(0, NET.columns, TILE.block_k):
        source = _array(tape, AT.a, 0)
        weights = network.packed + NET.parts.first_backward + n * NET.width
        g = _product(source, weights, terms, NET.width, NET.width, TILE.block_k, TILE)
        tl.store(_block(gradient, n, NET.columns, TILE.rows, TILE.block_k), g)
    tl.debug_barrier()
    if NET.features > 0:
        _features_adjoint(tape, network, NET, TILE)
    return value


@triton.jit
def _adjoint_block(g, tape, layer, n, NET: tl.constexpr, AT: tl.constexpr, TILE: tl.constexpr):
    """Takes in the derivative g by a block of a layer's activations."""
    d = tl.load(_hidden_block(tape, AT.d, layer, n, NET, TILE))
    tl.store(_hidden_block(tape, AT.a, layer, n, NET, TILE), g * d)
    if AT.c.step > 0:
        place = _hidden_block(tape, AT.c, layer, n, NET, TILE)
        tl.store(place, tl.load(place) * g)


@triton.jit
def _features_adjoint(tape, network, NET: tl.constexpr, TILE: tl.constexpr):
    """Adds to the derivatives by z what comes through the features. The derivatives by the features stay."""
    inputs = tape.inputs + INPUTS * tape.inputs_step
    gradient = tape.inputs + GRADIENT * tape.inputs_step
    by_angle = tape.inputs + TANGENT * tape.inputs_step  # free until the tangents
    for n in tl.range(0, NET.features, TILE.block_k):
        at = NET.inputs + n
        cosine = _block(inputs, at, NET.columns, TILE.rows, TILE.block_k)
        by_cosine = _block(gradient, at, NET.columns, TILE.rows, TILE.block_k)
        turn = tl.load(cosine) * tl.load(by_cosine + NET.features)
        turn -= tl.load(cosine + NET.features) * tl.load(by_cosine)
        tl.store(_block(by_angle, at, NET.columns, TILE.rows, TILE.block_k), turn * _TWO_PI)
    tl.debug_barrier()
    for n in tl.range(0, NET.inputs, TILE.block_k):
        source = by_angle + NET.inputs
        frequencies = network.packed + NET.parts.frequencies_transposed + n * NET.features
        g = _product(source, frequencies, NET.features, NET.columns, NET.features, TILE.block_k, TILE)
        place = _block(gradient, n, NET.columns, TILE.rows, TILE.block_k)
        tl.store(place, tl.load(place) + g)
    tl.debug_barrier()


@triton.jit
def tangent(tape, network, NET: tl.constexpr, AT: tl.constexpr, TILE: tl.constexpr, KEEP: tl.constexpr):
    """The network's second derivative [rows] along a direction of z, which stands in the tangents' array.

    With ``y'`` the tangent of a layer's pre-activations it is the sum of ``c y'^2`` over all units, c being the second
    derivative of the activation times the derivative by it; Fourier features add their own curvature. With KEEP, c
    becomes ``c y'`` and the tangents of the activations are kept in all layers. Ends with a barrier.
    """
    curvature = tl.zeros((TILE.rows,), tl.float32)
    if NET.features > 0:
        curvature += _features_tangent(tape, network, NET, TILE)
    for n in tl.range(0, tl.load(network.sizes), TILE.block_n):
        y = _first_product(tape, TANGENT, network, n, NET, TILE)
        curvature += _tangent_block(y, tape, 0, n, NET, AT, TILE, KEEP)
    tl.debug_barrier()
    for layer in tl.range(1, NET.layers):
        weights = network.packed + NET.parts.hidden_forward + (layer - 1) * (NET.width * NET.width)
        terms = tl.load(network.sizes + layer - 1)
        for n in tl.range(0, tl.load(network.sizes + layer), TILE.block_n):
            y = _hidden_product(tape, AT.t, layer - 1, weights, n, terms, NET, TILE)
            curvature += _tangent_block(y, tape, layer, n, NET, AT, TILE, KEEP)
        tl.debug_barrier()
    return curvature


@triton.jit
def _tangent_block(y, tape, layer, n, NET: tl.constexpr, AT: tl.constexpr, TILE: tl.constexpr, KEEP: tl.constexpr):
    place = _hidden_block(tape, AT.c, layer, n, NET, TILE)
    curvature_terms = tl.load(place) * y
    if KEEP:
        tl.store(place, curvature_terms)
    d = tl.load(_hidden_block(tape, AT.d, layer, n, NET, TILE))
    tl.store(_hidden_block(tape, AT.t, layer, n, NET, TILE), d * y)
    return tl.sum(curvature_terms * y, axis=1)


@triton.jit
def _features_tangent(tape, network, NET: tl.constexpr, TILE: tl.constexpr):
    inputs = tape.inputs + INPUTS * tape.inputs_step
    gradient = tape.inputs + GRADIENT * tape.inputs_step
    tangents = tape.inputs + TANGENT * tape.inputs_step
    curvature = tl.zeros((TILE.rows,), tl.float32)
    for n in tl.range(0, NET.features, TILE.block_k):
        frequencies = network.packed + NET.parts.frequencies + n * NET.inputs
        turns_dot = _product(tangents, frequencies, NET.inputs, NET.columns, NET.inputs, TILE.block_k, TILE)
        angle_dot = _TWO_PI * turns_dot
        at = NET.inputs + n
        cosine = _block(inputs, at, NET.columns, TILE.rows, TILE.block_k)
        by_cosine = _block(gradient, at, NET.columns, TILE.rows, TILE.block_k)
        c, s = tl.load(cosine), tl.load(cosine + NET.features)
        curvature_terms = tl.load(by_cosine) * c + tl.load(by_cosine + NET.features) * s
        curvature -= tl.sum(curvature_terms * angle_dot * angle_dot, axis=1)
        place = _block(tangents, at, NET.columns, TILE.rows, TILE.block_k)
        tl.store(place, -s * angle_dot)
        tl.store(place + NET.features, c * angle_dot)
    tl.debug_barrier()
    return curvature


@triton.jit
def second_adjoint(tape, network, share, NET: tl.constexpr, AT: tl.constexpr, TILE: tl.constexpr):
    """Derivatives by the pre-activations of ``(tangent of the value) + share * value``, after `tangent` with KEEP.

    They are ``b = d q + c y'``, q being the derivative by the activations; at the top q is ``share`` [rows] times the
    output's weights. Ends with a barrier.
    """
    columns = tl.arange(0, TILE.block_n)
    for n in tl.range(0, tl.load(network.sizes + NET.layers - 1), TILE.block_n):
        w = tl.load(network.packed + NET.parts.output + n + columns)
        _second_adjoint_block(share[:, None] * w[None, :], tape, NET.layers - 1, n, NET, AT, TILE)
    tl.debug_barrier()
    for i in tl.range(1, NET.layers):
        layer = NET.layers - i
        weights = network.packed + NET.parts.hidden_backward + (layer - 1) * (NET.width * NET.width)
        terms = tl.load(network.sizes + layer)
        for n in tl.range(0, tl.load(network.sizes + layer - 1), TILE.block_n):
            q = _hidden_product(tape, AT.b, layer, weights, n, terms, NET, TILE)
            _second_adjoint_block(q, tape, layer - 1, n, NET, AT, TILE)
        tl.debug_barrier()


@triton.jit
def _second_adjoint_block(q, tape, layer, n, NET: tl.constexpr, AT: tl.constexpr, TILE: tl.constexpr):
    d = tl.load(_hidden_block(tape, AT.d, layer, n, NET, TILE))
    c = tl.load(_hidden_block(tape, AT.c, layer, n, NET, TILE))
    tl.store(_hidden_block(tape, AT.b, layer, n, NET, TILE), d * q + c)


# The naive twins: whole batches, plain products, every array kept; in the dtype of what they are given. -------------


class Forward(NamedTuple):
    """Left by `forward_reference`: the first layer's inputs (n, columns) z, position, cosines, sines; for each layer
    (n, width) its activations and their first and second derivatives."""

    inputs: Tensor
    h: list[Tensor]
    d: list[Tensor]
    c: list[Tensor]


class Adjoint(NamedTuple):
    """Left by `adjoint_reference`: the value (n,); derivatives by each layer's pre-activations; second derivatives of
    each layer's activations, times the derivative by them; derivatives by the inputs, and by z alone (n, D)."""

    value: Tensor
    a: list[Tensor]
    curved: list[Tensor]
    by_inputs: Tensor
    gradient: Tensor


class Tangent(NamedTuple):
    """Left by `tangent_reference`: the second derivative (n,); tangents of the inputs; for each layer the tangents of
    its activations, and ``c y'``."""

    curvature: Tensor
    inputs: Tensor
    h: list[Tensor]
    curvature_terms: list[Tensor]


def _weights(potential: MLPPotential, dtype: torch.dtype) -> list[Tensor]:
    return [layer.weight.detach().to(dtype) for layer in (*potential.hidden, potential.output)]


def _frequencies(potential: MLPPotential, dtype: torch.dtype) -> Tensor:
    return potential.frequencies.detach().to(dtype)


def _feature_parts(potential: MLPPotential, of_inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The columns of the cosines and of the sines."""
    cosines, sines = of_inputs[:, of_inputs.shape[1] - 2 * potential.fourier_features :].chunk(2, dim=1)
    return cosines, sines


@torch.no_grad()
def forward_reference(potential: MLPPotential, z: Tensor, position: Tensor) -> Forward:
    """The naive twin of `forward`: z (n, D) and noise positions (n,)."""
    y = torch.cat([z, position[:, None]], dim=1) if potential.time_dependent else z
    angle = 2.0 * math.pi * y @ _frequencies(potential, z.dtype).T
    forward = Forward(torch.cat([y, torch.cos(angle), torch.sin(angle)], dim=1), [], [], [])
    below = forward.inputs
    for layer, weight in zip(potential.hidden, _weights(potential, z.dtype), strict=False):
        h, d, c = activate_reference(below @ weight.T + layer.bias.to(z.dtype), potential.activation)  # type: ignore[operator]
        for kept, new in zip(forward[1:], (h, d, c), strict=True):
            kept.append(new)
        below = h
    return forward


@torch.no_grad()
def adjoint_reference(potential: MLPPotential, forward: Forward) -> Adjoint:
    """The naive twin of `adjoint`."""
    *weights, output = _weights(potential, forward.inputs.dtype)
    g = output.expand_as(forward.h[-1])
    a, curved = list[Tensor](), list[Tensor]()
    for layer in reversed(range(len(weights))):
        a.insert(0, forward.d[layer] * g)
        curved.insert(0, forward.c[layer] * g)
        g = a[0] @ weights[layer]
    dimension = math.prod(potential.event_shape)
    (by_cosine, by_sine), (cosine, sine) = (_feature_parts(potential, part) for part in (g, forward.inputs))
    turn = 2.0 * math.pi * (cosine * by_sine - sine * by_cosine)
    gradient = g[:, :dimension] + turn @ _frequencies(potential, g.dtype)[:, :dimension]
    return Adjoint((forward.h[-1] @ output.T)[:, 0], a, curved, g, gradient)


@torch.no_grad()
def tangent_reference(potential: MLPPotential, forward: Forward, adjoint: Adjoint, direction: Tensor) -> Tangent:
    """The naive twin of `tangent`, along directions (n, D) of z."""
    dimension = direction.shape[1]
    angle_dot = 2.0 * math.pi * direction @ _frequencies(potential, direction.dtype)[:, :dimension].T
    (by_cosine, by_sine), (cosine, sine) = (
        _feature_parts(potential, part) for part in (adjoint.by_inputs, forward.inputs)
    )
    curvature = -((by_cosine * cosine + by_sine * sine) * angle_dot.square()).sum(1)
    still = direction.new_zeros(len(direction), int(potential.time_dependent))
    tangent = Tangent(curvature, torch.cat([direction, still, -sine * angle_dot, cosine * angle_dot], dim=1), [], [])
    below = tangent.inputs
    for layer, weight in enumerate(_weights(potential, direction.dtype)[:-1]):
        y = below @ weight.T
        tangent.curvature_terms.append(adjoint.curved[layer] * y)
        curvature = curvature + (tangent.curvature_terms[-1] * y).sum(1)
        below = forward.d[layer] * y
        tangent.h.append(below)
    return tangent._replace(curvature=curvature)


@torch.no_grad()
def second_adjoint_reference(
    potential: MLPPotential, forward: Forward, tangent: Tangent, share: Tensor
) -> list[Tensor]:
    """The naive twin of `second_adjoint`, for shares (n,) of the value: b of each layer."""
    *weights, output = _weights(potential, share.dtype)
    q, b = share[:, None] * output, list[Tensor]()
    for layer in reversed(range(len(weights))):
        b.insert(0, forward.d[layer] * q + tangent.curvature_terms[layer])
        q = b[0] @ weights[layer]
    return b
