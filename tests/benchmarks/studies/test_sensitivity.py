"""The sensitivity tables: which runs they need, what a run records, what is not repeated, and the page."""

import sys

import pytest

from benchmarks import pages, provenance
from benchmarks.studies import sensitivity
from benchmarks.studies.sensitivity import DEFAULT, VARIED, Factors


def test_every_table_moves_one_factor_and_holds_the_defaults():
    for factor, rows in VARIED.items():
        assert DEFAULT in rows
        for factors in rows:
            moved = [name for name in vars(DEFAULT) if getattr(factors, name) != getattr(DEFAULT, name)]
            assert moved in ([], [factor])
    assert len(sensitivity.cases()) == 1 + sum(len(rows) - 1 for rows in VARIED.values())
    assert {f.sigma for f in sensitivity.cases()} == {0.003, 0.01, 0.03, 0.1}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(sensitivity, "POINTS", 256)
    monkeypatch.setattr(sensitivity, "LIKELIHOOD_POINTS", 32)
    monkeypatch.setattr(sensitivity, "DIGITS_LIKELIHOOD_POINTS", 2)
    monkeypatch.setattr(sensitivity, "_points_floor", lambda: 0.1)
    monkeypatch.setattr(sensitivity, "DIGITS_CHANNELS", 4)
    monkeypatch.setattr(sensitivity, "MAX_STEPS", 60)


def run(tmp_path, monkeypatch, *arguments):
    (tmp_path / "s.md").write_text("\n".join(line for name in sensitivity.SETS for line in pages.marks(name)))
    monkeypatch.setattr(
        sys,
        "argv",
        ["sensitivity.py", *arguments, "--results", str(tmp_path / "s.csv"), "--docs", str(tmp_path / "s.md")],
    )
    sensitivity.main()


def test_runs_are_appended_once_and_make_the_page(tmp_path, monkeypatch, small, capsys):
    chosen = [DEFAULT, Factors(time_dependent=False), Factors(sigma=0.1, estimator="velocity")]
    monkeypatch.setattr(sensitivity, "cases", lambda: chosen)
    run(tmp_path, monkeypatch, "--steps", "5", "--seeds", "0", "1")
    rows = provenance.load(tmp_path / "s.csv")
    assert [(row["sigma"], row["time_dependent"], row["seed"]) for row in rows] == [
        (str(f.sigma), str(f.time_dependent), seed) for seed in "01" for f in chosen
    ]
    assert all(float(row["sw2"]) > 0 and 0 <= float(row["near"]) <= 1 for row in rows)
    assert [bool(row["nll_gap"]) for row in rows[:3]] == [True, False, True]
    before = (tmp_path / "s.csv").read_text()
    run(tmp_path, monkeypatch, "--steps", "5", "--seeds", "0", "1")
    assert (tmp_path / "s.csv").read_text() == before
    page = (tmp_path / "s.md").read_text()
    assert "| 0.01 (default) | 2 |" in page
    assert "| False | 2 |" in page
    assert pages.written(tmp_path / "s.md", "digits") == "Not run."
    capsys.readouterr()


def test_a_run_on_digits(monkeypatch, small):
    monkeypatch.setattr(sensitivity, "_digits_extractor", lambda: sensitivity.vf.metrics.PixelExtractor())
    row = sensitivity.run_digits(Factors(sigma=0.1), 2, 0)
    # The Fréchet distance is named after its extractor, here the pixels themselves.
    assert float(row["frechet"]) > float(row["frechet_floor"]) > 0
    assert 0 < float(row["bits_per_dim"]) < 10
    assert row["unfinished"] == 0.0


def test_a_run_that_diverges_is_recorded(small, monkeypatch):
    def fail(self, data, steps):
        raise ArithmeticError("step 3: the linear term is not finite. More.")

    monkeypatch.setattr(sensitivity.vf.Trainer, "fit", fail)
    assert sensitivity.run_points(DEFAULT, 5, 0) == {"failure": "step 3: the linear term is not finite"}


def test_spread_is_the_median_with_the_range():
    assert sensitivity.spread([1.0, None, 4.0, 2.0], ".1f") == "2.0 [1.0, 4.0]"
    assert sensitivity.spread([1.0, None], ".2f") == "1.00"
    assert sensitivity.spread([None], ".2f") == "–"
