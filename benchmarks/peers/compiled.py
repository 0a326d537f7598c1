"""torch.compile and CUDA graphs: the whole ``torch.func.grad(loss)`` for training, and the field inside solvers.

Double backward through a compiled module is refused by PyTorch; compiling the function that already contains both
derivatives is what works, and the fastest training step PyTorch offers without own kernels. On CUDA the compiled
functions are measured once more as CUDA graphs, replayed with new inputs: what a careful user does when launches cost
more than the arithmetic.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.devices import wait
from benchmarks.peers.base import (
    Arm,
    DisagreementError,
    LocalRunner,
    Outcome,
    Runner,
    Timings,
    arm_of,
    check_field,
    check_gradient,
    compiler_missing,
    to_numpy,
)
from benchmarks.peers.torch_solvers import Maker, field_runner, runner_of, with_torchdiffeq, with_torchode
from benchmarks.plain_field import PlainField
from benchmarks.potentials import batch_of
from benchmarks.workloads import Problem, once
from vapo_fast.training.batches import as_source
from vapo_fast.training.options import TrainingOptions, ema_decay_at, learning_rate

NAME = "torch.compile"
GRAPHED = "torch.compile graphed"
_SOLVERS: dict[str, Maker] = {"torchdiffeq": with_torchdiffeq, "torchode": with_torchode}
_CHECKED_ROWS = 4
# Runs before a capture, on a stream of their own, as PyTorch's documentation asks.
_WARM_RUNS = 3
# On CUDA the host reads the loss now and then, as vapo_fast's trainer does by default.
READ_INTERVAL = {"cpu": 1, "cuda": 20}


def captured(call: Callable[[], Any], mode: str = "global") -> tuple[torch.cuda.CUDAGraph, Any]:
    """A CUDA graph of a call, and the tensors that its replays write; ``mode`` is ``capture_error_mode``."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_RUNS):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode=mode):
        result = call()
    return graph, result


def _loss_and_gradients(problem: Problem) -> tuple[PlainField, Any]:
    field = PlainField(problem.weights, problem.device)
    compiled: Any = torch.compile(torch.func.grad_and_value(field.loss), fullgraph=True, dynamic=False)
    return field, compiled


def parameter_order(layers: int) -> list[str]:
    """The plain field's parameters in the order of the model's ``named_parameters``."""
    hidden = [f"{kind}{i}" for i in range(layers) for kind in ("weight", "bias")]
    return [*hidden, "output"]


def _prepare(name: str, graphed: bool, problem: Problem) -> Runner:
    field, compiled = once(problem.shared, "loss", lambda: _loss_and_gradients(problem))
    batch = tuple(problem.batch)

    def call() -> dict[str, Tensor]:
        grads: dict[str, Tensor] = compiled(field.parameters, *batch)[0]
        return grads

    if graphed:
        graph, grads = captured(call)

        def call() -> dict[str, Tensor]:
            graph.replay()
            return grads

    def look() -> Outcome:
        found = call()
        flat = [to_numpy(found[name]).ravel() for name in parameter_order(field.layers)]
        return Outcome(gradient=np.concatenate(flat))

    gradient = look().gradient
    if gradient is not None:
        check_gradient(name, gradient, problem)
    return LocalRunner(call, look, problem.case.device)


class _Steps(Runner):
    """Training steps in a row: ``step`` does one and returns its loss, which the host reads now and then."""

    def __init__(self, name: str, step: Callable[[], Tensor], device: str) -> None:
        self._name, self._step, self._device, self._done = name, step, device, 0

    def run(self, repeats: int) -> Timings:
        wait(self._device)
        cpu, begin = time.process_time(), time.perf_counter()
        for _ in range(repeats):
            loss = self._step()
            self._done += 1
            if self._done % READ_INTERVAL[self._device] == 0 and not math.isfinite(float(loss)):
                raise DisagreementError(f"{self._name}: the loss of step {self._done} is {float(loss)}")
        wait(self._device)
        seconds = time.perf_counter() - begin
        return Timings([seconds / repeats] * repeats, time.process_time() - cpu)

    def outcome(self) -> Outcome:
        return Outcome()


