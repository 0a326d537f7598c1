"""torch.compile: the whole ``torch.func.grad(loss)`` for training, and the field inside torchdiffeq for solves.

Double backward through a compiled module is refused by PyTorch; compiling the function that already contains both
derivatives is what works, and the fastest training step PyTorch offers without own kernels.
"""

from __future__ import annotations

import os
import shutil
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.base import (
    Arm,
    DisagreementError,
    LocalRunner,
    Outcome,
    Runner,
    Timings,
    check_field,
    check_gradient,
    package_missing,
    package_version,
)
from benchmarks.peers.torch_solvers import runner_of, with_torchdiffeq
from benchmarks.plain_field import PlainField
from benchmarks.workloads import Problem
from vapo_fast.batches import as_source, training_batch
from vapo_fast.optim import TrainingOptions, ema_decay_at, learning_rate

NAME = "torch.compile"
_SOLVE_NAME = "torchdiffeq compiled"
_CHECKED_ROWS = 4


def _loss_and_gradients(problem: Problem) -> tuple[PlainField, Any]:
    field = PlainField(problem.weights)
    torch.compiler.reset()
    compiled: Any = torch.compile(torch.func.grad_and_value(field.loss), fullgraph=True, dynamic=False)
    return field, compiled


def parameter_order(layers: int) -> list[str]:
    """The plain field's parameters in the order of the model's ``named_parameters``."""
    hidden = [f"{kind}{i}" for i in range(layers) for kind in ("weight", "bias")]
    return [*hidden, "output"]


def _prepare(problem: Problem) -> Runner:
    field, compiled = _loss_and_gradients(problem)
    batch = tuple(problem.batch)

    def call() -> dict[str, Tensor]:
        grads: dict[str, Tensor] = compiled(field.parameters, *batch)[0]
        return grads

    def look() -> Outcome:
        grads = call()
        flat = [grads[name].double().numpy().ravel() for name in parameter_order(field.layers)]
        return Outcome(gradient=np.concatenate(flat))

    gradient = look().gradient
    if gradient is not None:
        check_gradient(NAME, gradient, problem)
    return LocalRunner(call, look)


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
        cpu, begin = time.process_time(), time.perf_counter()
        for _ in range(repeats):
            self._update()
        seconds = time.perf_counter() - begin
        return Timings([seconds / repeats] * repeats, time.process_time() - cpu)

    def outcome(self) -> Outcome:
        return Outcome()

    def _update(self) -> None:
        options = self._options
        batch = training_batch(
            self._source,
            self._step,
            homotopy=self._problem.potential.homotopy,
            seed=options.seed,
            batch_size=options.batch_size,
            time_sampling=options.time_sampling,
            device=torch.device("cpu"),
            dtype=torch.float32,
        )
        grads, loss = self._compiled(self._parameters, *batch)
        if not bool(torch.isfinite(loss)):
            raise DisagreementError(f"{NAME}: the loss of step {self._step} is {float(loss)}")
        for name, parameter in self._parameters.items():
            parameter.grad = grads[name]
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(options, self._step, 0, self._step + 1)
        self._optimizer.step()
        decay = ema_decay_at(options, self._step)
        torch._foreach_lerp_(self._average, list(self._parameters.values()), 1.0 - decay)
        self._step += 1


def _prepare_training(problem: Problem) -> Runner:
    return _TrainerRunner(problem) if problem.case.job == "trainer" else _prepare(problem)


class _CompiledField:
    """The plain field's gradient as one compiled function of (x, t)."""

    def __init__(self, problem: Problem) -> None:
        plain = PlainField(problem.weights)
        torch.compiler.reset()

        def field(x: Tensor, t: Tensor) -> Tensor:
            quadratic, scale, inverse_radius, position = plain.coefficients(t)
            rows = None if position is None else position.expand(len(x))

            def value(z: Tensor) -> Tensor:
                return plain.network(plain.parameters, z, rows).sum()

            gradient: Tensor = torch.func.grad(value)(x * inverse_radius)
            values: Tensor = quadratic * x + (scale * inverse_radius) * gradient
            return values

        self._compiled: Any = torch.compile(field, fullgraph=True, dynamic=False)

    def __call__(self, x: Tensor, t: Tensor | float) -> Tensor:
        with torch.no_grad():
            values: Tensor = self._compiled(x, t if isinstance(t, Tensor) else torch.tensor(t))
        return values


def _prepare_solve(problem: Problem) -> Runner:
    field = _CompiledField(problem)
    # Compiled for the whole batch and one time; so is the check, for a few rows at their own times.
    rows = min(len(problem.exact_field), _CHECKED_ROWS)
    check_field(_SOLVE_NAME, torch.stack([field(problem.x0, problem.times[i])[i] for i in range(rows)]), problem)
    return runner_of(field, with_torchdiffeq, problem)


def _compiler_missing() -> str | None:
    # Inductor writes C++ for the CPU and has the system's compiler build it.
    found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    return None if found else "torch.compile needs a C++ compiler"


def _solver_missing() -> str | None:
    return package_missing("torchdiffeq")() or _compiler_missing()


ARMS = (
    Arm(
        NAME,
        True,
        ("loss", "trainer"),
        "torch",
        _prepare_training,
        _compiler_missing,
        package_version("torch"),
        "the whole torch.func.grad of the loss, compiled",
    ),
    Arm(
        _SOLVE_NAME,
        True,
        ("solve",),
        "torchdiffeq",
        _prepare_solve,
        _solver_missing,
        package_version("torchdiffeq"),
        "torchdiffeq around torch.compile of the field",
    ),
)
