"""Everything that needs a CUDA device, one step after the other, each with a limit on its time, in under nine minutes.

    python -m benchmarks.gpu              # what `make gpu` runs; --help lists the options
    python -m benchmarks.gpu --out DIR    # leave the results and the logs in DIR instead of benchmarks/results

The facts that a profiler tells, conformance and the kernels' own tests come first; without conformance no speed is
measured. Nothing is installed or built, and no network is used: any Python with torch for CUDA, triton, pytest and the
package's small dependencies will do. Where vapo_fast is not installed in it, the steps get a folder of links that looks
as if it were (kernels/ is the package ``vapo_fast.kernels``). Peers that are missing are named and left out.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUMMARY = "on a CUDA device: conformance, sanitizer, benchmarks and rooflines, in under nine minutes"
PASSED, FAILED, LEFT_OUT = "passed", "FAILED", "left out"
# What a sanitizer says of a device that it cannot attach to, some virtual machines' for instance.
_NO_SANITIZER = ("Device not supported", "Unable to initialize", "not supported on this")
_SANITIZER_ERROR = 86


@dataclass(frozen=True)
class Step:
    """One command with its limit in seconds.

    ``needed``: without it the steps that measure are left out. ``kept``: earlier steps leave it its time. `BUDGET` in
    the command becomes the seconds that the step has for itself.
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    needed: bool = False
    measures: bool = False
    kept: bool = False
    missing: str = ""


@dataclass(frozen=True)
class Result:
    """How a step ended."""

    step: Step
    state: str
    seconds: float
    said: str


def steps(python: str, csv: Path, roofline_csv: Path, cache: Path, docs: Path | None, scale: float) -> list[Step]:
    """What is run, in order; ``scale`` stretches the limits."""
    run = (python, "-m", "benchmarks")
    files = ("--csv", str(csv), "--roofline-csv", str(roofline_csv), "--cache", str(cache))
    sanitizer = shutil.which("compute-sanitizer")
    limits = {name: scale * seconds for name, seconds in SECONDS.items()}
    measuring = ("--rounds", "5", "--round-seconds", "0.03", "--run-seconds", "3", "--case-seconds", "60")
    pytest = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    found = [
        Step("device", (python, "-c", _DEVICE), limits["device"], needed=True),
        Step(
            "facts",
            (*pytest, "tests/engines/test_triton_cuda.py"),
            limits["facts"],
        ),
        Step(
            "conformance",
            (*run, "gate", "--gate", "cuda", "--cache", str(cache)),
            limits["conformance"],
            needed=True,
        ),
        Step(
            "sanitizer",
            (
                sanitizer or "compute-sanitizer",
                *("--tool", "memcheck", "--error-exitcode", str(_SANITIZER_ERROR)),
                *(python, "-P", str(ROOT / "benchmarks" / "sanitize_case.py")),
            ),
            limits["sanitizer"],
            missing="" if sanitizer else "compute-sanitizer is not on the PATH",
        ),
        Step("kernels", (*pytest, *KERNEL_TESTS), limits["kernels"]),
        Step(
            "benchmarks",
            (*run, "run", "--device", "cuda", "--select", "gpu", *measuring, "--budget-seconds", BUDGET, *files),
            limits["benchmarks"],
            measures=True,
        ),
        Step("roofline", (*run, "roofline", "--device", "cuda", *files), limits["roofline"], measures=True, kept=True),
    ]
    if docs is not None:
        report = (*run, "report", *files, "--docs", str(docs))
        found.append(Step("report", report, limits["report"], measures=True, kept=True))
    return found


