"""The results file, the targets and the report: from rows made by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import pages, provenance, records, report, tables
from benchmarks.cases import SHAPES, Case, solve
from benchmarks.flops import field_flops
from benchmarks.limits import limits
from benchmarks.measure import CaseResult, Measured
from benchmarks.peers.base import Outcome
from benchmarks.peers.machine import PEAK, PRODUCT
from benchmarks.records import LeftOut, Record, Run, beside
from benchmarks.spread import Error
from benchmarks.studies import kernels
from benchmarks.studies.kernels import KernelRate
from benchmarks.targets import TARGETS, Target, cases_of_targets, findings
from vapo_fast.core import extension


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
KEY = ("solve", "random", 2, "128x3", 64, 1e-5, None, 2, "cpu", "", "")
FASTER = Target("solve", "random", 2, "128x3", 64, 3.0, rtol=1e-5)


def test_rows_survive_the_file(tmp_path: Path):
    result = CaseResult(
        CASE, {"native": measured("native", False, 1e-3, 1e-6), "diffrax": measured("diffrax", True, 4e-3, 2e-6)}
    )
    path = tmp_path / "bench.csv"
    rows = records.records(result, "2026-01-01T00:00:00Z", "9 passed")
    provenance.write(rows, path)
    provenance.write(rows, path)
    back = provenance.read(path, Record)
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
    provenance.write([row(CASE, "diffrax", True, 4.0)], path)
    path.write_text(path.read_text().replace("solve,random,2,", "solve,random,two,"))
    with pytest.raises(ValueError, match=r"bench\.csv, line 2"):
        provenance.read(path, Record)


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
    named = Target("solve", "random", 2, "128x3", 64, 5.0, ("torchode",), rtol=1e-5)
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
        begin, end = pages.marks("benchmarks")
        path.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    written = report.write(report.Results(rows), page, readme)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| d 2, 128×3, n 64 " in text
    assert "4.00×" in text
    assert "pass" in text
    assert "not measured" in text  # the other targets
    assert "abc1234" in text
    everything = page.with_name(report.TABLES).read_text()
    assert "40.00 (40.00 – 40.00)" in everything
    assert "4.00×" in readme.read_text()
    (plot,) = [path for path in written if path.suffix == ".svg"]
    assert plot.name in text
    assert plot.stat().st_size < 200_000
    before = text, everything, plot.read_bytes()
    report.write(report.Results(rows), page, readme)
    assert (page.read_text(), page.with_name(report.TABLES).read_text(), plot.read_bytes()) == before


def test_every_target_has_a_case_that_the_table_measures():
    from benchmarks.cases import SELECTIONS

    cases = {(c.job, c.workload, c.dimension, c.hidden, c.n) for c in SELECTIONS["table"](2)}
    wanted = {(t.job, t.workload, t.dimension, t.hidden, t.n) for t in TARGETS}
    assert wanted <= cases


def test_a_time_to_an_error_lies_on_the_line():
    from benchmarks.studies.curves import curves, time_at_error

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
    from benchmarks.studies.curves import curves

    one = [row(solve("random", 64, 2, rtol), "native", False, 1.0) for rtol in (1e-3, 1e-5)]
    later = [row(solve("random", 64, 2, 1e-5), "native", False, 2.0, run="2026-01-02T00:00:00Z")]
    (curve,) = curves([*one, *later])
    assert curve.rows == one
    assert curves(later) == []


LATER, LATEST = "2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z"
OTHER = solve("random", 1024, 2, 1e-5)
SLOWER = Target("solve", "random", 2, "128x3", 1024, 2.0, rtol=1e-5)


def of_run(run: str, *cases: Case, ms: float = 4.0) -> list[Record]:
    return [
        one for case in cases for one in (row(case, "native", False, 1.0, run), row(case, "diffrax", True, ms, run))
    ]


def test_targets_are_held_against_one_run_where_one_has_them_all():
    whole, part = of_run(LATER, CASE, OTHER), of_run(LATEST, CASE, ms=9.0)
    targets = [FASTER, SLOWER]
    held = cases_of_targets([*whole, *part], 2, targets)
    assert {one.run for rows in held.values() for one in rows} == {LATER}
    assert [found.ratio for found in findings(held, 2, targets)] == pytest.approx([4.0, 4.0])
    # A run that has a case, but not with our engine, is not whole.
    lacking = [one for one in of_run(LATEST, CASE, OTHER, ms=9.0) if one.case == KEY or one.arm != "native"]
    assert cases_of_targets([*whole, *lacking], 2, targets) == held
    # No run has both: each case's newest.
    mixed = cases_of_targets([*part, *of_run(LATER, OTHER)], 2, targets)
    assert [found.ratio for found in findings(mixed, 2, targets)] == pytest.approx([9.0, 4.0])
    assert cases_of_targets([], 2, targets) == {}


def test_the_report_says_whether_its_targets_are_of_one_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(report, "TARGETS", (FASTER, SLOWER))
    for rows, says in (
        (of_run(LATER, CASE, OTHER), f"measured in one run, {LATER}"),
        ([*of_run(LATEST, CASE), *of_run(LATER, OTHER)], "the rows in 2 of them"),
    ):
        for text in (report.docs_text(report.Results(rows)), report.readme_text(rows)):
            assert says in text


def test_limits_are_the_operations_over_the_peak():
    case = solve("random", 64, 2, 1e-5)
    operations = 64 * 56 * field_flops(1, 2, (128,) * 3)  # the mean of 50 and 62 evaluations
    arms = {
        "native": measured("native", False, 2e-3, 1e-6),
        "diffrax": measured("diffrax", True, 5e-3, 1e-5),
        # Half of the operations, in a quarter of our time: we reach half of the peak.
        PEAK: measured(PEAK, False, 5e-4, flops=operations // 2),
    }
    rows = records.records(CaseResult(case, arms), LATER, "")
    (limit,) = limits({KEY: rows}, 2, [FASTER])
    assert limit.operations == operations
    assert limit.peak_ms == pytest.approx(1.0)
    assert limit.share == pytest.approx(0.5)
    assert (limit.ratio, limit.possible) == (pytest.approx(2.5), pytest.approx(5.0))
    text = report.limits_text([limit])
    assert "| 56 " in text
    assert "50 % (50 – 50)" in text
    assert "5.00×" in text
    assert PEAK not in tables.case_text(rows)
    without = [one for one in rows if one.arm != PEAK]
    assert limits({KEY: without}, 2, [FASTER]) == []


def test_what_is_left_out_is_written_down_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = beside(tmp_path / "bench.csv", "left_out")
    assert path.name == "bench_left_out.csv"
    assert provenance.read(path, LeftOut) == []
    provenance.write([], path)
    assert not path.exists()
    reasons = {"scipy": "one run took 80 s, over the limit of 60 s", "torchode": "not installed"}
    provenance.write(records.left_out(CASE, LATER, reasons), path)
    back = provenance.read(path, LeftOut)
    assert [one.case for one in back] == [KEY, KEY]
    assert records.reasons_of(back, KEY, LATER) == reasons
    assert records.reasons_of(back, KEY, LATEST) == {}
    assert all(one.date and one.commit and one.machine for one in back)
    monkeypatch.setattr(report, "TARGETS", (FASTER,))
    said = "Left out: scipy (one run took 80 s, over the limit of 60 s); torchode (not installed)."
    for write in (report.docs_text, report.tables_text):
        assert said in " ".join(write(report.Results(of_run(LATER, CASE), back)).split())
        assert "Left out" not in write(report.Results(of_run(LATEST, CASE), back))


def test_kernels_survive_the_file_and_the_newest_run_is_shown(tmp_path: Path):
    path = tmp_path / "kernels.csv"
    old = KernelRate("2026-01-01T00:00:00Z", "avx2", "product", "128 to 128", 5, gflops=1.0, threads=1)
    new = [
        KernelRate(LATER, "avx2", PEAK, "", 5, 100.0, 99.0, 101.0, None, 1.0, 1.0, 1.0, threads=2),
        KernelRate(LATER, "avx2", "field", "d 2, 128×3", 5, 80.0, 79.0, 81.0, 1500.0, 0.8, 0.79, 0.81, threads=2),
    ]
    provenance.write([old, *new], path)
    back = provenance.read(path, KernelRate)
    assert [(one.kernel, one.gflops, one.ns, one.share) for one in back[1:]] == [
        (PEAK, 100.0, None, 1.0),
        ("field", 80.0, 1500.0, 0.8),
    ]
    text = report.tables_text(report.Results(of_run(LATER, CASE), kernels=back))
    assert "<h2>Kernels</h2>" in text
    assert "80 % (79 – 81)" in text
    assert "128 to 128" not in text


def test_a_run_and_its_seconds_are_written_down(tmp_path: Path):
    path = beside(tmp_path / "bench.csv", "runs")
    provenance.write([Run(LATER, "quick", "cpu", 8, 0, 12.5, 104.0, threads=1)], path)
    (back,) = provenance.read(path, Run)
    assert (back.selection, back.measured, back.left_out, back.seconds) == ("quick", 8, 0, 104.0)
    assert back.date
    assert back.commit


@pytest.mark.skipif(extension.unavailable_reason() is not None, reason="needs the native extension")
def test_every_kernel_is_measured_beside_the_multiply_adds():
    rates = kernels.measure(LATER, 1, rounds=5, round_seconds=1e-4)
    assert torch.get_num_threads() == 1
    for name in extension.instruction_sets():
        found = [(one.kernel, one.case) for one in rates if one.instruction_set == name]
        assert found[0] == (PEAK, "")
        assert {kind for kind, _ in found} >= {PEAK, "product", "SiLU and its derivative", "field"}
        assert len(set(found)) == len(found)
    for one in rates:
        assert (one.gflops is None) == (one.kernel == "SiLU and its derivative")
        assert one.ns is not None or one.kernel in (PEAK, "product", kernels.TORCH)
        assert one.share is None or one.share > 0.0
