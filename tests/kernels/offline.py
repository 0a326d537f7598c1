"""What the compiler makes of every kernel, for devices that are not there: registers, spills, memory, instructions.

    python tests/kernels/offline.py            compare with tests/kernels/limits.csv; 1 if anything got worse
    python tests/kernels/offline.py --quick    the same for a choice of cases that has every kernel, precision, target
    python tests/kernels/offline.py --write    write tests/kernels/limits.csv (20 to 40 minutes; with --jobs, less)
    python tests/kernels/offline.py --write --missing   only what it does not have yet, or has of other sources
    python tests/kernels/offline.py --current  whether the table is of these sources: nothing is compiled
    python tests/kernels/offline.py --explore  many tiles instead of the rule's: benchmarks/results/offline_tiles.csv

A launcher is called as on a device, and the launch caught and compiled (`triton.compile` needs no device) for the
target, with the tile that `vapo_fast.kernels.tuning.rule` gives it. A line of the table has a hash of what the compiler
was given: the device functions that the kernel reaches, its shapes and its arguments. Change one of them, and the lines
that depend on it have to be written anew.
"""

from __future__ import annotations

import argparse
import ast
import csv
import hashlib
import inspect
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from functools import cache
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction
from vapo_fast.kernels import film_silu, noise, perturb, residual, shapes, silu_map, train, tuning
from vapo_fast.kernels.field import field
from vapo_fast.kernels.launch import Program
from vapo_fast.kernels.mlp import PackedMlp
from vapo_fast.kernels.settle import settle
from vapo_fast.kernels.shapes import PRECISIONS, Tile
from vapo_fast.kernels.solve import solve
from vapo_fast.kernels.stage import stage
from vapo_fast.kernels.step import begin, step

import vapo_fast as vf
from vapo_fast.engines.graph.state import State
from vapo_fast.engines.graph.step import Plan
from vapo_fast.ode import SolveOptions
from vapo_fast.ode.tableaus import TABLEAUS

ROOT = Path(__file__).resolve().parents[2]
LIMITS = Path(__file__).with_name("limits.csv")
TILES = ROOT / "benchmarks" / "results" / "offline_tiles.csv"

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


@dataclass(frozen=True)
class Figures:
    """Of one compilation.

    Attributes:
        registers: of a thread. stack: bytes of a thread in local memory, where what has no register goes.
        spills: loads from the stack and stores to it inside the loops over a product's terms.
        shared: bytes of a program.
        narrow: products in 32 bits that a size, a stride or a program's number goes into, and that may overflow.
        matrix, loop: matrix instructions (without tensor cores: multiply-adds) and all instructions in the shortest of
            the loops that have most; warpgroups have equally many in all, and it is the one of block_k columns.
        widest: all instructions in the longest of these loops, that of a product of block_n columns.
        instructions: of the whole kernel.
    """

    registers: int
    stack: int
    spills: int
    shared: int
    narrow: int
    matrix: int
    loop: int
    instructions: int
    widest: int


MARGINS = Figures(registers=8, stack=0, spills=0, shared=0, narrow=0, matrix=0, loop=16, instructions=500, widest=16)
"""By how much a figure may exceed its limit: registers are handed out by eights, and the rest of a kernel may grow."""

# Kernels: who launches them ---------------------------------------------------------------------------------------


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


def _step(mlp: PackedMlp, x: Tensor, program: Program) -> None:
    step(mlp, begin(x, 0.0), 0.0, 1.0, SolveOptions(), program)


def _train(estimator: str, weight: str) -> Callable[[PackedMlp, Tensor, Program], None]:
    nothing: Any = None  # what comes after the launch is not reached

    def call(mlp: PackedMlp, x: Tensor, program: Program) -> None:
        t = x.new_zeros(len(x))
        train.loss_and_gradients(mlp, nothing, 0, x, t, x, estimator, t if weight == "given" else weight, program)

    return call


