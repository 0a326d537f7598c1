"""The benchmark kit's command line: python -m benchmarks run, table, roofline, gpu, gate, report, merge, ..."""

from __future__ import annotations

import argparse
import csv
import math
import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import (
    conformance,
    convolutions,
    gpu,
    image_precision,
    images,
    kernels,
    left_out,
    passes_report,
    provenance,
    records,
    report,
    roofline,
    runs,
)
from benchmarks.cases import SELECTIONS, SHAPES, UNEVEN, Case, matching, on, solve
from benchmarks.devices import OURS, usable
from benchmarks.measure import CaseResult, Limits, arms_for, default_cache, measure
from benchmarks.peers import ARMS
from benchmarks.peers.base import DisagreementError
from benchmarks.records import Record
from benchmarks.targets import GPU_TARGETS, TARGETS, cases_of_targets, findings
from benchmarks.workloads import Workloads
from vapo_fast.core import extension

SLOW_TO_PREPARE = ("torch.compile", "torchdiffeq compiled")
"""Arms that the quick selection leaves out unless they are named: each compiles for half a minute before it runs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 if it did what was asked, 1 if conformance is red or an arm of ours computes something else."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except (conformance.ConformanceError, DisagreementError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def run(options: argparse.Namespace) -> int:
    """Measure a selection and append it to the results."""
    cases = matching(on(options.device, SELECTIONS[options.select](options.threads)), options.match)
    reason = usable(options.device)
    if reason and not options.list:
        print(f"error: {reason}", file=sys.stderr)
        return 1
    if not cases:
        print(f"error: no case of {options.select!r} matches {options.match}; --list shows them", file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(case.name for case in cases))
        return 0
    _measure_all(cases, options)
    if options.select in _TARGETS_OF:
        targets = _TARGETS_OF[options.select]
        held = cases_of_targets(records.load(options.csv), options.threads, targets)
        print()
        print(report.targets_text(findings(held, options.threads, targets)))
    return 0


_TARGETS_OF = {"table": TARGETS, "gpu": GPU_TARGETS}


def table(options: argparse.Namespace) -> int:
    """Measure the cases behind the targets in one run and hold them against the targets."""
    options.select = "table" if options.device == "cpu" else "gpu"
    return run(options)


def gate(options: argparse.Namespace) -> int:
    """Run a gate of the conformance suite."""
    chosen = conformance.GATES[options.gate]
    reason = usable(chosen.device)
    if reason:
        print(f"error: {reason}", file=sys.stderr)
        return 1
    try:
        print(conformance.require(options.cache, gate=chosen))
    except conformance.ConformanceError as error:
        print(error.output)
        raise
    return 0


def measure_rooflines(options: argparse.Namespace) -> int:
    """Measure how near to the device's limits each kernel comes, and append it."""
    reason = usable(options.device) if options.device == "cuda" else "rooflines are of CUDA's kernels: --device cuda"
    if reason:
        print(f"error: {reason}", file=sys.stderr)
        return 1
    stamp = _now()
    rows = roofline.measure(stamp, Workloads(options.cache), options.threads)
    roofline.write(rows, options.roofline_csv)
    print(f"{len(rows)} rows appended to {options.roofline_csv}")
    if rows:
        print(report.roofline_text(roofline.load(options.roofline_csv)))
    return 0 if rows else 1


def measure_kernels(options: argparse.Namespace) -> int:
    """Measure the native engine's kernels one by one against the processor's multiply-adds, and append that."""
    reason = extension.unavailable_reason()
    if reason:
        print(f"error: the native extension is missing: {reason}", file=sys.stderr)
        return 1
    stamp = _now()
    # The larger number of threads last: the threads that it leaves spinning disturb nobody.
    rows = [
        row
        for threads in sorted({1, options.threads})
        for row in kernels.measure(stamp, threads, options.rounds, options.round_seconds)
    ]
    kernels.write(rows, options.kernels_csv)
    print(report.kernels_text(kernels.load(options.kernels_csv)))
    print(f"{len(rows)} rows appended to {options.kernels_csv}")
    return 0


def merge(options: argparse.Namespace) -> int:
    """Append the rows of results files from another machine."""
    for path in options.files:
        target = _file_for(path, options)
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        columns = tuple(reader.fieldnames or ())
        if target.exists() and len(columns) < len(target.read_text(encoding="utf-8").split("\n", 1)[0].split(",")):
            print(f"error: {path} has fewer columns than {target}: it is from an older version", file=sys.stderr)
            return 1
        provenance.append_rows(target, columns, rows)
        print(f"{len(rows)} rows of {path} appended to {target}")
    return 0


