"""The ways to sample an image potential, and to compute a training step, that are measured beside each other.

All are given the same network, weights, starts and batch. An arm's ``precision`` is that of the network's products, in
whatever way the arm asks for it: "float32" rules out the TF32 that PyTorch lets convolutions use, "bf16" is autocast
for what goes through autograd.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import vapo_fast as vf
from benchmarks.devices import wait
from benchmarks.image_models import batch_of, in_float64
from benchmarks.image_selections import COMPILED, EAGER, OURS, Case
from benchmarks.peers import compiled
from benchmarks.peers.base import UnavailableError
from benchmarks.peers.torch_solvers import Field, Maker, with_scipy, with_torchdiffeq, with_torchode
from benchmarks.peers.vapo_arms import Stopwatch
from benchmarks.workloads import fingerprint
from vapo_fast import noise, ode
from vapo_fast.engines import UnsupportedJobError, choose
from vapo_fast.engines.autocast import arithmetic
from vapo_fast.engines.base import Job
from vapo_fast.engines.explicit import explicit_passes
from vapo_fast.engines.reference import ReferenceEngine
from vapo_fast.loss import Batch
from vapo_fast.ode import Solution, SolveOptions, Status
from vapo_fast.potentials.image import ImagePotential
from vapo_fast.training.batches import as_source

Call = Callable[[], object]

REFERENCE, SCIPY = "eager", "scipy"
TORCHDIFFEQ, TORCHODE = "torchdiffeq", "torchode"
GRAPH, PASSES, TRAINER = "graph", "passes", "trainer"
EAGER_STEP, COMPILED_STEP = "eager", "torch.compile(func.grad)"
AS_GRAPH = " as a CUDA graph"
_MAKERS: dict[str, Maker] = {TORCHDIFFEQ: with_torchdiffeq, TORCHODE: with_torchode}
# Samples that are compared with float64's, and the tolerance of that solve.
_COMPARED = {"cpu": 4, "cuda": 2}
_EXACT_RTOL = 1e-7
# Rows of a float64 gradient that are computed at once.
_EXACT_ROWS = 16
_START_TRAINING_STEP = 200


@dataclass(frozen=True)
class Seen:
    """What came of a job: the error of its result, mean evaluations a sample, the arithmetic used, samples that failed.

    The error is the root mean square distance from float64's end states, or a gradient's relative error.
    """

    error: float | None = None
    nfe: float | None = None
    precision: str = ""
    failed: int = 0


@dataclass(frozen=True)
class Arm:
    """One way to do a job.

    Attributes:
        name, precision: as in tables and files. ours: whether it is this project's.
        make: compiles and captures what it needs; returns what is timed. look: says what came of its result.
        missing: None, or why it cannot run here.
        seconds: times one job itself, given what ``make`` returned, where calls are not what is timed.
        countable: whether the CPU's memory can be counted in it.
        largest_error: above it, it computes something else.
    """

    name: str
    precision: str
    ours: bool
    make: Callable[[], Call]
    look: Callable[[Any], Seen]
    missing: Callable[[], str | None] = lambda: None
    seconds: Callable[[Any], float] | None = None
    countable: bool = True
    largest_error: float = math.inf

    @property
    def key(self) -> str:
        """Name and precision, in one string that no other arm of a case has."""
        return self.name if self.precision == "float32" else f"{self.name}, {self.precision}"


@dataclass(frozen=True)
class Problem:
    """A case with its numbers.

    Args:
        model: on the case's device. data: images on the CPU, for training. cache: folder for float64 solutions.
    """

    case: Case
    model: ImagePotential
    data: Tensor
    cache: Path

    @cached_property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.stem.weight.device

    @property
    def span(self) -> tuple[float, float]:
        """Start and end time."""
        return self.model.homotopy.t0, self.model.homotopy.t1

    @cached_property
    def ends(self) -> Tensor:
        """`span` as a tensor."""
        return torch.tensor(self.span, device=self.device)

    @cached_property
    def x0(self) -> Tensor:
        """(n, *event) draws of the prior."""
        draws = noise.normal(5, range(self.case.n), self.model.event_shape)
        return self.model.homotopy.omega * draws.to(self.device)

    @property
    def compared(self) -> int:
        """How many samples are compared with float64's."""
        return min(_COMPARED[self.device.type], self.case.n)

    @cached_property
    def exact(self) -> Tensor:
        """End states (compared, *event) of the first samples, in float64 and far below the arms' tolerances."""
        file = self.cache / f"image-ends-{fingerprint(self.model)}-{self.compared}.pt"
        if file.exists():
            kept: Tensor = torch.load(file, map_location=self.device, weights_only=True)
            return kept
        passes = explicit_passes(in_float64(self.model).to(self.device))
        x0, options = self.x0[: self.compared].double(), SolveOptions(rtol=_EXACT_RTOL)
        ends = ode.integrate(lambda x, t: passes.field(x, t)[1], x0, *self.span, options).x
        self.cache.mkdir(parents=True, exist_ok=True)
        torch.save(ends, file)
        return ends

    @cached_property
    def batch(self) -> Batch:
        """A training batch of n images."""
        source = as_source(self.data, self.model.event_shape)
        batch = batch_of(self.model, source, _START_TRAINING_STEP, self.case.n)
        return Batch(*(part.to(self.device) for part in batch))

    @cached_property
    def exact_gradient(self) -> Tensor:
        """All gradients of the batch's loss, in float64, in one vector."""
        passes = explicit_passes(in_float64(self.model).to(self.device))
        total: Tensor | None = None
        for part in self.batch.split(math.ceil(self.case.n / _EXACT_ROWS)):
            grads = passes.loss_and_grads(Batch(*(value.double() for value in part)))[1]
            share = len(part.x_data) / self.case.n * flat(grads)
            total = share if total is None else total + share
        assert total is not None
        return total


