"""The benchmark kit's command line: python -m benchmarks run | table | report | prepare | arms."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import conformance, provenance, records, report
from benchmarks.cases import SELECTIONS, SHAPES, UNEVEN, Case, matching, solve
from benchmarks.measure import Limits, default_cache, measure
from benchmarks.peers import ARMS
from benchmarks.peers.base import DisagreementError
from benchmarks.records import Record
from benchmarks.targets import findings
from benchmarks.workloads import Workloads


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 if it did what was asked, 1 if conformance is red or an arm computes something else."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except (conformance.ConformanceError, DisagreementError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def run(options: argparse.Namespace) -> int:
    """Measure a selection and append it to the results."""
    cases = matching(SELECTIONS[options.select](options.threads), options.match)
    if not cases:
        print(f"error: no case of {options.select!r} matches {options.match}; --list shows them", file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(case.name for case in cases))
        return 0
    _measure_all(cases, options)
    return 0


def table(options: argparse.Namespace) -> int:
    """Measure the cases behind the targets in one run and hold them against the targets."""
    options.select = "table"
    code = run(options)
    if code == 0 and not options.list:
        print()
        print(report.targets_text(findings(records.latest(records.load(options.csv)), options.threads)))
    return code


def write_report(options: argparse.Namespace) -> int:
    """Write the tables and plots from the results file alone."""
    for path in report.write(records.load(options.csv), options.docs, options.readme):
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
        print(f"{arm.name:28} {', '.join(arm.jobs):42} {what}" + (f"  ({arm.note})" if arm.note else ""))
    return 0


def _measure_all(cases: Sequence[Case], options: argparse.Namespace) -> list[Record]:
    begin = time.perf_counter()
    provenance.commit()  # that of the code which is loaded now
    said = conformance.require(options.cache)
    print(f"conformance: {said} ({time.perf_counter() - begin:.0f} s)", flush=True)
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    limits = Limits(options.rounds, options.round_seconds, options.run_seconds)
    workloads, written = Workloads(options.cache), []
    for i, case in enumerate(cases, 1):
        print(f"[{i}/{len(cases)}, {time.perf_counter() - begin:.0f} s] {case.name}", flush=True)
        result = measure(case, workloads, limits, options.arms)
        rows = records.records(result, stamp, said)
        records.write(rows, options.csv)
        written += rows
        print(report.case_text(rows), flush=True)
    print(f"{len(written)} rows appended to {options.csv}, {time.perf_counter() - begin:.0f} s in all")
    return written


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
    common.add_argument("--cache", type=Path, default=default_cache(), help="trained potentials and float64 solutions")
    common.add_argument(
        "--threads", type=int, default=min(2, os.cpu_count() or 1), help="of every arm (default: %(default)s)"
    )
    measuring = argparse.ArgumentParser(add_help=False)
    measuring.add_argument("--match", action="append", default=[], help="only cases whose name holds these words")
    measuring.add_argument("--arms", type=_names, default=list(ARMS), help="arms, separated by commas")
    measuring.add_argument("--rounds", type=_rounds, default=7, help="interleaved rounds, at least 5 (default 7)")
    measuring.add_argument("--round-seconds", type=float, default=0.1, help="repeat short arms up to this in a round")
    measuring.add_argument(
        "--run-seconds", type=float, default=60.0, help="leave out an arm one run of which is longer"
    )
    measuring.add_argument("--list", action="store_true", help="print the cases and stop")
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("run", parents=[common, measuring], help="measure a selection of cases")
    one.add_argument("--select", choices=list(SELECTIONS), default="quick", help="which cases (default: quick)")
    one.set_defaults(command=run)
    one = commands.add_parser("table", parents=[common, measuring], help="measure and print the table of targets")
    one.set_defaults(command=table)
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
