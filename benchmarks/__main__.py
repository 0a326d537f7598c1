"""The benchmark kit's command line: python -m benchmarks run, table, images, kernels, gpu, report, merge, ..."""

from __future__ import annotations

import argparse
import csv
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import conformance, gpu, pages, provenance, records, report, tables
from benchmarks.cases import SELECTIONS, SHAPES, UNEVEN, Case, matching, on, solve
from benchmarks.devices import OURS, usable
from benchmarks.measure import CaseResult, Limits, default_cache, measure
from benchmarks.peers import ARMS, arms_for, names
from benchmarks.peers.base import DisagreementError
from benchmarks.provenance import RESULTS, now
from benchmarks.records import CSV, EVERY_ARM, Record, Run, beside
from benchmarks.studies import convolutions, explicit_passes, image_precision, kernels, roofline
from benchmarks.targets import GPU_TARGETS, IMAGE_TARGETS, TARGETS, cases_of_targets, findings
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
        return _error(str(error))


def _error(text: str, code: int = 1) -> int:
    print(f"error: {text}", file=sys.stderr)
    return code


def run(options: argparse.Namespace) -> int:
    """Measure a selection, append it to the results, and hold it against its targets."""
    cases = matching(on(options.device, SELECTIONS[options.select](options.threads)), options.match)
    reason = usable(options.device)
    if reason and not options.list:
        return _error(reason)
    if not cases:
        return _error(f"no case of {options.select!r} matches {options.match}; --list shows them", 2)
    if options.list:
        print("\n".join(case.name for case in cases))
        return 0
    wrong = _measure_all(cases, options)
    rows = provenance.read(options.results / CSV.name, Record)
    if options.select.startswith("gpu-"):
        found = findings(records.latest([row for row in rows if row.peers]), options.threads, IMAGE_TARGETS)
        print(f"\n{report.targets_text(found)}\n\n{report.counts_text(found)}")
    elif options.select in _TARGETS_OF:
        targets = _TARGETS_OF[options.select]
        held = cases_of_targets(rows, options.threads, targets)
        print(f"\n{report.targets_text(findings(held, options.threads, targets))}")
    return int(bool(wrong))


_TARGETS_OF = {"table": TARGETS, "gpu": GPU_TARGETS}


def table(options: argparse.Namespace) -> int:
    """Measure the cases behind the targets in one run and hold them against the targets."""
    options.select = "table" if options.device == "cpu" else "gpu"
    return run(options)


def images(options: argparse.Namespace) -> int:
    """Measure the cases of images for a device."""
    selections = ("images",) if options.device == "cpu" else ("gpu-sampling", "gpu-training")
    codes = []
    for options.select in selections:
        codes.append(run(options))
    return max(codes)


def _measure_all(cases: Sequence[Case], options: argparse.Namespace) -> list[str]:
    """Measure cases and append them; names of those in which an arm of ours computes something else."""
    begin = time.perf_counter()
    provenance.commit()  # that of the code which is loaded now
    gate = conformance.GATES[options.gate] if options.gate else conformance.gate_of(options.select, options.device)
    if gate != conformance.FULL:
        print(f"conformance: only the {gate.name} gate, not the whole suite", flush=True)
    said = conformance.require(options.cache, gate=gate)
    of_conformance = time.perf_counter() - begin
    print(f"conformance: {said} ({of_conformance:.0f} s)", flush=True)
    writer = _Writer(options.results / CSV.name, now(), said, options)
    limits = Limits(options.rounds, options.round_seconds, options.run_seconds, options.case_seconds)
    workloads, wrong = Workloads(options.cache, options.root), list[str]()
    for i, case in enumerate(cases, 1):
        elapsed = time.perf_counter() - begin
        left = options.budget_seconds - elapsed
        if left <= case.least_seconds:
            writer.leave_out(case, f"{max(0.0, left):.0f} s of the run's {options.budget_seconds:.0f} were left")
            continue
        print(f"[{i}/{len(cases)}, {elapsed:.0f} s] {case.name}", flush=True)
        try:
            writer.append(measure(case, workloads, limits, writer.arms))
        except DisagreementError as error:
            _error(str(error))
            writer.leave_out(case, str(error))
            wrong.append(case.name)
    writer.end(len(cases), of_conformance, time.perf_counter() - begin)
    return wrong