def flat(grads: Mapping[str, Tensor]) -> Tensor:
    """In one vector, by name."""
    return torch.cat([grads[name].flatten() for name in sorted(grads)])


def arms_of(problem: Problem) -> list[Arm]:
    """The arms of a case, those that take longest to make ready last."""
    case = problem.case
    of_job = _SOLVES if case.job == "sample" else _STEPS
    return [replace(arm, largest_error=_largest_error(case, arm.precision)) for arm in of_job[case.peers](problem)]


# Of a gradient, relative; and of end states beside the tolerance, which solvers keep to within a factor.
_LARGEST = {"float32": 1e-3, "tf32": 0.03, "bf16": 0.15, "auto": 0.15}
_LARGEST_END = {"float32": 1e-4, "tf32": 0.01, "bf16": 0.05, "auto": 0.05}
_LARGEST_TOLERANCES = 50.0


def _largest_error(case: Case, precision: str) -> float:
    if case.rtol is None:
        return _LARGEST[precision]
    return _LARGEST_TOLERANCES * case.rtol + _LARGEST_END[precision]


def precisions(problem: Problem) -> list[str]:
    """Those of the case that the device has."""
    return [one for one in problem.case.precisions if one != "tf32" or problem.device.type == "cuda"]


# Sampling ---------------------------------------------------------------------------------------------------------


def _solves_of_ours(problem: Problem) -> list[Arm]:
    return [_reference_solve(problem), *(_our_solve(problem, one) for one in precisions(problem))]


def _solves_of_eager(problem: Problem) -> list[Arm]:
    wanted, on_cuda = precisions(problem), problem.device.type == "cuda"
    arms = [_our_solve(problem, one) for one in ("auto", *wanted)]
    for precision in wanted:
        field = partial(_eager_field, problem, precision)
        arms.append(_peer(TORCHDIFFEQ, TORCHDIFFEQ, precision, field, problem))
        if on_cuda:
            graphed = functools.cache(partial(_graphed, problem, field))
            arms += [_peer(name + AS_GRAPH, name, precision, graphed, problem) for name in _MAKERS]
    # As the authors' code samples: in float32, whatever the others do; and with the settings that PyTorch comes with.
    for precision in ("float32", "tf32") if on_cuda else ("float32",):
        arms.append(_peer(SCIPY, SCIPY, precision, partial(_eager_field, problem, precision), problem))
    return arms


