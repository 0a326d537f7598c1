"""Sliced Wasserstein distance against POT, scipy and closed forms."""

import math

import ot
import pytest
import torch
from scipy.stats import wasserstein_distance

from vapo_fast import data
from vapo_fast.metrics import sliced_wasserstein, sliced_wasserstein_floor, wasserstein


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("p", [1, 2, 3.5])
@pytest.mark.parametrize(("n", "m"), [(60, 60), (60, 45), (7, 64), (1, 20)])
def test_equals_pot_on_the_same_directions(n, m, p):
    a, b = normal(n, 5), 1.3 * normal(m, 5, seed=1) + 0.2
    directions = wasserstein._directions(5, 40, 3)
    expected = ot.sliced_wasserstein_distance(a.numpy(), b.numpy(), p=p, projections=directions.T.numpy())
    assert sliced_wasserstein(a, b, n_projections=40, seed=3, p=p) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(50, 50), (12, 31), (31, 12)])
def test_one_dimension_is_exact(n, m):
    a, b = normal(n, 1), normal(m, 1, seed=1) + 0.5
    expected = wasserstein_distance(a[:, 0].numpy(), b[:, 0].numpy())
    assert sliced_wasserstein(a, b, p=1) == pytest.approx(expected, rel=1e-12)


def test_translation_has_a_closed_form():
    """Moving every point by c costs |c . direction|, whose mean square over the sphere is |c|^2 / D."""
    a = normal(200, 3)
    shift = torch.tensor([1.0, -2.0, 2.0])
    found = sliced_wasserstein(a, a + shift, n_projections=20_000)
    assert found == pytest.approx(3 / math.sqrt(3), rel=0.02)


def test_coupling_of_unequal_sizes_moves_all_the_mass():
    for n, m in ((3, 5), (4, 6), (1, 7), (8, 8), (1000, 7)):
        rows_a, rows_b, mass = wasserstein._coupling(n, m)
        assert torch.allclose(torch.zeros(n).double().index_add(0, rows_a, mass), torch.full((n,), 1 / n).double())
        assert torch.allclose(torch.zeros(m).double().index_add(0, rows_b, mass), torch.full((m,), 1 / m).double())
        assert (rows_a.diff() >= 0).all()
        assert (rows_b.diff() >= 0).all()


def test_zero_symmetric_and_duplicates_change_nothing():
    a, b = normal(40, 2, 3), normal(30, 2, 3, seed=1)
    assert sliced_wasserstein(a, a[torch.randperm(40)]) == pytest.approx(0, abs=1e-12)
    assert sliced_wasserstein(a, b) == pytest.approx(sliced_wasserstein(b, a), rel=1e-12)
    assert sliced_wasserstein(a.repeat(3, 1, 1), b.repeat(2, 1, 1)) == pytest.approx(sliced_wasserstein(a, b), rel=1e-9)
    assert sliced_wasserstein(a, b) == sliced_wasserstein(a.flatten(1), b.flatten(1))


def test_directions_are_unit_and_seeded():
    directions = wasserstein._directions(3, 5_000, 0)
    assert torch.allclose(directions.norm(dim=1), torch.ones(5_000).double())
    assert torch.allclose(directions.T @ directions / 5_000, torch.eye(3).double() / 3, atol=0.02)
    assert torch.equal(directions[:10], wasserstein._directions(3, 10, 0))
    assert not torch.equal(directions[:10], wasserstein._directions(3, 10, 1))


def test_chunks_of_directions_change_nothing(monkeypatch):
    a, b = normal(50, 3), normal(40, 3, seed=1)
    whole = sliced_wasserstein(a, b, n_projections=33)
    monkeypatch.setattr(wasserstein, "_CHUNK", 1_000)
    assert sliced_wasserstein(a, b, n_projections=33) == pytest.approx(whole, rel=1e-12)


def test_single_precision_is_close_to_double():
    a, b = normal(500, 2), normal(500, 2, seed=1)
    assert sliced_wasserstein(a.float(), b.float()) == pytest.approx(sliced_wasserstein(a, b), rel=1e-4)


def test_floor_shrinks_with_size_and_tells_real_from_wrong():
    real = data.load("checkerboard", n=20_000).tensor()
    small, large = (sliced_wasserstein_floor(real, n, trials=4, n_projections=64) for n in (200, 2_000))
    assert 2 < small / large < 5
    other = data.load("2moons", n=2_000).tensor()
    assert sliced_wasserstein(other, real[:2_000], n_projections=64) > 10 * large
    again = data.load("checkerboard", n=2_000, seed=9).tensor()
    assert sliced_wasserstein(again, real[:2_000], n_projections=64) < 1.6 * large


def test_floor_is_the_mean_over_disjoint_pairs():
    real = normal(40, 2)
    order = wasserstein.noise.permutation(7, 40, 0)
    pairs = [
        sliced_wasserstein(real[order[20 * i : 20 * i + 8]], real[order[20 * i + 8 : 20 * i + 20]], seed=7)
        for i in range(2)
    ]
    found = sliced_wasserstein_floor(real, 8, trials=2, n_reference=12, seed=7)
    assert found == pytest.approx(sum(pairs) / 2, rel=1e-12)
    with pytest.raises(ValueError, match=r"real must have at least n \+ n_reference = 42 events to split, got 40"):
        sliced_wasserstein_floor(real, 21)


def test_bad_inputs():
    a = normal(5, 2)
    with pytest.raises(ValueError, match="b must have shape"):
        sliced_wasserstein(a, torch.ones(3))
    with pytest.raises(ValueError, match=r"p must be >= 1, got 0.5"):
        sliced_wasserstein(a, a, p=0.5)
    with pytest.raises(ValueError, match="n_projections must be a positive integer, got 0"):
        sliced_wasserstein(a, a, n_projections=0)
