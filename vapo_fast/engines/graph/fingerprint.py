"""What a recorded program of a model depends on besides the values of its tensors, as a key to compare.

A recording reads parameters and buffers where they lie, so new values are seen; but Python does not run again.
Whatever Python may have decided by is therefore part of the key: where each tensor lies and how it is laid out, the
modules, their modes, hooks and attributes, down to the contents of plain objects and of functions' closures, and
hooks for all modules. What a ``forward`` reads from elsewhere (global variables, the clock) is not seen.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Set
from enum import Enum
from functools import partial
from types import FunctionType, MethodType

import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.layout, Enum, type)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple(name.replace("_", "_global_", 1) for name in _HOOKS)
# Attributes that every module has, and that are looked at in another way or change without meaning.
_OWN = {name for name in vars(nn.Module()) if name != "training"}
_DEEPEST = 6


class _Same:
    """An object by identity, without keeping it alive: equal only while it lives."""

    def __init__(self, value: object) -> None:
        self._ref = weakref.ref(value)
        self._hash = id(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._ref() is not None and self._ref() is other._ref()

    def __hash__(self) -> int:
        return self._hash


def fingerprint(model: nn.Module) -> tuple[object, ...]:
    """A key that compares equal as long as recordings of the model's field stay valid; hashable."""
    everywhere = tuple(tuple(getattr(nn.modules.module, hooks, ())) for hooks in _GLOBAL_HOOKS)
    return everywhere, _of_modules(model, set())


def _of_modules(root: nn.Module, seen: set[nn.Module]) -> tuple[object, ...]:
    """Of a module and those in it, but for ``seen`` ones."""
    named = [(name, module) for name, module in root.named_modules(remove_duplicate=False)]
    new = [(name, module) for name, module in named if module not in seen]
    seen.update(module for _, module in named)
    places = tuple((name, _Same(module)) for name, module in named)
    return places, tuple(_of_module(name, module, seen) for name, module in new)


def _of_module(name: str, module: nn.Module, seen: set[nn.Module]) -> tuple[object, ...]:
    tensors = [*module._parameters.items(), *module._buffers.items()]
    attributes = sorted(item for item in vars(module).items() if item[0] not in _OWN)
    return (
        name,
        type(module),
        tuple((key, None if tensor is None else _of_tensor(tensor)) for key, tensor in tensors),
        tuple(
            tuple((key, _of_value(hook, 0, seen)) for key, hook in getattr(module, hooks).items()) for hooks in _HOOKS
        ),
        tuple((key, _of_value(value, 0, seen)) for key, value in attributes),
    )


def _hooks(module: nn.Module) -> Iterator[Mapping[int, object]]:
    return (getattr(module, hooks, {}) for hooks in _HOOKS)


def _of_tensor(tensor: Tensor) -> tuple[object, ...]:
    if tensor.is_sparse or tensor.is_meta:
        return (_identity(tensor),)
    where = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
    return (*where, tensor.requires_grad)


def _of_value(value: object, depth: int, seen: set[nn.Module]) -> object:
    if isinstance(value, _PLAIN):
        # 0.0 == -0.0 and 1 == True, but a program may tell them apart.
        return type(value), repr(value) if isinstance(value, (float, complex)) else value
    if isinstance(value, Tensor):
        return _of_tensor(value)
    if isinstance(value, nn.Module):
        # One that is hidden in a list or an object is in no module's own list of modules.
        return _of_modules(value, seen)
    if depth >= _DEEPEST:
        return _identity(value)
    return type(value), tuple(_inside(value, depth + 1, seen))


def _inside(value: object, depth: int, seen: set[nn.Module]) -> Iterator[object]:
    if isinstance(value, (list, tuple, deque)):
        yield from (_of_value(each, depth, seen) for each in value)
    elif isinstance(value, Mapping):
        yield from ((_of_value(key, depth, seen), _of_value(each, depth, seen)) for key, each in value.items())
    elif isinstance(value, Set):
        yield from sorted(repr(each) for each in value)
    elif isinstance(value, MethodType):
        yield from (_of_value(part, depth, seen) for part in (value.__self__, value.__func__))
    elif isinstance(value, partial):
        yield from (_of_value(part, depth, seen) for part in (value.func, value.args, value.keywords))
    elif isinstance(value, FunctionType):
        yield _Same(value.__code__)
        yield from (_of_value(cell.cell_contents, depth, seen) for cell in value.__closure__ or () if _filled(cell))
        yield _of_value(value.__defaults__, depth, seen)
        yield _of_value(value.__kwdefaults__, depth, seen)
    else:
        yield _identity(value)
        yield from ((key, _of_value(each, depth, seen)) for key, each in sorted(_attributes(value).items()))


def _attributes(value: object) -> dict[str, object]:
    """Those of the object itself, also of one with slots."""
    slots = (name for kind in type(value).__mro__ for name in _names(getattr(kind, "__slots__", ())))
    found = {name: getattr(value, name) for name in slots if not name.startswith("__") and hasattr(value, name)}
    return found | getattr(value, "__dict__", {})


def _names(slots: str | Iterable[str]) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _filled(cell: object) -> bool:
    try:
        cell.cell_contents  # type: ignore[attr-defined]  # noqa: B018
    except ValueError:
        return False
    return True


def _identity(value: object) -> object:
    try:
        return _Same(value)
    except TypeError:  # few types take no weak references
        return type(value), id(value)
