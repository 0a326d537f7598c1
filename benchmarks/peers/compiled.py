"""torch.compile and CUDA graphs: the whole ``torch.func.grad(loss)`` for training, and the field inside solvers.

Double backward through a compiled module is refused by PyTorch; compiling the function that already contains both
derivatives is what works, and the fastest training step PyTorch offers without own kernels. On CUDA the compiled
functions are measured once more as CUDA graphs, replayed with new inputs: what a careful user does when launches cost
more than the arithmetic.
"""

from __future__ import annotations

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
    check_field,
    check_gradient,
    compiler_missing,
    package_missing,
    package_version,
    to_numpy,
)
from benchmarks.peers.torch_solvers import Maker, field_runner, runner_of, with_torchdiffeq, with_torchode
from benchmarks.plain_field import PlainField
from benchmarks.workloads import Problem, once
from vapo_fast.training.batches import as_source, training_batch
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


class _TrainerRunner(Runner):
    """What a user would write around the compiled gradient: the same batches, fused Adam, averaged weights."""

    def __init__(self, problem: Problem) -> None:
        self._field, self._compiled = _loss_and_gradients(problem)
        self._parameters = self._field.parameters
        self._average = [value.clone() for value in self._parameters.values()]
        self._optimizer = torch.optim.Adam(list(self._parameters.values()), fused=True)
        self._options = TrainingOptions.for_model(
            problem.potential, lr=None, batch_size=problem.case.n, weight=None, schedule="constant"
        )
        self._problem, self._source, self._step = problem, as_source(problem.data, problem.potential.event_shape), 0

    def run(self, repeats: int) -> Timings:
        device = self._problem.case.device
        wait(device)
        cpu, begin = time.process_time(), time.perf_counter()
        for _ in range(repeats):
            self._update()
        wait(device)
        seconds = time.perf_counter() - begin
        return Timings([seconds / repeats] * repeats, time.process_time() - cpu)

    def outcome(self) -> Outcome:
        return Outcome()

    def _update(self) -> None:
        options = self._options
        grads, loss = self._compiled(self._parameters, *self._batch())
        self._step += 1
        if self._step % READ_INTERVAL[self._problem.case.device] == 0 and not bool(torch.isfinite(loss)):
            raise DisagreementError(f"{NAME}: the loss of step {self._step} is {float(loss)}")
        for name, parameter in self._parameters.items():
            parameter.grad = grads[name]
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(options, self._step - 1, 0, self._step)
        self._optimizer.step()
        decay = ema_decay_at(options, self._step - 1)
        torch._foreach_lerp_(self._average, list(self._parameters.values()), 1.0 - decay)

    def _batch(self) -> tuple[Tensor, ...]:
        if self._problem.case.device == "cuda":
            return drawn_batch(self._problem)
        options = self._options
        return training_batch(
            self._source,
            self._step,
            homotopy=self._problem.potential.homotopy,
            seed=options.seed,
            batch_size=options.batch_size,
            time_sampling=options.time_sampling,
            device=torch.device("cpu"),
            dtype=torch.float32,
        )


def drawn_batch(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """(x_data, t, noise) of a step by PyTorch's own generators on the device, which nobody could draw faster there."""
    n, data, scalars, device = problem.case.n, problem.data, problem.weights.scalars, problem.device
    rows = torch.randint(len(data), (n,), device=device)
    first, last = scalars["log_beta_first"], scalars["log_beta_last"]
    u = (torch.arange(n, device=device) + torch.rand(n, device=device)) / n
    t = -2.0 * (first + u * (last - first) - math.log(scalars["omega"]))
    return data[rows], t.clamp(*problem.span), torch.randn(n, data.shape[1], device=device)


class _GraphedTrainerRunner(Runner):
    """The whole step in one CUDA graph: draws, compiled gradient, Adam, averaged weights."""

    def __init__(self, problem: Problem) -> None:
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

        self._graph, self._loss = captured(step)
        self._steps = 0

    def run(self, repeats: int) -> Timings:
        wait("cuda")
        cpu, begin = time.process_time(), time.perf_counter()
        for _ in range(repeats):
            self._graph.replay()
            self._steps += 1
            if self._steps % READ_INTERVAL["cuda"] == 0 and not math.isfinite(float(self._loss)):
                raise DisagreementError(f"{GRAPHED}: the loss of step {self._steps} is {float(self._loss)}")
        wait("cuda")
        seconds = time.perf_counter() - begin
        return Timings([seconds / repeats] * repeats, time.process_time() - cpu)

    def outcome(self) -> Outcome:
        return Outcome()


def _prepare_training(graphed: bool, problem: Problem) -> Runner:
    if problem.case.job == "trainer":
        return _GraphedTrainerRunner(problem) if graphed else _TrainerRunner(problem)
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


def _solver_missing(package: str) -> Callable[[], str | None]:
    return lambda: package_missing(package)() or compiler_missing()


def _solver_arm(solver: str, how: str, devices: tuple[str, ...]) -> Arm:
    name, graphed = f"{solver} {how}", how == "graphed"
    return Arm(
        name,
        True,
        ("solve",),
        solver,
        partial(_prepare_solve, name, solver, graphed),
        _solver_missing(solver),
        package_version(solver),
        f"{solver} around " + ("a CUDA graph" if graphed else "torch.compile") + " of the field",
        devices,
    )


def _torch_arm(name: str, jobs: tuple[str, ...], prepare: Any, note: str, devices: tuple[str, ...]) -> Arm:
    return Arm(name, True, jobs, "torch", prepare, compiler_missing, package_version("torch"), note, devices)


ARMS = (
    _torch_arm(
        NAME,
        ("loss", "trainer"),
        partial(_prepare_training, False),
        "the whole torch.func.grad of the loss, compiled",
        ("cpu", "cuda"),
    ),
    _torch_arm(
        GRAPHED,
        ("loss", "trainer"),
        partial(_prepare_training, True),
        "the same as a CUDA graph; for trainer, the whole step",
        ("cuda",),
    ),
    _torch_arm(
        "torch autograd compiled",
        ("field",),
        partial(_prepare_field, "torch autograd compiled", False),
        "torch.func.grad, compiled",
        ("cuda",),
    ),
    _torch_arm(
        "torch autograd graphed",
        ("field",),
        partial(_prepare_field, "torch autograd graphed", True),
        "the same as a CUDA graph",
        ("cuda",),
    ),
    _solver_arm("torchdiffeq", "compiled", ("cpu", "cuda")),
    _solver_arm("torchdiffeq", "graphed", ("cuda",)),
    _solver_arm("torchode", "compiled", ("cuda",)),
    _solver_arm("torchode", "graphed", ("cuda",)),
)
