"""Tables and plots of the results file, and of nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import image_tables
from benchmarks.cases import JOBS, THREADS
from benchmarks.curves import ERRORS, Curve, curves, plot, time_at_error
from benchmarks.kernels import KernelRate
from benchmarks.kernels import newest as newest_kernels
from benchmarks.left_out import LeftOut, of_run
from benchmarks.limits import Limit, limits
from benchmarks.measure import PEAK
from benchmarks.provenance import ROOT
from benchmarks.records import Record, latest
from benchmarks.roofline import Roof, newest
from benchmarks.targets import (
    GPU_TARGETS,
    MILLISECONDS,
    RATE,
    TARGETS,
    TERAFLOPS,
    Finding,
    Target,
    cases_of_targets,
    findings,
    of_equal_error,
)

DOCS = ROOT / "docs" / "benchmarks.md"
README = ROOT / "README.md"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"

Cases = Mapping[tuple[object, ...], Sequence[Record]]

_JOB_TITLES = {
    "solve": "Solves to a tolerance",
    "solve_fixed": "Solves with equal steps",
    "sample": "Samples, from the call to the result",
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


@dataclass(frozen=True)
class Results:
    """All that a page is made of: rows of the results files.

    Attributes:
        rows: measured arms. left_out: those that were not, with reasons. roofs, kernels: of single kernels, on a GPU
            and on the CPU. images: of images on a GPU, by case. images_left_out: what was not measured there.
    """

    rows: Sequence[Record]
    left_out: Sequence[LeftOut] = ()
    roofs: Sequence[Roof] = ()
    kernels: Sequence[KernelRate] = ()
    images: image_tables.Cases = field(default_factory=dict)
    images_left_out: Sequence[Mapping[str, str]] = ()


def write(results: Results, docs: Path = DOCS, readme: Path | None = README) -> list[Path]:
    """Write the tables between the markers of both pages and the plots beside the first; returns the files written.

    Raises: ValueError if a page lacks the markers.
    """
    drawn = curves(results.rows)
    plots = [plot(curve, _curve_title(curve), docs.parent / "images" / curve.file_name) for curve in drawn]
    _replace(docs, docs_text(results, drawn))
    if readme is not None:
        _replace(readme, readme_text(results.rows))
    return [docs, *plots, *([readme] if readme is not None else [])]


def docs_text(results: Results, drawn: Sequence[Curve] = ()) -> str:
    """Everything that docs/benchmarks.md has between its markers."""
    rows, cases = results.rows, latest(results.rows)
    threads = _threads_of_targets(cases)
    parts = [_measured_where(rows)]
    for title, targets in (("Targets", TARGETS), ("Targets on a GPU", GPU_TARGETS)):
        held = cases_of_targets(rows, threads, targets)
        if targets == TARGETS or held:
            parts += ["", f"## {title}", "", targets_text(findings(held, threads, targets)), ""]
            parts += [_measured_when(_flat(held)), _of_which_runs(_flat(held)), *_left_out_text(held, results.left_out)]
        within = limits(held, threads, targets)
        if within:
            parts += ["", "## Limits", "", *_LIMITS_INTRODUCTION, "", limits_text(within)]
    if results.images:
        parts += ["", *image_tables.section(results.images, results.images_left_out)]
    if results.kernels:
        parts += ["", "## Kernels", "", *_KERNELS_INTRODUCTION, "", kernels_text(results.kernels)]
    if results.roofs:
        parts += ["", "## Rooflines", "", *_ROOFLINE_INTRODUCTION, "", roofline_text(results.roofs)]
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
            parts += _job_text(chosen, results.left_out)
    return "\n".join(parts)


def readme_text(rows: Sequence[Record]) -> str:
    """The table of targets, for the README."""
    threads, parts = _threads_of_targets(latest(rows)), list[str]()
    for targets in (TARGETS, GPU_TARGETS):
        held = cases_of_targets(rows, threads, targets)
        found = [finding for finding in findings(held, threads, targets) if finding.ratio is not None]
        if not found:
            continue
        table = [["case", "compared with", "speed at equal tolerance", "at equal error"]]
        for finding in found:
            table.append([finding.target.title, _against(finding), _amount(finding), _times(finding.equal_error)])
        measured = _flat(held)
        parts += ["", _markdown(table), "", _measured_where(measured), _measured_when(measured)]
        parts += [_of_which_runs(measured)]
    return "\n".join(parts[1:]) or "No run of the native engine is in `benchmarks/results/bench.csv` yet."


def targets_text(found: Iterable[Finding]) -> str:
    """The table of targets."""
    rows = [["case", "target", "equal tolerance (quartiles)", "equal error", "against", "error, ours / peer", ""]]
    for finding in found:
        target = finding.target
        if finding.ratio is None:
            rows.append([target.title, _aim(target), "–", "–", "–", "–", finding.note])
            continue
        measured = _amount(finding)
        if not isinstance(target.against, str) and finding.low and finding.high:
            measured += f" ({finding.low:.2f} – {finding.high:.2f})"
        errors = "–" if finding.error is None else _number(finding.error)
        errors += f" / {_number(finding.peer_error)}" if finding.peer_error is not None else ""
        verdict = "pass" if finding.passed else "**miss**"
        equal = _times(finding.equal_error)
        rows.append([target.title, _aim(target), measured, equal, _against(finding), errors, verdict])
    return _markdown(rows)


def _aim(target: Target) -> str:
    if target.against == MILLISECONDS:
        return f"≤ {target.bound:g} ms"
    if target.against == TERAFLOPS:
        return f"≥ {target.bound:g} TFLOP/s"
    return f"≥ {100 * target.bound:.0f} %" if target.against == RATE else f"≥ {target.bound:g}×"


def _amount(finding: Finding) -> str:
    """What was measured, in the target's unit."""
    against, ratio = finding.target.against, finding.ratio or 0.0
    if against == RATE:
        return _percent(finding)
    if isinstance(against, str):
        return f"{_number(ratio)} {against} ({_number(finding.low)} – {_number(finding.high)})"
    return f"{ratio:.2f}×"


