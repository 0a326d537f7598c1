"""The ways to sample an image potential, and to compute a training step, that are measured beside each other.

All are given the same network, weights, starts and batch. An arm's precision is that of the network's products, in
whatever way the arm asks for it: "float32" rules out the TF32 that PyTorch lets convolutions use, "bf16" is autocast
for what goes through autograd.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.cases import COMPILED, EAGER, OURS_ALONE, Case
from benchmarks.peers import compiled
from benchmarks.peers.base import (
    Arm,
    DisagreementError,
    LocalRunner,
    Outcome,
    Runner,
    Timings,
    UnavailableError,
    compiler_missing,
    package_missing,
    package_version,
)
from benchmarks.peers.torch_solvers import Field, Maker, with_scipy, with_torchdiffeq, with_torchode
from benchmarks.peers.vapo_arms import TrainerRunner, version
from benchmarks.spread import Error
from benchmarks.workloads import ImageProblem, flat, once
from vapo_fast.engines import UnsupportedJobError, choose
from vapo_fast.engines.autocast import arithmetic
from vapo_fast.engines.base import Job
from vapo_fast.engines.explicit import explicit_passes
from vapo_fast.engines.reference import ReferenceEngine
from vapo_fast.ode import Solution, SolveOptions, Status

Call = Callable[[], Any]
Make = Callable[[ImageProblem], Call]
See = Callable[[ImageProblem, Any], Outcome]
FieldOf = Callable[[str, ImageProblem], Field]

EAGER_ARM, SCIPY, TORCHDIFFEQ, TORCHODE = "eager", "scipy", "torchdiffeq", "torchode"
GRAPH, PASSES, TRAINER = "graph", "passes", "trainer"
COMPILED_STEP = "torch.compile(func.grad)"
HOW_COMPILED, AS_GRAPH = " compiled", " as a CUDA graph"
_MAKERS: dict[str, Maker] = {TORCHDIFFEQ: with_torchdiffeq, TORCHODE: with_torchode, SCIPY: with_scipy}
_GRAPHED_SOLVERS = (TORCHDIFFEQ, TORCHODE)
NAMES = (
    *(EAGER_ARM, GRAPH, PASSES, TRAINER, SCIPY, COMPILED_STEP, COMPILED_STEP + AS_GRAPH, TORCHDIFFEQ),
    *(solver + how for solver in _GRAPHED_SOLVERS for how in (AS_GRAPH, HOW_COMPILED, HOW_COMPILED + AS_GRAPH)),
)
"""Of all these arms, without their precision."""
# An arm with a larger error computes something else. Of a gradient, relative; of end states, beside the tolerance,
# which solvers keep to within a factor.
_LARGEST = {"float32": 1e-3, "tf32": 0.03, "bf16": 0.15, "auto": 0.15}
_LARGEST_END = {"float32": 1e-4, "tf32": 0.01, "bf16": 0.05, "auto": 0.05}
_LARGEST_TOLERANCES = 50.0


def arms_of(case: Case) -> list[Arm]:
    """The arms of a case, those that take longest to make ready last."""
    return (_solves if case.job == "solve" else _steps)[case.peers](case)


def precisions(case: Case) -> list[str]:
    """Those of the case that its device has."""
    return [one for one in case.precisions if one != "tf32" or case.device == "cuda"]


def largest_error(case: Case, precision: str) -> float:
    """Of an arm that computes what it should."""
    if case.rtol is None:
        return _LARGEST[precision]
    return _LARGEST_TOLERANCES * case.rtol + _LARGEST_END[precision]


def _arm(
    case: Case,
    name: str,
    precision: str,
    make: Make,
    see: See,
    *,
    package: str = "torch",
    missing: Callable[[], str | None] = lambda: None,
    counted: bool = True,
) -> Arm:
    """``make`` compiles and captures what it needs and returns what is timed; ``see`` says what came of its result."""
    ours, on_cpu = package == "vapo_fast", case.device == "cpu"
    prepare = partial(
        _prepared, name, make, see, largest_error(case, precision), counted and on_cpu and case.peers == OURS_ALONE
    )
    known = version if ours else package_version(package)
    return Arm(_key(name, precision), not ours, (case.job,), package, prepare, missing, known, devices=(case.device,))


def _key(name: str, precision: str) -> str:
    return name if precision == "float32" else f"{name}, {precision}"


def _prepared(name: str, make: Make, see: See, largest: float, counted: bool, problem: ImageProblem) -> Runner:
    call = make(problem)
    seen = see(problem, call())
    if seen.error is not None and not seen.error.rms <= largest:
        raise DisagreementError(
            f"{name}: its result differs from float64's by {seen.error.rms:.2g}, over {largest:.2g}"
        )
    return LocalRunner(call, lambda: seen, problem.case.device, counted)


# Sampling -------------------------------------------------------------------------------------------------------------


def _solves_of_ours(case: Case) -> list[Arm]:
    reference = _arm(case, EAGER_ARM, "float32", _reference_solve, _of_solution)
    return [reference, *(_our_solve(case, one) for one in precisions(case))]


def _solves_of_eager(case: Case) -> list[Arm]:
    wanted, on_cuda = precisions(case), case.device == "cuda"
    arms = [_our_solve(case, one) for one in ("auto", *wanted)]
    for precision in wanted:
        arms.append(_peer(case, TORCHDIFFEQ, "", precision, partial(eager_field, precision)))
        if on_cuda:
            field = graphed("eager", eager_field, precision)
            arms += [_peer(case, solver, AS_GRAPH, precision, field) for solver in _GRAPHED_SOLVERS]
    # As the authors' code samples: in float32, whatever the others do; and with the settings that PyTorch comes with.
    for precision in ("float32", "tf32") if on_cuda else ("float32",):
        arms.append(_peer(case, SCIPY, "", precision, partial(eager_field, precision)))
    return arms


def _solves_of_compiled(case: Case) -> list[Arm]:
    arms = [_our_solve(case, one) for one in precisions(case)]
    for precision in precisions(case):
        field = partial(compiled_field, precision)
        arms += [_peer(case, solver, HOW_COMPILED, precision, field) for solver in _GRAPHED_SOLVERS]
        if case.device == "cuda":
            field, how = graphed("compiled", compiled_field, precision), HOW_COMPILED + AS_GRAPH
            arms += [_peer(case, solver, how, precision, field) for solver in _GRAPHED_SOLVERS]
    return arms


_solves = {OURS_ALONE: _solves_of_ours, EAGER: _solves_of_eager, COMPILED: _solves_of_compiled}


def _our_solve(case: Case, precision: str) -> Arm:
    """The graph engine, as `vapo_fast.sample` uses it."""
    job = Job("solve", precision, solve=SolveOptions(rtol=case.rtol, atol=case.rtol))

    def make(problem: ImageProblem) -> Call:
        engine = _engine(problem, job)
        return lambda: engine.solve(problem.model, problem.x0, *problem.span, job)

    return _arm(case, GRAPH, precision, make, _of_solution, package="vapo_fast")


def _reference_solve(problem: ImageProblem) -> Call:
    """The reference engine: autograd's field, and the solver in PyTorch."""
    model, rtol, engine = problem.model, problem.case.rtol, ReferenceEngine()
    job = Job("solve", solve=SolveOptions(rtol=rtol, atol=rtol))

    def call() -> Solution:
        with arithmetic("float32", problem.device.type):
            return engine.solve(model, problem.x0, *problem.span, job)

    return call