def _file_for(path: Path, options: argparse.Namespace) -> Path:
    """The results file that a file of another machine goes to, by its name."""
    targets: dict[str, Path] = {
        "roofline": options.roofline_csv,
        "kernels": options.kernels_csv,
        left_out.beside(Path("bench.csv")).stem: left_out.beside(options.csv),
        runs.beside(Path("bench.csv")).stem: runs.beside(options.csv),
        "images": options.images_csv,
        images.beside(Path("images.csv")).stem: images.beside(options.images_csv),
    }
    return targets.get(path.stem, options.csv)


def write_report(options: argparse.Namespace) -> int:
    """Write the tables and plots from the results files alone."""
    results = report.Results(
        records.load(options.csv),
        left_out.load(left_out.beside(options.csv)),
        roofline.load(options.roofline_csv),
        kernels.load(options.kernels_csv),
        images.latest_cases(options.images_csv),
        images.load(images.beside(options.images_csv)),
    )
    for path in report.write(results, options.docs, options.readme):
        print(f"wrote {path}")
    return 0


def prepare(options: argparse.Namespace) -> int:
    """Train the workloads' potentials and solve for their float64 solutions, so that no run has to."""
    workloads = Workloads(options.cache)
    for workload, shape in (*UNEVEN, *(("random", shape) for shape in SHAPES)):
        begin = time.perf_counter()
        problem = workloads.problem(solve(workload, 8192, options.threads, 1e-5, shape))
        rows = len(problem.reference)
        print(
            f"{workload} {problem.case.shape}: {rows} rows of reference, {time.perf_counter() - begin:.1f} s",
            flush=True,
        )
    return 0


def arms(options: argparse.Namespace) -> int:
    """List the arms, or why they cannot run."""
    for arm in ARMS.values():
        reason = arm.missing()
        what = f"missing: {reason}" if reason else arm.version()
        where = ", ".join(arm.devices)
        print(f"{arm.name:28} {where:10} {', '.join(arm.jobs):50} {what}" + (f"  ({arm.note})" if arm.note else ""))
    return 0


def _measure_all(cases: Sequence[Case], options: argparse.Namespace) -> list[Record]:
    begin = time.perf_counter()
    provenance.commit()  # that of the code which is loaded now
    gate = conformance.GATES[options.gate or _gate_of(options.select, options.device)]
    if gate != conformance.FULL:
        print(f"conformance: only the {gate.name} gate, not the whole suite", flush=True)
    said = conformance.require(options.cache, gate=gate)
    of_conformance = time.perf_counter() - begin
    print(f"conformance: {said} ({of_conformance:.0f} s)", flush=True)
    stamp = _now()
    limits = Limits(options.rounds, options.round_seconds, options.run_seconds, options.case_seconds)
    workloads, written, arms = Workloads(options.cache), list[Record](), options.arms or list(ARMS)
    unasked = "not among those of --arms"
    if options.select == "quick" and options.arms is None:
        arms = [name for name in arms if name not in SLOW_TO_PREPARE]
        unasked = "compiles for long, so the quick selection leaves it out unless --arms names it"
        print(f"left out because they compile for long: {', '.join(SLOW_TO_PREPARE)} (--arms names them)", flush=True)
    done = 0
    for i, case in enumerate(cases, 1):
        elapsed = time.perf_counter() - begin
        if elapsed > options.budget_seconds:
            reason = f"the {options.budget_seconds:.0f} s of the run were up"
            print(f"not measured, {reason}: {', '.join(c.name for c in cases[i - 1 :])}")
            for other in cases[i - 1 :]:
                left_out.write(
                    left_out.left_out(other, stamp, {left_out.EVERY_ARM: reason}), left_out.beside(options.csv)
                )
            break
        print(f"[{i}/{len(cases)}, {elapsed:.0f} s] {case.name}", flush=True)
        result = measure(case, workloads, limits, arms)
        rows = _write(result, stamp, said, unasked, options.csv)
        written += rows
        done += 1
        if rows:
            print(report.case_text(rows), flush=True)
    seconds = time.perf_counter() - begin
    runs.write(
        runs.Run(stamp, options.select, options.device, done, len(cases) - done, of_conformance, seconds), options.csv
    )
    print(f"{len(written)} rows appended to {options.csv}, {seconds:.0f} s in all")
    return written


def _write(result: CaseResult, stamp: str, said: str, unasked: str, path: Path) -> list[Record]:
    """Append a case's rows, and the arms that are missing from it with the reasons."""
    rows = records.records(result, stamp, said)
    records.write(rows, path)
    able = {arm.name for arm in arms_for(result.case, list(ARMS))}
    reasons = {name: unasked for name in ARMS if name in able - set(result.arms)} | result.skipped
    left_out.write(left_out.left_out(result.case, stamp, reasons), left_out.beside(path))
    return rows


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _gate_of(selection: str, device: str) -> str:
    if device == "cuda":
        return "cuda"
    return "quick" if selection == "quick" else "full"


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in ARMS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no arm {unknown[0]!r}; the arms are: {', '.join(ARMS)}")
    return names