class _Writer:
    """Appends what a run measured, what it left out, and how long it took.

    Attributes:
        arms: those that were asked for, None for all.
    """

    def __init__(self, path: Path, stamp: str, said: str, options: argparse.Namespace) -> None:
        self._path, self._stamp, self._said, self._options = path, stamp, said, options
        self._rows = self._cases = 0
        self.arms: list[str] | None = options.arms
        self._unasked = "not among those of --arms"
        if options.select == "quick" and options.arms is None:
            self.arms = [name for name in ARMS if name not in SLOW_TO_PREPARE]
            self._unasked = "compiles for long, so the quick selection leaves it out unless --arms names it"
            slow = ", ".join(SLOW_TO_PREPARE)
            print(f"left out because they compile for long: {slow} (--arms names them)", flush=True)

    def append(self, result: CaseResult) -> None:
        """A case's rows, and the arms that are missing from it with the reasons."""
        rows = records.records(result, self._stamp, self._said)
        provenance.write(rows, self._path)
        able = [arm.name for arm in arms_for(result.case)]
        reasons = {name: self._unasked for name in able if name not in result.arms} | result.skipped
        self._leave_out(result.case, reasons)
        self._rows, self._cases = self._rows + len(rows), self._cases + 1
        if rows:
            print(tables.case_text(rows), flush=True)

    def leave_out(self, case: Case, reason: str) -> None:
        """A case that is not measured at all."""
        print(f"not measured: {case.name}: {reason}", flush=True)
        self._leave_out(case, {EVERY_ARM: reason})

    def _leave_out(self, case: Case, reasons: dict[str, str]) -> None:
        provenance.write(records.left_out(case, self._stamp, reasons), beside(self._path, "left_out"))

    def end(self, cases: int, of_conformance: float, seconds: float) -> None:
        """The run itself."""
        options, counts = self._options, (self._cases, cases - self._cases)
        one = Run(
            self._stamp, options.select, options.device, *counts, of_conformance, seconds, threads=options.threads
        )
        provenance.write([one], beside(self._path, "runs"))
        print(f"{self._rows} rows appended to {self._path}, {seconds:.0f} s in all")


def gate(options: argparse.Namespace) -> int:
    """Run a gate of the conformance suite."""
    chosen = conformance.GATES[options.gate]
    reason = usable(chosen.device)
    if reason:
        return _error(reason)
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
        return _error(reason)
    rows = roofline.measure(now(), Workloads(options.cache), options.threads)
    return _append(rows, options.results / "roofline.csv", roofline.table)


def measure_kernels(options: argparse.Namespace) -> int:
    """Measure the native engine's kernels one by one against the processor's multiply-adds, and append that."""
    reason = extension.unavailable_reason()
    if reason:
        return _error(f"the native extension is missing: {reason}")
    stamp = now()
    # The larger number of threads last: the threads that it leaves spinning disturb nobody.
    rows = [
        row
        for threads in sorted({1, options.threads})
        for row in kernels.measure(stamp, threads, options.rounds, options.round_seconds)
    ]
    return _append(rows, options.results / "kernels.csv", kernels.table)


def _append(rows: Sequence[object], path: Path, table: object) -> int:
    provenance.write(rows, path)
    if rows and callable(table):
        print(pages.markdown(table(rows)))
    print(f"{len(rows)} rows appended to {path}")
    return 0 if rows else 1


def merge(options: argparse.Namespace) -> int:
    """Append the rows of results files from another machine to those of the same names."""
    for path in options.files:
        target = options.results / path.name
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        columns = tuple(reader.fieldnames or ())
        if target.exists() and len(columns) < len(target.read_text(encoding="utf-8").split("\n", 1)[0].split(",")):
            return _error(f"{path} has fewer columns than {target}: it is from an older version")
        provenance.append_rows(target, columns, rows)
        print(f"{len(rows)} rows of {path} appended to {target}")
    return 0


def write_report(options: argparse.Namespace) -> int:
    """Write the tables and plots from the results files alone."""
    for path in report.write(report.Results.load(options.results), options.docs, options.readme):
        print(f"wrote {path}")
    return 0


def prepare(options: argparse.Namespace) -> int:
    """Train the workloads' potentials and solve for their float64 solutions, so that no run has to."""
    workloads = Workloads(options.cache)
    for workload, shape in (*UNEVEN, *(("random", shape) for shape in SHAPES)):
        begin = time.perf_counter()
        problem = workloads.problem(solve(workload, 8192, options.threads, 1e-5, shape))
        rows = len(problem.reference)
        seconds = time.perf_counter() - begin
        print(f"{workload} {problem.case.shape}: {rows} rows of reference, {seconds:.1f} s", flush=True)
    return 0


