"""What is compiled: kernels, classes of networks, precisions, and devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch
from torch import Tensor
from vapo_fast.kernels import film_silu, noise, residual, silu_map, train, tuning
from vapo_fast.kernels.field import field
from vapo_fast.kernels.finish_step import finish_step
from vapo_fast.kernels.launch import Program
from vapo_fast.kernels.mlp import PackedMlp
from vapo_fast.kernels.shapes import PRECISIONS, Tile
from vapo_fast.kernels.solve import solve
from vapo_fast.kernels.stage import stage

import vapo_fast as vf
from vapo_fast.ode import SolveOptions
from vapo_fast.ode.masked_state import State
from vapo_fast.ode.masked_step import Plan
from vapo_fast.ode.tableaus import TABLEAUS

TARGETS = (80, 90, 100)
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes that a program can have."""


@dataclass(frozen=True)
class Shape:
    """A class of networks: D, widths, Fourier features, time, activation, path; and the size of the batch."""

    dimension: int
    widths: tuple[int, ...]
    features: int = 0
    time_dependent: bool = True
    n: int = 100
    activation: str = "silu"
    path: str = "data"


SHAPES = {
    "d2": Shape(2, (128,) * 3),
    "d64": Shape(64, (256,) * 3),
    "d512": Shape(512, (512,) * 4),
    "features": Shape(2, (128,) * 3, 64, time_dependent=False),
    "wide": Shape(64, (1024,) * 3),
    "linear": Shape(2, (128,) * 3, activation="tanh", path="linear"),
    "softplus": Shape(64, (256,) * 3, 16, activation="softplus"),
    # Arguments that are 1 are constants for the compiler, which some expressions do not take.
    "one": Shape(1, (16,), n=1),
}


@dataclass(frozen=True)
class Case:
    """A compilation. Kernels without products have no precision but their own: "-"."""

    kernel: str
    shape: str
    precision: str
    target: int

    def __str__(self) -> str:
        return f"{self.kernel} {self.shape} {self.precision} sm_{self.target}"


@cache
def packed(shape: str, tile: Tile) -> PackedMlp:
    s = SHAPES[shape]
    path = vf.DataHomotopy() if s.path == "data" else vf.LinearHomotopy()
    potential = vf.MLPPotential(
        (s.dimension,), path, s.widths, s.time_dependent, activation=s.activation, fourier_features=s.features
    )
    return PackedMlp(potential, tile)


def ruled(case: Case) -> Tile | None:
    """The rule's tile for a case; None for kernels without products."""
    if case.kernel in OTHERS:
        return None
    s = SHAPES[case.shape]
    return tuning.rule((s.dimension, s.widths, s.features), case.precision, divmod(case.target, 10))


def _field(mlp: PackedMlp, x: Tensor, program: Program) -> None:
    field(mlp, x, x.new_zeros(len(x)), program)


def _solve(mlp: PackedMlp, x: Tensor, program: Program) -> None:
    solve(mlp, x, 0.0, 1.0, SolveOptions(), program)


def _solve_outputs(mlp: PackedMlp, x: Tensor, program: Program) -> None:
    solve(mlp, x, 0.0, 1.0, SolveOptions(t_eval=(0.5, 1.0)[: len(x)]), program)


def _solve_exact(mlp: PackedMlp, x: Tensor, program: Program) -> None:
    solve(mlp, x, 0.0, 1.0, SolveOptions(), program, "exact")


def _solve_probes(mlp: PackedMlp, x: Tensor, program: Program) -> None:
    solve(mlp, x, 0.0, 1.0, SolveOptions(), program, "probes", x.new_zeros(len(x), min(3, len(x)), x.shape[1]))


def _solve_fixed(mlp: PackedMlp, x: Tensor, program: Program) -> None:
    solve(mlp, x, 0.0, 1.0, SolveOptions(method="rk4", steps=24), program)


def _solve_by(method: str) -> Callable[[PackedMlp, Tensor, Program], None]:
    steps = None if TABLEAUS[method].adaptive else 24

    def call(mlp: PackedMlp, x: Tensor, program: Program) -> None:
        solve(mlp, x, 0.0, 1.0, SolveOptions(method, steps=steps), program)

    return call


