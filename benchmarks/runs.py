"""How long a run of the kit took: one row each, beside its results."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path

from benchmarks.provenance import COLUMNS, append
from benchmarks.records import CSV, cell, read


@dataclass(frozen=True)
class Run:
    """One run as it stands in the file.

    Attributes:
        run: when it began measuring, as in the rows of its results. measured, left_out: cases. conformance_s, seconds:
            of the conformance suite's part (next to nothing if its result was remembered), and of everything.
    """

    run: str
    selection: str
    device: str
    measured: int
    left_out: int
    conformance_s: float
    seconds: float
    date: str = ""
    commit: str = ""
    machine: str = ""
    threads: int = 0
    torch: str = ""


_COLUMNS = tuple(column.name for column in fields(Run) if column.name not in COLUMNS)


def beside(results: Path = CSV) -> Path:
    """The file that goes with a results file: ``bench_runs.csv`` for ``bench.csv``."""
    return results.with_name(f"{results.stem}_runs.csv")


def write(run: Run, results: Path) -> None:
    """Append a run beside its results, with its provenance."""
    append(beside(results), _COLUMNS, [{name: cell(value) for name, value in asdict(run).items() if name in _COLUMNS}])


def load(results: Path = CSV) -> list[Run]:
    """Every run; none if there is no file. Raises: ValueError naming the line of a row that cannot be read."""
    return read(beside(results), Run)
