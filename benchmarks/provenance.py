"""Where and when a number was measured, and the append-only files that keep them."""

from __future__ import annotations

import csv
import os
import platform
import subprocess
from collections.abc import Sequence
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
    """The commit, with a ``+`` if what computes differs from it; as it was when first asked, not as a long run ends."""
    head = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--", *_SOURCES)
    return (head + "+" * bool(changed)) if head else "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def append(path: Path, columns: Sequence[str], rows: Sequence[dict[str, object]]) -> None:
    """Add rows to a results file, with their provenance; ``columns`` are the others, in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    where = provenance()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, (*COLUMNS, *columns))
        if new:
            writer.writeheader()
        writer.writerows(where | row for row in rows)
