"""How many optimiser steps fit into a stretch of wall-clock time."""

from __future__ import annotations

import contextlib
import copy
import time
from typing import Any

from vapo_fast.core import checks, processes
from vapo_fast.potentials.base import Potential
from vapo_fast.training.batches import Data
from vapo_fast.training.run import Callback, Metrics, TrainingRun
from vapo_fast.training.trainer import Trainer

_TRIAL_STEPS = 24
_WARM_UP_STEPS = 4
# A trial needs few steps if they are long; it ends after this share of the budget.
_TRIAL_SHARE = 0.04


def steps_within(seconds: float, model: Potential, data: Data, **options: Any) -> int:
    """Steps that `vapo_fast.Trainer` can do in ``seconds`` on this machine as it is now, at least 1.

    The first steps are done on a copy of the model and timed (median, after a warm-up), so the model is unchanged and
    the answer varies from call to call; a learning-rate schedule needs the number before training begins. Processes
    that train together are given the first one's answer.

    Args:
        seconds: wall-clock time, > 0. The trial's own time is taken off.
        model, data, options: as for `Trainer` and its ``fit``.
    Raises: as `Trainer` and ``fit``.
    """
    seconds = checks.positive_float("seconds", seconds)
    began = time.perf_counter()
    watch = _Watch(began + _TRIAL_SHARE * seconds)
    trainer = Trainer(copy.deepcopy(model), **{**options, "log_every": 1})
    with contextlib.suppress(_EnoughError):
        trainer.fit(data, _TRIAL_STEPS, callbacks=[watch])
    durations = sorted(b - a for a, b in zip(watch.times[:-1], watch.times[1:], strict=True))
    left = seconds - (time.perf_counter() - began)
    return processes.from_first(lambda: max(1, int(left / max(durations[len(durations) // 2], 1e-6))))


class _EnoughError(Exception):
    pass


class _Watch(Callback):
    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.times: list[float] = []

    def on_fit_start(self, trainer: TrainingRun) -> None:
        self.times.append(time.perf_counter())

    def on_step_end(self, trainer: TrainingRun, step: int, metrics: Metrics | None) -> None:
        now = time.perf_counter()
        if step == _WARM_UP_STEPS:
            self.times.clear()
        self.times.append(now)
        if processes.from_first(lambda: now > self.deadline and len(self.times) >= 2):
            raise _EnoughError
