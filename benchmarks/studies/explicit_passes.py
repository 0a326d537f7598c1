"""The tables of docs/explicit_passes.md, from the results files alone: python -m benchmarks passes-report"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks import pages, provenance
from benchmarks.pages import markdown, spread
from benchmarks.potentials import MODELS
from benchmarks.provenance import ROOT
from benchmarks.records import CSV, Record
from benchmarks.studies import convolutions, image_precision

SUMMARY = "write the tables of docs/explicit_passes.md from the results of `images`, `image-precision`, `convolutions`"
PAGE = ROOT / "docs" / "explicit_passes.md"
_JOBS = {"loss": "a training step: loss and all gradients", "solve": "sampling: a whole adaptive solve"}


def parts(
    rows: Sequence[Record], precision: Sequence[dict[str, str]], single: Sequence[dict[str, str]]
) -> dict[str, str]:
    """The page's tables, by the names of their marks."""
    return {"measured": _measured(rows), "convolutions": _convolutions(single), "precision": _precision(precision)}


def newest(rows: Iterable[Record]) -> list[Record]:
    """On the CPU: rows of the newest run of each network and job."""
    own = [row for row in rows if row.peers and row.device == "cpu"]
    last = {(row.workload, row.job): row.run for row in own}
    return [row for row in own if last[row.workload, row.job] == row.run]


def _measured(rows: Sequence[Record]) -> str:
    lines = []
    for model, job in dict.fromkeys((row.workload, row.job) for row in rows):
        own = [row for row in rows if (row.workload, row.job) == (model, job)]
        first = own[0]
        what = f"{MODELS[model].title}, {first.parameters or 0:,} parameters, {_JOBS[job]}, {first.n} images"
        where = f"{first.machine}, {first.threads} threads, load {first.load:.2f} at the start, torch {first.torch}"
        told = pages.note(f"{first.data}; {where}; {first.date}, commit {first.commit}.")
        table = [["arm", "ms", "eager / arm", "error", "memory", "evaluations"], *(_cells(row) for row in own)]
        lines += [f"**{what}**", "", markdown(table), "", told, ""]
    return "\n".join(lines)


def _cells(row: Record) -> list[str]:
    memory = "–"
    if row.peak_mib is not None and row.memory_ratio is not None:
        memory = f"{row.peak_mib:.0f} MiB, {row.memory_ratio:.2f}×"
    ratio = spread(row.speedup, row.speedup_low, row.speedup_high)
    evaluations = "–" if row.evaluations_mean is None else f"{row.evaluations_mean:.4g}"
    error = "–" if row.error_rms is None else f"{row.error_rms:.3g}"
    return [row.arm, f"{row.median_ms:.0f}", ratio, error, memory, evaluations]


def _convolutions(rows: Sequence[dict[str, str]]) -> str:
    if not rows:
        return "Not measured."
    first = rows[0]
    where = f"{first['machine']}, {first['threads']} threads, {first['instruction_set']}, torch {first['torch']}"
    told = pages.note(f"{where}; {first['date']}, commit {first['commit']}.")
    return "\n".join([markdown(convolutions.table(rows)), "", told])


def _precision(rows: Sequence[dict[str, str]]) -> str:
    tables = image_precision.tables(rows).items()
    return "\n\n".join(f"**{MODELS[model].title}**\n\n{markdown(table)}" for model, table in tables)


def run(options: argparse.Namespace) -> int:
    """Write the tables."""
    folder = options.results
    rows = newest(provenance.read(folder / CSV.name, Record))
    precision = image_precision.latest(folder / image_precision.CSV.name)
    single = convolutions.latest(folder / convolutions.CSV.name)
    print(f"wrote {pages.write(options.page, parts(rows, precision, single))}")
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the command."""
    parser.add_argument("--results", type=Path, default=provenance.RESULTS, help="folder of the results files")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.set_defaults(command=run)
