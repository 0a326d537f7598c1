"""No speed of a wrong engine: the conformance suite has the first word."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.devices import accelerator

ROOT = Path(__file__).resolve().parent.parent
SUITE = ROOT / "tests" / "conformance"
# What decides whether the suite passes; a green result is remembered for as long as none of it changes.
_SOURCES = (
    "vapo_fast/**/*.py",
    "vapo_fast/*.so",
    "csrc/**/*",
    "kernels/**/*.py",
    "tests/conformance/**/*.py",
    "tests/engines/explicit/*.py",
)


@dataclass(frozen=True)
class Gate:
    """A part of the tests: its name, pytest's ``-k`` expression, the device whose engines it is about, its folder."""

    name: str
    expression: str = ""
    device: str = "cpu"
    folder: str = ""

    @property
    def suite(self) -> Path:
        """The tests: the conformance suite, unless ``folder`` names others."""
        return ROOT / self.folder if self.folder else SUITE


FULL = Gate("full")
QUICK = Gate(
    "quick",
    # Every engine that runs here, the kernels' interpreter among them, and every job: fields of all shapes, solves with
    # all methods and with failing rows, traces, losses with all weights; in float32, which is what is measured.
    "float32 and ((test_field and test_zoo) or (test_loss and test_estimators and d3) "
    "or (test_solve and test_methods and (forward and d2 or interpreted and heun)) "
    "or (test_solve and test_failing and not interpreted) "
    "or (test_likelihood and test_methods and (dopri5-1 or interpreted and rk4)))",
)
"""Under half a minute: what `make bench-quick` runs first."""
CUDA = Gate(
    "cuda",
    # Of each job a few shapes: for every shape of a network kernels are compiled, which takes seconds.
    "triton and not interpreted and not float64 and ("
    "(test_field and (d2-16x16x16 or d64-128x128x128 or d512-33x16 or d2-7x7)) "
    "or (test_field and (test_batch or test_large or test_a_bad)) "
    "or (test_solve and (test_methods or test_many or test_max_steps or test_equal or test_event) and d2) "
    "or (test_solve and (test_failing or test_many or test_event)) "
    "or (test_likelihood and ((test_methods and (dopri5 or rk4)) or test_batch)) "
    "or (test_loss and (test_estimators or test_untrained or test_frozen or test_new or test_large)) "
    "or (test_properties and (test_repetition or test_outputs_are or (test_solve_does and d2))))",
    "cuda",
)
"""On a CUDA device in about two minutes: what the benchmarks there run first."""
GRAPH = Gate(
    "graph",
    # Of images and modules of a user's own everything in float32; of MLPs, which have a suite elsewhere, a few solves.
    "not float64 and (test_images or (graph and test_solve and (test_failing or test_many or (test_methods and d2))))",
    "cuda",
)
"""The graph engine on a CUDA device, before images are measured there."""
PASSES = Gate(
    "passes",
    "test_equality or test_contract or test_native_winograd or (test_pointwise and not triton)",
    folder="tests/engines/explicit",
)
"""The explicit passes, before images are measured on the CPU."""
GATES = {gate.name: gate for gate in (FULL, QUICK, CUDA, GRAPH, PASSES)}


def gate_of(selection: str, device: str) -> Gate:
    """What must pass before a selection of cases is measured on a device."""
    if selection.startswith(("images", "gpu-")):
        return GRAPH if device == "cuda" else PASSES
    if device == "cuda":
        return CUDA
    return QUICK if selection == "quick" else FULL


class ConformanceError(RuntimeError):
    """The suite is red or missing; no speed is printed. ``output`` is what pytest said."""

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


def require(cache: Path, suite: Path | None = None, gate: Gate = FULL) -> str:
    """The last line of a gate's part of the suite (all but what is marked slow; default `Gate.suite`) if it is green.

    It is recalled if it, or the whole, passed on these very sources on this device.

    Raises: ConformanceError if it is red or missing.
    """
    suite = suite or gate.suite
    if not suite.is_dir():
        raise ConformanceError(f"there is no conformance suite at {suite}; without it no speed is printed")
    key = {"sources": _sources_hash(), "suite": str(suite), "device": accelerator(gate.device).accelerator}
    # The whole suite is more than a part of it, on the CPU.
    whole = gate.device == "cpu" and gate.folder == FULL.folder
    for file in dict.fromkeys((_file(gate), _file(FULL)) if whole else (_file(gate),)):
        remembered = cache / file
        if remembered.exists():
            kept = json.loads(remembered.read_text(encoding="utf-8"))
            if {name: kept.get(name, "") for name in key} == key:
                said: str = kept["said"]
                return said
    # An engine that the environment forces on everyone would be compared with itself.
    environment = {name: value for name, value in os.environ.items() if name != "VAPO_FAST_ENGINE"}
    # Its tensors are small: more threads would only wait for one another.
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(command(suite, gate), cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    said = lines[-1].strip("= ") if lines else done.stderr.strip()[-200:]
    if done.returncode:
        failed = [line for line in lines if line.startswith(("FAILED", "ERROR", "E "))]
        said = "; ".join([said, *failed[:3]])[:400]
    said = said if gate == FULL else f"{gate.name} gate: {said}"
    if done.returncode:
        reason = f"the conformance suite is red, so no speed is printed: {said}"
        raise ConformanceError(reason, done.stdout + done.stderr)
    cache.mkdir(parents=True, exist_ok=True)
    (cache / _file(gate)).write_text(json.dumps({"said": said, **key}), encoding="utf-8")
    return said


def command(suite: Path, gate: Gate) -> list[str]:
    """What runs a gate; on another device than the CPU in several processes, where pytest-xdist is installed: each
    compiles kernels for the others' wait."""
    parts = [sys.executable, "-m", "pytest", str(suite), "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider"]
    if gate.expression:
        parts += ["-k", gate.expression]
    if gate.device != "cpu" and importlib.util.find_spec("xdist"):
        parts += ["-n", str(min(8, os.cpu_count() or 1))]
    return parts


def _file(gate: Gate) -> str:
    return "conformance.json" if gate == FULL else f"conformance-{gate.name}.json"


def _sources_hash() -> str:
    digest = hashlib.sha256()
    for path in sorted(_files()):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _files() -> Iterator[Path]:
    for pattern in _SOURCES:
        yield from (path for path in ROOT.glob(pattern) if path.is_file())