def _solves_of_compiled(problem: Problem) -> list[Arm]:
    arms = [_our_solve(problem, one) for one in precisions(problem)]
    for precision in precisions(problem):
        # Compiled once: solvers and graphs share it.
        field = functools.cache(partial(_compiled_field, problem, precision))
        arms += [_peer(f"{name} compiled", name, precision, field, problem, _compiler_missing) for name in _MAKERS]
        if problem.device.type == "cuda":
            graphed = functools.cache(partial(_graphed, problem, field))
            arms += [
                _peer(f"{name} compiled{AS_GRAPH}", name, precision, graphed, problem, _compiler_missing)
                for name in _MAKERS
            ]
    return arms


_SOLVES = {OURS: _solves_of_ours, EAGER: _solves_of_eager, COMPILED: _solves_of_compiled}


def _our_solve(problem: Problem, precision: str) -> Arm:
    """The graph engine, as `vapo_fast.sample` uses it."""
    model, rtol = problem.model, problem.case.rtol
    job = Job("solve", precision, solve=SolveOptions(rtol=rtol, atol=rtol))

    def make() -> Call:
        engine = _engine("graph", problem, job)
        return lambda: engine.solve(model, problem.x0, *problem.span, job)

    return Arm(GRAPH, precision, True, make, partial(_of_solution, problem))


def _reference_solve(problem: Problem) -> Arm:
    """The reference engine: autograd's field, and the solver in PyTorch."""
    model, rtol, engine = problem.model, problem.case.rtol, ReferenceEngine()
    job = Job("solve", solve=SolveOptions(rtol=rtol, atol=rtol))

    def call() -> Solution:
        with arithmetic("float32", problem.device.type):
            return engine.solve(model, problem.x0, *problem.span, job)

    return Arm(REFERENCE, "float32", False, lambda: call, partial(_of_solution, problem))


def _of_solution(problem: Problem, solution: Solution) -> Seen:
    failed = int((solution.status != Status.SUCCESS).sum())
    return Seen(_distance(problem, solution.x), float(solution.nfe.double().mean()), solution.precision, failed)


def _distance(problem: Problem, x: Tensor) -> float:
    difference = x[: problem.compared].to(problem.exact) - problem.exact
    return float(difference.square().mean().sqrt())


def _eager_field(problem: Problem, precision: str) -> Field:
    """The network as a user evaluates it: autograd's gradient."""
    model, device = problem.model, problem.device.type

    def field(x: Tensor, t: Tensor | float) -> Tensor:
        with arithmetic(precision, device):
            return model.field(x, t)[1]

    return field