BUDGET = "{seconds}"
# Of a step's time: for starting, and for what it does when its own budget is spent.
_SLACK = 40.0
KERNEL_TESTS = (
    "tests/kernels/test_functions.py",
    "tests/kernels/test_draws.py",
    "tests/kernels/test_value.py",
    "tests/kernels/test_solve.py::test_max_steps",
    "tests/kernels/test_solve.py::test_a_step_too_small",
    "tests/kernels/test_solve.py::test_rows_that_are_not_finite_fail_alone",
    "tests/kernels/test_step.py::test_a_step_leaves_masked_samples_alone",
)
"""What the others do not run on a device: elementary functions, draws, every status, masks, derivatives of Phi. (Errors
of each precision are among the facts.)"""
SECONDS = {
    "device": 40,
    "facts": 150,
    "conformance": 180,
    "sanitizer": 110,
    "kernels": 90,
    "benchmarks": 300,
    "roofline": 75,
    "report": 30,
}
"""Limits; the whole is held to `TOTAL` as well: a step gets what those before it left, less what is kept for later."""
TOTAL = 530.0

_DEVICE = """
import sys, torch
if not torch.cuda.is_available():
    sys.exit(f"torch {torch.__version__} finds no CUDA device")
import vapo_fast.kernels
from vapo_fast import engines
from benchmarks.devices import accelerator
one = accelerator("cuda")
print(f"{one.accelerator}, driver {one.driver}, torch {torch.__version__}, triton {one.triton}")
print(f"engine triton: {engines()['triton']}")
sys.exit(engines()["triton"] != "usable")
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps; 0 if none failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=SUMMARY)
    add_arguments(parser)
    return run(parser.parse_args(arguments))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run`."""
    parser.add_argument("--python", default=sys.executable, help="interpreter of the steps (default: this one)")
    parser.add_argument("--out", type=Path, help="folder for results and logs; the tree's own files stay as they are")
    parser.add_argument(
        "--cache", type=Path, default=ROOT / "out" / "benchmarks", help="as of python -m benchmarks run"
    )
    parser.add_argument("--only", action="append", default=[], choices=list(SECONDS), help="only these steps")
    parser.add_argument("--scale", type=float, default=1.0, help="stretch every limit, for a slower device")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Run the steps and print how they ended."""
    results = ROOT / "benchmarks" / "results" if options.out is None else options.out.resolve()
    logs = ROOT / "out" / "gpu" if options.out is None else results
    for folder in (results, logs):
        folder.mkdir(parents=True, exist_ok=True)
    docs = ROOT / "docs" / "benchmarks.md" if options.out is None else None
    todo = steps(
        options.python, results / "bench.csv", results / "roofline.csv", options.cache.resolve(), docs, options.scale
    )
    todo = [step for step in todo if not options.only or step.name in options.only]
    for line in without_peers(options.python) if any(step.name == "benchmarks" for step in todo) else ():
        print(line, flush=True)
    environment = environment_for(options.python)
    ended = run_steps(todo, lambda step, seconds: execute(step, seconds, environment, logs), TOTAL * options.scale)
    text = summary(ended)
    (logs / "summary.txt").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\nlogs: {logs}")
    return int(any(one.state == FAILED for one in ended))


def run_steps(todo: Sequence[Step], do: Callable[[Step, float], Result], total: float) -> list[Result]:
    """Do the steps in order; those that measure only if nothing that is needed failed, and all within ``total``."""
    ended: list[Result] = []
    begin = time.monotonic()
    for i, step in enumerate(todo):
        broken = next((one.step.name for one in ended if one.step.needed and one.state != PASSED), "")
        kept = 0.0 if step.kept else sum(later.seconds for later in todo[i + 1 :] if later.kept)
        left = total - kept - (time.monotonic() - begin)
        if broken and (step.measures or broken == "device"):
            ended.append(Result(step, LEFT_OUT, 0.0, f"{broken} did not pass"))
        elif step.missing:
            ended.append(Result(step, LEFT_OUT, 0.0, step.missing))
        elif left < 5.0:
            ended.append(Result(step, LEFT_OUT, 0.0, "no time left"))
        else:
            seconds = min(step.seconds, left)
            budget = f"{max(5.0, seconds - _SLACK):.0f}"
            command = tuple(budget if part == BUDGET else part for part in step.command)
            print(f"== {step.name} (at most {seconds:.0f} s)", flush=True)
            ended.append(do(replace(step, command=command), seconds))
            one = ended[-1]
            print(f"== {step.name}: {one.state}, {one.seconds:.0f} s; {one.said}", flush=True)
    return ended


def without_peers(python: str) -> list[str]:
    """What is left out of the benchmarks, and how it would be there."""
    code = "from benchmarks.peers import jax_client; print(jax_client.missing('cuda') or '')"
    done = subprocess.run(
        [python, "-c", code], cwd=ROOT, env=environment_for(python), capture_output=True, text=True, check=False
    )
    reason = done.stdout.strip()
    return [f"diffrax and JAX are left out: {reason}"] if reason else []


def execute(step: Step, seconds: float, environment: dict[str, str], logs: Path) -> Result:
    """Run a step's command, its output shown and kept in ``logs``; past the limit it and its children are ended."""
    begin, path = time.monotonic(), logs / f"{step.name}.log"
    with path.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            step.command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | None = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            # Its group is its own session: workers and compilers that it left go with it.
            _end_group(process)
    text = path.read_text(encoding="utf-8", errors="replace")
    print(text, flush=True)
    state, said = judge(step, code, text)
    return Result(step, state, time.monotonic() - begin, said)


