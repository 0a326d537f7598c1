"""The kit's arithmetic: operations counted, quartiles, paired ratios, errors, cases and the order of rounds."""

import statistics

import numpy as np
import pytest

from benchmarks.cases import SELECTIONS, SHAPES, Case, matching, solve
from benchmarks.flops import field_flops, product_flops
from benchmarks.measure import Limits
from benchmarks.spread import Error, Quartiles, paired_ratio, rotated


def test_operations_of_a_field_are_four_per_weight_and_sample():
    assert field_flops(64, 2, (128,) * 3) == 4 * 64 * (2 * 128 + 2 * 128 * 128)
    assert field_flops(8192, 64, (256,) * 3) == 4 * 8192 * (64 * 256 + 2 * 256**2)
    assert field_flops(1, 3, (5, 7)) == 4 * (15 + 35)
    assert product_flops(2048) == 2 * 2048**3


def test_quartiles():
    assert Quartiles.of([4.0, 1.0, 3.0, 2.0, 5.0]) == Quartiles(3.0, 2.0, 4.0)
    values = list(np.random.default_rng(0).random(11))
    quartiles = Quartiles.of(values)
    np.testing.assert_allclose([quartiles.low, quartiles.high], np.quantile(values, [0.25, 0.75]))
    assert quartiles.median == statistics.median(values)


def test_a_ratio_is_paired_by_round():
    # In the last two rounds the machine was ten times slower: for both.
    ours, peers = [1.0, 1.0, 1.0, 10.0, 10.0], [3.0, 3.0, 3.0, 30.0, 30.0]
    assert paired_ratio(peers, ours) == Quartiles(3.0, 3.0, 3.0)
    # The median of ratios is not the ratio of medians.
    assert paired_ratio([2.0, 2.0, 8.0], [1.0, 4.0, 4.0]).median == 2.0
    with pytest.raises(ValueError, match="argument 2 is"):
        paired_ratio([1.0, 2.0], [1.0])


def test_an_error_compares_the_rows_of_the_reference():
    reference = np.zeros((2, 2))
    x = np.array([[3.0, 4.0], [0.0, 0.0], [1e9, 1e9]])
    error = Error.of(x, reference)
    assert error.largest == pytest.approx(np.sqrt(12.5))
    assert error.median == pytest.approx(np.sqrt(12.5) / 2)
    assert error.rms == pytest.approx(np.sqrt(12.5 / 2))
    assert np.isnan(Error.of(np.full((2, 2), np.nan), reference).rms)


def test_rounds_start_with_another_arm_each():
    names = ["a", "b", "c"]
    assert [rotated(names, i)[0] for i in range(4)] == ["a", "b", "c", "a"]
    assert all(sorted(rotated(names, i)) == names for i in range(4))
    assert rotated([], 3) == []


def test_fewer_than_five_rounds_are_refused():
    with pytest.raises(ValueError, match="at least 5"):
        Limits(rounds=4)


def test_every_selection_has_cases_and_no_case_twice():
    for name, select in SELECTIONS.items():
        cases = select(2)
        assert cases, name
        assert len(set(cases)) == len(cases), name
        assert len({case.name for case in cases}) == len(cases), name


def test_the_full_selection_has_every_axis():
    cases = [case for case in SELECTIONS["full"](2) if case.job == "solve" and case.workload == "random"]
    assert {case.n for case in cases} == {1, 64, 1024, 8192, 65_536}
    assert {(case.dimension, case.widths) for case in cases} == set(SHAPES)
    assert {case.rtol for case in cases} == {1e-3, 1e-5}
    assert {case.threads for case in cases} == {1, 2}
    assert len(cases) == 60


def test_cases_are_chosen_by_words():
    cases = [solve("random", n, 2, 1e-5) for n in (1, 16, 1024)]
    assert [case.n for case in matching(cases, ["n1"])] == [1]
    assert [case.n for case in matching(cases, ["d2 128x3", "2t"])] == [1, 16, 1024]
    assert matching(cases, ["stiff5"]) == []
    assert Case("field", "random", 3, (5, 7), 1, 1).shape == "d3 5-7"
