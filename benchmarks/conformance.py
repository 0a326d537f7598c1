"""No speed of a wrong engine: the conformance suite has the first word."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUITE = ROOT / "tests" / "conformance"
# What decides whether the suite passes; a green result is remembered for as long as none of it changes.
_SOURCES = ("vapo_fast/**/*.py", "vapo_fast/*.so", "csrc/*", "kernels/**/*.py", "tests/conformance/**/*.py")


class ConformanceError(RuntimeError):
    """The suite is red or missing; no speed is printed."""


@dataclass(frozen=True)
class Verdict:
    """What the suite said: ``passed``, and its last line."""

    passed: bool
    said: str


def verdict(cache: Path, suite: Path) -> Verdict:
    """Run the suite (all but what is marked slow), or recall that it passed on these very sources.

    Raises: ConformanceError if there is no suite.
    """
    if not suite.is_dir():
        raise ConformanceError(f"there is no conformance suite at {suite}; without it no speed is printed")
    remembered = cache / "conformance.json"
    key = _sources_hash()
    if remembered.exists():
        kept = json.loads(remembered.read_text(encoding="utf-8"))
        if kept["sources"] == key and kept["suite"] == str(suite):
            return Verdict(True, kept["said"])
    command = [sys.executable, "-m", "pytest", str(suite), "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider"]
    # An engine that the environment forces on everyone would be compared with itself.
    environment = {name: value for name, value in os.environ.items() if name != "VAPO_FAST_ENGINE"}
    # Its tensors are small: more threads would only wait for one another.
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    result = Verdict(done.returncode == 0, lines[-1] if lines else done.stderr.strip()[-200:])
    if result.passed:
        cache.mkdir(parents=True, exist_ok=True)
        remembered.write_text(json.dumps({**asdict(result), "sources": key, "suite": str(suite)}), encoding="utf-8")
    return result


def require(cache: Path, suite: Path | None = None) -> str:
    """The last line of the suite (default `SUITE`) if it is green.

    Raises: ConformanceError if it is red or missing.
    """
    result = verdict(cache, suite or SUITE)
    if not result.passed:
        raise ConformanceError(f"the conformance suite is red, so no speed is printed: {result.said}")
    return result.said


def _sources_hash() -> str:
    digest = hashlib.sha256()
    for path in sorted(_files()):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _files() -> Iterator[Path]:
    for pattern in _SOURCES:
        yield from (path for path in ROOT.glob(pattern) if path.is_file())
