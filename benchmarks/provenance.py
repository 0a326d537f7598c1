"""Where and when a number was measured, and the append-only files that keep them."""

from __future__ import annotations

import csv
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
_SOURCES = ("vapo_fast", "csrc", "kernels", "setup.py", "benchmarks/*.py", "benchmarks/peers")
COLUMNS = ("date", "commit", "machine", "threads", "torch")


def provenance() -> dict[str, object]:
    """Date, commit, machine, threads and torch version, as the first columns of every results file."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


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

    A file from before the last of the columns were added gets them in its first line; its rows stay as they are.

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
