"""The benchmarks' pages: tables and plots of the results files, and of nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import pages, provenance
from benchmarks.cases import JOBS
from benchmarks.limits import Limit, limits
from benchmarks.pages import html_table, markdown, number, paragraph, spread, times
from benchmarks.peers.machine import PEAK
from benchmarks.provenance import ROOT
from benchmarks.records import CSV, LeftOut, Record, beside, latest
from benchmarks.studies import curves as error_against_time
from benchmarks.studies import kernels, roofline
from benchmarks.studies.curves import Curve, curves, plot
from benchmarks.studies.kernels import KernelRate
from benchmarks.studies.roofline import Roof
from benchmarks.tables import (
    JOB_TITLES,
    Cases,
    cases_html,
    flat,
    left_out_text,
    measured_when,
    measured_where,
    threads_of_targets,
)
from benchmarks.targets import (
    GPU_TARGETS,
    IMAGE_TARGETS,
    MILLISECONDS,
    RATE,
    TARGETS,
    TERAFLOPS,
    Finding,
    Target,
    cases_of_targets,
    findings,
)

DOCS = ROOT / "docs" / "benchmarks.md"
TABLES = "benchmark_tables.html"
README = ROOT / "README.md"


@dataclass(frozen=True)
class Results:
    """All that the pages are made of: rows of the results files.

    Attributes:
        rows: measured arms. left_out: those that were not, with reasons. roofs, kernels: of single kernels, on a GPU
            and on the CPU.
    """

    rows: Sequence[Record]
    left_out: Sequence[LeftOut] = ()
    roofs: Sequence[Roof] = ()
    kernels: Sequence[KernelRate] = ()

    @classmethod
    def load(cls, folder: Path = provenance.RESULTS) -> Results:
        """Of the files in a folder."""
        main = folder / CSV.name
        return cls(
            provenance.read(main, Record),
            provenance.read(beside(main, "left_out"), LeftOut),
            provenance.read(folder / "roofline.csv", Roof),
            provenance.read(folder / "kernels.csv", KernelRate),
        )

    @property
    def mlps(self) -> list[Record]:
        """Rows that are not of images."""
        return [row for row in self.rows if not row.peers]


def write(results: Results, docs: Path = DOCS, readme: Path | None = README) -> list[Path]:
    """Write both pages between their marks, and beside the first the plots and all tables; the files written.

    Raises: ValueError if a page lacks the marks.
    """
    drawn = curves(results.rows)
    pages.write(docs, {"benchmarks": docs_text(results, drawn)})
    plots = [plot(curve, docs.parent / "images" / curve.file_name) for curve in drawn]
    everything = docs.with_name(TABLES)
    everything.write_text(tables_text(results, drawn), encoding="utf-8")
    of_readme = [] if readme is None else [pages.write(readme, {"benchmarks": readme_text(results.mlps)})]
    return [docs, everything, *plots, *of_readme]


def docs_text(results: Results, drawn: Sequence[Curve] = ()) -> str:
    """Everything that docs/benchmarks.md has between its marks."""
    rows = results.mlps
    threads = threads_of_targets(latest(rows))
    parts = [measured_where(rows)]
    for title, targets in (("Targets", TARGETS), ("Targets on a GPU", GPU_TARGETS)):
        held = cases_of_targets(rows, threads, targets)
        if targets == TARGETS or held:
            parts += ["", f"## {title}", "", targets_text(findings(held, threads, targets)), "", measured_when(held)]
            parts += [*left_out_text(held, results.left_out)]
        within = limits(held, threads, targets)
        if within:
            parts += ["", "## Limits", "", *_LIMITS_INTRODUCTION, "", limits_text(within)]
    images = _of_images(results, "cuda")
    if images:
        parts += ["", "## Targets of images on a GPU", "", counts_text(findings(images, threads, IMAGE_TARGETS))]
    if drawn:
        parts += ["", "## Error against time", "", *error_against_time.page(drawn, TABLES)]
    return "\n".join(parts)


def readme_text(rows: Sequence[Record]) -> str:
    """The table of targets, for the README."""
    threads, parts = threads_of_targets(latest(rows)), list[str]()
    for targets in (TARGETS, GPU_TARGETS):
        held = cases_of_targets(rows, threads, targets)
        found = [finding for finding in findings(held, threads, targets) if finding.ratio is not None]
        if not found:
            continue
        table = [["case", "compared with", "speed at equal tolerance", "at equal error"]]
        for finding in found:
            table.append([finding.target.title, _against(finding), _amount(finding), times(finding.equal_error)])
        parts += ["", markdown(table), "", measured_where(flat(held)), measured_when(held)]
    return "\n".join(parts[1:]) or "No run of the native engine is in `benchmarks/results/bench.csv` yet."


def tables_text(results: Results, drawn: Sequence[Curve] = ()) -> str:
    """All tables, as a page of HTML whose cases open at a click."""
    parts = [_HTML_HEAD]
    images = _of_images(results, "cuda")
    if images:
        found = findings(images, 0, IMAGE_TARGETS)
        parts += ["<h2>Images on a GPU</h2>", paragraph(*_IMAGES_INTRODUCTION), html_table(_targets_table(found))]
        parts += [paragraph(counts_text(found)), *cases_html(images, results.left_out)]
    if results.kernels:
        parts += ["<h2>Kernels</h2>", *kernels.section(provenance.last_run(results.kernels))]
    if results.roofs:
        parts += ["<h2>Rooflines</h2>", *roofline.section(provenance.last_run(results.roofs))]
    if drawn:
        parts += ["<h2>Error against time</h2>", *error_against_time.section(drawn)]
    cases = latest(results.mlps)
    for job in JOBS:
        chosen = {case: rows for case, rows in cases.items() if case[0] == job}
        if chosen:
            parts += [f"<h2>{JOB_TITLES[job]}</h2>", *cases_html(chosen, results.left_out)]
    return "\n".join([*parts, "</html>", ""])


def _of_images(results: Results, device: str) -> Cases:
    return latest([row for row in results.rows if row.peers and row.device == device])


_IMAGES_INTRODUCTION = (
    "32×32 colours, networks of at least as many parameters as their names say, rtol = atol. Arms of a table took",
    "turns in one run; a target counts only where ours is as exact as the peer's, or within the tolerance. The error",
    "of sampling is the root mean square distance from a float64 solution at 1e-7; that of training steps is",
    "relative, of all gradients. Memory is the allocator's peak while an arm was made ready and run once, without the",
    "weights.",
)
_HTML_HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>vapo_fast: all tables of the benchmarks</title>
<style>
body { font: 14px sans-serif; margin: 2em; }
table { border-collapse: collapse; margin: .5em 0; }
td, th { border: 1px solid #ccc; padding: 1px 6px; text-align: left; }
details { margin: .4em 0; }
</style>
<h1>All tables of the benchmarks</h1>
<p>Written by <code>make bench-report</code> from <code>benchmarks/results/</code>; <code>docs/benchmarks.md</code>
has the rules and the targets. A case opens at a click.</p>"""


