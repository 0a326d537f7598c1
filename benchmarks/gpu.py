"""Everything that needs a CUDA device, in steps that each have a limit on their time, in under eight minutes.

    python -m benchmarks.gpu              # what `make gpu` runs; --help lists the options
    python -m benchmarks.gpu --out DIR    # leave the results and the logs in DIR instead of benchmarks/results
    python -m benchmarks.gpu --only device --only graph --only images-sampling --only images-training --scale 5

What tests comes first, side by side: conformance, a sanitizer, the facts that a profiler tells, the kernels' own tests.
They mostly wait for compilers. What measures has the device to itself; an engine without conformance is not measured.
Nothing is installed or built, and no network is used: any Python with torch for CUDA, triton, pytest and the
package's small dependencies will do. Where vapo_fast is not installed in it, the steps get a folder of links that looks
as if it were (kernels/ is the package ``vapo_fast.kernels``). Peers that are missing are named and left out.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
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
SUMMARY = "on a CUDA device: conformance, sanitizer, benchmarks of MLPs and images, rooflines, in under eight minutes"
PASSED, FAILED, LEFT_OUT = "passed", "FAILED", "left out"
# What a sanitizer says of a device that it cannot attach to, some virtual machines' for instance.
_NO_SANITIZER = ("Device not supported", "Unable to initialize", "not supported on this")
_SANITIZER_ERROR = 86


@dataclass(frozen=True)
class Step:
    """One command with its limit in seconds.

    Attributes:
        needs: names of steps without which it is left out, where these were to be run.
        kept: seconds that earlier steps leave it. slack: of its time, for starting, and for what it does when its own
            budget is spent; `BUDGET` in the command becomes the rest. together: it runs beside the others that say so.
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    needs: tuple[str, ...] = ("device",)
    kept: float = 0.0
    slack: float = 0.0
    together: bool = False
    missing: str = ""


@dataclass(frozen=True)
class Result:
    """How a step ended."""

    step: Step
    state: str
    seconds: float
    said: str


def steps(python: str, results: Path, cache: Path, docs: Path | None, scale: float) -> list[Step]:
    """What is run, in order; ``scale`` stretches the limits, ``results`` is the folder of the results' files."""
    run = (python, "-m", "benchmarks")
    pytest = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    cuda = ("--device", "cuda", "--results", str(results), "--cache", str(cache))
    sanitizer = shutil.which("compute-sanitizer")
    memcheck = ("--tool", "memcheck", "--error-exitcode", str(_SANITIZER_ERROR))
    rounds = ("--rounds", "5", "--round-seconds", "0.03", "--budget-seconds", BUDGET)
    of_mlps = (*rounds, "--run-seconds", "3", "--case-seconds", "60")
    of_images = (*rounds, "--run-seconds", f"{2.0 * scale:g}", "--case-seconds", f"{45 * scale:g}")

    def tests(name: str, seconds: float, *command: str, missing: str = "") -> Step:
        return Step(name, command, seconds, together=True, missing=missing)

    def cases(name: str, seconds: float, select: str, gate: str, *limits: str, kept: float, slack: float) -> Step:
        command = (*run, "run", "--select", select, *cuda, *limits)
        return Step(name, command, seconds, ("device", gate), kept, slack)

    found = [
        Step("device", (python, "-c", _DEVICE), 30, needs=()),
        tests("conformance", 180, *run, "gate", "--gate", "cuda", "--cache", str(cache)),
        tests("graph", 180, *run, "gate", "--gate", "graph", "--cache", str(cache)),
        tests(
            "sanitizer",
            180,
            *(sanitizer or "compute-sanitizer", *memcheck),
            *(python, "-P", str(ROOT / "tests" / "kernels" / "sanitize_case.py")),
            missing="" if sanitizer else "compute-sanitizer is not on the PATH",
        ),
        tests("facts", 180, *pytest, "tests/engines/test_triton_cuda.py"),
        tests("graph-facts", 180, *pytest, "-m", "not slow", *GRAPH_TESTS),
        tests("kernels", 150, *pytest, *KERNEL_TESTS),
        cases("benchmarks", 150, "gpu", "conformance", *of_mlps, kept=0, slack=40),
        cases("images-sampling", 130, "gpu-sampling", "graph", *of_images, kept=60, slack=20),
        cases("images-training", 90, "gpu-training", "graph", *of_images, kept=40, slack=20),
        Step("roofline", (*run, "roofline", *cuda), 75, ("device", "conformance"), kept=40),
    ]
    if docs is not None:
        found.append(Step("report", (*run, "report", *cuda, "--docs", str(docs)), 30, kept=15))
    return [replace(step, seconds=scale * step.seconds, kept=scale * step.kept) for step in found]


