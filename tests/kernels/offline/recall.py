"""Figures of a compilation, measured once: a process of the pool's, which looks for them in a folder first."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import triton
from vapo_fast.kernels.shapes import Tile

from . import compiling, figures
from .cases import Case
from .compiling import fingerprint
from .figures import Figures, measure


def recalled(case: Case, tile: Tile | None, folder: Path | None) -> Figures:
    """`measure`, or what it found before for the same sources, compiler, device and way of reading its output.

    Results are kept in ``folder``, in files named by all of that: what has changed is measured anew.
    """
    if folder is None:
        return measure(case, tile)
    readers = "".join(inspect.getsource(module) for module in (compiling, figures))
    given = (fingerprint(case, tile), str(case.target), triton.__version__, readers)
    path = folder / f"{hashlib.sha256('|'.join(given).encode()).hexdigest()[:32]}.json"
    if path.exists():
        return Figures(**json.loads(path.read_text(encoding="utf-8")))
    found = measure(case, tile)
    folder.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(f".{os.getpid()}")
    written.write_text(json.dumps(asdict(found)), encoding="utf-8")
    written.replace(path)
    return found


def attempted(case: Case, tile: Tile | None, folder: Path | None) -> tuple[Figures | None, str, float]:
    """`recalled`, or what went wrong, and the seconds that it took."""
    start = time.perf_counter()
    try:
        found, error = recalled(case, tile, folder), ""
    except Exception as problem:  # whatever the compiler says is the result
        found, error = None, " ".join(f"{type(problem).__name__}: {problem.__cause__ or problem}".split())[:200]
    return found, error, time.perf_counter() - start
