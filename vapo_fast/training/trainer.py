"""The trainer: any potential, any data, through whichever engine computes loss and gradients."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from vapo_fast.core import processes
from vapo_fast.core.threads import fit_one_thread, one_thread
from vapo_fast.engines import Job, LossOptions, choose
from vapo_fast.loss import Batch
from vapo_fast.potentials.base import Potential
from vapo_fast.training import parallel
from vapo_fast.training.batches import Batches, Data, Drawn, Source, as_source
from vapo_fast.training.captured_step import DeferredStep, FiniteWatch
from vapo_fast.training.device_batches import DeviceBatches
from vapo_fast.training.optimizer import RunningAverage, clip_gradients, gradient_norms, set_gradients
from vapo_fast.training.options import EngineOptions, ema_decay_at, learning_rate, show_options, with_options
from vapo_fast.training.prefetch import batches_ahead, prepared
from vapo_fast.training.run import Callback, Clock, Metrics, TrainingRun

_SAME_DATA = "same data on every process"


class Trainer(TrainingRun):
    r"""Train a potential on the energy loss; `vapo_fast.reference.Trainer` is the same in one readable loop.

    Each step takes one batch (a function of (seed, step) alone, see `training.batches.training_batch`), the gradient
    of `vapo_fast.energy_loss`, one Adam step and one update of the averaged weights. The model is trained in place.

    If `torch.distributed` has a process group, the processes train together: each computes its share of every batch,
    gradients are averaged, and all do the same steps, so that the result is that of one process to rounding. All must
    call ``fit`` alike; process 0's weights and checkpoint count. See docs/training.md.

    Args:
        model: the potential; its initial weights are the caller's.
        **given: the options of `vapo_fast.training.options.EngineOptions`, listed by ``help(Trainer.__init__)``.
    Raises: ValueError or TypeError naming the argument.
    """

    @with_options(EngineOptions)
    def __init__(self, model: Potential, **given: Any) -> None:
        options = EngineOptions.for_model(model, **given)
        self._defers = _defers(model)
        # Fused Adam takes a flag on the device that says whether to skip the step.
        super().__init__(model, options, fused=self._defers)
        self._average = RunningAverage(self.ema_model, model)
        self._threads_of_update = one_thread if fit_one_thread(self.parameters.values()) else nullcontext
        self._written = [*self.parameters.values(), *self.ema_model.parameters()]
        loss = LossOptions(options.estimator, options.weight, options.baseline)
        self._job = Job("loss_and_grads", options.precision, loss=loss)
        self._engine_asked = options.engine
        self.engine = choose(options.engine, model, self.device, self.dtype, self._job)
        names = ("linear term", "quadratic term", *(f"gradient of {name}" for name in self.parameters), _SAME_DATA)
        self._watch = FiniteWatch(names, self.device)
        self._same_data = torch.zeros((), dtype=self.dtype, device=self.device)
        self._deferred: DeferredStep | None = None
        self._parallel: parallel.DataParallel | None = None

    def fit(
        self,
        data: Data,
        steps: int,
        callbacks: Sequence[Callback] = (),
        resume: str | os.PathLike[str] | None = None,
    ) -> None:
        """Train for ``steps`` steps; another call goes on from there.

        Args:
            data: tensor (N, *event), Dataset, DataLoader, or the name of a data set; see `training.batches.as_source`.
            steps: optimiser steps of this fit, >= 1. With ``resume``, of the whole fit, those in the checkpoint
                included: the same call as the interrupted one, plus ``resume``.
            callbacks: `vapo_fast.training.callbacks`, called in this order.
            resume: a training file, or a directory to take the newest from. On the CPU the result is bit for bit that
                of the unbroken run, given the same data, options and thread count.
        Raises:
            TypeError, ValueError: data or steps do not fit, or the model's parameters are not those that the trainer
                was made with (replaced, frozen, converted).
            MemoryError: the gradients of one micro-batch do not fit; see ``accumulate``.
            UnsupportedJobError: the model was changed, and the engine that was asked for cannot train it any more.
            NonFiniteLossError: names step and term; the model is left as it was before that step.
            TrainingInterrupted (a KeyboardInterrupt): Ctrl-C. The step is finished first, a Checkpointer among the
                callbacks saves, and the message says how to go on. A second Ctrl-C stops at once, without saving.
            CheckpointError: ``resume`` cannot be read or does not fit; nothing was changed.
            ProcessFailedError: of processes that train together, another one failed.
        """
        source = processes.together(lambda: self._source(data))
        if processes.world().size == 1:
            self._parallel, self._same_data = None, torch.zeros_like(self._same_data)
            self._begin(steps, resume)
        else:
            self._begin_together(source, steps, resume)
        o, clock = self.options, Clock(self.step * self.options.batch_size)
        part = None if self._parallel is None else self._parallel.rows
        batches = Batches(
            source, self.model.homotopy, o.seed, o.batch_size, o.time_sampling, self.device, self.dtype, o.augment, part
        )
        # Made for each fit: what was loaded, or changed by hand, lies elsewhere in memory.
        self._deferred = self._deferred_step(DeviceBatches.of(batches)) if self._defers else None
        ahead, left = batches_ahead(o.prefetch, source, self.device), range(self.step, self.end_step)
        try:
            with self._running(callbacks) as after_step, prepared(batches.draw, left, ahead, self.device) as drawn:
                while self.step < self.end_step:
                    values, rate, decay = self._update(batches, drawn)
                    if self._reads(self.step):
                        loss, linear, quadratic, norm = values.tolist()
                        speed, seconds = clock.read(self.step * self.options.batch_size)
                        after_step(Metrics(loss, linear, quadratic, norm, rate, decay, speed, seconds))
                    else:
                        after_step(None)
        finally:
            if self._parallel is not None:
                # A graph with the group's exchange in it must not outlive the group.
                self._parallel = self._deferred = None

    def save_state(self, path: str | os.PathLike[str]) -> None:
        self._raise_if_failed()
        super().save_state(path)

    def _source(self, data: Data) -> Source:
        # The model may have got a hook, say, that the engine of the last fit would not call.
        self.engine = choose(self._engine_asked, self.model, self.device, self.dtype, self._job)
        return as_source(data, self.model.event_shape, seed=self.options.seed)

    def _begin_together(self, source: Source, steps: int, resume: str | os.PathLike[str] | None) -> None:
        """`_begin` on process 0, whose state the others take."""
        description: dict[str, Any] = {"data": source.describe(), "steps": steps, **self.options.config()}
        for name, parameter in self.parameters.items():
            description[f"parameter {name}"] = f"{parameter.dtype} of shape {tuple(parameter.shape)}"
        parallel.check_alike(description)
        processes.from_first(lambda: self._begin(steps, resume))
        parallel.share_state(self)
        self.end_step = self.start_step + steps
        self._updating = False
        parameters = list(self.parameters.values())
        self._parallel = parallel.DataParallel(parameters, self.options.batch_size, self.step)

    def _deferred_step(self, draws: DeviceBatches | None) -> DeferredStep:
        capturable = self.engine.capturable and (self._parallel is None or self._parallel.capturable)
        return DeferredStep(self._step_on_device, self.optimizer, self._same_data, capturable=capturable, draws=draws)

    def _update(self, batches: Batches, drawn: Callable[[int], Drawn]) -> tuple[Tensor, float, float]:
        """One step: (loss, linear, quadratic, gradient norm) on the device, the learning rate and the EMA decay."""
        rate = learning_rate(self.options, self.step, self.start_step, self.end_step)
        decay = ema_decay_at(self.options, self.step)
        if self._deferred is None:
            values = self._step(self._batch(batches, drawn), rate, decay)
        else:
            batch = None if self._deferred.draws is not None else self._batch(batches, drawn)
            self._updating = self._deferred.captured
            values = self._deferred(batch, self.step, rate, decay)
        # Fused optimisers and replayed graphs write without counting the weights' versions up, and others go by them.
        torch.autograd.graph.increment_version(self._written)
        self.step += 1
        self._updating = False
        if self._parallel is not None:
            self._parallel.step = self.step
        if self._deferred is not None and self._reads(self.step):
            self._raise_if_failed()
        return values, rate, decay

    def _batch(self, batches: Batches, drawn: Callable[[int], Drawn]) -> Batch:
        prepared = drawn(self.step)
        batch = batches.place(self.step, prepared)
        if self._parallel is not None:
            self._parallel.set_digest(prepared.digest)
            if self._interrupted:
                self._parallel.set_flag(parallel.INTERRUPTED)
        return batch

    def _step(self, batch: Batch, rate: float, decay: float) -> Tensor:
        """One step that ends before the update if its numbers are not finite."""
        terms, norms = self._gradients(batch)
        norm = torch.linalg.vector_norm(norms)
        values = torch.cat([terms, norm[None]])
        # A sum of finite numbers may overflow as well: which number is at fault, if any, the watch finds out.
        if not math.isfinite(sum(values.tolist()) + float(self._same_data)):
            self._watch.update(self.step, torch.cat([terms[1:], norms, self._same_data[None]]))
            self._raise_if_failed()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with self._threads_of_update():
            self._apply(norm, decay)
        return values

    def _step_on_device(self, batch: Batch, step: Tensor, decay: Tensor) -> Tensor:
        """The same without a host read: an update whose numbers are not finite is skipped, and those after it."""
        terms, norms = self._gradients(batch)
        norm = torch.linalg.vector_norm(norms)
        failed = self._watch.update(step, torch.cat([terms[1:], norms, self._same_data[None]]))
        self.optimizer.found_inf = failed.to(torch.float32)  # type: ignore[attr-defined]
        self._apply(norm, decay, (~failed).to(self.dtype))
        return torch.cat([terms, norm[None]])

    def _apply(self, norm: Tensor, decay: float | Tensor, applied: Tensor | None = None) -> None:
        """Clip the gradients, whose 2-norm is ``norm``; step the optimiser; average."""
        if self.options.grad_clip is not None:
            clip_gradients(self.parameters, norm, self.options.grad_clip)
        self._updating = True
        self.optimizer.step()
        self._average.update(decay, applied)

    def _gradients(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sets the parameters' gradients; (loss, linear, quadratic) and the norm of each gradient, on the device."""
        for parameter in self.parameters.values():
            parameter.grad = None
        terms, gradients = self._loss_and_grads(batch)
        if self._parallel is not None:
            terms, gradients, self._same_data = self._parallel.average(terms, gradients)
            self._parallel.step = self.step + 1
        set_gradients(self.parameters.values(), gradients)
        return terms, gradient_norms(self.parameters)

    def _loss_and_grads(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """(loss, linear, quadratic) of a batch on the device, and the gradients of `parameters` in their order."""
        rows = batch.x_data.shape[0]
        if self.options.accumulate == 1:
            loss, grads = self.engine.loss_and_grads(self.model, batch, self._job)
            return torch.stack(loss).to(self.dtype), [grads[name] for name in self.parameters]
        terms = torch.zeros(3, dtype=self.dtype, device=self.device)
        sums: dict[str, Tensor] = {}
        for part in batch.split(min(self.options.accumulate, rows)):
            share = part.x_data.shape[0] / rows
            loss, grads = self.engine.loss_and_grads(self.model, part, self._job)
            terms += share * torch.stack(loss).to(self.dtype)
            sums = {name: share * grads[name] + sums.get(name, 0.0) for name in self.parameters}
        return terms, list(sums.values())

    def _reads(self, done: int) -> bool:
        """Whether the host reads the numbers of the step after which ``done`` steps are done."""
        return done % self.read_interval == 0 or done == self.end_step

    def _raise_if_failed(self) -> None:
        failure = self._watch.failure()
        if failure is None:
            return
        self.step, name = failure
        self._watch.reset()
        self._restore_buffers()
        self.optimizer.zero_grad(set_to_none=True)
        if self._parallel is not None:
            self._parallel.found_to_end(self._flags_read_at(self._parallel.step))
        if name == _SAME_DATA:
            raise ValueError(
                f"step {self.step + 1}: processes that train together read different batches from the DataLoader. Each "
                "must get the whole stream in the same order: seed it alike (generator=torch.Generator().manual_seed"
                "(...), and whatever else draws in it), or pass the Dataset itself"
            )
        raise self._non_finite(self.step + 1, name)

    # Of processes that train together:

    def _flags_read_at(self, step: int) -> bool:
        """Whether all processes read, after that step, the flags that came with it."""
        return self._deferred is None or self._reads(step) or step > self.end_step

    def _stops(self) -> bool:
        if self._parallel is None:
            return super()._stops()
        return self._flags_read_at(self.step) and self._parallel.interrupted()

    def _barrier(self) -> None:
        if self._parallel is None:
            return
        if self._interrupted:
            self._parallel.set_flag(parallel.INTERRUPTED)
        self._parallel.barrier()
        if self._parallel.interrupted():
            raise KeyboardInterrupt
        # Statistics that a network keeps of its inputs are those of each process's own rows.
        parallel.share_buffers(self)

    def _announce_failure(self, error: BaseException) -> BaseException:
        return error if self._parallel is None else self._parallel.announce_failure(error, self._flags_read_at)

    def _final_barrier(self) -> None:
        if self._parallel is not None:
            self._parallel.final_barrier()


def train(
    model: Potential,
    data: Data,
    steps: int,
    *,
    callbacks: Sequence[Callback] = (),
    resume: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Trainer:
    """``Trainer(model, **options)`` and one ``fit``; returns the trainer, whose ``ema_model`` is the result.

    Args, errors: as of both.
    """
    trainer = Trainer(model, **options)
    trainer.fit(data, steps, callbacks=callbacks, resume=resume)
    return trainer


show_options(EngineOptions, train)


def _defers(model: Potential) -> bool:
    """Whether the host should not wait for every step's numbers: on CUDA, whose queue the wait would empty."""
    return isinstance(model, Potential) and any(p.is_cuda for p in model.parameters())