def _compiled_field(problem: Problem, precision: str) -> Field:
    """``torch.compile`` of the gradient of Phi as a function of (x, t, parameters)."""
    # A copy, so that nothing that a compiler leaves on its modules is seen elsewhere.
    model, device = copy.deepcopy(problem.model), problem.device
    parameters = {name: value.detach() for name, value in (*model.named_parameters(), *model.named_buffers())}

    def phi(x: Tensor, t: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        values: Tensor = torch.func.functional_call(model, parameters, (x, t))
        return values.sum()

    gradient: Any = torch.compile(torch.func.grad(phi), dynamic=False)

    def field(x: Tensor, t: Tensor | float) -> Tensor:
        times = torch.as_tensor(t, dtype=x.dtype, device=device).expand(len(x)).contiguous()
        with torch.no_grad(), arithmetic(precision, device.type):
            values: Tensor = gradient(x.contiguous(), times, parameters)
        return values

    return field


def _graphed(problem: Problem, make: Callable[[], Field]) -> Field:
    """A field of the whole batch as a CUDA graph, replayed with new inputs."""
    times = torch.full((problem.case.n,), problem.span[0], device=problem.device)
    return compiled.GraphedField(make(), problem.x0, times)


def _peer(
    name: str,
    solver: str,
    precision: str,
    make_field: Callable[[], Field],
    problem: Problem,
    missing: Callable[[], str | None] = lambda: None,
) -> Arm:
    """Somebody else's solver around a field, and how many evaluations it took."""
    flattens = solver == TORCHODE  # it takes vectors

    def make() -> Call:
        field, calls = make_field(), [0]
        event = problem.model.event_shape

        def counted(x: Tensor, t: Tensor | float) -> Tensor:
            calls[0] += 1
            return field(x.reshape(-1, *event), t).reshape(x.shape)

        x0 = problem.x0.flatten(1) if flattens else problem.x0
        equation = SimpleNamespace(
            case=SimpleNamespace(rtol=problem.case.rtol, steps=None),
            x0=x0, span=problem.span, ends=problem.ends, device=problem.device,
        )  # fmt: skip
        solve = (with_scipy if solver == SCIPY else _MAKERS[solver])(counted, equation)

        def call() -> tuple[Tensor, dict[str, Any], int]:
            calls[0] = 0
            with torch.no_grad():
                x, told = solve()
            return x, told, calls[0]

        return call

    def look(result: tuple[Tensor, dict[str, Any], int]) -> Seen:
        x, told, calls = result
        evaluations, failed = told.get("evaluations"), told.get("failed", 0)
        return Seen(
            _distance(problem, x.reshape(problem.x0.shape)),
            float(calls if evaluations is None else evaluations.double().mean()),
            precision,
            int((failed != 0).sum()) if isinstance(failed, Tensor) else failed,
        )

    return Arm(name, precision, False, make, look, lambda: _package_missing(solver) or missing())


# Training ---------------------------------------------------------------------------------------------------------


def _steps_of_ours(problem: Problem) -> list[Arm]:
    wanted, look = precisions(problem), _gradients(problem)
    recomputing = Arm(f"{PASSES}, recomputing", "float32", True, partial(_recomputing, problem), look)
    own = [*(_our_step(problem, one) for one in wanted), recomputing]
    return [*(_eager_step(problem, one) for one in wanted), *own, *_compiled_step_arms(problem, "float32")]


def _steps_of_eager(problem: Problem) -> list[Arm]:
    wanted = precisions(problem)
    arms = [make(problem, one) for make in (_our_step, _eager_step) for one in wanted]
    return [*arms, _trainer_step(problem, wanted[0])]


def _steps_of_compiled(problem: Problem) -> list[Arm]:
    own = [_our_step(problem, one) for one in precisions(problem)]
    return [*own, *(arm for one in precisions(problem) for arm in _compiled_step_arms(problem, one))]


_STEPS = {OURS: _steps_of_ours, EAGER: _steps_of_eager, COMPILED: _steps_of_compiled}


def _recomputing(problem: Problem) -> Call:
    passes = explicit_passes(problem.model)
    return lambda: passes.loss_and_grads(problem.batch, recompute=True)


def _our_step(problem: Problem, precision: str) -> Arm:
    """The graph engine's loss and gradients; on CUDA one graph, as `vapo_fast.Trainer` captures it in its step."""
    model, batch, job = problem.model, problem.batch, Job("loss_and_grads", precision)

    def make() -> Call:
        engine = _engine("graph", problem, job)

        def call() -> object:
            return engine.loss_and_grads(model, batch, job)

        return _as_graph(call) if problem.device.type == "cuda" else call

    return Arm(PASSES, precision, True, make, _gradients(problem))


def _eager_step(problem: Problem, precision: str) -> Arm:
    """Double backward by autograd."""
    model, batch, engine = problem.model, problem.batch, ReferenceEngine()
    job = Job("loss_and_grads", "bf16" if precision == "bf16" else "auto")

    def call() -> object:
        # bf16 is the job's, whose loss and gauge stay in float32.
        with arithmetic("float32" if precision == "bf16" else precision, problem.device.type):
            return engine.loss_and_grads(model, batch, job)

    return Arm(EAGER_STEP, precision, False, lambda: call, _gradients(problem))


def _compiled_step_arms(problem: Problem, precision: str) -> list[Arm]:
    step, look = functools.cache(partial(_compiled_step, problem, precision)), _gradients(problem)
    makers: dict[str, Callable[[], Call]] = {COMPILED_STEP: step}
    if problem.device.type == "cuda":
        makers[COMPILED_STEP + AS_GRAPH] = lambda: _as_graph(step())
    return [
        Arm(name, precision, False, make, look, _compiler_missing, countable=False) for name, make in makers.items()
    ]


def _compiled_step(problem: Problem, precision: str) -> Call:
    """Both derivatives in one function, compiled as a whole: double backward through a compiled module is refused."""
    model, batch = copy.deepcopy(problem.model), problem.batch
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    buffers, path = dict(model.named_buffers()), model.homotopy

    def loss(parameters: Mapping[str, Tensor], x: Tensor, velocity: Tensor, t: Tensor, weight: Tensor) -> Tensor:
        def phi(x: Tensor) -> Tensor:
            values: Tensor = torch.func.functional_call(model, {**parameters, **buffers}, (x, t))
            return values.sum()

        gradient = torch.func.grad(phi)(x).flatten(1)
        terms = 0.5 * gradient.square().sum(1) - (gradient * velocity.flatten(1)).sum(1)
        return (weight * terms).mean()

    gradients: Any = torch.compile(torch.func.grad(loss), dynamic=False)

    def step() -> tuple[None, dict[str, Tensor]]:
        point = path.perturb(*batch)
        weight = path.kernel(batch.t).beta.pow(-2)
        with torch.no_grad(), arithmetic(precision, problem.device.type):
            return None, gradients(parameters, point.x, point.velocity, batch.t, weight)

    return step


def _gradients(problem: Problem) -> Callable[[Any], Seen]:
    def look(result: tuple[object, Mapping[str, Tensor]]) -> Seen:
        exact = problem.exact_gradient
        return Seen(float((flat(result[1]).to(exact) - exact).norm() / exact.norm()))

    return look


# Steps of a fit that are not timed: on CUDA the ordinary ones, and that which records the graph; and those that are.
_UNTIMED_STEPS, _TIMED_STEPS = {"cpu": 1, "cuda": 5}, {"cpu": 1, "cuda": 10}


def _trainer_step(problem: Problem, precision: str) -> Arm:
    """A whole step of `vapo_fast.Trainer` in progress: batch, loss, gradients, Adam, average."""
    device = problem.device.type
    untimed, timed = _UNTIMED_STEPS[device], _TIMED_STEPS[device]

    def make() -> Call:
        model = copy.deepcopy(problem.model)
        options = {"batch_size": problem.case.n, "lr": 1e-5, "schedule": "constant", "log_every": timed}
        try:
            trainer = vf.Trainer(model, engine="graph", precision=precision, **options)
        except UnsupportedJobError as error:
            raise UnavailableError(str(error)) from error
        data = problem.data.to(problem.device)

        def fit() -> float:
            watch = Stopwatch(device, untimed)
            trainer.fit(data, untimed + timed, callbacks=(watch,))
            wait(device)
            seconds = (time.perf_counter() - watch.begin) / timed
            step = trainer._deferred
            if device == "cuda" and (step is None or step._graph is None):
                raise UnavailableError("the step was not captured")
            return seconds

        return fit

    # Its gradients are the other arm's.
    return Arm(TRAINER, precision, True, make, lambda result: Seen(), seconds=lambda fit: fit(), countable=False)


def _as_graph(call: Call) -> Call:
    graph, result = compiled.captured(call, "thread_local")

    def replay() -> object:
        graph.replay()
        return result

    return replay


def _engine(name: str, problem: Problem, job: Job) -> Any:
    try:
        return choose(name, problem.model, problem.device, torch.float32, job)
    except UnsupportedJobError as error:
        raise UnavailableError(str(error)) from error


def _package_missing(package: str) -> str | None:
    return None if importlib.util.find_spec(package) else f"{package} is not installed"


def _compiler_missing() -> str | None:
    found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    return None if found else "torch.compile needs a C++ compiler"
