"""A launch as Triton binds it, caught before it is compiled, and compiled for a device that is not there.

`JITFunction.run` binds the arguments: types, constants, what is a multiple of 16, options. It does so here with a
made-up driver, so what is compiled is what would be on the device.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, NamedTuple
from unittest import mock

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from vapo_fast.kernels import shapes
from vapo_fast.kernels.shapes import Tile

from . import cases
from .cases import Case


class Driver:
    """One device, whose number is its compute capability: Triton keeps what it knows of each device by that."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


class Bound(NamedTuple):
    """A compilation that was asked for, and the key that tells it from others of the same kernel."""

    kernel: JITFunction[Any]
    key: str
    source: ASTSource
    options: Any


class _EnoughError(Exception):
    """Thrown instead of compiling, so that a launcher does not go on."""


@contextmanager
def compilations(target: int, stop: bool = False) -> Iterator[list[Bound]]:
    """What would be compiled meanwhile; with ``stop`` the launcher is left at the first."""
    found: list[Bound] = []

    def compile(kernel, key, signature, device, constants, options, attributes, warmup):
        found.append(Bound(kernel, str(key), ASTSource(kernel, signature, constants, attributes), options))
        if stop:
            raise _EnoughError

    driver.set_active(Driver(target))
    with mock.patch.object(JITFunction, "_do_compile", compile), suppress(_EnoughError):
        yield found


def caught(case: Case, tile: Tile | None = None) -> Bound:
    """The launch of a case with a tile; None: the rule's."""
    with compilations(case.target, stop=True) as found:
        cases.launch(case, tile or cases.ruled(case))
    if not found:
        raise RuntimeError(f"{case}: nothing was launched")
    return found[0]


def fingerprint(case: Case, tile: Tile | None = None) -> str:
    """A hash of what the compiler is given for a case, but for comments, docstrings and what never runs on a device."""
    bound = caught(case, tile)
    source = bound.source
    options = [getattr(bound.options, name) for name in ("num_warps", "num_stages", "enable_fp_fusion")]
    parts = [*reached(bound.kernel), _code(shapes), source.signature, source.constants, source.attrs, options]
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
            elif isinstance(value, type) and issubclass(value, tuple):
                constants.add(f"{name} has {value._fields}")
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
    bound = caught(case, tile)
    return triton.compile(bound.source, target=GPUTarget("cuda", case.target, 32), options=vars(bound.options))