def _against(finding: Finding) -> str:
    if finding.target.against == RATE and finding.target.device != "cpu":
        return "cuBLAS float32, same shapes"
    return "–" if finding.target.against in (MILLISECONDS, TERAFLOPS) else finding.against


_ROOFLINE_INTRODUCTION = (
    "Operations and bytes of each kernel are counted from the shapes (`benchmarks/roofline.py` says how), the time is",
    "the kernel's own, without the launch. The roofs are measured in the same run: products of 8192×8192 matrices by",
    "cuBLAS, and copies of memory; split TF32 does three products for one.",
)


def roofline_text(roofs: Sequence[Roof]) -> str:
    """The newest run's table, and the roofs that it was held against."""
    last = newest(roofs)
    titles = ["kernel", "case", "precision", "ms", "TFLOP/s", "of its roof", "of float32's"]
    rows = [[*titles, "GB/s through L2", "of L2's"]]
    for row in last:
        rows.append(
            [
                row.kernel,
                row.case,
                row.precision or "–",
                _number(row.ms),
                _number(row.tflops),
                _share(row.share),
                _share(row.share_float32),
                _number(row.l2_gbs),
                _share(row.share_l2),
            ]
        )
    one = last[0]
    peaks = f"float32 {_number(one.float32_tflops)}, TF32 {_number(one.tf32_tflops)}, bf16 {_number(one.bf16_tflops)}"
    memory = f"L2 {_number(one.l2_peak_gbs)}, device memory {_number(one.memory_peak_gbs)}"
    where = f"{one.accelerator}, driver {one.driver}, torch {one.torch}, triton {one.triton}"
    when = f"{one.date} at commit {one.commit}"
    return "\n".join([_markdown(rows), "", f"<sub>Roofs: {peaks} TFLOP/s; {memory} GB/s. {where}; {when}.</sub>"])


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def case_text(rows: Sequence[Record]) -> str:
    """One case as a table."""
    job = rows[0].job if rows else ""
    return _markdown(_arm_rows(rows, job))


