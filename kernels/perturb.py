"""Points of the path with their velocities and innovations, from data and noise, in one pass over memory.

The noise is given, or drawn on the way (`noise`) and then never written.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vapo_fast.homotopy import Homotopy

from .gauge import path_at
from .launch import refuse_derivatives, run
from .noise import normal_pair, words
from .shapes import Net

# Numbers that a program has at a time, and of one row of them; rows of few numbers come many at a time.
_BLOCK, _COLUMNS = 1024, 64


class Points(NamedTuple):
    """x and velocity (n, D), innovation (n,)."""

    x: Tensor
    velocity: Tensor
    innovation: Tensor


@triton.jit
def move(data, noise, alpha, beta, alpha_dot, beta_dot):
    """(x, velocity) of a block [rows, columns], from coefficients [rows] in float32."""
    x = alpha[:, None] * data + beta[:, None] * noise
    return x, alpha_dot[:, None] * data + beta_dot[:, None] * noise


@triton.jit(do_not_specialize=["n", "key_low", "key_high", "stream"])
def _perturb(
    data_ptr,
    t_ptr,
    noise_ptr,
    x_ptr,
    velocity_ptr,
    innovation_ptr,
    n: tl.int64,
    dimension,
    constants,
    index_ptr,
    key_low: tl.int64,
    key_high: tl.int64,
    stream: tl.int64,
    NET: tl.constexpr,
    DRAW: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = row < n
    t = tl.load(t_ptr + row, mask=there, other=0.0).to(tl.float64)
    exact_alpha, exact_beta, exact_alpha_dot, exact_beta_dot, _ = path_at(t, constants, NET)
    alpha, beta = exact_alpha.to(tl.float32), exact_beta.to(tl.float32)
    alpha_dot, beta_dot = exact_alpha_dot.to(tl.float32), exact_beta_dot.to(tl.float32)
    squares = tl.zeros((ROWS,), tl.float32)
    products = tl.zeros((ROWS,), tl.float32)
    if DRAW:
        index = tl.load(index_ptr + row, mask=there, other=0)
    # A block is four neighbouring numbers: two pairs of Box and Muller's.
    for start in tl.range(0, dimension, COLUMNS, num_stages=1):
        column = start + tl.arange(0, COLUMNS)
        inside = there[:, None] & (column < dimension)[None, :]
        at = row[:, None] * dimension + column[None, :]
        if DRAW:
            block = (tl.zeros((ROWS, COLUMNS), tl.int64) + column[None, :]) >> 2
            w0, w1, w2, w3 = words(key_low, key_high, index[:, None] + block * 0, block, stream)
            upper = (column & 2)[None, :] != 0
            cosine, sine = normal_pair(tl.where(upper, w2, w0), tl.where(upper, w3, w1))
            noise = tl.where((column & 1)[None, :] != 0, sine, cosine).to(tl.float32)
            noise = tl.where(inside, noise, 0.0)
        else:
            noise = tl.load(noise_ptr + at, mask=inside, other=0.0)
        data = tl.load(data_ptr + at, mask=inside, other=0.0)
        x, velocity = move(data, noise, alpha, beta, alpha_dot, beta_dot)
        tl.store(x_ptr + at, x, mask=inside)
        tl.store(velocity_ptr + at, velocity, mask=inside)
        squares += tl.sum(noise * noise, axis=1)
        products += tl.sum(noise * data, axis=1)
    innovation = (beta_dot / beta) * (dimension - squares) - (alpha_dot / beta) * products
    tl.store(innovation_ptr + row, innovation, mask=there)


def perturb(
    net: Net,
    constants: Tensor,
    x_data: Tensor,
    t: Tensor,
    noise: Tensor | None,
    draw: tuple[tuple[int, int], Tensor, int] | None = None,
) -> Points:
    """The twin of `vapo_fast.Homotopy.perturb`.

    Args:
        net, constants: of the packed potential (`mlp.PackedMlp`), for its path.
        x_data: (n, D) float32, contiguous. t: (n,) float32.
        noise: (n, D) float32, contiguous; or None with draw = (key, index, stream) as for `noise.normal`.
    Returns: `Points`, float32.
    Raises: ValueError if x_data, t or noise requires grad.
    """
    refuse_derivatives(x_data=x_data, t=t, noise=noise)
    n, dimension = x_data.shape
    result = Points(torch.empty_like(x_data), torch.empty_like(x_data), x_data.new_empty(n))
    if n == 0:
        return result
    key, index, stream = draw or ((0, 0), t, 0)
    columns = min(_COLUMNS, triton.next_power_of_2(dimension))
    rows = _BLOCK // columns
    run(
        _perturb,
        triton.cdiv(n, rows),
        x_data.device,
        x_data,
        t,
        x_data if noise is None else noise,
        *result,
        n,
        dimension,
        constants,
        index,
        *key,
        stream,
        NET=net,
        DRAW=draw is not None,
        ROWS=rows,
        COLUMNS=columns,
    )
    return result


def perturb_reference(path: Homotopy, x_data: Tensor, t: Tensor, noise: Tensor) -> Points:
    """The naive twin of `perturb`, in x_data's dtype; ``innovation = -d/dt ln rho``."""
    k, squares = path.kernel(t), noise.square().sum(1)
    x = k.alpha[:, None] * x_data + k.beta[:, None] * noise
    velocity = k.alpha_dot[:, None] * x_data + k.beta_dot[:, None] * noise
    innovation = k.beta_dot / k.beta * (x_data.shape[1] - squares) - k.alpha_dot / k.beta * (noise * x_data).sum(1)
    return Points(x, velocity, innovation)
