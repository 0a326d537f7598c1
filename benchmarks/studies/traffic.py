"""Bytes that the MLP kernels move, counted from shapes: through L2, and to device memory where L2 has no room.

A tile of samples reads the weights of every product once, its left operand once for each block of columns, and writes
and reads back what lies between two products; stages and states of a solve beside them. All programs go round their
scratch memory once in an evaluation, so what is larger than the cache is written to memory and read again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

FLOAT = 4
"""Bytes of a number."""


@dataclass(frozen=True)
class Blocks:
    """What of a tile decides how often operands are read: samples, columns of a product, terms added at a time."""

    rows: int
    block_n: int
    block_k: int


def field_l2_bytes(n: int, dimension: int, widths: Sequence[int], tile: Blocks) -> int:
    """Bytes that one field of n samples moves through L2."""
    tiles, rows = math.ceil(n / tile.rows), tile.rows
    numbers = 4 * rows * dimension  # x twice, z, the gradient
    for before, width in pairwise((dimension, *widths)):
        numbers += before * width + rows * before * math.ceil(width / tile.block_n) + 2 * rows * width
    numbers += 3 * rows * widths[-1]
    for after, width in pairwise(widths):
        numbers += width * after + rows * width * math.ceil(after / tile.block_n) + 2 * rows * after
    numbers += widths[0] * dimension + rows * widths[0] * math.ceil(dimension / tile.block_k) + rows * dimension
    return FLOAT * tiles * numbers


def solve_l2_bytes(evaluations: int, dimension: int, widths: Sequence[int], tile: Blocks, stages: int) -> int:
    """Bytes of a solve with so many evaluations of single samples: fields, and the states and stages around them."""
    fields_ = field_l2_bytes(evaluations, dimension, widths, tile)
    # An evaluation reads the state and, in the mean, half of the stages; it writes where it looks and what it finds.
    return fields_ + int(FLOAT * evaluations * dimension * (3 + stages / 2))


def scratch_bytes(rows: int, dimension: int, widths: Sequence[int], arrays: int) -> int:
    """Bytes that lie between the products of so many rows: arrays of the network's width, three of the input's."""
    return FLOAT * rows * (arrays * max(widths) + 3 * dimension)


def spilled_bytes(passes: float, footprint: int, l2_size: int) -> int:
    """Bytes of device memory that scratch of this size costs: in each pass all of it is written and read, and what is
    larger than L2 goes through memory both ways."""
    return int(2 * passes * max(0, footprint - l2_size))


def loss_l2_bytes(n: int, dimension: int, widths: Sequence[int], tile: Blocks) -> int:
    """Bytes that a loss with its gradients moves through L2: twice a field's sweeps, second derivatives, and both sides
    of the weights' products once for each block of the other side."""
    tiles, rows = math.ceil(n / tile.rows), tile.rows
    extra = 7 * rows * sum(widths)
    for before, width in pairwise((dimension, *widths)):
        extra += 2 * rows * (before * math.ceil(width / tile.block_n) + width * math.ceil(before / tile.block_n))
    return 2 * field_l2_bytes(n, dimension, widths, tile) + FLOAT * tiles * extra