PRODUCTS: dict[str, Callable[[PackedMlp, Tensor, Program], None]] = {
    "field": _field,
    "solve": _solve,
    "solve_outputs": _solve_outputs,
    "solve_exact": _solve_exact,
    "solve_probes": _solve_probes,
    "solve_fixed": _solve_fixed,
    "step": _step,
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


def _perturb(n: int, dimension: int, drawn: bool) -> None:
    mlp, x = _packed("d64", tuning.INTERPRETED), torch.zeros(n, dimension)
    draw = (_KEY, torch.arange(n), 7) if drawn else None
    perturb.perturb(mlp.net, mlp.constants, x, x.new_zeros(n), None if drawn else x, draw)


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
        film_silu.film_silu_second(c, c, c, c, wide, wide, pair, pair, wide, wide)
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
    "settle": lambda n, size: _masked(n, size, "dopri5", torch.float32, settle),
    "settle_float64": lambda n, size: _masked(n, size, "tsit5", torch.float64, settle),
    "settle_fixed": lambda n, size: _masked(n, size, "rk4", torch.float32, settle),
    "normal_float32": lambda n, size: _draws(n, size, torch.float32),
    "normal_float64": lambda n, size: _draws(n, size, torch.float64),
    "uniform_float32": lambda n, size: _draws(n, size, torch.float32, noise.uniform),
    "shuffle_keys": lambda n, size: _shuffle(n),
    "perturb": lambda n, size: _perturb(n, size, False),
    "perturb_drawn": lambda n, size: _perturb(n, size, True),
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
VARIANTS = ("solve_outputs", "solve_exact", "solve_probes", "solve_fixed", "step", "train_covariance")
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
    ones = ("normal_float32", "perturb", "perturb_drawn", "silu_derivative", "film_silu_second", "residual")
    chosen += [Case(kernel, "one", "-", 80) for kernel in ones]
    chosen += [Case(kernel, "one", "-", 90) for kernel in ("stage", "settle")]
    chosen += [Case(kernel, "one", "tf32", 80) for kernel in ("field", "solve_outputs", "step", "train")]
    chosen += [Case("field", "d64", p, t) for p, t in product(PRECISIONS, TARGETS)]
    chosen += [Case("solve", "d2", "tf32x3", t) for t in TARGETS]
    chosen += [Case("solve", "d512", "ieee", 90), Case("solve", "wide", "tf32", 90), Case("field", "wide", "bf16", 80)]
    chosen += [Case("train", "d64", "tf32x3", t) for t in TARGETS]
    chosen += [Case("solve_outputs", "d64", "tf32x3", 90), Case("solve_exact", "features", "bf16", 90)]
    chosen += [Case("solve_probes", "d64", "tf32x3", 80), Case("solve_fixed", "features", "bf16", 100)]
    chosen += [Case("step", "d64", "tf32x3", 90), Case("train_covariance", "features", "bf16", 80)]
    return chosen


# Compiling --------------------------------------------------------------------------------------------------------


class _Launch(Exception):  # noqa: N818 (nothing is wrong)
    """What a launcher launched; thrown, so that it does not go on."""

    def __init__(self, kernel: JITFunction[Any], arguments: dict[str, Any], options: dict[str, Any]) -> None:
        self.kernel, self.arguments, self.options = kernel, arguments, options


def _launch(self: JITFunction[Any], *args: Any, grid: object, warmup: bool, **named: Any) -> None:
    arguments = dict(zip(self.arg_names, args, strict=False))
    arguments |= {name: value for name, value in named.items() if name in self.arg_names}
    raise _Launch(self, arguments, {name: value for name, value in named.items() if name not in arguments})


@cache
def _packed(shape: str, tile: Tile) -> PackedMlp:
    s = SHAPES[shape]
    path = vf.DataHomotopy() if s.path == "data" else vf.LinearHomotopy()
    potential = vf.MLPPotential(
        (s.dimension,), path, s.widths, s.time_dependent, activation=s.activation, fourier_features=s.features
    )
    return PackedMlp(potential, tile)


def caught(case: Case, tile: Tile | None) -> _Launch:
    """The launch of a case with a tile; None: the rule's."""
    try:
        with mock.patch.object(JITFunction, "run", _launch):
            shape = SHAPES[case.shape]
            if case.kernel in OTHERS:
                OTHERS[case.kernel](shape.n, shape.dimension)
            else:
                tile = tile or ruled(case)
                PRODUCTS[case.kernel](
                    _packed(case.shape, tile), torch.zeros(shape.n, shape.dimension), Program(tile, 264)
                )
    except _Launch as launch:
        return launch
    raise RuntimeError(f"{case}: nothing was launched")


def ruled(case: Case) -> Tile:
    """The rule's tile for a case."""
    s = SHAPES[case.shape]
    return tuning.rule((s.dimension, s.widths, s.features), case.precision, divmod(case.target, 10))


_TYPES = {
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


def source(launch: _Launch) -> ASTSource:
    """A launch as the compiler takes it: types, constants, and what is a multiple of 16, as on a device."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[object]]] = {}
    for i, (parameter, name) in enumerate(zip(launch.kernel.params, launch.kernel.arg_names, strict=True)):
        value = launch.arguments[name]
        # A 1 is a constant, but where the kernel says the argument's type, or that it is not to be looked at.
        plain = not parameter.do_not_specialize and not parameter.annotation_type
        if parameter.is_constexpr or (isinstance(value, int) and value == 1 and plain):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[name] = _TYPES[value.dtype]
        else:
            signature[name] = parameter.annotation_type or ("i32" if -(2**31) <= value < 2**31 else "i64")
        if signature[name] == "constexpr" or parameter.do_not_specialize:
            continue
        # The device's allocator gives addresses that are multiples of 512.
        if isinstance(value, Tensor) or value % 16 == 0:
            attributes[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature=signature, constexprs=constants, attrs=attributes)


def fingerprint(case: Case, tile: Tile | None = None) -> str:
    """A hash of what the compiler is given for a case, but for comments, docstrings and what never runs on a device."""
    launch = caught(case, tile)
    given = source(launch)
    parts = [*reached(launch.kernel), _code(shapes), given.signature, given.constants, given.attrs, launch.options]
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:12]


@cache
def reached(kernel: JITFunction[Any]) -> tuple[str, ...]:
    """The code of a kernel, of the device functions that it calls, and theirs; and the constants in them."""
    todo, known, constants = [kernel], {kernel}, set()
    for function in todo:
        scope = function.fn.__globals__
        for node in ast.walk(ast.parse(inspect.getsource(function.fn).strip())):
            if isinstance(node, ast.Name):
                name, value = node.id, scope.get(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                name, value = node.attr, getattr(scope.get(node.value.id), node.attr, None)
            else:
                continue
            if isinstance(value, JITFunction) and value not in known and not value.__module__.startswith("triton"):
                known.add(value)
                todo.append(value)
            elif isinstance(value, tl.constexpr):
                constants.add(f"{name} = {value.value!r}")
    return (*(_code(function.fn) for function in todo), *sorted(constants))


def _code(thing: Any) -> str:
    """Source without comments, docstrings and layout."""
    tree = ast.parse(inspect.getsource(thing).strip())
    for node in ast.walk(tree):
        for body in (getattr(node, "body", None),):
            if isinstance(body, list):
                body[:] = [one for one in body if not _is_text(one)] or [ast.Pass()]
    return ast.unparse(tree)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def compiled(case: Case, tile: Tile | None = None) -> Any:
    """The compiled kernel, with its code at every level in ``asm``."""
    launch = caught(case, tile)
    return triton.compile(source(launch), target=GPUTarget("cuda", case.target, 32), options=launch.options)


def measure(case: Case, tile: Tile | None = None) -> Figures:
    """Compile, and read the machine code."""
    kernel = compiled(case, tile)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        resources = _cuobjdump("-res-usage", file.name)
        assembly = _cuobjdump("-sass", file.name)
    loops = list(_product_loops(assembly))
    most = max(map(_matrix, loops), default=0)
    densest = min((loop for loop in loops if _matrix(loop) == most), key=len, default=[])
    # Where a product has a single step, its loop is the one around, with the activations: less dense.
    density = max((_matrix(loop) / len(loop) for loop in loops), default=0.0)
    widest = max((loop for loop in loops if _matrix(loop) > 0.3 * density * len(loop)), key=len, default=[])
    return Figures(
        registers=int(re.search(r"REG:(\d+)", resources)[1]),
        stack=int(re.search(r"STACK:(\d+)", resources)[1]),
        spills=sum(bool(_LOCAL.match(instruction)) for loop in loops for instruction in loop),
        shared=kernel.metadata.shared,
        narrow=len(narrow_products(kernel.asm["ttir"])),
        matrix=_matrix(densest),
        loop=len(densest),
        widest=len(widest),
        instructions=len(_instructions(assembly)),
    )


def _cuobjdump(*arguments: str) -> str:
    tool = tools()["cuobjdump"]
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def tools() -> dict[str, str]:
    """The programs that triton brings along."""
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    return {name: str(folder / name) for name in ("ptxas", "cuobjdump")}


def narrow_products(ir: str) -> list[str]:
    """Multiplications in 32 bits of what grows with the batch: kernel arguments, program numbers, loops over them."""
    large = set(re.findall(r"(%\w+): i32\b", re.search(r"tt\.func public .*", ir)[0]))
    found = []
    for line in ir.splitlines():
        if loop := re.search(r"scf\.for (%\w+) = (%\w+) to (%\w+)", line):
            if {loop[2], loop[3]} & large:
                large.add(loop[1])
            continue
        operation = re.match(r"\s*(%\w+)(?::\d+)? = \"?([\w.]+)\"?(.*)", line)
        if operation is None:
            continue
        result, name, rest = operation.groups()
        narrow = re.search(r"(?:\bi32|xi32>)(?: loc\(.*\))?$", rest.strip()) is not None
        if name in ("tt.get_program_id", "tt.get_num_programs"):
            large.add(result)
        elif narrow and set(re.findall(r"%\w+", rest)) & large:
            if name == "arith.muli":
                found.append(line.strip())
            elif name in ("tt.splat", "tt.broadcast", "tt.expand_dims", "arith.addi", "arith.subi", "arith.divsi"):
                large.add(result)
    return found


_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(.*?)\s*;", re.MULTILINE)
_LOCAL = re.compile(r"(LDL|STL)\b")
_TENSOR = re.compile(r"(HMMA|HGMMA|UTC\w*MMA)\b")
_MULTIPLY_ADD = re.compile(r"FFMA2?\b")
# Fewer multiply-adds are not a product without tensor cores.
_LEAST = 32


def _instructions(assembly: str) -> list[tuple[int, str]]:
    return [(int(address, 16), text) for address, text in _LINE.findall(assembly)]


def _matrix(instructions: Sequence[str]) -> int:
    tensor = sum(bool(_TENSOR.match(text)) for text in instructions)
    return tensor or sum(bool(_MULTIPLY_ADD.match(text)) for text in instructions)


def _product_loops(assembly: str) -> Iterator[list[str]]:
    """The innermost loops that make products: from the target of a branch backwards to the branch."""
    instructions = _instructions(assembly)
    loops = []
    for address, text in instructions:
        target = re.match(r"BRA(?:\.\w+)*\s+(?:!?U?P\w+,\s*)?(?:`\(.*\)|0x([0-9a-f]+))", text)
        if target and target[1] and int(target[1], 16) < address:
            loops.append((int(target[1], 16), address))
    for first, last in loops:
        if any(first <= a and b <= last and (a, b) != (first, last) for a, b in loops):
            continue
        body = [text for address, text in instructions if first <= address <= last]
        matrix = _matrix(body)
        if any(_TENSOR.match(text) for text in body) or matrix >= _LEAST:
            yield body


# The table --------------------------------------------------------------------------------------------------------

_TILE = ("rows", "block_n", "block_k", "warps", "stages")
_KEY_COLUMNS = tuple(f.name for f in fields(Case))
_COLUMNS = (*_KEY_COLUMNS, *_TILE, *(f.name for f in fields(Figures)), "triton", "source")


def row(case: Case, tile: Tile | None, figures: Figures) -> dict[str, object]:
    """A line of the table."""
    shown = {name: getattr(tile, name) if tile else "-" for name in _TILE}
    return {**asdict(case), **shown, **asdict(figures), "triton": triton.__version__}


def read(path: Path) -> list[dict[str, str]]:
    """A table's lines."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def merge(path: Path, rows: Iterable[dict[str, object]], key: Sequence[str], columns: Sequence[str]) -> None:
    """Lines into a table, each in the place of the one with the same key."""
    table: dict[tuple[str, ...], dict[str, object]] = {tuple(old[k] for k in key): dict(old) for old in read(path)}
    for new in rows:
        table[tuple(str(new[k]) for k in key)] = new
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(table.values())


def worse(case: Case, figures: Figures, limit: dict[str, str] | None) -> list[str]:
    """In what a compilation exceeds its limits, with the numbers."""
    if case.kernel in PRODUCTS and figures.shared > SHARED_MEMORY[case.target]:
        return [f"{case}: {figures.shared} bytes of shared memory; the device has {SHARED_MEMORY[case.target]}"]
    if limit is None:
        return [f"{case}: not in {LIMITS.name}; write it with --write"]
    if limit["triton"] != triton.__version__:
        return []  # another compiler has other figures; that it compiles, and fits the device, is known by now
    tile = ruled(case) if case.kernel in PRODUCTS else None
    chosen = {name: str(getattr(tile, name)) if tile else "-" for name in _TILE}
    if any(limit[name] != chosen[name] for name in _TILE):
        return [f"{case}: the rule's tile is {chosen}, the limits are of another; write them with --write"]
    found = []
    for name, value in asdict(figures).items():
        if not limit.get(name):
            continue  # the line was written before there was this figure
        # More matrix instructions are more work; where they are gone altogether, the tensor cores are.
        most = int(limit[name]) + getattr(MARGINS, name)
        if value > most or (name == "matrix" and value != int(limit[name])):
            found.append(f"{case}: {name} {value}, limit {limit[name]} (margin {getattr(MARGINS, name)}); {figures}")
    return found


# Commands ---------------------------------------------------------------------------------------------------------


def _measured(case: Case, tile: Tile | None = None) -> tuple[Case, Tile | None, Figures | None, str, float]:
    start = time.perf_counter()
    try:
        figures, error = measure(case, tile), ""
    except Exception as problem:  # whatever the compiler says is the result
        figures, error = None, " ".join(f"{type(problem).__name__}: {problem.__cause__ or problem}".split())[:200]
    return case, tile, figures, error, time.perf_counter() - start


def _all(jobs: int, work: Sequence[tuple[Case, Tile | None]]) -> Iterator[tuple[Any, ...]]:
    """Results as they come, with a line for each."""
    cases, tiles = [case for case, _ in work], [tile for _, tile in work]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder  # so that every figure is fresh
        with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
            for case, tile, figures, error, seconds in pool.map(_measured, cases, tiles):
                shown = f" {[getattr(tile, name) for name in _TILE]}" if tile else ""
                print(f"{case}{shown}: {figures or error} {seconds:.1f} s", flush=True)
                yield case, tile, figures, error


def compare(cases: Sequence[Case], jobs: int) -> int:
    """1 if a compilation exceeds its limits."""
    limits = {tuple(line[k] for k in _KEY_COLUMNS): line for line in read(LIMITS)}
    found = []
    for case, _, figures, error in _all(jobs, [(case, None) for case in cases]):
        key = tuple(str(value) for value in asdict(case).values())
        found += worse(case, figures, limits.get(key)) if figures else [f"{case}: {error}"]
    print("\n".join(["", *found]) if found else f"{len(cases)} compilations within their limits")
    return int(bool(found))


def write(cases: Sequence[Case], jobs: int, keep: bool) -> int:
    """Write the table of limits; 1 if something does not compile."""
    if not keep:
        LIMITS.unlink(missing_ok=True)
    failed = 0
    for case, _, figures, error in _all(jobs, [(case, None) for case in cases]):
        failed += bool(error)
        if figures:
            tile = ruled(case) if case.kernel in PRODUCTS else None
            merge(LIMITS, [row(case, tile, figures) | {"source": fingerprint(case)}], _KEY_COLUMNS, _COLUMNS)
    _drop_what_is_no_case()
    return int(failed > 0)


def _drop_what_is_no_case() -> None:
    keys = {tuple(map(str, asdict(case).values())) for case in every_case()}
    kept = [line for line in read(LIMITS) if tuple(line[k] for k in _KEY_COLUMNS) in keys]
    LIMITS.unlink(missing_ok=True)
    merge(LIMITS, kept, _KEY_COLUMNS, _COLUMNS)


def stale(cases: Sequence[Case]) -> list[Case]:
    """Those that the table does not have, or has of other sources."""
    known = {tuple(line[k] for k in _KEY_COLUMNS): line.get("source") for line in read(LIMITS)}
    return [case for case in cases if known.get(tuple(map(str, asdict(case).values()))) != fingerprint(case)]


def current(cases: Sequence[Case]) -> int:
    """1 if a line of the table is of other sources than these, or is no case at all."""
    old = stale(cases)
    keys = {tuple(map(str, asdict(case).values())) for case in every_case()}
    extra = [line for line in read(LIMITS) if tuple(line[k] for k in _KEY_COLUMNS) not in keys]
    for case in old:
        print(f"{case}: not in {LIMITS.name}, or of other sources")
    for line in extra:
        print(f"{line}: no case of this table")
    if old or extra:
        print(f"\n{len(old)} of {len(cases)} lines to write: python tests/kernels/offline.py --write --missing")
    return int(bool(old or extra))


def explore(cases: Sequence[Case], tiles: Sequence[tuple[int, ...]], jobs: int) -> int:
    """Compile cases with many tiles, into `TILES`."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.provenance import commit

    work = [
        (case, replace(ruled(case), **dict(zip(_TILE, numbers, strict=True)), precision=case.precision))
        for case, numbers in product(cases, tiles)
    ]
    known = ("date", "commit")
    for case, tile, figures, error in _all(jobs, work):
        blank = dict.fromkeys(asdict(MARGINS), "")
        line = {**row(case, tile, MARGINS), **(asdict(figures) if figures else blank), "error": error}
        line |= {"date": datetime.now(UTC).strftime("%Y-%m-%d"), "commit": commit()}
        line["block_d"] = tile.block_d
        merge(TILES, [line], (*_KEY_COLUMNS, *_TILE, "block_d"), (*known, *_COLUMNS, "block_d", "error"))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--missing", action="store_true", help="only cases without a line of these sources")
    parser.add_argument("--current", action="store_true")
    parser.add_argument("--explore", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", metavar="REGEX", help="cases whose name, as printed, matches")
    parser.add_argument(
        "--tiles", default="", metavar="R,N,K,W,S;...", help="with --explore: these, not the usual ones"
    )
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args(arguments)
    if triton.knobs.runtime.interpret:
        parser.error("TRITON_INTERPRET is set: nothing would be compiled")
    cases = [case for case in (quick_cases() if options.quick else every_case()) if re.search(options.only, str(case))]
    if options.current:
        return current(cases)
    if options.missing:
        cases = stale(cases)
    if options.explore:
        tiles = [tuple(map(int, tile.split(","))) for tile in options.tiles.split(";") if tile] or EXPLORED
        return explore([case for case in cases if case.kernel in PRODUCTS], tiles, options.jobs)
    if options.write:
        return write(cases, options.jobs, bool(options.only or options.quick or options.missing))
    return compare(cases, options.jobs)


EXPLORED = [
    (rows, n, k, warps, stages)
    for rows, warps in ((64, 4), (64, 8), (128, 4), (128, 8))
    for n in (64, 128, 256)
    for k in (16, 32, 64)
    for stages in (2, 3)
]
"""What `explore` tries: rows, block_n, block_k, warps, stages."""

if __name__ == "__main__":
    sys.exit(main())