def _of_solution(problem: ImageProblem, solution: Solution) -> Outcome:
    return Outcome(
        evaluations=solution.nfe.double().cpu().numpy(),
        failed=int((solution.status != Status.SUCCESS).sum()),
        precision=solution.precision,
        error=_distance(problem, solution.x),
    )


def _distance(problem: ImageProblem, x: Tensor) -> Error:
    difference = x[: problem.compared].to(problem.reference) - problem.reference
    return Error.of_rows(difference.flatten(1).square().mean(1).sqrt().cpu().numpy())


def eager_field(precision: str, problem: ImageProblem) -> Field:
    """The network as a user evaluates it: autograd's gradient."""
    model, device = problem.model, problem.device.type

    def field(x: Tensor, t: Tensor | float) -> Tensor:
        with arithmetic(precision, device):
            return model.field(x, t)[1]

    return field


def compiled_field(precision: str, problem: ImageProblem) -> Field:
    """``torch.compile`` of the gradient of Phi as a function of (x, t, parameters); solvers and graphs share it."""
    return once(problem.shared, ("compiled", precision), lambda: _compile_field(precision, problem))


def _compile_field(precision: str, problem: ImageProblem) -> Field:
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


def graphed(kind: str, field_of: FieldOf, precision: str) -> Callable[[ImageProblem], Field]:
    """A field of the whole batch as a CUDA graph, replayed with new inputs; solvers share it."""

    def make(problem: ImageProblem) -> Field:
        times = torch.full((problem.case.n,), problem.span[0], device=problem.device)
        return compiled.GraphedField(field_of(precision, problem), problem.x0, times)

    return lambda problem: once(problem.shared, (kind, precision, "graphed"), lambda: make(problem))


