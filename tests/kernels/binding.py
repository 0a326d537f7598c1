"""What Triton's launcher makes of every launch, against what `offline` compiles; nothing is compiled or launched.

    python tests/kernels/binding.py      1 if a launch is bound otherwise, or anew for another batch, seed or stream

`JITFunction.run` binds the arguments: types, constants, what is a multiple of 16, options. It does so with a made-up
driver, so that this needs no device.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from vapo_fast.kernels import noise, perturb, tuning
from vapo_fast.kernels.field import field
from vapo_fast.kernels.launch import Program
from vapo_fast.kernels.solve import solve
from vapo_fast.kernels.step import begin, step
from vapo_fast.kernels.train import loss_and_gradients

from tests.kernels import offline
from vapo_fast.ode import SolveOptions


class Driver:
    """One device of compute capability 9.0."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


class Bound:
    """A compilation that was asked for."""

    def __init__(self, key: object, signature: object, constants: object, attributes: object, options: Any) -> None:
        self.key = key
        self.given = signature, constants, attributes
        self.options = options


@contextmanager
def compilations() -> Iterator[list[Bound]]:
    """What would be compiled meanwhile."""
    found: list[Bound] = []
    run = JITFunction.run

    def compile(self, key, signature, device, constants, options, attributes, warmup):
        found.append(Bound(key, signature, constants, attributes, options))

    def warm(self, *arguments, grid, warmup, **named):
        return run(self, *arguments, grid=grid, warmup=True, **named)

    with mock.patch.object(JITFunction, "_do_compile", compile), mock.patch.object(JITFunction, "run", warm):
        yield found


def as_bound(launch: Any) -> tuple[object, object, object]:
    """`offline.source` of a launch, in the words of the launcher."""
    given = offline.source(launch)
    # The binder notes an empty list for what has no attribute of its own.
    attributes = {key: value for key, value in given.attrs.items() if value}
    return given.signature, given.constants, attributes


def differences(case: offline.Case) -> list[str]:
    """In what the launch of a case and its offline twin differ."""
    launch = offline.caught(case, None)
    with compilations() as found:
        arguments = (launch.arguments[name] for name in launch.kernel.arg_names)
        launch.kernel.run(*arguments, **launch.options, grid=(1,), warmup=True)
    (bound,) = found
    signature, constants, attributes = bound.given
    ours = signature, constants, {key: value for key, value in attributes.items() if value}
    names = ("signature", "constants", "attributes")
    wrong = [
        f"{case}: {name}: the launcher has {a}, offline.py {b}"
        for name, a, b in zip(names, ours, as_bound(launch), strict=True)
        if a != b
    ]
    for name, value in launch.options.items():
        if getattr(bound.options, name) != value:
            wrong.append(f"{case}: option {name} is {getattr(bound.options, name)}, not {value}")
    return wrong


def anew() -> list[str]:
    """Operations that are compiled more than once for batches, seeds and streams of different sizes."""
    tile = tuning.rule((3, (16,), 0), "tf32x3", (9, 0))
    mlp, program = offline._packed("one", tile), Program(tile, 264)
    options = SolveOptions(t_eval=(0.5, 1.0))

    def batch(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(n, 1), torch.zeros(n)

    calls: dict[str, Callable[[int, tuple[int, int], int], object]] = {
        "field": lambda n, key, stream: field(mlp, *batch(n), program),
        "solve": lambda n, key, stream: solve(mlp, batch(n)[0], 0.0, 1.0, options, program),
        "solve at n times": lambda n, key, stream: solve(
            mlp, batch(3)[0], 0.0, 1.0, SolveOptions(t_eval=tuple(i / (n + 1) for i in range(1, n + 1))), program
        ),
        "step": lambda n, key, stream: step(mlp, begin(batch(n)[0], 0.0), 0.0, 1.0, SolveOptions(), program),
        "train": lambda n, key, stream: loss_and_gradients(
            mlp, (16,), 0, *batch(n), batch(n)[0], "velocity", "uniform", program
        ),
        "noise": lambda n, key, stream: noise.normal(key, torch.arange(n), n, stream, torch.float32),
        "shuffle": lambda n, key, stream: noise.permutation(key, n, torch.zeros(1, dtype=torch.int64), stream),
        "perturb": lambda n, key, stream: perturb.perturb(
            mlp.net, mlp.constants, *batch(n), None, (key, torch.arange(n), stream)
        ),
    }
    wrong = []
    for name, call in calls.items():
        with compilations() as found:
            for n, key, stream in ((1, (1, 0), 0), (5, (2**31, 16), 1), (16, (2**32 - 1, 2**32 - 1), 2**32 - 1)):
                call(n, key, stream)
        keys = {str(one.key) for one in found}
        if len(found) < 3 or len(keys) > 1:
            wrong.append(f"{name}: compiled {len(keys)} times for three batches: {sorted(keys)}")
    return wrong


def main() -> int:
    if triton.knobs.runtime.interpret:
        sys.exit("TRITON_INTERPRET is set: nothing would be bound")
    driver.set_active(Driver())
    cases = [offline.Case(kernel, shape, "-", 90) for kernel in offline.OTHERS for shape in ("d64", "one")]
    cases += [offline.Case(kernel, shape, "tf32x3", 90) for kernel in offline.PRODUCTS for shape in ("d64", "one")]
    wrong = [line for case in cases for line in differences(case)] + anew()
    print("\n".join(wrong) or f"{len(cases)} launches are bound as they are compiled")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
