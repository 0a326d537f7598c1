"""The JAX arms as the kit sees them: requests to a worker process (`benchmarks.peers.jax_worker`).

JAX pins another numpy than PyTorch's users may have, and its threads are fixed when it starts: so it has an environment
of its own (``make bench-jax``, for CUDA ``make bench-jax-cuda``; VAPO_FAST_JAX_PYTHON names the python of another;
where there is none but this interpreter has JAX and diffrax, it is this one), and a worker for each device and number
of threads. While the worker computes this process waits, and the other way round, so rounds stay interleaved.

On CUDA both processes hold the same device. JAX must not take most of its memory at the start, and its float32 products
are asked for in float32: its default there is TF32, with which no solve reaches the tolerances of these cases. It has
no events, so the worker's clock runs from the call to results that are ready.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.flops import PRODUCT_SIZE
from benchmarks.peers.base import Arm, Outcome, Runner, Timings, UnavailableError, check_field, check_gradient
from benchmarks.peers.compiled import READ_INTERVAL, parameter_order
from benchmarks.workloads import Problem

JAX_PRODUCT = "jax matrix product"
ENVIRONMENT_VARIABLE = "VAPO_FAST_JAX_PYTHON"
_ROOT = Path(__file__).resolve().parent.parent.parent
_WORKER = Path(__file__).with_name("jax_worker.py")


class WorkerError(RuntimeError):
    """The worker ended, or could not do a request."""


def environment_for(threads: int, device: str) -> dict[str, str]:
    """The variables that a worker is started with."""
    flags = os.environ.get("XLA_FLAGS", "")
    if threads == 1 and device == "cpu":
        flags += " --xla_cpu_multi_thread_eigen=false"
    environment = os.environ | {"NPROC": str(threads), "XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": device}
    if device == "cuda":
        environment |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    return environment


class Worker:
    """A worker process on a device with a number of threads."""

    def __init__(self, threads: int, device: str = "cpu") -> None:
        reason = missing(device)
        if reason:
            raise UnavailableError(reason)
        environment = environment_for(threads, device)
        self.python = python(device)
        self._directory = tempfile.TemporaryDirectory(prefix="vapo-fast-jax-")
        # -P: the script's own directory must not stand before the installed packages.
        self._process = subprocess.Popen(
            [str(self.python), "-P", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._loaded: Problem | None = None
        atexit.register(self.close)

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def path(self, name: str) -> str:
        """A file that both processes see."""
        return str(Path(self._directory.name) / name)

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a request and wait for its reply."""
        if self._process.stdin is None or self._process.stdout is None:
            raise WorkerError("the worker has no pipes")
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise WorkerError(f"the JAX worker has ended, with status {self._process.poll()}") from error
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"the JAX worker ended during {do!r}, with status {self._process.wait()}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise WorkerError(f"the JAX worker could not {do}: {reply['error']}")
        return reply

    def load(self, problem: Problem) -> None:
        """Send a problem, unless it is the one that the worker holds."""
        if self._loaded is problem:
            return
        inputs: dict[str, Any] = {"input_x0": problem.x0, "input_times": problem.times}
        if problem.case.job in ("loss", "trainer"):
            inputs |= {f"input_{name}": value for name, value in problem.batch._asdict().items()}
            inputs["input_data"] = problem.data
        inputs = {name: value.cpu().numpy() for name, value in inputs.items()}
        arrays: dict[str, Any] = {**problem.weights.arrays, **inputs}
        np.savez(self.path("problem.npz"), **arrays)
        self.ask("load", scalars=problem.weights.scalars, arrays=self.path("problem.npz"))
        self.ask("field", path=self.path("field.npy"), rows=len(problem.exact_field))
        check_field("jax", np.load(self.path("field.npy")), problem)
        self._loaded = problem

    def close(self) -> None:
        """End the process."""
        if self.alive:
            self._process.terminate()
            self._process.wait()
        self._directory.cleanup()


_WORKERS: dict[tuple[int, str], Worker] = {}


def worker(threads: int, device: str = "cpu") -> Worker:
    """The worker on a device with so many threads; started once, and again if it has died."""
    key = threads, device
    if key not in _WORKERS or not _WORKERS[key].alive:
        _WORKERS[key] = Worker(threads, device)
    return _WORKERS[key]