def _peer(case: Case, solver: str, how: str, precision: str, field_of: Callable[[ImageProblem], Field]) -> Arm:
    """Another library's solver around a field, and how many evaluations it took."""

    def make(problem: ImageProblem) -> Call:
        field, calls = field_of(problem), [0]
        event = problem.model.event_shape

        def counted(x: Tensor, t: Tensor | float) -> Tensor:
            calls[0] += 1
            return field(x.reshape(-1, *event), t).reshape(x.shape)

        x0 = problem.x0.flatten(1) if solver == TORCHODE else problem.x0  # which takes vectors
        equation = SimpleNamespace(
            case=SimpleNamespace(rtol=case.rtol, steps=None),
            x0=x0, span=problem.span, ends=problem.ends, device=problem.device,
        )  # fmt: skip
        solve = _MAKERS[solver](counted, equation)

        def call() -> tuple[Tensor, dict[str, Any], int]:
            calls[0] = 0
            with torch.no_grad():
                x, told = solve()
            return x, told, calls[0]

        return call

    def see(problem: ImageProblem, result: tuple[Tensor, dict[str, Any], int]) -> Outcome:
        x, told, calls = result
        evaluations, failed = told.get("evaluations"), told.get("failed", 0)
        return Outcome(
            evaluations=np.asarray(calls) if evaluations is None else evaluations.double().cpu().numpy(),
            failed=int((failed != 0).sum()) if isinstance(failed, Tensor) else failed,
            precision=precision,
            error=_distance(problem, x.reshape(problem.x0.shape)),
        )

    def missing() -> str | None:
        return package_missing(solver)() or (compiler_missing() if HOW_COMPILED in how else None)

    return _arm(case, solver + how, precision, make, see, package=solver, missing=missing)


# Training -------------------------------------------------------------------------------------------------------------


def _steps_of_ours(case: Case) -> list[Arm]:
    wanted = precisions(case)
    recomputing = _arm(case, f"{PASSES}, recomputing", "float32", _recomputing, _gradients, package="vapo_fast")
    own = [*(_our_step(case, one) for one in wanted), recomputing]
    return [*(_eager_step(case, one) for one in wanted), *own, *_compiled_steps(case, "float32")]


def _steps_of_eager(case: Case) -> list[Arm]:
    wanted = precisions(case)
    return [*(make(case, one) for make in (_our_step, _eager_step) for one in wanted), _trainer(case, wanted[0])]


def _steps_of_compiled(case: Case) -> list[Arm]:
    own = [_our_step(case, one) for one in precisions(case)]
    return [*own, *(arm for one in precisions(case) for arm in _compiled_steps(case, one))]