def targets_text(found: Iterable[Finding]) -> str:
    """The table of targets."""
    return markdown(_targets_table(found))


def _targets_table(found: Iterable[Finding]) -> list[list[str]]:
    rows = [["case", "target", "equal tolerance (quartiles)", "equal error", "against", "error, ours / peer", ""]]
    for finding in found:
        target = finding.target
        title = target.title + (f", {finding.n} images" if finding.n else "")
        if finding.ratio is None:
            if not target.of_images:
                rows.append([title, _aim(target), "–", "–", "–", "–", finding.note])
            continue
        measured = _amount(finding)
        if not isinstance(target.against, str) and finding.low and finding.high:
            measured += f" ({finding.low:.2f} – {finding.high:.2f})"
        errors = "–" if finding.error is None else number(finding.error)
        errors += f" / {number(finding.peer_error)}" if finding.peer_error is not None else ""
        verdict = ("pass" if finding.passed else "**miss**") + (f": {finding.note}" if finding.note else "")
        rows.append([title, _aim(target), measured, times(finding.equal_error), _against(finding), errors, verdict])
    return rows


def counts_text(found: Sequence[Finding]) -> str:
    """How many targets of images are met, and which were not measured."""
    passed, missed, unknown = (sum(one.passed is kind for one in found) for kind in (True, False, None))
    missing = [f"{one.target.title} against {one.target.against[0]}" for one in found if one.passed is None]
    told = f"Targets of images: {passed} met, {missed} missed, {unknown} not measured"
    return f"{told} ({'; '.join(missing)})." if 0 < len(missing) < len(found) else f"{told}."


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
        return spread(finding.ratio, finding.low, finding.high, percent=True)
    if isinstance(against, str):
        return f"{number(ratio)} {against} ({number(finding.low)} – {number(finding.high)})"
    return f"{ratio:.2f}×"


def _against(finding: Finding) -> str:
    if finding.target.against == RATE and finding.target.device != "cpu":
        return "cuBLAS float32, same shapes"
    return "–" if finding.target.against in (MILLISECONDS, TERAFLOPS) else finding.against


_LIMITS_INTRODUCTION = (
    "Operations are those of the matrix products of as many evaluations as our run made. The peak is the rate of",
    "multiply-adds between registers, in our widest kernels' instructions, on as many threads and in the same rounds",
    f'(the arm "{PEAK}"). The best possible ratio is the peer\'s time over that of the',
    "operations at the peak: no kernel with as many operations exceeds it. Solves at equal tolerance differ in",
    "evaluations, which this takes as they are.",
)


def limits_text(found: Sequence[Limit]) -> str:
    """The table of limits."""
    rows = [["case", "evaluations", "GFLOP", "peak, ms", "ours, ms", "share (quartiles)", "against", "ratio", "best"]]
    for one in found:
        rows.append(
            [
                one.target.title,
                number(one.evaluations),
                number(1e-9 * one.operations),
                number(one.peak_ms),
                number(one.ours_ms),
                spread(one.share, one.share_low, one.share_high, percent=True),
                one.against,
                times(one.ratio),
                times(one.possible),
            ]
        )
    return markdown(rows)
