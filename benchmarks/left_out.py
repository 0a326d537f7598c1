"""Arms that a case was measured without, and cases that a run did not come to: one row each, with the reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cases import Case
from benchmarks.records import CSV, append_rows_of, hidden_name, read

EVERY_ARM = "every arm"
"""``arm`` of a case that was not measured at all."""


@dataclass(frozen=True)
class LeftOut:
    """An arm that did not take part in a case, as it stands in the file; the columns are those of `records.Record`."""

    run: str
    job: str
    workload: str
    dimension: int
    hidden: str
    n: int
    rtol: float | None
    steps: int | None
    threads: int
    device: str
    arm: str
    reason: str
    date: str = ""
    commit: str = ""
    machine: str = ""
    torch: str = ""

    @property
    def case(self) -> tuple[object, ...]:
        """As `records.Record.case`."""
        threads = self.threads if self.device == "cpu" else None
        return self.job, self.workload, self.dimension, self.hidden, self.n, self.rtol, self.steps, threads, self.device


def beside(results: Path = CSV) -> Path:
    """The file that goes with a results file: ``bench_left_out.csv`` for ``bench.csv``."""
    return results.with_name(f"{results.stem}_left_out.csv")


def left_out(case: Case, run: str, reasons: Mapping[str, str]) -> list[LeftOut]:
    """The rows of a case, from each arm's reason."""
    key = case.job, case.workload, case.dimension, hidden_name(case), case.n, case.rtol, case.steps
    return [LeftOut(run, *key, case.threads, case.device, arm, reason) for arm, reason in reasons.items()]


def write(rows: Iterable[LeftOut], path: Path) -> None:
    """Append rows with their provenance."""
    found = list(rows)
    if found:
        append_rows_of(path, LeftOut, found)


def load(path: Path) -> list[LeftOut]:
    """Every row of the file; none if there is no file.

    Raises: ValueError naming the line of a row that cannot be read.
    """
    return read(path, LeftOut)


def of_run(rows: Sequence[LeftOut], case: tuple[object, ...], run: str) -> dict[str, str]:
    """Arms and reasons of a case of a run."""
    return {row.arm: row.reason for row in rows if row.case == case and row.run == run}