_steps = {OURS_ALONE: _steps_of_ours, EAGER: _steps_of_eager, COMPILED: _steps_of_compiled}


def _gradients(problem: ImageProblem, result: tuple[object, Mapping[str, Tensor]]) -> Outcome:
    exact = problem.exact_gradient
    relative = float((flat(result[1]).to(exact) - exact).norm() / exact.norm())
    return Outcome(error=Error(relative, relative, relative))


def _recomputing(problem: ImageProblem) -> Call:
    passes = explicit_passes(problem.model)
    return lambda: passes.loss_and_grads(problem.batch, recompute=True)


def _our_step(case: Case, precision: str) -> Arm:
    """The graph engine's loss and gradients; on CUDA one graph, as `vapo_fast.Trainer` captures it in its step."""
    job = Job("loss_and_grads", precision)

    def make(problem: ImageProblem) -> Call:
        engine = _engine(problem, job)
        call = partial(engine.loss_and_grads, problem.model, problem.batch, job)
        return as_graph(call) if case.device == "cuda" else call

    return _arm(case, PASSES, precision, make, _gradients, package="vapo_fast")


def _eager_step(case: Case, precision: str) -> Arm:
    """Double backward by autograd."""
    job = Job("loss_and_grads", "bf16" if precision == "bf16" else "auto")

    def make(problem: ImageProblem) -> Call:
        engine = ReferenceEngine()

        def call() -> object:
            # bf16 is the job's, whose loss and gauge stay in float32.
            with arithmetic("float32" if precision == "bf16" else precision, problem.device.type):
                return engine.loss_and_grads(problem.model, problem.batch, job)

        return call

    return _arm(case, EAGER_ARM, precision, make, _gradients)


def _compiled_steps(case: Case, precision: str) -> list[Arm]:
    def step(problem: ImageProblem) -> Call:
        return once(problem.shared, ("step", precision), lambda: compiled_step(precision, problem))

    makers: dict[str, Make] = {COMPILED_STEP: step}
    if case.device == "cuda":
        makers[COMPILED_STEP + AS_GRAPH] = lambda problem: as_graph(step(problem))
    return [
        _arm(case, name, precision, make, _gradients, missing=lambda: compiler_missing(), counted=False)
        for name, make in makers.items()
    ]


def compiled_step(precision: str, problem: ImageProblem) -> Call:
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


# Steps of a fit that are not timed: on CUDA the ordinary ones, and that which records the graph; and those that are.
_UNTIMED_STEPS, _TIMED_STEPS = {"cpu": 1, "cuda": 5}, {"cpu": 1, "cuda": 10}


class _Trainer(TrainerRunner):
    """Whose step is one graph on CUDA."""

    def run(self, repeats: int) -> Timings:
        timings = super().run(repeats)
        step = self.trainer._deferred
        if self.device == "cuda" and (step is None or step._graph is None):
            raise UnavailableError("the step was not captured")
        return timings


def _trainer(case: Case, precision: str) -> Arm:
    """A whole step of `vapo_fast.Trainer` in progress: batch, loss, gradients, Adam, average."""
    untimed, timed = _UNTIMED_STEPS[case.device], _TIMED_STEPS[case.device]
    options = {"lr": 1e-5, "log_every": timed, "engine": GRAPH, "precision": precision}

    def prepare(problem: ImageProblem) -> Runner:
        return _Trainer(problem.model, problem.data.to(problem.device), case, untimed, timed, **options)

    name = _key(TRAINER, precision)
    return Arm(name, False, (case.job,), "vapo_fast", prepare, lambda: None, version, devices=(case.device,))


def as_graph(call: Call) -> Call:
    graph, result = compiled.captured(call, "thread_local")

    def replay() -> object:
        graph.replay()
        return result

    return replay


def _engine(problem: ImageProblem, job: Job) -> Any:
    try:
        return choose(GRAPH, problem.model, problem.device, torch.float32, job)
    except UnsupportedJobError as error:
        raise UnavailableError(str(error)) from error