def python(device: str = "cpu") -> Path:
    """The interpreter that has JAX: the one that is named, the device's own environment, or this one."""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    folder = ".venv-jax-cuda" if device == "cuda" else ".venv-jax"
    own, this = _ROOT / folder / "bin" / "python", Path(sys.executable)
    has_jax = all(importlib.util.find_spec(package) for package in ("jax", "diffrax"))
    if named:
        return Path(named)
    return this if has_jax and not own.exists() else own


def missing(device: str = "cpu") -> str | None:
    """None if there is an interpreter that has JAX for a device, else what to do about it."""
    if python(device).exists():
        return None
    if device == "cuda":
        return (
            f"no environment with JAX for CUDA at {python(device)}: make bench-jax-cuda, or name an interpreter with "
            f"it and diffrax in {ENVIRONMENT_VARIABLE}"
        )
    return f"no JAX environment at {python()}: make bench-jax"


class _JaxRunner(Runner):
    def __init__(self, name: str, problem: Problem, kind: str, **options: Any) -> None:
        self._name, self._problem = name, problem
        self._worker = worker(problem.case.threads, problem.case.device)
        self.version = _version(self._worker.python)
        self._worker.load(problem)
        self._worker.ask("prepare", name=name, kind=kind, **options)
        if kind == "loss":
            gradient = self.outcome().gradient
            if gradient is not None:
                check_gradient(name, gradient, problem)

    def run(self, repeats: int) -> Timings:
        reply = self._worker.ask("run", name=self._name, repeats=repeats)
        return Timings(reply["seconds"], reply["cpu_seconds"])

    def outcome(self) -> Outcome:
        path = self._worker.path("outcome.npz")
        self._worker.ask("outcome", name=self._name, path=path)
        with np.load(path) as file:
            told = {name: file[name] for name in file.files}
        if "x" in told:
            x = told["x"].astype(np.float64)
            share = float(told["field_share"])
            return Outcome(x, told["evaluations"], told["steps"], int(told["failed"]), share, field_estimated=True)
        grads = [f"grad_{name}" for name in parameter_order(self._problem.weights.scalars["layers"])]
        if grads[0] in told:
            return Outcome(gradient=np.concatenate([told[name].astype(np.float64).ravel() for name in grads]))
        if "field" in told:
            return Outcome(field=told["field"][: len(self._problem.exact_field)].astype(np.float64))
        return Outcome()

    def close(self) -> None:
        if self._worker.alive:
            self._worker.ask("release", name=self._name)


@cache
def _version(interpreter: Path) -> str:
    read = "from importlib.metadata import version as v; print('diffrax', v('diffrax') + ', jax', v('jax'))"
    return subprocess.run([str(interpreter), "-c", read], capture_output=True, text=True, check=True).stdout.strip()


def _own_version() -> str:
    return _version(python())


def _anywhere() -> str | None:
    """Arms are asked before their device is known; a worker says what is missing for its own."""
    return None if missing() is None or missing("cuda") is None else missing()


def _prepare_solve(name: str, vmap: bool, problem: Problem) -> Runner:
    case = problem.case
    return _JaxRunner(name, problem, "solve", vmap=vmap, rtol=case.rtol, steps=case.steps)


def _prepare_other(problem: Problem) -> Runner:
    case = problem.case
    options = {"batch_size": case.n, "read_interval": READ_INTERVAL[case.device]} if case.job == "trainer" else {}
    return _JaxRunner("jax jit", problem, case.job, **options)


def _prepare_product(problem: Problem) -> Runner:
    return _JaxRunner(JAX_PRODUCT, problem, "product", size=PRODUCT_SIZE)


def _arm(name: str, jobs: tuple[str, ...], prepare: Callable[[Problem], Runner], note: str) -> Arm:
    package = "diffrax" if "diffrax" in name else "jax"
    return Arm(name, True, jobs, package, prepare, _anywhere, _own_version, note, ("cpu", "cuda"))


def _diffrax(name: str, vmap: bool, note: str) -> Arm:
    return _arm(name, ("solve", "solve_fixed"), partial(_prepare_solve, name, vmap), note)


_PRODUCT_NOTE = "what another library's product reaches here"
ARMS = (
    _diffrax("diffrax", False, "jitted; one step size for the batch"),
    _diffrax("diffrax vmap", True, "jitted; a step size for each sample, in lock step"),
    Arm(JAX_PRODUCT, False, ("field",), "jax", _prepare_product, missing, _own_version, _PRODUCT_NOTE),
    _arm("jax jit", ("field", "loss", "trainer"), _prepare_other, "jitted autodiff"),
)