def judge(step: Step, code: int | None, text: str) -> tuple[str, str]:
    """How a step ended, and its last line."""
    lines = [line.strip("= ") for line in text.splitlines() if line.strip("= ")]
    said = lines[-1] if lines else ""
    if code is None:
        return FAILED, f"over its time; {said}"
    if step.name == "sanitizer":
        said = next((line for line in reversed(lines) if "ERROR SUMMARY" in line), said)
        if code and code != _SANITIZER_ERROR and any(sign in text for sign in _NO_SANITIZER):
            return LEFT_OUT, "compute-sanitizer cannot work on this device"
    if step.name in ("facts", "kernels") and code == 0 and " passed" not in said:
        return FAILED, f"nothing was tested: {said}"
    return (PASSED, said) if code == 0 else (FAILED, f"status {code}; {said}")


def summary(ended: Sequence[Result]) -> str:
    """A line for each step."""
    lines = [f"{one.step.name:12} {one.state:9} {one.seconds:5.0f} s  {one.said}" for one in ended]
    return "\n".join([*lines, f"{'in all':12} {'':9} {sum(one.seconds for one in ended):5.0f} s"])


def environment_for(python: str) -> dict[str, str]:
    """Variables of the steps: where vapo_fast is not installed, a path on which it is found."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if not installed(python):
        # Without -P the current folder, whose vapo_fast has no kernels in it, would come first.
        kept = [environment["PYTHONPATH"]] if environment.get("PYTHONPATH") else []
        environment["PYTHONPATH"] = os.pathsep.join([str(linked(ROOT / "build" / "linked")), str(ROOT), *kept])
        environment["PYTHONSAFEPATH"] = "1"
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


def installed(python: str) -> bool:
    """Whether an interpreter has this tree's vapo_fast, kernels included."""
    code = "import vapo_fast.kernels as k, pathlib; print(pathlib.Path(k.__file__).resolve().parent)"
    done = subprocess.run(
        [python, "-P", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    return done.returncode == 0 and Path(done.stdout.strip() or "/") == ROOT / "kernels"


def linked(folder: Path) -> Path:
    """A folder with a package vapo_fast made of links to the tree's files, kernels/ among them."""
    package = folder / "vapo_fast"
    shutil.rmtree(folder, ignore_errors=True)
    package.mkdir(parents=True)
    for entry in (ROOT / "vapo_fast").iterdir():
        if entry.name != "__pycache__":
            (package / entry.name).symlink_to(entry)
    (package / "kernels").symlink_to(ROOT / "kernels")
    return folder


def _end_group(process: subprocess.Popen[bytes]) -> None:
    for signal_ in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, signal_)
        except ProcessLookupError:
            return
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            continue


if __name__ == "__main__":
    sys.exit(main())
