"""The comparison of the graph engine's loops, as far as it shows without a device: rows, agreement, table, verdict."""

import dataclasses
import warnings
from pathlib import Path

import pytest
import torch

import vapo_fast as vf
from benchmarks import __main__ as command
from benchmarks import graph_loops, graph_loops_table, provenance, report
from benchmarks.graph_loops import CASES, Case
from benchmarks.workloads import random_potential
from vapo_fast.engines import GraphEngine
from vapo_fast.engines.graph import capture
from vapo_fast.engines.graph.engine import LOOPS

TINY = Case("tiny", lambda cache: random_potential(2, (8, 8)), 5, 1e-3)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def with_case(case: Case) -> tuple[int, list[dict[str, str]]]:
        monkeypatch.setattr(graph_loops, "CASES", (case,))
        path = tmp_path / "graph_loops.csv"
        path.unlink(missing_ok=True)
        arguments = ["--device", "cpu", "--rounds", "3", "--csv", str(path), "--cache", str(tmp_path)]
        return command.main(["graph-loops", *arguments]), graph_loops.load(path)

    return with_case


def test_rows_of_a_run(run):
    """On the CPU both loops are the same steps from Python, so everything but the device is there."""
    code, rows = run(TINY)
    assert code == 0
    assert [row["loop"] for row in rows] == list(LOOPS)
    for row in rows:
        assert (row["case"], row["n"], row["rtol"], row["device"]) == ("tiny", "5", "0.001", "cpu")
        assert (row["bits"], row["agrees"], row["difference"], row["reason"]) == ("True", "True", "0", "")
        assert 0.0 < float(row["low_ms"]) <= float(row["median_ms"]) <= float(row["high_ms"])
        assert int(row["steps"]) > 1
        assert row["launches"] == "0"
    assert rows[0]["run"] == rows[1]["run"]
    assert list(rows[0]) == [*provenance.COLUMNS, *graph_loops.COLUMNS]


def spoiled(monkeypatch: pytest.MonkeyPatch, spoil) -> None:
    solve = GraphEngine.solve

    def other(self, *arguments, **more):
        solution = solve(self, *arguments, **more)
        return spoil(solution) if self._loop == "while" else solution

    monkeypatch.setattr(GraphEngine, "solve", other)


@pytest.mark.parametrize(
    ("n", "change", "code", "agrees"),
    [
        (16, 1e-7, 1, "False"),  # where nothing shrinks, every bit counts
        (40, 1e-7, 0, "True"),
        (40, 1e-1, 1, "False"),
    ],
)
def test_results_that_differ(run, monkeypatch: pytest.MonkeyPatch, capsys, n, change, code, agrees):
    spoiled(monkeypatch, lambda solution: dataclasses.replace(solution, x=solution.x * (1.0 + change)))
    got, rows = run(dataclasses.replace(TINY, n=n))
    assert (got, {row["agrees"] for row in rows}, {row["bits"] for row in rows}) == (code, {agrees}, {"False"})
    assert ("error: the loops' results differ: tiny" in capsys.readouterr().out) == bool(code)


def test_samples_that_end_otherwise_are_a_difference(run, monkeypatch: pytest.MonkeyPatch):
    def failed(solution: vf.Solution) -> vf.Solution:
        status = solution.status.clone()
        status[0] = int(vf.Status.MAX_STEPS)
        return dataclasses.replace(solution, status=status)

    spoiled(monkeypatch, failed)
    code, rows = run(dataclasses.replace(TINY, n=40))
    assert (code, rows[0]["agrees"], rows[0]["difference"]) == (1, "False", "0")


def test_a_loop_that_cannot_be_had_is_a_reason(run, monkeypatch: pytest.MonkeyPatch):
    def warned(solution: vf.Solution) -> vf.Solution:
        warnings.warn("steps are launched one by one, since the device cannot repeat them: too old", stacklevel=2)
        return solution

    spoiled(monkeypatch, warned)
    code, rows = run(TINY)
    assert code == 0
    assert (rows[0]["reason"], rows[0]["agrees"]) == ("", "")
    assert rows[0]["median_ms"]
    assert "too old" in rows[1]["reason"]
    assert rows[1]["median_ms"] == ""
    assert graph_loops_table.faster(rows) == "replay"
    text = "\n".join(graph_loops_table.section(rows))
    assert "Not to be had: steps are launched one by one" in text


