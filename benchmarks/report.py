"""Tables and plots of the results file, and of nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.cases import JOBS, THREADS
from benchmarks.curves import ERRORS, Curve, curves, plot, time_at_error
from benchmarks.provenance import ROOT
from benchmarks.records import Record, latest
from benchmarks.targets import NATIVE, OF_EQUAL_ERROR, Finding, findings

DOCS = ROOT / "docs" / "benchmarks.md"
README = ROOT / "README.md"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"

Cases = Mapping[tuple[object, ...], Sequence[Record]]

_JOB_TITLES = {
    "solve": "Solves to a tolerance",
    "solve_fixed": "Solves with equal steps",
    "field": "The field alone",
    "loss": "Loss and all parameter gradients",
    "trainer": "Whole training steps",
}
_WORKLOAD_TITLES = {
    "random": "weights as drawn",
    "eight": "trained on eight Gaussians",
    "eight_static": "trained on eight Gaussians, without time",
    "digits": "trained on digits",
    "stiff5": "5 % of the samples need ten times the steps",
}


def write(rows: Sequence[Record], docs: Path = DOCS, readme: Path | None = README) -> list[Path]:
    """Write the tables between the markers of both pages and the plots beside the first; returns the files written.

    Raises: ValueError if a page lacks the markers.
    """
    cases, drawn = latest(rows), curves(rows)
    plots = [plot(curve, _curve_title(curve), docs.parent / "images" / curve.file_name) for curve in drawn]
    _replace(docs, docs_text(cases, drawn))
    if readme is not None:
        _replace(readme, readme_text(cases))
    return [docs, *plots, *([readme] if readme is not None else [])]


def docs_text(cases: Cases, drawn: Sequence[Curve] = ()) -> str:
    """Everything that docs/benchmarks.md has between its markers."""
    threads = _threads_of_targets(cases)
    everything = [row for rows in cases.values() for row in rows]
    parts = [_measured_where(everything), "", "## Targets", "", targets_text(findings(cases, threads)), ""]
    parts += [_measured_when(_target_rows(cases, threads))]
    if drawn:
        parts += ["", "## Error against time", "", *_CURVES_INTRODUCTION, ""]
        for curve in drawn:
            title = _curve_title(curve)
            parts += [f"![{title}](images/{curve.file_name})", "", f"**{title}**: milliseconds to an error", ""]
            parts += [_markdown(_times_to_errors(curve)), "", _measured_when(curve.rows), ""]
    for job in JOBS:
        chosen = {case: rows for case, rows in cases.items() if case[0] == job}
        if chosen:
            parts += ["", f"## {_JOB_TITLES[job]}", ""]
            parts += _job_text(chosen)
    return "\n".join(parts)


def readme_text(cases: Cases) -> str:
    """The table of targets, for the README."""
    threads = _threads_of_targets(cases)
    found = findings(cases, threads)
    if not any(finding.ratio is not None for finding in found):
        return "No run of the native engine is in `benchmarks/results/bench.csv` yet."
    rows = [["case", "compared with", "speed at equal tolerance", "at equal error"]]
    for finding in found:
        if finding.ratio is not None:
            ratio = _percent(finding) if finding.target.job == "field" else f"{finding.ratio:.2f}×"
            rows.append([finding.target.title, finding.against, ratio, _times(finding.equal_error)])
    measured = _target_rows(cases, threads)
    return "\n".join([_markdown(rows), "", _measured_where(measured), _measured_when(measured)])


def targets_text(found: Iterable[Finding]) -> str:
    """The table of targets."""
    rows = [["case", "target", "equal tolerance (quartiles)", "equal error", "against", "error, native / peer", ""]]
    for finding in found:
        target = finding.target
        share = target.job == "field"
        aim = f"≥ {100 * target.at_least:.0f} %" if share else f"≥ {target.at_least:g}×"
        if finding.ratio is None:
            rows.append([target.title, aim, "–", "–", "–", "–", finding.note])
            continue
        spread = f" ({finding.low:.2f} – {finding.high:.2f})" if finding.low and finding.high else ""
        measured = _percent(finding) if share else f"{finding.ratio:.2f}×{spread}"
        errors = "–" if finding.error is None else f"{_number(finding.error)} / {_number(finding.peer_error)}"
        verdict = "pass" if finding.passed else "**miss**"
        rows.append([target.title, aim, measured, _times(finding.equal_error), finding.against, errors, verdict])
    return _markdown(rows)


def case_text(rows: Sequence[Record]) -> str:
    """One case as a table."""
    job = rows[0].job if rows else ""
    return _markdown(_arm_rows(rows, job))


def _arm_rows(rows: Sequence[Record], job: str) -> list[list[str]]:
    columns = [*_COMMON, *_COLUMNS.get(job, ())]
    ordered = sorted(rows, key=lambda row: (row.arm != NATIVE, row.median_ms))
    return [[title for title, _ in columns], *([cell(row) for _, cell in columns] for row in ordered)]


def _time_per_evaluation(row: Record) -> str:
    return "–" if not row.evaluations_mean else _number(1e3 * row.median_ms / row.evaluations_mean)


def _own(row: Record) -> str:
    if row.field_share is None:
        return "–"
    estimated = "~" if row.field_how == "estimated" else ""
    return f"{estimated}{100 * (1 - row.field_share):.0f} %"


def _evaluations(row: Record) -> str:
    if row.evaluations_mean is None or row.evaluations_max is None:
        return "–"
    alike = row.evaluations_mean == row.evaluations_max
    return f"{row.evaluations_mean:.0f}" if alike else f"{row.evaluations_mean:.0f} (≤ {row.evaluations_max:.0f})"


def _ratio(row: Record) -> str:
    if row.ratio is None:
        return "–"
    return "1" if row.arm == NATIVE else f"{row.ratio:.2f} ({row.ratio_low:.2f} – {row.ratio_high:.2f})"


Column = tuple[str, Callable[[Record], str]]
_COMMON: tuple[Column, ...] = (
    ("arm", lambda row: row.arm),
    ("ms", lambda row: _number(row.median_ms)),
    ("quartiles", lambda row: f"{_number(row.low_ms)} – {_number(row.high_ms)}"),
    ("time / native's", _ratio),
)
_ERROR: Column = ("error", lambda row: _number(row.error_rms))
_WARM: Column = ("warm-up s", lambda row: f"{row.warmup_s:.2f}")
_SOLVE: tuple[Column, ...] = (
    ("evaluations", _evaluations),
    ("µs per mean evaluation", _time_per_evaluation),
    ("solver's own", _own),
    ("error rms", lambda row: _number(row.error_rms)),
    ("median", lambda row: _number(row.error_median)),
    ("largest", lambda row: _number(row.error_max)),
    ("failed", lambda row: str(row.failed)),
    _WARM,
)
_COLUMNS: dict[str, tuple[Column, ...]] = {
    "solve": _SOLVE,
    "solve_fixed": _SOLVE,
    "field": (
        ("GFLOP/s", lambda row: _number(row.gflops)),
        ("of the product's rate", lambda row: "–" if row.share is None else f"{100 * row.share:.0f} %"),
        _WARM,
    ),
    "loss": (_ERROR, _WARM),
    "trainer": (_WARM,),
}


def _job_text(cases: Cases) -> list[str]:
    parts = []
    for rows in sorted(cases.values(), key=lambda its: _order(its[0])):
        first = rows[0]
        how = "" if first.rtol is None else f", rtol = atol = {first.rtol:.0e}"
        how += "" if first.steps is None else f", {first.steps} steps of rk4"
        plural = "s" if first.threads > 1 else ""
        size = f"{first.n:,}".replace(",", " ")
        parts += [
            f"**{first.shape}, n {size}**: {_WORKLOAD_TITLES[first.workload]}{how}, {first.threads} thread{plural}",
            "",
            case_text([row for row in rows if row.arm not in OF_EQUAL_ERROR or row.arm == NATIVE]),
            "",
            _measured_when(rows),
            "",
        ]
    return parts


def _order(row: Record) -> tuple[object, ...]:
    return row.workload != "random", row.workload, row.dimension, row.threads, row.rtol or 0.0, row.n


def _measured_where(rows: Sequence[Record]) -> str:
    """The machine and the versions."""
    places = sorted({f"{row.processor} ({row.machine})" for row in rows})
    libraries = {name for row in rows for name in (f"torch {row.torch}", f"numpy {row.numpy}", f"Python {row.python}")}
    versions = ", ".join(sorted({row.version for row in rows} | libraries))
    return f"<sub>{'; '.join(places)}; {versions}.</sub>" if rows else ""


def _measured_when(rows: Sequence[Record]) -> str:
    """How often, when, and how busy the machine was."""
    loads = [row.load for row in rows if row.load is not None]
    busy = f"{min(loads):.1f} – {max(loads):.1f}" if loads else "unknown"
    rounds = ", ".join(str(count) for count in sorted({row.rounds for row in rows}))
    threads = ", ".join(str(count) for count in sorted({row.threads for row in rows}))
    when = ", ".join(sorted({f"{row.date} at commit {row.commit}" for row in rows}))
    return f"<sub>Threads: {threads}; rounds: {rounds}; load: {busy}; {when}.</sub>" if rows else ""


def _threads_of_targets(cases: Cases) -> int:
    """The larger number of threads that cases were measured with."""
    counts = [rows[0].threads for rows in cases.values()]
    return max(counts, default=max(THREADS))


def _target_rows(cases: Cases, threads: int) -> list[Record]:
    titles = {(f.target.job, f.target.workload, f.target.hidden, f.target.n) for f in findings(cases, threads)}
    return [
        row
        for rows in cases.values()
        for row in rows
        if (row.job, row.workload, row.hidden, row.n) in titles and row.threads == threads and row.rtol in (None, 1e-5)
    ]


_CURVES_INTRODUCTION = (
    "Each line is one arm from a loose to a tight tolerance, in one run; lower left is better. Solvers spend the same",
    "tolerance differently, so where errors differ this is the fair comparison. The tables read the times to an error",
    "off the lines (a power law between two tolerances; – where an arm does not get there); in brackets over native's.",
)


def _curve_title(curve: Curve) -> str:
    row = curve.first
    size = f"{row.n:,}".replace(",", " ")
    return f"{row.shape}, n {size}, {_WORKLOAD_TITLES[row.workload]}, threads: {row.threads}"


def _times_to_errors(curve: Curve) -> list[list[str]]:
    rows = [["arm", *(f"{error:.0e}" for error in ERRORS)]]
    ours = [time_at_error(curve.points(NATIVE), error) for error in ERRORS]
    for name in curve.arms:
        cells = [name]
        for error, our in zip(ERRORS, ours, strict=True):
            took = time_at_error(curve.points(name), error)
            ratio = "" if our is None or took is None or name == NATIVE else f" ({took / our:.2f})"
            cells.append(_number(took) + ratio)
        rows.append(cells)
    return rows


def _replace(page: Path, text: str) -> None:
    whole = page.read_text(encoding="utf-8") if page.exists() else ""
    if whole.count(BEGIN) != 1 or whole.count(END) != 1 or whole.index(BEGIN) > whole.index(END):
        raise ValueError(f"{page} must hold the lines {BEGIN} and {END}, once each, between which the tables go")
    before, rest = whole.split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n\n{text.strip()}\n\n{END}{after}", encoding="utf-8")


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    if value == 0.0:
        return "0"
    if not 1e-3 <= abs(value) < 1e5:
        return f"{value:.1e}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}×"


def _percent(finding: Finding) -> str:
    ratio, low, high = (100 * (value or 0.0) for value in (finding.ratio, finding.low, finding.high))
    return f"{ratio:.0f} % ({low:.0f} – {high:.0f})"
