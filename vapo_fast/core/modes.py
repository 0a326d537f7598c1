"""Evaluation mode of modules that several threads use at the same time.

``module.eval()`` belongs to the module and not to the thread: a thread that restores training mode would switch it on
for every other. Here threads that evaluate share the mode, the last one restores it, and a training step runs alone.
Threads get their turn in the order in which they ask.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn


@dataclass(eq=False)
class _Use:
    """One thread's use of some modules, asked for or granted."""

    modules: frozenset[nn.Module]
    alone: bool
    thread: int
    granted: bool = False

    def waits_for(self, earlier: _Use, holds: bool) -> bool:
        """Whether this use must wait for one that was asked for earlier; ``holds``: its thread has a use already.

        A thread with a use must not wait for those who wait for it.
        """
        apart = not (self.alone or earlier.alone) or self.modules.isdisjoint(earlier.modules)
        return not apart and earlier.thread != self.thread and (earlier.granted or not holds)


_changed = threading.Condition()
_uses: list[_Use] = []
# How many uses evaluate a module now, and whether it was in training mode before the first.
_evaluating: weakref.WeakKeyDictionary[nn.Module, tuple[int, bool]] = weakref.WeakKeyDictionary()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """``model.eval()`` while inside; each module's own mode comes back when the last thread leaves."""
    with _used(model, alone=False) as use:
        with _changed:
            for module in use.modules:
                count, trained = _evaluating.get(module, (0, module.training))
                _evaluating[module] = count + 1, trained
            if any(module.training for module in use.modules):
                model.eval()
        try:
            yield
        finally:
            with _changed:
                for module in use.modules:
                    count, trained = _evaluating.pop(module)
                    if count > 1:
                        _evaluating[module] = count - 1, trained
                    else:
                        module.training = trained


@contextmanager
def training_step(model: nn.Module) -> Iterator[None]:
    """What changes the modules' weights or modes; no other thread evaluates or trains one of them meanwhile."""
    with _used(model, alone=True):
        yield


@contextmanager
def _used(model: nn.Module, alone: bool) -> Iterator[_Use]:
    own = threading.get_ident()
    use = _Use(frozenset(model.modules()), alone, own)
    with _changed:
        holds = any(other.granted and other.thread == own for other in _uses)
        _uses.append(use)
        try:
            _changed.wait_for(lambda: not any(use.waits_for(earlier, holds) for earlier in _uses[: _uses.index(use)]))
        except BaseException:  # Ctrl-C while it waits
            _uses.remove(use)
            _changed.notify_all()
            raise
        use.granted = True
    try:
        yield use
    finally:
        with _changed:
            _uses.remove(use)
            _changed.notify_all()