def arms(options: argparse.Namespace) -> int:
    """List the arms, or why they cannot run."""
    for arm in ARMS.values():
        reason = arm.missing()
        what = f"missing: {reason}" if reason else arm.version()
        where = ", ".join(arm.devices)
        print(f"{arm.name:28} {where:10} {', '.join(arm.jobs):50} {what}" + (f"  ({arm.note})" if arm.note else ""))
    return 0


def _names(text: str) -> list[str]:
    wanted = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in names()]
    if unknown:
        raise argparse.ArgumentTypeError(f"no arm {unknown[0]!r}; the arms are: {', '.join(names())}")
    return wanted


def _rounds(text: str) -> int:
    try:
        return Limits(rounds=int(text)).rounds
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _common() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results files")
    parser.add_argument("--device", choices=list(OURS), default="cpu", help="what cases run on (default: cpu)")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="trained potentials and float64 solutions")
    parser.add_argument(
        "--threads", type=int, default=min(2, os.cpu_count() or 1), help="of every arm (default: %(default)s)"
    )
    return parser


def _in_rounds(seconds: float = 0.1) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--rounds", type=_rounds, default=7, help="interleaved rounds, at least 5 (default 7)")
    parser.add_argument("--round-seconds", type=float, default=seconds, help="repeat short arms up to this in a round")
    return parser


def _measuring(run_seconds: float = 60.0, case_seconds: float = math.inf) -> list[argparse.ArgumentParser]:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--match", action="append", default=[], help="only cases whose name holds these words")
    parser.add_argument("--arms", type=_names, help="arms, separated by commas (default: all)")
    parser.add_argument("--run-seconds", type=float, default=run_seconds, help="leave out an arm whose run is longer")
    parser.add_argument(
        "--case-seconds", type=float, default=case_seconds, help="then make no further arm of a case ready"
    )
    parser.add_argument("--budget-seconds", type=float, default=math.inf, help="after this, begin no further case")
    parser.add_argument("--gate", choices=list(conformance.GATES), help="part of the conformance suite to run first")
    parser.add_argument("--root", type=Path, help="folder with Fashion-MNIST's idx files, for images")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    return [_common(), _in_rounds(), parser]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True)

    def add(name: str, command: object, what: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        one = commands.add_parser(name, parents=list(parents), help=what)
        one.set_defaults(command=command)
        return one

    one = add("run", run, "measure a selection of cases", *_measuring())
    one.add_argument("--select", choices=list(SELECTIONS), default="quick", help="which cases (default: quick)")
    add("table", table, "measure and print the table of targets", *_measuring())
    add("images", images, "image potentials: time, memory, error of every arm", *_measuring(600.0, 3600.0))
    what = "the native kernels against the processor's multiply-adds"
    add("kernels", measure_kernels, what, _common(), _in_rounds(0.05))
    add("roofline", measure_rooflines, "each CUDA kernel's rate against the device's limits", _common())
    one = add("gate", gate, "run a part of the conformance suite, or recall its result", _common())
    one.add_argument("--gate", choices=list(conformance.GATES), default="full", help="which part (default: full)")
    one = add("merge", merge, "append the rows of another machine's results files", _common())
    one.add_argument("files", nargs="+", type=Path, help="bench.csv, roofline.csv and what lies beside them")
    gpu.add_arguments(commands.add_parser("gpu", help=gpu.SUMMARY))
    convolutions.add_arguments(commands.add_parser("convolutions", help=convolutions.SUMMARY))
    image_precision.add_arguments(commands.add_parser("image-precision", help=image_precision.SUMMARY))
    explicit_passes.add_arguments(commands.add_parser("passes-report", help=explicit_passes.SUMMARY))
    one = add("report", write_report, "write tables and plots from the results files", _common())
    one.add_argument("--docs", type=Path, default=report.DOCS, help="default: %(default)s")
    one.add_argument("--readme", type=Path, default=report.README, help="default: %(default)s")
    add("prepare", prepare, "train the potentials and make the float64 solutions", _common())
    add("arms", arms, "what can run here, and why not the rest", _common())
    return parser


if __name__ == "__main__":
    sys.exit(main())