def _eager_steps(problem: Problem) -> Runner:
    """What a user would write around the compiled gradient: the same batches, fused Adam, averaged weights."""
    field, compiled = _loss_and_gradients(problem)
    parameters, device, n = list(field.parameters.values()), problem.case.device, problem.case.n
    average = [value.clone() for value in parameters]
    optimizer = torch.optim.Adam(parameters, fused=True)
    options = TrainingOptions.for_model(problem.potential, lr=None, batch_size=n, weight=None, schedule="constant")
    source, done = as_source(problem.data, problem.potential.event_shape), itertools.count()

    def step() -> Tensor:
        number = next(done)
        batch = drawn_batch(problem) if device == "cuda" else batch_of(problem.potential, source, number, n)
        grads, loss = compiled(field.parameters, *batch)
        for name, parameter in field.parameters.items():
            parameter.grad = grads[name]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(options, number, 0, number + 1)
        optimizer.step()
        torch._foreach_lerp_(average, parameters, 1.0 - ema_decay_at(options, number))
        value: Tensor = loss
        return value

    return _Steps(NAME, step, device)


def drawn_batch(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """(x_data, t, noise) of a step by PyTorch's own generators on the device, which nobody could draw faster there."""
    n, data, scalars, device = problem.case.n, problem.data, problem.weights.scalars, problem.device
    rows = torch.randint(len(data), (n,), device=device)
    first, last = scalars["log_beta_first"], scalars["log_beta_last"]
    u = (torch.arange(n, device=device) + torch.rand(n, device=device)) / n
    t = -2.0 * (first + u * (last - first) - math.log(scalars["omega"]))
    return data[rows], t.clamp(*problem.span), torch.randn(n, data.shape[1], device=device)


def _graphed_steps(problem: Problem) -> Runner:
    """The whole step in one CUDA graph: draws, compiled gradient, Adam, averaged weights."""
    field, compiled = _loss_and_gradients(problem)
    parameters = list(field.parameters.values())
    average = [value.clone() for value in parameters]
    optimizer = torch.optim.Adam(parameters, fused=True, capturable=True)

    def step() -> Tensor:
        grads, loss = compiled(field.parameters, *drawn_batch(problem))
        for name, parameter in field.parameters.items():
            parameter.grad = grads[name]
        optimizer.step()
        torch._foreach_lerp_(average, parameters, 1e-3)
        value: Tensor = loss
        return value

    graph, loss = captured(step)

    def replay() -> Tensor:
        graph.replay()
        result: Tensor = loss
        return result

    return _Steps(GRAPHED, replay, "cuda")


def _prepare_training(graphed: bool, problem: Problem) -> Runner:
    if problem.case.job == "trainer":
        return _graphed_steps(problem) if graphed else _eager_steps(problem)
    return _prepare(GRAPHED if graphed else NAME, graphed, problem)


class CompiledField:
    """The plain field's gradient as one compiled function of (x, t), t 0-dim or one for each row."""

    def __init__(self, problem: Problem) -> None:
        plain = PlainField(problem.weights, problem.device)
        self._device = problem.device

        def field(x: Tensor, t: Tensor) -> Tensor:
            quadratic, scale, inverse_radius, position = plain.coefficients(t)
            if t.dim() and position is not None:
                quadratic, scale, inverse_radius = quadratic[:, None], scale[:, None], inverse_radius[:, None]

            def value(z: Tensor) -> Tensor:
                return plain.network(plain.parameters, z, position).sum()

            gradient: Tensor = torch.func.grad(value)(x * inverse_radius)
            values: Tensor = quadratic * x + (scale * inverse_radius) * gradient
            return values

        self._compiled: Any = torch.compile(field, fullgraph=True, dynamic=False)

    def __call__(self, x: Tensor, t: Tensor | float) -> Tensor:
        with torch.no_grad():
            values: Tensor = self._compiled(x, torch.as_tensor(t, dtype=x.dtype, device=self._device))
        return values


class GraphedField:
    """A field as a CUDA graph, for the shapes of its first call; others go to the field itself.

    Inputs are copied to where the graph reads them, and the result from where it writes: a solver keeps stages.
    """

    def __init__(self, field: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor) -> None:
        self._x, self._t = x.clone(), t.clone()
        self._graph, self._values = captured(lambda: field(self._x, self._t))

    def __call__(self, x: Tensor, t: Tensor | float) -> Tensor:
        self._x.copy_(x)
        self._t.copy_(t) if isinstance(t, Tensor) else self._t.fill_(t)
        self._graph.replay()
        return self._values.clone()


def prepared_field(name: str, graphed: bool, problem: Problem, one_time: bool) -> Callable[[Tensor, Any], Tensor]:
    """The compiled field of a problem's whole batch, as a CUDA graph if asked for, checked.

    Where torch.compile fails, the graph is of the eager field.
    """
    rows = len(problem.exact_field)
    t = problem.times[0] if one_time else problem.times
    field: Callable[[Tensor, Any], Tensor] = once(problem.shared, "field", lambda: CompiledField(problem))
    if graphed:
        try:
            field(problem.x0, t)
        except Exception as error:
            print(f"  {name}: torch.compile failed, so its graph is of the eager field: {type(error).__name__}")
            eager = PlainField(problem.weights, problem.device)
            eager.reads_time = False
            field = eager
        field = GraphedField(field, problem.x0, t)
    if one_time:
        # Made for the whole batch and one time; so is the check, for a few rows at their own times.
        checked = min(rows, _CHECKED_ROWS)
        values = torch.stack([field(problem.x0, problem.times[i])[i] for i in range(checked)])
    else:
        values = field(problem.x0, problem.times)[:rows]
    check_field(name, values, problem)
    return field


def _prepare_solve(name: str, solver: str, graphed: bool, problem: Problem) -> Runner:
    one_time = solver == "torchdiffeq"
    return runner_of(prepared_field(name, graphed, problem, one_time), _SOLVERS[solver], problem)


def _prepare_field(name: str, graphed: bool, problem: Problem) -> Runner:
    return field_runner(prepared_field(name, graphed, problem, one_time=False), problem)


_TRAINING, _CUDA = ("loss", "trainer"), ("cuda",)
_BOTH = ("cpu", *_CUDA)


def _torch_arm(name: str, jobs: tuple[str, ...], prepare: Any, note: str, devices: tuple[str, ...]) -> Arm:
    return arm_of("torch", name, jobs, prepare, note, devices, compiler_missing)


def _solver_arm(solver: str, how: str, devices: tuple[str, ...]) -> Arm:
    name, graphed = f"{solver} {how}", how == "graphed"
    note = f"{solver} around " + ("a CUDA graph" if graphed else "torch.compile") + " of the field"
    return arm_of(
        solver, name, ("solve",), partial(_prepare_solve, name, solver, graphed), note, devices, compiler_missing
    )


def _field_arm(how: str, note: str) -> Arm:
    name = f"torch autograd {how}"
    return _torch_arm(name, ("field",), partial(_prepare_field, name, how == "graphed"), note, _CUDA)


ARMS = (
    _torch_arm(NAME, _TRAINING, partial(_prepare_training, False), "the whole torch.func.grad of the loss", _BOTH),
    _torch_arm(GRAPHED, _TRAINING, partial(_prepare_training, True), "as a CUDA graph; or the whole step", _CUDA),
    _field_arm("compiled", "torch.func.grad, compiled"),
    _field_arm("graphed", "the same as a CUDA graph"),
    _solver_arm("torchdiffeq", "compiled", _BOTH),
    _solver_arm("torchdiffeq", "graphed", _CUDA),
    _solver_arm("torchode", "compiled", _CUDA),
    _solver_arm("torchode", "graphed", _CUDA),
)
