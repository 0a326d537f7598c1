"""The JAX arms, in a process and an environment of their own: jitted diffrax solves, fields and training steps.

One JSON request a line on stdin, one JSON reply a line on stdout; arrays travel in npz files. A worker serves one
problem at a time, and compiles and checks nothing while it is being timed: each ``run`` is only the repeats asked for,
from arrays that are already on the device to results that are ready (`block_until_ready`). Nothing here imports
vapo_fast: the potential's formula is written again, from the arrays that `benchmarks.plain_field.Weights` holds.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

ACTIVATIONS = {"silu": jax.nn.silu, "softplus": jax.nn.softplus, "tanh": jnp.tanh}


class Potential:
    """Phi of a batch; ``t`` is one time for all rows or one each."""

    def __init__(self, scalars: dict[str, Any]) -> None:
        self.scalars = scalars

    def coefficients(self, t: Any) -> tuple[Any, Any, Any, Any]:
        """q, c, r and p of ``Phi = q/2 |x|^2 + c f(r x, p)``."""
        s, omega = self.scalars["data_scale"], self.scalars["omega"]
        vapo = self.scalars["homotopy"] == "DataHomotopy"
        if not self.scalars["time_dependent"]:
            radius = math.sqrt(s * s + omega * omega)
            return -0.5 if vapo else -1.0, s * radius, 1.0 / radius, None
        if vapo:
            alpha, beta = -jnp.expm1(-t), omega * jnp.exp(-0.5 * t)
            quadratic, scale = -0.5, 0.5 * (1.0 + jnp.exp(-t))
        else:
            alpha, beta = t, omega * (1.0 - t)
            scale = 1.0 / (1.0 - t)
            quadratic = -scale
        variance = (alpha * s) ** 2 + beta**2
        first, last = self.scalars["log_beta_first"], self.scalars["log_beta_last"]
        position = (jnp.log(beta) - first) * (2.0 / (last - first)) - 1.0
        return quadratic + scale * alpha * s**2 / variance, scale * s * beta, 1.0 / jnp.sqrt(variance), position

    def network(self, parameters: dict[str, Any], frequencies: Any, z: Any, position: Any) -> Any:
        """f (n,) of z (n, d)."""
        activation = ACTIVATIONS[self.scalars["activation"]]
        y = z
        if position is not None:
            y = jnp.concatenate((z, jnp.broadcast_to(position, z.shape[:1])[:, None]), axis=1)
        if frequencies.shape[0]:
            angle = (2.0 * math.pi) * (y @ frequencies.T)
            y = jnp.concatenate((y, jnp.cos(angle), jnp.sin(angle)), axis=1)
        for i in range(self.scalars["layers"]):
            y = activation(y @ parameters[f"weight{i}"].T + parameters[f"bias{i}"])
        return y @ parameters["output"]

    def field(self, parameters: dict[str, Any], frequencies: Any, x: Any, t: Any) -> Any:
        """grad Phi (n, d)."""
        quadratic, scale, inverse_radius, position = self.coefficients(t)
        if jnp.ndim(t):
            column = partial(jnp.reshape, shape=(-1, 1))
            quadratic, scale, inverse_radius = column(quadratic), column(scale), column(inverse_radius)
        gradient = jax.grad(lambda z: self.network(parameters, frequencies, z, position).sum())(x * inverse_radius)
        return quadratic * x + scale * inverse_radius * gradient

    def loss(self, parameters: dict[str, Any], frequencies: Any, x_data: Any, t: Any, noise: Any) -> Any:
        """The energy loss: velocity estimator, weight 1/beta^2; DataHomotopy only."""
        if self.scalars["homotopy"] != "DataHomotopy":
            raise ValueError(f"the loss is written for DataHomotopy, got {self.scalars['homotopy']}")
        beta = self.scalars["omega"] * jnp.exp(-0.5 * t)[:, None]
        alpha, decay = -jnp.expm1(-t)[:, None], jnp.exp(-t)[:, None]
        x = alpha * x_data + beta * noise
        velocity = decay * x_data - 0.5 * beta * noise
        field = self.field(parameters, frequencies, x, t)
        return ((0.5 * (field**2).sum(1) - (field * velocity).sum(1)) / beta[:, 0] ** 2).mean()


class RK4(diffrax.AbstractERK):
    """The classical method, which diffrax leaves to its users; its error estimate is not used."""

    tableau = diffrax.ButcherTableau(
        c=np.array([0.5, 0.5, 1.0]),
        b_sol=np.array([1 / 6, 1 / 3, 1 / 3, 1 / 6]),
        b_error=np.zeros(4),
        a_lower=(np.array([0.5]), np.array([0.0, 0.5]), np.array([0.0, 0.0, 1.0])),
    )
    interpolation_cls = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

    def order(self, terms: Any) -> int:
        return 4


class Job:
    """A jitted function, its arguments on the device, and what to tell of its result.

    ``chained``: repeats follow each other without being waited for, as the steps of a training run do.
    """

    def __init__(
        self, call: Callable[[], Any], tell: Callable[[Any], dict[str, np.ndarray]], chained: bool = False
    ) -> None:
        self.call, self.tell, self.chained = call, tell, chained


def _median_seconds(call: Callable[[], Any], repeats: int = 3) -> float:
    jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds))


class Worker:
    """The requests; each method is one, and returns its reply."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}

    def load(self, scalars: dict[str, Any], arrays: str) -> dict[str, Any]:
        """Take a problem: the potential, and whichever of x0, times, x_data, t, noise and data its job needs."""
        self.jobs.clear()
        jax.clear_caches()
        with np.load(arrays) as file:
            loaded = {name: jnp.asarray(file[name]) for name in file.files}
        self.potential = Potential(scalars)
        self.frequencies = loaded.pop("frequencies")
        self.inputs = {name: loaded.pop(name) for name in list(loaded) if name.startswith("input_")}
        self.parameters = loaded
        self.scalars = scalars
        return {}

    def field(self, path: str, rows: int) -> dict[str, Any]:
        """Write grad Phi of the first rows."""
        x, t = self.inputs["input_x0"][:rows], self.inputs["input_times"][:rows]
        np.save(path, np.asarray(self.potential.field(self.parameters, self.frequencies, x, t)))
        return {}

    def prepare(self, name: str, kind: str, **options: Any) -> dict[str, Any]:
        """Compile a job and run it once; tells how long that took."""
        makers = {"solve": self._solve, "field": self._field_job, "loss": self._loss, "trainer": self._trainer}
        makers["product"] = self._product
        begin = time.perf_counter()
        self.jobs[name] = makers[kind](**options)
        jax.block_until_ready(self.jobs[name].call())
        return {"seconds": time.perf_counter() - begin}

    def run(self, name: str, repeats: int) -> dict[str, Any]:
        """Time a job."""
        job, seconds, cpu = self.jobs[name], [], time.process_time()
        for _ in range(1 if job.chained else repeats):
            begin = time.perf_counter()
            for _ in range(repeats - 1 if job.chained else 0):
                job.call()
            jax.block_until_ready(job.call())
            seconds.append(time.perf_counter() - begin)
        if job.chained:
            seconds = [seconds[0] / repeats] * repeats
        return {"seconds": seconds, "cpu_seconds": time.process_time() - cpu}

    def outcome(self, name: str, path: str) -> dict[str, Any]:
        """Run a job once more and write what came of it."""
        job = self.jobs[name]
        np.savez(path, **job.tell(job.call()))
        return {}

    def release(self, name: str) -> dict[str, Any]:
        """Forget a job."""
        self.jobs.pop(name, None)
        return {}

    def _solve(self, vmap: bool, rtol: float | None, steps: int | None) -> Job:
        t0, t1 = self.scalars["t0"], self.scalars["t1"]
        potential, frequencies = self.potential, self.frequencies

        def field(t: Any, x: Any, parameters: Any) -> Any:
            rows = x[None] if x.ndim == 1 else x
            return potential.field(parameters, frequencies, rows, t).reshape(x.shape)

        def solve(x0: Any, parameters: Any) -> Any:
            solver: Any = RK4() if rtol is None else diffrax.Dopri5()
            if rtol is None:
                controller: Any = diffrax.StepTo(jnp.linspace(t0, t1, (steps or 1) + 1))
            else:
                controller = diffrax.PIDController(rtol=rtol, atol=rtol)
            # Nothing is differentiated, and an end that was not reached is counted below: the fastest settings.
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(field),
                solver,
                t0,
                t1,
                dt0=None,
                y0=x0,
                args=parameters,
                stepsize_controller=controller,
                saveat=diffrax.SaveAt(t1=True),
                adjoint=diffrax.ForwardMode(),
                max_steps=100_000,
                throw=False,
            )
            failed = solution.result != diffrax.RESULTS.successful
            return solution.ys[0], solution.stats["num_steps"], failed

        jitted = jax.jit(jax.vmap(solve, in_axes=(0, None)) if vmap else solve)

        def tell(result: Any) -> dict[str, np.ndarray]:
            x, tried, failed = (np.asarray(value) for value in result)
            # dopri5 keeps its last stage: six evaluations a step, one at the start and one to choose the first step.
            evaluations = 6 * tried + 2 if rtol is not None else 4 * tried
            rows = len(x) if not vmap and bool(failed) else int(failed.sum())
            told = {"x": x, "steps": tried, "evaluations": evaluations, "failed": np.asarray(rows)}
            # In lock step, every row is evaluated until the slowest ends.
            field, whole = _median_seconds(self._field_job().call), _median_seconds(call)
            return told | {"field_share": np.asarray(min(1.0, evaluations.max() * field / whole))}

        call = partial(jitted, self.inputs["input_x0"], self.parameters)
        return Job(call, tell)

    def _field_job(self) -> Job:
        jitted = jax.jit(self.potential.field)
        call = partial(jitted, self.parameters, self.frequencies, self.inputs["input_x0"], self.inputs["input_times"])
        return Job(call, lambda result: {"field": np.asarray(result)})

    def _product(self, size: int) -> Job:
        a = jnp.ones((size, size), jnp.float32)
        return Job(partial(jax.jit(jnp.matmul), a, a + 1.0), lambda result: {})

    def _loss(self) -> Job:
        jitted = jax.jit(jax.value_and_grad(self.potential.loss))
        batch = [self.inputs[f"input_{name}"] for name in ("x_data", "t", "noise")]
        call = partial(jitted, self.parameters, self.frequencies, *batch)

        def tell(result: Any) -> dict[str, np.ndarray]:
            return {f"grad_{name}": np.asarray(value) for name, value in result[1].items()}

        return Job(call, tell)

    def _trainer(self, batch_size: int, read_interval: int) -> Job:
        """A whole step in one jitted function, as a JAX user would write it: draws, loss, Adam, averaged weights."""
        potential, frequencies, data = self.potential, self.frequencies, self.inputs["input_data"]
        first, last = self.scalars["log_beta_first"], self.scalars["log_beta_last"]
        omega = self.scalars["omega"]

        @partial(jax.jit, donate_argnums=(0, 1, 2, 3))
        def step(parameters: Any, momentum: Any, square: Any, average: Any, key: Any, count: Any) -> Any:
            rows, times, draws = jax.random.split(jax.random.fold_in(key, count), 3)
            x_data = data[jax.random.randint(rows, (batch_size,), 0, data.shape[0])]
            u = (jnp.arange(batch_size) + jax.random.uniform(times, (batch_size,))) / batch_size
            t = -2.0 * (first + u * (last - first) - math.log(omega))
            noise = jax.random.normal(draws, x_data.shape)
            loss, grads = jax.value_and_grad(potential.loss)(parameters, frequencies, x_data, t, noise)
            count = count + 1
            momentum = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, momentum, grads)
            square = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, square, grads)
            rate = 1e-3 * jnp.sqrt(1.0 - 0.999**count) / (1.0 - 0.9**count)
            parameters = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) + 1e-8), parameters, momentum, square)
            decay = jnp.minimum(0.999, (1.0 + count) / (10.0 + count))
            average = jax.tree.map(lambda a, p: a + (1.0 - decay) * (p - a), average, parameters)
            return (parameters, momentum, square, average), count, loss

        copies = [jax.tree.map(jnp.array, self.parameters) for _ in range(2)]
        zeros = [jax.tree.map(jnp.zeros_like, self.parameters) for _ in range(2)]
        state: Any = (copies[0], zeros[0], zeros[1], copies[1])
        count: Any = jnp.asarray(0)
        key = jax.random.PRNGKey(0)

        done = 0

        def call() -> Any:
            nonlocal state, count, done
            state, count, loss = step(*state, key, count)
            done += 1
            # The host reads the loss as often as vapo_fast's trainer does: of every step on a CPU.
            return float(loss) if done % read_interval == 0 else loss

        return Job(call, lambda result: {"loss": np.asarray(result)}, chained=True)


def main() -> None:
    # Whatever a library prints must not land among the replies.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = getattr(worker, request.pop("do"))(**request)
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