def _rounds(text: str) -> int:
    try:
        return Limits(rounds=int(text)).rounds
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--csv", type=Path, default=records.CSV, help="the results file (default: %(default)s)")
    common.add_argument(
        "--roofline-csv", type=Path, default=roofline.CSV, help="that of rooflines (default: %(default)s)"
    )
    common.add_argument("--kernels-csv", type=Path, default=kernels.CSV, help="that of kernels (default: %(default)s)")
    common.add_argument("--images-csv", type=Path, default=images.CSV, help="that of images (default: %(default)s)")
    common.add_argument("--device", choices=list(OURS), default="cpu", help="what cases run on (default: cpu)")
    common.add_argument("--cache", type=Path, default=default_cache(), help="trained potentials and float64 solutions")
    common.add_argument(
        "--threads", type=int, default=min(2, os.cpu_count() or 1), help="of every arm (default: %(default)s)"
    )
    measuring = argparse.ArgumentParser(add_help=False)
    measuring.add_argument("--match", action="append", default=[], help="only cases whose name holds these words")
    measuring.add_argument("--arms", type=_names, help="arms, separated by commas (default: all)")
    measuring.add_argument("--rounds", type=_rounds, default=7, help="interleaved rounds, at least 5 (default 7)")
    measuring.add_argument("--round-seconds", type=float, default=0.1, help="repeat short arms up to this in a round")
    measuring.add_argument(
        "--run-seconds", type=float, default=60.0, help="leave out an arm one run of which is longer"
    )
    measuring.add_argument(
        "--case-seconds", type=float, default=math.inf, help="after this, make no further arm of a case ready"
    )
    measuring.add_argument("--budget-seconds", type=float, default=math.inf, help="after this, begin no further case")
    measuring.add_argument("--gate", choices=list(conformance.GATES), help="part of the conformance suite to run first")
    measuring.add_argument("--list", action="store_true", help="print the cases and stop")
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("run", parents=[common, measuring], help="measure a selection of cases")
    one.add_argument("--select", choices=list(SELECTIONS), default="quick", help="which cases (default: quick)")
    one.set_defaults(command=run)
    one = commands.add_parser("table", parents=[common, measuring], help="measure and print the table of targets")
    one.set_defaults(command=table)
    one = commands.add_parser(
        "kernels", parents=[common], help="the native engine's kernels against the processor's multiply-adds"
    )
    one.add_argument("--rounds", type=_rounds, default=7, help="interleaved rounds, at least 5 (default 7)")
    one.add_argument("--round-seconds", type=float, default=0.05, help="of a kernel in a round (default %(default)s)")
    one.set_defaults(command=measure_kernels)
    one = commands.add_parser("roofline", parents=[common], help="each CUDA kernel's rate against the device's limits")
    one.set_defaults(command=measure_rooflines)
    one = commands.add_parser(
        "gate", parents=[common], help="run a part of the conformance suite, or recall its result"
    )
    one.add_argument("--gate", choices=list(conformance.GATES), default="full", help="which part (default: full)")
    one.set_defaults(command=gate)
    one = commands.add_parser("merge", parents=[common], help="append the rows of another machine's results files")
    one.add_argument("files", nargs="+", type=Path, help="bench.csv, roofline.csv and what lies beside them")
    one.set_defaults(command=merge)
    gpu.add_arguments(commands.add_parser("gpu", help=gpu.SUMMARY))
    images.add_arguments(commands.add_parser("images", help=images.SUMMARY))
    convolutions.add_arguments(commands.add_parser("convolutions", help=convolutions.SUMMARY))
    image_precision.add_arguments(commands.add_parser("image-precision", help=image_precision.SUMMARY))
    passes_report.add_arguments(commands.add_parser("passes-report", help=passes_report.SUMMARY))
    one = commands.add_parser("report", parents=[common], help="write tables and plots from the results file")
    one.add_argument("--docs", type=Path, default=report.DOCS, help="default: %(default)s")
    one.add_argument("--readme", type=Path, default=report.README, help="default: %(default)s")
    one.set_defaults(command=write_report)
    one = commands.add_parser("prepare", parents=[common], help="train the potentials and make the float64 solutions")
    one.set_defaults(command=prepare)
    one = commands.add_parser("arms", parents=[common], help="what can run here, and why not the rest")
    one.set_defaults(command=arms)
    return parser


if __name__ == "__main__":
    sys.exit(main())
