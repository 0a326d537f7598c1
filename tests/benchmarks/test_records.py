"""The results file, the targets and the report: from rows made by hand."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import records, report
from benchmarks.cases import SHAPES, Case, solve
from benchmarks.measure import PRODUCT, CaseResult, Error, Measured
from benchmarks.peers.base import Outcome
from benchmarks.records import Record
from benchmarks.targets import TARGETS, Target, findings


def measured(arm: str, peer: bool, seconds: float, error: float | None = None, flops: int | None = None) -> Measured:
    outcome = Outcome(evaluations=np.array([50, 62]), field_share=0.75)
    rounds = [seconds * scale for scale in (1.0, 1.1, 0.9, 1.0, 1.2)]
    spread = None if error is None else Error(error, error / 2, 3 * error)
    return Measured(arm, peer, f"{arm} 1.0", rounds, 3, 0.5, 1.9, outcome, spread, flops)


def row(case: Case, arm: str, peer: bool, ms: float, run: str = "2026-01-01T00:00:00Z", **more: object) -> Record:
    result = CaseResult(case, {"native": measured("native", False, 1e-3), arm: measured(arm, peer, 1e-3 * ms, 1e-6)})
    chosen = next(one for one in records.records(result, run, "9 passed") if one.arm == arm)
    given = {"date": "2026-01-01", "commit": "abc1234", "machine": "m", "torch": "2.13.0", **more}
    return Record(**{**vars(chosen), **given})


CASE = solve("random", 64, 2, 1e-5)
KEY = ("solve", "random", 2, "128x3", 64, 1e-5, None, 2, "cpu")
FASTER = Target("solve", "random", 2, "128x3", 64, 3.0)


def test_rows_survive_the_file(tmp_path: Path):
    result = CaseResult(
        CASE, {"native": measured("native", False, 1e-3, 1e-6), "diffrax": measured("diffrax", True, 4e-3, 2e-6)}
    )
    path = tmp_path / "bench.csv"
    rows = records.records(result, "2026-01-01T00:00:00Z", "9 passed")
    records.write(rows, path)
    records.write(rows, path)
    back = records.load(path)
    assert len(back) == 4
    peer = back[1]
    assert (peer.arm, peer.peer, peer.n, peer.threads, peer.rtol, peer.steps) == ("diffrax", True, 64, 2, 1e-5, None)
    assert peer.ratio == pytest.approx(4.0)
    assert peer.median_ms == pytest.approx(4.0)
    assert peer.evaluations_mean == 56.0
    assert peer.error_max == pytest.approx(6e-6)
    assert back[0].ratio == 1.0
    assert all(one.date and one.commit and one.machine and one.torch and one.processor for one in back)
    assert path.read_text().splitlines()[0].startswith("date,commit,machine,threads,torch,run,job,workload,")


def test_a_row_that_cannot_be_read_is_named(tmp_path: Path):
    path = tmp_path / "bench.csv"
    records.write([row(CASE, "diffrax", True, 4.0)], path)
    path.write_text(path.read_text().replace("solve,random,2,", "solve,random,two,"))
    with pytest.raises(ValueError, match=r"bench\.csv, line 2"):
        records.load(path)


def test_a_share_is_of_the_products_rate():
    case = Case("field", "random", *SHAPES[0], 8192, 2)
    arms = {
        "native": measured("native", False, 1e-3, flops=10**8),
        PRODUCT: measured(PRODUCT, False, 1e-1, flops=2 * 10**10),
    }
    native, product = records.records(CaseResult(case, arms), "r", "")
    assert native.gflops == pytest.approx(100.0)
    assert product.gflops == pytest.approx(200.0)
    assert native.share == pytest.approx(0.5)
    assert product.share == pytest.approx(1.0)


def test_rows_of_two_runs_are_not_mixed():
    old = [row(CASE, "native", False, 1.0), row(CASE, "diffrax", True, 4.0)]
    new = [row(CASE, "diffrax", True, 9.0, run="2026-01-02T00:00:00Z")]
    assert records.latest([*old, *new])[KEY] == old  # the newer run lacks native
    newer = [row(CASE, "native", False, 2.0, run="2026-01-03T00:00:00Z")]
    assert records.latest([*old, *new, *newer])[KEY] == newer


def finding(target: Target = FASTER, **rows: Record):
    return findings({KEY: list(rows.values())}, 2, [target])[0]


def test_the_best_peer_is_the_fastest_one():
    native = row(CASE, "native", False, 1.0)
    found = finding(native=native, slow=row(CASE, "torchode", True, 9.0), fast=row(CASE, "diffrax", True, 3.5))
    assert (found.passed, found.against) == (True, "diffrax")
    assert found.ratio == pytest.approx(3.5)
    found = finding(native=native, fast=row(CASE, "diffrax", True, 2.5), ours=row(CASE, "reference", False, 1.5))
    assert (found.passed, found.against) == (False, "diffrax")
    named = Target("solve", "random", 2, "128x3", 64, 5.0, ("torchode",))
    found = finding(named, native=native, slow=row(CASE, "torchode", True, 9.0), fast=row(CASE, "diffrax", True, 2.5))
    assert (found.passed, found.against) == (True, "torchode")


def test_what_was_not_measured_is_neither_passed_nor_missed():
    assert finding(peer=row(CASE, "diffrax", True, 4.0)).passed is None
    assert finding(native=row(CASE, "native", False, 1.0)).passed is None
    assert findings({}, 2)[0].passed is None


def test_a_larger_error_than_the_peers_counts_at_equal_error():
    native = row(CASE, "native", False, 1.0, error_rms=4e-6)
    peer = row(CASE, "diffrax", True, 4.0, error_rms=1e-6)
    found = finding(native=native, peer=peer)
    assert (found.passed, found.equal_error) == (False, None)  # nothing says what the peer's error would take
    tighter = row(CASE, "native tol/10", False, 1.21, error_rms=2.5e-7)
    found = finding(native=native, peer=peer, tighter=tighter)
    # The peer's error lies half way, in logarithms.
    assert found.equal_error == pytest.approx(4.0 / 1.1)
    assert found.ratio == pytest.approx(4.0)
    assert found.passed is True
    slower = row(CASE, "native tol/10", False, 2.25, error_rms=2.5e-7)
    found = finding(native=native, peer=peer, tighter=slower)
    assert (found.passed, found.equal_error) == (False, pytest.approx(4.0 / 1.5))
    failed = finding(native=row(CASE, "native", False, 1.0, failed=1, error_rms=1e-9), peer=peer)
    assert failed.passed is False


def test_a_smaller_error_than_the_peers_is_worth_a_looser_tolerance():
    native = row(CASE, "native", False, 1.0, error_rms=1e-6)
    peer = row(CASE, "diffrax", True, 2.0, error_rms=1e-4)
    looser = row(CASE, "native tol*10", False, 0.64, error_rms=1e-4)
    found = finding(native=native, peer=peer, looser=looser)
    assert found.ratio == pytest.approx(2.0)
    assert found.equal_error == pytest.approx(2.0 / 0.64)
    assert found.passed is False  # the target is one of equal tolerance


def test_the_report_says_what_the_file_says(tmp_path: Path):
    rows = []
    for rtol in (1e-3, 1e-5):
        case = solve("random", 64, 2, rtol)
        rows += [row(case, "native", False, 1.0), row(case, "diffrax", True, 4.0), row(case, "scipy", True, 40.0)]
    page, readme = tmp_path / "docs" / "benchmarks.md", tmp_path / "README.md"
    page.parent.mkdir()
    for path in (page, readme):
        path.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    written = report.write(rows, page, readme)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| d 2, 128×3, n 64 " in text
    assert "4.00×" in text
    assert "pass" in text
    assert "not measured" in text  # the other targets
    assert "abc1234" in text
    assert "40.00 (40.00 – 40.00)" in text
    assert "4.00×" in readme.read_text()
    (plot,) = [path for path in written if path.suffix == ".svg"]
    assert plot.name in text
    assert plot.stat().st_size < 200_000
    before = text, plot.read_bytes()
    report.write(rows, page, readme)
    assert (page.read_text(), plot.read_bytes()) == before


def test_a_page_without_markers_is_refused(tmp_path: Path):
    page = tmp_path / "benchmarks.md"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="must hold the lines"):
        report.write([row(CASE, "native", False, 1.0)], page, None)
    assert page.read_text() == "nothing"


def test_every_target_has_a_case_that_the_table_measures():
    from benchmarks.cases import SELECTIONS

    cases = {(c.job, c.workload, c.dimension, records.hidden_name(c), c.n) for c in SELECTIONS["table"](2)}
    wanted = {(t.job, t.workload, t.dimension, t.hidden, t.n) for t in TARGETS}
    assert wanted <= cases


def test_a_time_to_an_error_lies_on_the_line():
    from benchmarks.curves import curves, time_at_error

    points = [(1e-3, 1.0, 1e-2), (1e-5, 100.0, 1e-6)]
    rows = [row(solve("random", 64, 2, rtol), "diffrax", True, ms, error_rms=error) for rtol, ms, error in points]
    (curve,) = curves(rows[::-1])
    assert [one.rtol for one in curve.arms["diffrax"]] == [1e-3, 1e-5]
    line = curve.points("diffrax")
    assert time_at_error(line, 1e-4) == pytest.approx(10.0)
    assert time_at_error(line, 1e-6) == pytest.approx(100.0)
    assert time_at_error(line, 0.1) == pytest.approx(1.0)  # the loosest does it already
    assert time_at_error(line, 1e-7) is None
    assert curve.points("native") == []
    assert time_at_error([], 1e-4) is None


def test_a_curve_is_of_one_run():
    from benchmarks.curves import curves

    one = [row(solve("random", 64, 2, rtol), "native", False, 1.0) for rtol in (1e-3, 1e-5)]
    later = [row(solve("random", 64, 2, 1e-5), "native", False, 2.0, run="2026-01-02T00:00:00Z")]
    (curve,) = curves([*one, *later])
    assert curve.rows == one
    assert curves(later) == []
