"""Where and when a number was measured, and the append-only CSV files: the kit's one writer and reader."""

from __future__ import annotations

import csv
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
_SOURCES = ("vapo_fast", "csrc", "kernels", "setup.py", "benchmarks/*.py", "benchmarks/peers", "benchmarks/studies")
COLUMNS = ("date", "commit", "machine", "threads", "torch")
Row = TypeVar("Row")


def provenance() -> dict[str, object]:
    """Date, commit, machine, threads and torch version: the first columns of every results file."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def now() -> str:
    """A stamp that names a run: when it began."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@cache
def commit() -> str:
    """The commit, with a ``+`` if what computes differs from it; as it was when first asked, not as a long run ends.

    A copy of the tree without git's own files has it from the environment variable VAPO_FAST_COMMIT.
    """
    named = os.environ.get("VAPO_FAST_COMMIT")
    if named:
        return named
    head = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--", *_SOURCES)
    return (head + "+" * bool(changed)) if head else "unknown"


@cache
def processor() -> str:
    """The processor's model name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:  # no git here
        return ""
    return done.stdout.strip()


def append(path: Path, columns: Sequence[str], rows: Sequence[dict[str, object]]) -> None:
    """Add rows to a results file, with their provenance; ``columns`` are the others, in order."""
    where = provenance()
    append_rows(path, (*COLUMNS, *columns), [where | row for row in rows])


def append_rows(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Add rows to a results file.

    Columns are only ever added, at the end. A file from before gets the new ones in its first line; its rows stay.

    Raises: ValueError if the file has other columns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    if not new:
        with path.open(newline="", encoding="utf-8") as file:
            first, rest = file.readline(), file.read()
        have = first.strip().split(",")
        if have != list(columns[: len(have)]):
            raise ValueError(f"{path} has other columns: {first.strip()}")
        if len(have) < len(columns):
            with path.open("w", newline="", encoding="utf-8") as file:
                file.write(",".join(columns) + first[len(first.rstrip()) :] + rest)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, tuple(columns))
        if new:
            writer.writeheader()
        writer.writerows(rows)


def load(path: Path) -> list[dict[str, str]]:
    """Every row of a file; none if there is no file. A row from before a column was added has an empty cell there."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: cell or "" for name, cell in row.items()} for row in csv.DictReader(file)]


def last_run(rows: Sequence[Any]) -> list[Any]:
    """Rows of the newest run, of dictionaries or of dataclasses."""
    runs = [row["run"] if isinstance(row, dict) else row.run for row in rows]
    return [row for row, run in zip(rows, runs, strict=True) if run == max(runs)]


def write(rows: Iterable[Row], path: Path) -> None:
    """Append dataclasses of one kind, with their provenance, of which ``threads`` is the row's own."""
    found = list(rows)
    if not found:
        return
    columns = [column.name for column in fields(found[0]) if column.name not in COLUMNS]  # type: ignore[arg-type]
    append(path, columns, [{name: _cell(getattr(row, name)) for name in (*columns, "threads")} for row in found])


def read(path: Path, kind: type[Row]) -> list[Row]:
    """Every row of a file whose columns are the fields of a dataclass; none if there is no file.

    Raises: ValueError naming the line of a row that cannot be read.
    """
    if not path.exists():
        return []
    kinds = {column.name: str(column.type) for column in fields(kind)}  # type: ignore[arg-type]
    with path.open(newline="", encoding="utf-8") as file:
        reader, rows = csv.DictReader(file), []
        for cells in reader:
            try:
                # A line from before a column was added ends early.
                filled = {name: _value(kinds[name], text) for name, text in cells.items() if text is not None}
                rows.append(kind(**filled))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
        return rows


def _cell(value: object) -> object:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


def _value(kind: str, text: str) -> Any:
    if kind.endswith("| None") and text == "":
        return None
    if kind.startswith("bool"):
        return {"True": True, "False": False}[text]
    return {"int": int, "float": float, "str": str}[kind.removesuffix(" | None")](text)