def test_launches_are_counted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(capture, "replay", lambda replays, monitor=None: (0, 7))
    before = capture.replay
    with graph_loops.launches() as seen:
        assert capture.replay(None, None) == (0, 7)
        capture.replay(None)
    assert seen == [7, 7]
    assert capture.replay is before


def test_cases_name_what_must_be_seen():
    assert any(case.compacts and "stiff" in case.title for case in CASES)
    assert any(case.compacts for case in CASES if "U-Net" in case.title)
    assert any(not case.compacts for case in CASES if "U-Net" in case.title)
    assert any(not case.compacts for case in CASES if "MLP" in case.title)
    assert not Case("", CASES[0].build, 16, 1e-3).compacts
    assert Case("", CASES[0].build, 17, 1e-3).compacts


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert command.main(["graph-loops", "--csv", str(tmp_path / "none.csv")]) == 1
    assert "no CUDA device" in capsys.readouterr().out
    assert graph_loops.load(tmp_path / "none.csv") == []


def row(loop: str, milliseconds: float | None, case: str = "MLP", run: str = "2", **more: str) -> dict[str, str]:
    names = (*provenance.COLUMNS, *graph_loops.COLUMNS)
    times = {} if milliseconds is None else dict.fromkeys(("median_ms", "low_ms", "high_ms"), f"{milliseconds}")
    known = {"case": case, "n": "16", "rtol": "1e-05", "precision": "float32", "steps": "40", "rounds": "9"}
    agreement = {"agrees": "True", "bits": "True", "difference": "0", "launches": "3"}
    return dict.fromkeys(names, "") | known | agreement | {"run": run, "loop": loop} | times | more


@pytest.mark.parametrize(
    ("pairs", "kept"),
    [
        ([], "replay"),
        ([(1.1, 1.0)], "while"),
        ([(1.01, 1.0)], "replay"),  # between equals, what is simpler
        ([(1.5, 1.0), (0.9, 1.0)], "while"),
        ([(1.2, 1.0), (0.8, 1.0)], "replay"),
        ([(2.0, 1.0), (1.0, None)], "replay"),
    ],
)
def test_the_faster_loop_is_kept(pairs, kept):
    rows = [
        row(loop, one, f"case {i}")
        for i, pair in enumerate(pairs)
        for loop, one in zip(("replay", "while"), pair, strict=True)
    ]
    assert graph_loops_table.faster(rows) == kept


def test_results_that_disagree_are_not_fast():
    rows = [row("replay", 2.0, agrees="False"), row("while", 1.0, agrees="False")]
    assert graph_loops_table.faster(rows) == "replay"


def test_the_newest_run_of_a_case_counts():
    rows = [row("replay", 9.0, run="1"), row("while", 1.0, run="1"), row("replay", 1.0), row("while", 2.0)]
    assert graph_loops_table.faster(rows) == "replay"
    # A run that ended before its second row is no pair.
    assert graph_loops_table.faster([*rows, row("replay", 9.0, run="3")]) == "replay"
    (pair,) = graph_loops_table.latest([*rows, row("replay", 9.0, run="3")])
    assert list(pair) == ["replay"]


def test_the_page_has_a_table_if_there_are_rows(tmp_path: Path):
    assert graph_loops_table.section([]) == []
    assert "recorded step" not in report.docs_text(report.Results([]))
    rows = [row("replay", 3.0, accelerator="H100"), row("while", 2.5, accelerator="H100", launches="1")]
    text = report.docs_text(report.Results([], graph_loops=rows))
    assert "## Who repeats a recorded step" in text
    assert "| MLP | 16 | 1e-05 | float32 | 40 | 3 (3 – 3) | 2.5 (2.5 – 2.5) | 1.200 | 3 / 1 | same bits |" in text
    assert "By these rows, the WHILE node is to be kept" in text
    assert "H100" in text


def test_the_default_is_what_was_measured_to_be_faster():
    assert LOOPS[0] == graph_loops_table.faster(graph_loops.load())
