"""Floating-point operations of the jobs, from their matrix products alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

PRODUCT_SIZE = 2048


def product_flops(size: int = PRODUCT_SIZE) -> int:
    """Operations of a square matrix product."""
    return 2 * size**3


def field_flops(n: int, dimension: int, widths: Sequence[int]) -> int:
    """Operations of the matrix products in one gradient of an MLP potential for n samples.

    ``4 n (d h_1 + h_1 h_2 + ... )``: a multiply and an add for each weight, forward and again backward. Activations,
    the time column, the output layer and the gauge are left out: this is the floor that a roofline is drawn from.
    """
    return 4 * n * sum(a * b for a, b in pairwise((dimension, *widths)))


def loss_flops(n: int, dimension: int, widths: Sequence[int]) -> int:
    """Operations of a loss and all its parameter gradients: four sweeps, and the weights' gradients from two pairs of
    arrays each: three times a field's."""
    return 3 * field_flops(n, dimension, widths)


def product_shapes(n: int, dimension: int, widths: Sequence[int]) -> list[tuple[int, int, int]]:
    """(rows, inner, columns) of the products that `field_flops` counts, in the order they are made in."""
    pairs = list(pairwise((dimension, *widths)))
    return [(n, a, b) for a, b in pairs] + [(n, b, a) for a, b in reversed(pairs)]