BUDGET = "{seconds}"
KERNEL_TESTS = (
    "tests/kernels/test_functions.py",
    "tests/kernels/test_draws.py",
    "tests/kernels/test_twins.py",
    "tests/kernels/test_solve.py::test_max_steps",
    "tests/kernels/test_solve.py::test_a_step_too_small",
    "tests/kernels/test_solve.py::test_rows_that_are_not_finite_fail_alone",
    "tests/kernels/test_solve.py::test_a_solve_that_is_cut_short",
)
"""What the others do not run on a device: elementary functions, draws, every status, masks, derivatives of Phi. (Errors
of each precision are among the facts.)"""
GRAPH_TESTS = (
    "tests/engines/graph/test_graph_cuda.py",
    "tests/engines/graph/test_launch.py",
    "tests/engines/graph/test_solver.py",
    "tests/kernels/test_graph_step.py",
    "tests/engines/explicit/test_pointwise.py",
    "tests/engines/explicit/test_equality.py",
)
"""Of the graph engine and the explicit passes: waiting, recording and precision on the device, and their kernels."""
TOTAL = 470.0
"""Seconds of the whole; a step gets what those before it left, less what is kept for later ones, up to its limit."""

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
    parser.add_argument("--only", action="append", default=[], help="only these steps")
    parser.add_argument("--scale", type=float, default=1.0, help="stretch every limit, for a slower device")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Run the steps and print how they ended."""
    results = ROOT / "benchmarks" / "results" if options.out is None else options.out.resolve()
    logs = ROOT / "out" / "gpu" if options.out is None else results
    for folder in (results, logs):
        folder.mkdir(parents=True, exist_ok=True)
    docs = ROOT / "docs" / "benchmarks.md" if options.out is None else None
    todo = steps(options.python, results, options.cache.resolve(), docs, options.scale)
    unknown = set(options.only) - {step.name for step in todo}
    if unknown:
        print(f"error: no step {min(unknown)!r}; the steps are: {', '.join(step.name for step in todo)}")
        return 2
    todo = [step for step in todo if not options.only or step.name in options.only]
    environment = environment_for(options.python)
    ended = run_steps(todo, lambda planned: execute(planned, environment, logs), TOTAL * options.scale)
    text = summary(ended)
    (logs / "summary.txt").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\nlogs: {logs}")
    return int(any(one.state == FAILED for one in ended))


Planned = tuple[Step, float]
"""A step, its command complete, and how long it may take."""


def run_steps(todo: Sequence[Step], do: Callable[[Sequence[Planned]], list[Result]], total: float) -> list[Result]:
    """Do the steps in order, all within ``total``; those that need one which did not pass are left out."""
    ended: list[Result] = []
    begin = time.monotonic()
    for together, group in itertools.groupby(todo, lambda step: step.together):
        for some in [list(group)] if together else [[step] for step in group]:
            results = _run_beside(some, todo, ended, do, total - (time.monotonic() - begin))
            for one in results:
                print(f"== {one.step.name}: {one.state}, {one.seconds:.0f} s; {one.said}", flush=True)
            ended += results
    return ended


def _run_beside(
    some: Sequence[Step],
    todo: Sequence[Step],
    ended: Sequence[Result],
    do: Callable[[Sequence[Planned]], list[Result]],
    total: float,
) -> list[Result]:
    """Do steps at once, in what time is left."""
    failed = {one.step.name for one in ended if one.state != PASSED}
    last = max(todo.index(step) for step in some)
    kept = sum(later.kept for later in todo[last + 1 :])
    planned, left_out = list[Planned](), dict[str, str]()
    for step in some:
        left = max(total - kept, min(step.kept, total))
        broken = next((name for name in step.needs if name in failed), "")
        if broken or step.missing or left < 5.0:
            left_out[step.name] = f"{broken} did not pass" if broken else step.missing or "no time left"
            continue
        seconds = min(step.seconds, left)
        budget = f"{max(5.0, seconds - step.slack):.0f}"
        command = tuple(budget if part == BUDGET else part for part in step.command)
        print(f"== {step.name} (at most {seconds:.0f} s)", flush=True)
        planned.append((replace(step, command=command), seconds))
    done = {one.step.name: one for one in (do(planned) if planned else ())}
    return [
        Result(step, LEFT_OUT, 0.0, left_out[step.name]) if step.name in left_out else done[step.name] for step in some
    ]


def execute(planned: Sequence[Planned], environment: dict[str, str], logs: Path) -> list[Result]:
    """Run the steps' commands at once, each one's output kept in ``logs`` and shown when it ends; past its limit a
    command and its children are ended."""
    running = [_Running(step, seconds, environment, logs) for step, seconds in planned]
    try:
        while any(one.result is None for one in running):
            time.sleep(_LOOK_SECONDS)
            for one in running:
                one.look()
    finally:
        for one in running:
            one.end()
    return [one.result for one in running if one.result is not None]


_LOOK_SECONDS = 0.1


class _Running:
    """A step's command in a process group of its own."""

    def __init__(self, step: Step, seconds: float, environment: dict[str, str], logs: Path) -> None:
        self._step, self._limit, self._path = step, seconds, logs / f"{step.name}.log"
        self.result: Result | None = None
        self._begin = time.monotonic()
        if step.together:
            # Threads of several processes would wait for one another, over tensors that are small.
            environment = {"OMP_NUM_THREADS": "1", **environment}
        with self._path.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                step.command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def look(self) -> None:
        """Note how it ended, if it did or is to."""
        if self.result is not None:
            return
        code, seconds = self._process.poll(), time.monotonic() - self._begin
        if code is None and seconds < self._limit:
            return
        # Its group is its own session: workers and compilers that it left go with it.
        self.end()
        text = self._path.read_text(encoding="utf-8", errors="replace")
        print(text, flush=True)
        state, said = judge(self._step, code, text)
        self.result = Result(self._step, state, time.monotonic() - self._begin, said)

    def end(self) -> None:
        """End what is left of it."""
        for signal_ in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, signal_)
            except ProcessLookupError:
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=5)


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
    if step.name in ("facts", "graph-facts", "kernels") and code == 0 and " passed" not in said:
        return FAILED, f"nothing was tested: {said}"
    return (PASSED, said) if code == 0 else (FAILED, f"status {code}; {said}")


def summary(ended: Sequence[Result]) -> str:
    """A line for each step."""
    lines = [f"{one.step.name:16} {one.state:9} {one.seconds:5.0f} s  {one.said}" for one in ended]
    beside = [one.seconds for one in ended if one.step.together]
    took = sum(one.seconds for one in ended if not one.step.together) + max(beside, default=0.0)
    return "\n".join([*lines, f"{'in all':16} {'':9} {took:5.0f} s"])


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


if __name__ == "__main__":
    sys.exit(main())
