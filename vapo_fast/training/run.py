"""A training run: the state that a checkpoint holds, and how a fit begins, is watched, interrupted and resumed.

Both trainers are runs; they differ in how one step is computed.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple, NoReturn

import torch

from vapo_fast import checkpoint
from vapo_fast.core import checks, processes
from vapo_fast.core.modes import training_step
from vapo_fast.potentials.base import Potential, check_model
from vapo_fast.training.optimizer import NonFiniteLossError, make_optimizer, trainable_parameters
from vapo_fast.training.options import TrainingOptions

# Options that may differ between a checkpoint and the run that resumes it without changing what is computed.
_FREE_OPTIONS = ("accumulate", "log_every", "prefetch")

_FIRST_SAVES = "process 0 writes the checkpoints"


# The signals that end a fit after its step, and what they do elsewhere. Schedulers send the last two, Ctrl-C the first.
_SIGNALS: dict[int, object] = {signal.SIGINT: signal.default_int_handler} | {
    getattr(signal, name): signal.SIG_DFL for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)
}


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGHUP during ``fit``: training stopped between two steps.

    The message says what was saved and how to go on.

    Attributes:
        summary: the message without how to go on.
        signal: the number of the signal.
    """

    def __init__(self, message: str, summary: str = "", signal: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.summary = summary or message
        self.signal = signal


class Metrics(NamedTuple):
    """Numbers of one step, as floats.

    Attributes:
        loss, linear, quadratic: the energy loss and its two terms, before this step's update.
        grad_norm: 2-norm of the gradient before clipping.
        lr, ema_decay: what this step's update used.
        samples_per_second: rate since the last reading.
        seconds: wall-clock since the fit began.
    """

    loss: float
    linear: float
    quadratic: float
    grad_norm: float
    lr: float
    ema_decay: float
    samples_per_second: float
    seconds: float


class Callback:
    """Does nothing; override what you need. A fit ends with exactly one of `on_fit_end` and `on_exception`.

    Attributes:
        on_every_process: of processes that train together, whether each calls it or the first alone, which writes the
            files.
    """

    on_every_process: bool = True

    def on_fit_start(self, trainer: TrainingRun) -> None:
        """Before the first step; ``trainer.step`` is where the fit begins."""

    def on_step_end(self, trainer: TrainingRun, step: int, metrics: Metrics | None) -> None:
        """After each update; ``step`` counts from 1, ``metrics`` is None if its loss was not read (``log_every``)."""

    def on_fit_end(self, trainer: TrainingRun) -> None:
        """After the last step."""

    def on_exception(self, trainer: TrainingRun, error: BaseException) -> None:
        """When anything was raised, Ctrl-C (KeyboardInterrupt) included; the error goes on to the caller afterwards."""


class TrainingRun:
    """Model, averaged model, optimiser and step of a run.

    Attributes:
        model: the network that is trained, in place.
        ema_model: the running average of its weights: the one to sample from and save.
        options: the `TrainingOptions`.
        step: optimiser steps done in all.
        start_step, end_step: the steps of the current or last ``fit``.
        last_checkpoint: the newest training file of this run, or None.
    """

    def __init__(self, model: Potential, options: TrainingOptions, *, fused: bool = False) -> None:
        check_model(model)
        if model.obstacles.training is not None:
            raise ValueError(f"model cannot be trained: {model.obstacles.training}")
        self.parameters = trainable_parameters(model)
        self.model = model
        self.ema_model = copy.deepcopy(model).requires_grad_(False).eval()
        self.options = options
        self.optimizer = make_optimizer(self.parameters.values(), options, fused)
        self.step = 0
        self.start_step = 0
        self.end_step = 0
        self.last_checkpoint: Path | None = None
        self._updating = False
        self._interrupted = False

    @property
    def device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.parameters.values())).dtype

    @property
    def read_interval(self) -> int:
        """Steps between two readings of the loss: ``log_every``, by default 1 on the CPU and 20 elsewhere."""
        return self.options.log_every or (1 if self.device.type == "cpu" else 20)

    def save_state(self, path: str | os.PathLike[str]) -> None:
        """Write everything that a bit-exact continuation needs to one file; CheckpointError if it cannot be written."""
        if self._updating:
            raise checkpoint.CheckpointError(
                "the run was stopped in the middle of an update, so its state was not saved"
            )
        training = {"step": self.step, "start_step": self.start_step, "options": self.options.config()}
        checkpoint.save_training(path, self.model, self.ema_model, self.optimizer, training)
        self.last_checkpoint = Path(path)

    def load_state(self, path: str | os.PathLike[str]) -> None:
        """Continue from a training file, or from the newest in a directory; warns of options that differ.

        Raises: CheckpointError, leaving the run as it was.
        """
        path = checkpoint.resolve(path)
        training = checkpoint.load_training(path, self.model, self.ema_model, self.optimizer)
        self._updating = False
        self.step, self.start_step = int(training["step"]), int(training["start_step"])
        self.last_checkpoint = path
        now = self.options.config()
        saved = dict(training["options"])
        for option in dataclasses.fields(TrainingOptions):
            if option.default is not dataclasses.MISSING:
                saved.setdefault(option.name, option.default)  # one that is newer than the file had its default
        changed = [
            f"{name} {then!r} -> {now.get(name)!r}"
            for name, then in saved.items()
            if then != now.get(name) and name not in _FREE_OPTIONS
        ]
        if changed:
            warnings.warn(
                f"resuming {path} with other options ({'; '.join(changed)}): the result differs from an unbroken run",
                stacklevel=4,
            )

    def _begin(self, steps: int, resume: str | os.PathLike[str] | None) -> None:
        """Set the steps of a fit: ``steps`` more, or with ``resume`` those left of the fit in that checkpoint.

        Raises: ValueError if the model is not the one, as to its parameters, that this run was made for.
        """
        checks.positive_int("steps", steps)
        self._check_parameters()
        if resume is None:
            self.start_step = self.step
        else:
            path = checkpoint.resolve(resume)
            saved = checkpoint.describe(path).training
            done = 0 if saved is None else saved["step"] - saved["start_step"]
            if done > steps:
                raise ValueError(f"steps must be at least {done}, those already done in {path}; got {steps}")
            self.load_state(path)
        self.end_step = self.start_step + steps
        self._keep_buffers()

    def _check_parameters(self) -> None:
        """ValueError unless the parameters to train are those that optimiser and average were made for."""
        there = dict(self.model.named_parameters())
        for name, parameter in self.parameters.items():
            if name not in there:
                self._refuse_changed(name, "has been removed")
            if there[name] is not parameter:
                self._refuse_changed(name, "has been replaced by another parameter")
            if not parameter.requires_grad:
                self._refuse_changed(name, "has been frozen")
        averages = dict(self.ema_model.named_parameters())
        for name, parameter in there.items():
            if parameter.requires_grad and name not in self.parameters:
                self._refuse_changed(name, "has become trainable")
            kind, before = ((p.dtype, p.device) for p in (parameter, averages.get(name, parameter)))
            if kind != before:
                self._refuse_changed(name, f"is {kind[0]} on {kind[1]}, and was {before[0]} on {before[1]}")

    def _refuse_changed(self, name: str, what: str) -> NoReturn:
        raise ValueError(
            f"since this trainer was made, {name} of the model {what}; change it back, or make a new trainer for the "
            "model as it is"
        )

    # The average has the model's buffers of the last good step: those to go back to when a step fails.

    @torch.no_grad()
    def _keep_buffers(self) -> None:
        for kept, buffer in zip(self.ema_model.buffers(), self.model.buffers(), strict=True):
            kept.copy_(buffer)

    @torch.no_grad()
    def _restore_buffers(self) -> None:
        for kept, buffer in zip(self.ema_model.buffers(), self.model.buffers(), strict=True):
            buffer.copy_(kept)

    @contextmanager
    def _running(self, callbacks: Sequence[Callback]) -> Iterator[Callable[[Metrics | None], None]]:
        """Call the callbacks around a loop; gives the function to call after every step.

        Ctrl-C, SIGTERM and SIGHUP are held back until the end of the step: what is saved is the state between two
        steps. A second signal stops at once.
        """
        self._interrupted, self._signal = False, int(signal.SIGINT)
        stop_at_once = KeyboardInterrupt()

        def hold_back(number: int, frame: FrameType | None) -> None:
            if self._interrupted:
                raise stop_at_once
            self._interrupted, self._signal = True, number

        def after_step(metrics: Metrics | None) -> None:
            for callback in callbacks:
                callback.on_step_end(self, self.step, metrics)
            if self._stops():
                raise KeyboardInterrupt

        if isinstance(callbacks, Callback):
            raise TypeError(f"callbacks must be a sequence, such as ({type(callbacks).__name__}(...),)")
        for callback in callbacks:
            if not isinstance(callback, Callback):
                raise TypeError(f"callbacks must be vapo_fast callbacks, got {type(callback).__name__}")
        if not processes.world().is_first:
            callbacks = [callback for callback in callbacks if callback.on_every_process]
        with training_step(self.model):
            was_training = self.model.training
            self.model.train()
        try:
            for callback in callbacks:
                callback.on_fit_start(self)
            with _handled_signals(hold_back):
                yield after_step
            self._barrier()
            for callback in callbacks:
                callback.on_fit_end(self)
            self._barrier()
        except BaseException as raised:
            # Ctrl-C also ends a DataLoader's workers, whose loss then raises an error here before the step is done.
            error = KeyboardInterrupt() if self._interrupted and isinstance(raised, Exception) else raised
            if error is not stop_at_once:
                error = self._announce_failure(error)
            for callback in callbacks:
                try:
                    callback.on_exception(self, error)
                except Exception as second:  # the first error is the one to report, with what else went wrong
                    error.add_note(f"{type(callback).__name__}: {second}")
            self._final_barrier()
            if isinstance(error, KeyboardInterrupt):
                raise self._interruption(error) from None
            if error is raised:
                raise
            raise error from None
        finally:
            with training_step(self.model):
                self.model.train(was_training)

    # What processes that train together do where one alone does nothing.

    def _stops(self) -> bool:
        """Whether to stop after this step because of Ctrl-C."""
        return self._interrupted

    def _barrier(self) -> None:
        """Wait for the other processes, and raise if one of them failed or got Ctrl-C."""

    def _announce_failure(self, error: BaseException) -> BaseException:
        """Let the other processes know why this one ends; gives the error to raise, which may be another's."""
        return error

    def _final_barrier(self) -> None:
        """Wait for the other processes at the end of a fit that failed, so that none is ended while it saves."""

    def _interruption(self, error: KeyboardInterrupt) -> TrainingInterrupted:
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        stopped = f"interrupted after step {self.step} of {self.end_step}{notes}; "
        if not processes.world().is_first:
            return TrainingInterrupted(stopped + _FIRST_SAVES, signal=self._signal)
        if self.last_checkpoint is None:
            nothing = "no checkpoint was written (add a Checkpointer to the callbacks)"
            return TrainingInterrupted(stopped + nothing, signal=self._signal)
        summary = f"{stopped}the newest checkpoint is {self.last_checkpoint}"
        steps = self.end_step - self.start_step
        how = f". Continue with fit(data, steps={steps}, resume={str(self.last_checkpoint)!r})"
        return TrainingInterrupted(summary + how, summary, self._signal)

    def _non_finite(self, step: int, term: str) -> NonFiniteLossError:
        """The error for the 1-based step, which says where to go on from."""
        if not processes.world().is_first:
            saved = f"{_FIRST_SAVES[0].upper()}{_FIRST_SAVES[1:]}."
        elif self.last_checkpoint is None:
            saved = "No checkpoint was written."
        else:
            saved = f"The last good checkpoint is {self.last_checkpoint}."
        return NonFiniteLossError(step, term, f"{saved} Lower lr, set grad_clip, or check the data of this step.")


@contextmanager
def _handled_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Take the signals while inside that nobody else has taken; the main thread alone may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    own = [number for number, usual in _SIGNALS.items() if signal.getsignal(number) is usual]
    for number in own:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in own:
            signal.signal(number, _SIGNALS[number])  # type: ignore[arg-type]


class Clock:
    """Seconds since it was made, and samples a second between readings."""

    def __init__(self, samples: int) -> None:
        self._start = self._last = time.perf_counter()
        self._samples = samples

    def read(self, samples: int) -> tuple[float, float]:
        """Rate since the last reading and seconds since the start; ``samples`` counts from the start of the run."""
        now = time.perf_counter()
        rate = (samples - self._samples) / max(now - self._last, 1e-9)
        self._last, self._samples = now, samples
        return rate, now - self._start