def _train(estimator: str, weight: str) -> Callable[[PackedMlp, Tensor, Program], None]:
    def call(mlp: PackedMlp, x: Tensor, program: Program) -> None:
        t = x.new_zeros(len(x))
        train.loss_and_gradients(mlp, x, t, x, estimator, t if weight == "given" else weight, program)

    return call


PRODUCTS: dict[str, Callable[[PackedMlp, Tensor, Program], None]] = {
    "field": _field,
    "solve": _solve,
    "solve_outputs": _solve_outputs,
    "solve_exact": _solve_exact,
    "solve_probes": _solve_probes,
    "solve_fixed": _solve_fixed,
    "train": _train("velocity", "uniform"),
    "train_covariance": _train("covariance", "uniform"),
    **{f"solve_{method}": _solve_by(method) for method in ("bosh3", "tsit5", "euler", "heun")},
    "train_balanced": _train("velocity", "inverse_variance"),
    "train_given": _train("covariance", "given"),
}

_KEY = (12345, 67890)


def _draws(n: int, size: int, dtype: torch.dtype, draw: Callable[..., Tensor] = noise.normal) -> None:
    draw(_KEY, torch.arange(n), size, 7, dtype)


def _shuffle(n: int) -> None:
    noise.permutation(_KEY, n, torch.zeros(1, dtype=torch.int64), 7)