def _arm_rows(rows: Sequence[Record], job: str) -> list[list[str]]:
    columns = [*_COMMON, *_COLUMNS.get(job, ())]
    ordered = sorted((row for row in rows if row.arm != PEAK), key=lambda row: (row.arm != row.ours, row.median_ms))
    titles = [title.format(ours=rows[0].ours) if rows else title for title, _ in columns]
    return [titles, *([cell(row) for _, cell in columns] for row in ordered)]


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
    return "1" if row.arm == row.ours else f"{row.ratio:.2f} ({row.ratio_low:.2f} – {row.ratio_high:.2f})"


Column = tuple[str, Callable[[Record], str]]
_COMMON: tuple[Column, ...] = (
    ("arm", lambda row: row.arm),
    ("ms", lambda row: _number(row.median_ms)),
    ("quartiles", lambda row: f"{_number(row.low_ms)} – {_number(row.high_ms)}"),
    ("time / {ours}'s", _ratio),
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
    "sample": _SOLVE,
    "field": (
        ("GFLOP/s", lambda row: _number(row.gflops)),
        ("of the product's rate", lambda row: _share(row.share)),
        ("largest error", lambda row: _number(row.error_max)),
        _WARM,
    ),
    "loss": (_ERROR, _WARM),
    "trainer": (_WARM,),
}


def _job_text(cases: Cases, left_out: Sequence[LeftOut] = ()) -> list[str]:
    parts = []
    for rows in sorted(cases.values(), key=lambda its: _order(its[0])):
        missing = _left_out_of(rows[0].case, rows[0].run, left_out)
        parts += [
            f"**{_case_title(rows[0])}**",
            "",
            case_text([row for row in rows if row.arm == row.ours or row.arm not in of_equal_error(row.ours)]),
            "",
            _measured_when(rows),
            *([f"<sub>{missing}</sub>"] if missing else []),
            "",
        ]
    return parts


def _case_title(row: Record) -> str:
    how = "" if row.rtol is None else f", rtol = atol = {row.rtol:.0e}"
    how += "" if row.steps is None else f", {row.steps} steps of rk4"
    where = f"{row.threads} thread{'s' if row.threads > 1 else ''}" if row.device == "cpu" else "CUDA"
    size = f"{row.n:,}".replace(",", " ")
    return f"{row.shape}, n {size}, {_WORKLOAD_TITLES[row.workload]}{how}, {where}"


def _order(row: Record) -> tuple[object, ...]:
    order = row.workload != "random", row.workload, row.dimension, row.threads, row.rtol or 0.0, row.n
    return row.device != "cpu", *order


def _measured_where(rows: Sequence[Record]) -> str:
    """The machine and the versions."""
    places = sorted({f"{row.processor} ({row.machine})" for row in rows})
    places += sorted({f"{row.accelerator}, driver {row.driver}" for row in rows if row.accelerator})
    libraries = {name for row in rows for name in (f"torch {row.torch}", f"numpy {row.numpy}", f"Python {row.python}")}
    libraries |= {f"triton {row.triton}" for row in rows if row.triton}
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
    """The larger number of threads that the CPU's cases were measured with."""
    counts = [rows[0].threads for rows in cases.values() if rows[0].device == "cpu"]
    return max(counts, default=max(THREADS))


def _flat(cases: Cases) -> list[Record]:
    return [row for rows in cases.values() for row in rows]


def _of_which_runs(rows: Sequence[Record]) -> str:
    """Whether a table is of one run; the arms of one row of it always are."""
    runs = sorted({row.run for row in rows})
    if len(runs) == 1:
        return f"<sub>Everything in this table was measured in one run, {runs[0]}.</sub>"
    if not runs:
        return ""
    return (
        f"<sub>The arms of a row were measured in one run, the rows in {len(runs)} of them, because no run holds all "
        "of these cases: the machine was not equally fast in all rows.</sub>"
    )


def _left_out_text(cases: Cases, left_out: Sequence[LeftOut]) -> list[str]:
    """A line for each case that arms are missing from, with the reasons that its run wrote down."""
    lines = []
    for case, rows in cases.items():
        line = _left_out_of(case, rows[0].run, left_out)
        if line:
            lines.append(f"<sub>{_case_title(rows[0])}: {line}</sub>")
    return lines


