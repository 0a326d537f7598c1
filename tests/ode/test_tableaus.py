"""Every tableau against the order conditions, one for each rooted tree."""

import itertools
import runpy
import sys
from functools import lru_cache
from math import prod

import numpy as np
import pytest

from vapo_fast.ode import TABLEAUS, tableaus

ALL = list(TABLEAUS.values())
PAIRS = [tableau for tableau in ALL if tableau.adaptive]


@lru_cache
def trees(order):
    """All rooted trees with ``order`` nodes; a tree is the sorted tuple of its root's subtrees."""
    if order == 1:
        return ((),)
    found = set()
    for sizes in partitions(order - 1):
        for children in itertools.product(*(trees(size) for size in sizes)):
            found.add(tuple(sorted(children)))
    return tuple(sorted(found))


def partitions(n, largest=None):
    if n == 0:
        yield ()
    for first in range(min(n, largest or n), 0, -1):
        for rest in partitions(n - first, first):
            yield (first, *rest)


def nodes(tree):
    return 1 + sum(nodes(child) for child in tree)


def density(tree):
    return nodes(tree) * prod(density(child) for child in tree)


def stage_matrix(tableau):
    matrix = np.zeros((tableau.stages, tableau.stages))
    for i, row in enumerate(tableau.a, start=1):
        matrix[i, : len(row)] = row
    return matrix


def elementary_weights(tree, matrix):
    """One number a stage."""
    return prod((matrix @ elementary_weights(child, matrix) for child in tree), start=np.ones(len(matrix)))


def residuals(tableau, weights, order, theta=1.0):
    matrix = stage_matrix(tableau)
    return [weights @ elementary_weights(tree, matrix) - theta**order / density(tree) for tree in trees(order)]


def test_the_trees_are_counted_right():
    assert [len(trees(order)) for order in range(1, 7)] == [1, 1, 2, 4, 9, 20]


@pytest.mark.parametrize("tableau", ALL, ids=lambda tableau: tableau.name)
def test_order_of_the_method(tableau):
    for order in range(1, tableau.order + 1):
        assert np.abs(residuals(tableau, np.array(tableau.b), order)).max() < 2e-15 * 10
    assert np.abs(residuals(tableau, np.array(tableau.b), tableau.order + 1)).max() > 1e-5


@pytest.mark.parametrize("tableau", PAIRS, ids=lambda tableau: tableau.name)
def test_order_of_the_embedded_method(tableau):
    embedded = np.array(tableau.b) - np.array(tableau.error)
    for order in range(1, tableau.error_order):
        assert np.abs(residuals(tableau, embedded, order)).max() < 1e-13
    assert np.abs(residuals(tableau, embedded, tableau.error_order)).max() > 1e-5
    assert tableau.error[-1] != 0.0, "a field that is not finite at the new point must make the error so"


@pytest.mark.parametrize("theta", [0.1, 0.37, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("tableau", ALL, ids=lambda tableau: tableau.name)
def test_order_of_the_continuous_extension(tableau, theta):
    powers = np.array([theta ** (j + 1) for j in range(len(tableau.dense[0]))])
    weights = np.array(tableau.dense) @ powers
    for order in range(1, tableau.dense_order + 1):
        assert np.abs(residuals(tableau, weights, order, theta)).max() < 1e-13
    if theta == 1.0:
        np.testing.assert_allclose(weights, tableau.b, rtol=0, atol=1e-13)


@pytest.mark.parametrize("tableau", ALL, ids=lambda tableau: tableau.name)
def test_shape_and_row_sums(tableau):
    assert len(tableau.c) == tableau.stages == len(tableau.dense)
    assert [len(row) for row in tableau.a] == list(range(1, tableau.stages))
    np.testing.assert_allclose(stage_matrix(tableau).sum(axis=1), tableau.c, rtol=0, atol=2e-14)
    assert TABLEAUS[tableau.name] is tableau


@pytest.mark.parametrize("tableau", PAIRS, ids=lambda tableau: tableau.name)
def test_last_stage_is_the_next_first_stage(tableau):
    assert tableau.fsal
    assert (*tableau.a[-1], 0.0) == tableau.b
    assert tableau.c[-1] == 1.0


def test_they_are_read_by_path_without_torch(monkeypatch):
    """As a build does, which has neither the package nor torch."""
    monkeypatch.setitem(sys.modules, "torch", None)
    read = runpy.run_path(tableaus.__file__)["TABLEAUS"]
    assert {name: vars(tableau) for name, tableau in read.items()} == {
        name: vars(tableau) for name, tableau in TABLEAUS.items()
    }