def _map(n: int, channels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A feature map of some, or one, pixels."""
    side = 7 if channels > 1 else 1
    return torch.zeros(n, channels, side, side, dtype=dtype)


def _silu(n: int, channels: int, second: bool) -> None:
    wide, narrow, pair = _map(n, channels), _map(n, channels, torch.bfloat16), _map(2 * n, channels)
    if second:
        silu_map.silu_second(wide, wide, narrow, narrow, pair, pair, pair.bfloat16())
    else:
        silu_map.silu(wide, narrow)


def _film(n: int, channels: int, dtype: torch.dtype, order: int) -> None:
    c, pair, wide = _map(n, channels, dtype), _map(2 * n, channels, dtype), torch.zeros(n, channels)
    if order == 2:
        inputs = film_silu.SecondInputs(c, c, c, c, wide, wide)
        film_silu.film_silu_second(inputs, film_silu.SecondResults(pair, pair, wide, wide))
    elif order == 1:
        film_silu.film_silu_derivative(c, c, wide, wide, c)
    else:
        film_silu.film_silu(c, wide, wide, c)


def _silu_derivative(n: int, channels: int) -> None:
    wide, narrow = _map(n, channels), _map(n, channels, torch.bfloat16)
    silu_map.silu_derivative(wide, narrow, wide, wide)


def _residual(n: int, channels: int, dtype: torch.dtype) -> None:
    wide = _map(n, channels)
    residual.residual(_map(n, channels, dtype), wide, torch.zeros(channels), wide)


def _masked(n: int, size: int, method: str, dtype: torch.dtype, launch: Callable[..., None], *index: int) -> None:
    """A step of the graph engine: of images, where a row is longer than a block."""
    shape = (n, 3, size, size) if size > 1 else (n, 1)
    plan, numbers = Plan(method, outputs=min(2, n)), torch.zeros(64, dtype=torch.float64)
    state = State.allocate(n, torch.zeros(shape, dtype=dtype), TABLEAUS[method], plan.outputs, ())
    launch(state, numbers, numbers, plan, *index)


OTHERS: dict[str, Callable[[int, int], None]] = {
    "stage": lambda n, size: _masked(n, size, "dopri5", torch.float32, stage, 4),
    "stage_first": lambda n, size: _masked(n, size, "euler", torch.float64, stage, 0),
    "finish_step": lambda n, size: _masked(n, size, "dopri5", torch.float32, finish_step),
    "finish_step_float64": lambda n, size: _masked(n, size, "tsit5", torch.float64, finish_step),
    "finish_step_fixed": lambda n, size: _masked(n, size, "rk4", torch.float32, finish_step),
    "normal_float32": lambda n, size: _draws(n, size, torch.float32),
    "normal_float64": lambda n, size: _draws(n, size, torch.float64),
    "uniform_float32": lambda n, size: _draws(n, size, torch.float32, noise.uniform),
    "shuffle_keys": lambda n, size: _shuffle(n),
    "silu": lambda n, size: _silu(n, size, False),
    "silu_derivative": _silu_derivative,
    "silu_second": lambda n, size: _silu(n, size, True),
    "film_silu": lambda n, size: _film(n, size, torch.bfloat16, 0),
    "film_silu_derivative": lambda n, size: _film(n, size, torch.bfloat16, 1),
    "film_silu_second": lambda n, size: _film(n, size, torch.bfloat16, 2),
    "film_silu_second_float32": lambda n, size: _film(n, size, torch.float32, 2),
    "residual": lambda n, size: _residual(n, size, torch.bfloat16),
}
"""Kernels without products, by the batch's size and numbers of a sample, or of a pixel."""


WHOLE = ("field", "solve", "train")
"""Compiled for every shape of a SiLU on the data's path, every precision and target."""
VARIANTS = ("solve_outputs", "solve_exact", "solve_probes", "solve_fixed", "train_covariance")
"""Compiled for these shapes too, on one target; they differ from the former in what is around the products."""
OTHER_SHAPES = ("linear", "softplus")


def every_case() -> Iterator[Case]:
    """The table's rows."""
    for target in TARGETS:
        yield from (Case(kernel, shape, "-", target) for kernel, shape in product(OTHERS, ("d64", "one")))
        for kernel, shape, precision in product(PRODUCTS, SHAPES, PRECISIONS):
            if _chosen(kernel, shape, precision, target):
                yield Case(kernel, shape, precision, target)
    yield from (Case(kernel, "one", "tf32", 80) for kernel in PRODUCTS)


def _chosen(kernel: str, shape: str, precision: str, target: int) -> bool:
    """Whether a compilation is in the table: what the long ones of all the others would tell is told by these."""
    middle = (shape, precision) == ("d64", "tf32x3")
    if shape == "one":
        return False
    if shape in OTHER_SHAPES:
        return kernel in WHOLE and (precision == "tf32x3" or (precision == "bf16" and target == 90))
    if kernel in WHOLE:
        # Float32 multiplies and adds are for measuring what the others round: of the field alone.
        return precision != "ieee" or kernel == "field" or shape in ("d64", "d512")
    if kernel in VARIANTS and target == 90:
        others = (("d2", "tf32x3"), ("features", "bf16"))
        return (shape, precision) in others or (shape == "d64" and precision != "ieee")
    if kernel in VARIANTS:
        return middle or (shape, precision) == ("features", "bf16")
    return middle if target == 90 else (shape, precision) == ("features", "bf16")


def quick_cases() -> list[Case]:
    """Every kernel, precision, target and shape at least once, the long compilations seldom."""
    chosen = [Case(kernel, "d64", "-", TARGETS[i % 3]) for i, kernel in enumerate(OTHERS)]
    ones = ("normal_float32", "silu_derivative", "film_silu_second", "residual")
    chosen += [Case(kernel, "one", "-", 80) for kernel in ones]
    chosen += [Case(kernel, "one", "-", 90) for kernel in ("stage", "finish_step")]
    chosen += [Case(kernel, "one", "tf32", 80) for kernel in ("field", "solve_outputs", "train")]
    chosen += [Case("field", "d64", p, t) for p, t in product(PRECISIONS, TARGETS)]
    chosen += [Case("solve", "d2", "tf32x3", t) for t in TARGETS]
    chosen += [Case("solve", "d512", "ieee", 90), Case("solve", "wide", "tf32", 90), Case("field", "wide", "bf16", 80)]
    chosen += [Case("train", "d64", "tf32x3", t) for t in TARGETS]
    chosen += [Case("solve_outputs", "d64", "tf32x3", 90), Case("solve_exact", "features", "bf16", 90)]
    chosen += [Case("solve_probes", "d64", "tf32x3", 80), Case("solve_fixed", "features", "bf16", 100)]
    chosen += [Case("train_covariance", "features", "bf16", 80)]
    return chosen


def launch(case: Case, tile: Tile | None) -> None:
    """Call a case's launcher, with a tile if it has products."""
    shape = SHAPES[case.shape]
    if tile is None:
        OTHERS[case.kernel](shape.n, shape.dimension)
    else:
        x = torch.zeros(shape.n, shape.dimension)
        PRODUCTS[case.kernel](packed(case.shape, tile), x, Program(tile, 264))