def _left_out_of(case: tuple[object, ...], run: str, left_out: Sequence[LeftOut]) -> str:
    by_reason: dict[str, list[str]] = {}
    for arm, reason in of_run(left_out, case, run).items():
        by_reason.setdefault(reason, []).append(arm)
    told = "; ".join(f"{', '.join(arms)} ({reason})" for reason, arms in by_reason.items())
    return f"Left out: {told}." if told else ""


_LIMITS_INTRODUCTION = (
    "Operations are those of the matrix products of as many evaluations as our run made; the peak is the rate of",
    "multiply-adds between registers, in our widest kernels' instructions, on as many threads and in the same rounds",
    f'(the arm "{PEAK}"). The best possible ratio is the peer\'s time over that of the operations at the peak: no',
    "kernel with as many operations exceeds it. Solves at equal tolerance differ in evaluations, which this takes as",
    "they are.",
)


def limits_text(found: Sequence[Limit]) -> str:
    """The table of limits."""
    titles = ["case", "evaluations", "GFLOP", "at the peak, ms", "ours, ms", "share of the peak (quartiles)"]
    rows = [[*titles, "against", "ratio", "best possible"]]
    for one in found:
        rows.append(
            [
                one.target.title,
                _number(one.evaluations),
                _number(1e-9 * one.operations),
                _number(one.peak_ms),
                _number(one.ours_ms),
                f"{100 * one.share:.0f} % ({100 * one.share_low:.0f} – {100 * one.share_high:.0f})",
                one.against,
                _times(one.ratio),
                _times(one.possible),
            ]
        )
    return _markdown(rows)


_KERNELS_INTRODUCTION = (
    "Each kernel of the native engine on a tile that stays in the cache, float32, with what every instruction set of",
    "this processor makes of it (`python -m benchmarks kernels`). Shares are of the multiply-adds of the same",
    "instruction set, measured just before each time; a field's operations are those of its products alone.",
)


def kernels_text(rates: Sequence[KernelRate]) -> str:
    """The newest run's table."""
    last = newest_kernels(rates)
    rows = [["instructions", "threads", "kernel", "case", "GFLOP/s", "of the multiply-adds' (quartiles)", "ns"]]
    for row in last:
        share = "–"
        if row.share is not None and row.share_low is not None and row.share_high is not None:
            share = f"{100 * row.share:.0f} % ({100 * row.share_low:.0f} – {100 * row.share_high:.0f})"
        cells = [row.instruction_set, str(row.threads), row.kernel, row.case or "–", _number(row.gflops), share]
        rows.append([*cells, _number(row.ns)])
    first = last[0]
    loads = [row.load for row in last if row.load is not None]
    busy = f"; load: {min(loads):.1f} – {max(loads):.1f}" if loads else ""
    note = "ns: for each entry of an activation, or each sample of a field, on one thread."
    when = f"{first.processor}; rounds: {first.rounds}{busy}; {first.date} at commit {first.commit}"
    return "\n".join([_markdown(rows), "", f"<sub>{note} {when}.</sub>"])


_CURVES_INTRODUCTION = (
    "Each line is one arm from a loose to a tight tolerance, in one run; lower left is better. Solvers spend the same",
    "tolerance differently, so where errors differ this is the fair comparison. The tables read the times to an error",
    "off the lines (a power law between two tolerances; – where an arm does not get there); in brackets over our",
    "engine's.",
)


def _curve_title(curve: Curve) -> str:
    row = curve.first
    size = f"{row.n:,}".replace(",", " ")
    where = f"threads: {row.threads}" if row.device == "cpu" else "CUDA"
    return f"{row.shape}, n {size}, {_WORKLOAD_TITLES[row.workload]}, {where}"


def _times_to_errors(curve: Curve) -> list[list[str]]:
    rows = [["arm", *(f"{error:.0e}" for error in ERRORS)]]
    ours = [time_at_error(curve.points(curve.ours), error) for error in ERRORS]
    for name in curve.arms:
        cells = [name]
        for error, our in zip(ERRORS, ours, strict=True):
            took = time_at_error(curve.points(name), error)
            ratio = "" if our is None or took is None or name == curve.ours else f" ({took / our:.2f})"
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
