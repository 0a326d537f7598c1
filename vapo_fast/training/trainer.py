"""The trainer: any potential, any data, through whichever engine computes loss and gradients."""

from __future__ import annotations

import functools
import math
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from vapo_fast.core import processes
from vapo_fast.core.modes import training_step
from vapo_fast.core.threads import fit_one_thread, one_thread
from vapo_fast.engines import Job, LossOptions, choose
from vapo_fast.loss import Baseline, Batch, Weight
from vapo_fast.potentials.base import Potential
from vapo_fast.training import parallel
from vapo_fast.training.batches import Batches, Data, Drawn, Source, as_source
from vapo_fast.training.device_batches import DeviceBatches
from vapo_fast.training.optimizer import RunningAverage, clip_gradients, gradient_norms, set_gradients
from vapo_fast.training.options import TrainingOptions, ema_decay_at, learning_rate
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
        lr: peak learning rate, > 0; None for the potential's own (`Potential.training_defaults`).
        batch_size: samples in one optimiser step, >= 1; None for the potential's own.
        optimizer: "adam" or "adamw".
        weight_decay: >= 0; an L2 term for "adam", decoupled for "adamw".
        warmup_steps: the rate rises linearly over this many steps from the first of the run; 0 for none.
        schedule: "cosine" (to zero over one call of ``fit``) or "constant".
        grad_clip: largest 2-norm of the whole gradient, or None.
        ema_decay: in [0, 1); after k updates the decay in use is ``min(ema_decay, (1 + k)/(10 + k))``.
        accumulate: compute each batch in this many micro-batches, for less memory; the result is the whole batch's to
            rounding. Of several processes each computes its share of the batch in so many.
        estimator, weight, baseline: as for `vapo_fast.energy_loss`; weight None for the path's own
            (`Homotopy.balanced_weight`: "inverse_variance" for `DataHomotopy`, "uniform" for `LinearHomotopy`).
        time_sampling: "log_noise" (stratified uniform in ln beta) or "uniform" (stratified uniform in the path's time).
        seed: 0 <= seed < 2**64: decides data order, times and noise. A network's own randomness (dropout) is not
            covered.
        augment: None, or "flip": each image (C, H, W) is mirrored left to right with probability 1/2, on the device.
        prefetch: batches that a thread reads and draws ahead of their use, >= 0; None for 2 on an accelerator and 0 on
            the CPU, where it gains only what a disk makes wait. Does not change them.
        log_every: steps between two readings of the loss by the host; None for 1 on the CPU and 20 on an accelerator.
            On CUDA the steps between are not waited for; a non-finite step is noticed on the device, freezes model,
            average and optimiser from that step on, and is reported at the next reading.
        engine: "auto" or the name of an engine, see `vapo_fast.engines`.
        precision: "auto", "float32" or "float64" compute in the model's own dtype. "bf16" runs the network's matrix
            products in bfloat16 (forward and both backward passes), with weights, gauge, loss and optimiser in float32:
            gradients then differ by about 1 %. It needs a float32 model and estimator "velocity".
    Raises: ValueError or TypeError naming the argument.
    """

    def __init__(
        self,
        model: Potential,
        *,
        lr: float | None = None,
        batch_size: int | None = None,
        optimizer: str = "adam",
        weight_decay: float = 0.0,
        warmup_steps: int = 100,
        schedule: str = "cosine",
        grad_clip: float | None = None,
        ema_decay: float = 0.999,
        accumulate: int = 1,
        estimator: str = "velocity",
        weight: Weight | None = None,
        baseline: Baseline | None = None,
        time_sampling: str = "log_noise",
        seed: int = 0,
        augment: str | None = None,
        prefetch: int | None = None,
        log_every: int | None = None,
        engine: str = "auto",
        precision: str = "auto",
    ) -> None:
        options = TrainingOptions.for_model(
            model,
            lr=lr,
            batch_size=batch_size,
            optimizer=optimizer,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            schedule=schedule,
            grad_clip=grad_clip,
            ema_decay=ema_decay,
            accumulate=accumulate,
            estimator=estimator,
            weight=weight,
            baseline=baseline,
            time_sampling=time_sampling,
            seed=seed,
            augment=augment,
            prefetch=prefetch,
            log_every=log_every,
        )
        deferred = _defers(model)
        # Fused Adam takes a flag on the device that says whether to skip the step.
        super().__init__(model, options, fused=deferred)
        self._average = RunningAverage(self.ema_model, model)
        self._threads_of_update = one_thread if fit_one_thread(self.parameters.values()) else nullcontext
        self._written = [*self.parameters.values(), *self.ema_model.parameters()]
        self._job = Job(
            "loss_and_grads", precision, loss=LossOptions(options.estimator, options.weight, options.baseline)
        )
        self._engine_asked = engine
        self.engine = choose(engine, model, self.device, self.dtype, self._job)
        names = ("linear term", "quadratic term", *(f"gradient of {name}" for name in self.parameters), _SAME_DATA)
        self._watch = _FiniteWatch(names, self.device, deferred=deferred)
        self._same_data = torch.zeros((), dtype=self.dtype, device=self.device)
        self._deferred: _DeferredStep | None = None
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
        self._deferred = _DeferredStep(self, DeviceBatches.of(batches)) if self._watch.deferred else None
        ahead, left = batches_ahead(o.prefetch, source, self.device), range(self.step, self.end_step)
        try:
            with self._running(callbacks) as after_step, prepared(batches.draw, left, ahead, self.device) as drawn:
                while self.step < self.end_step:
                    with training_step(self.model):
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

    def _update(self, batches: Batches, drawn: Callable[[int], Drawn]) -> tuple[Tensor, float, float]:
        """One step: (loss, linear, quadratic, gradient norm) on the device, the learning rate and the EMA decay."""
        rate = learning_rate(self.options, self.step, self.start_step, self.end_step)
        decay = ema_decay_at(self.options, self.step)
        if self._deferred is not None and self._deferred.draws is not None:
            return self._deferred(None, rate, decay), rate, decay
        prepared = drawn(self.step)
        batch = batches.place(self.step, prepared)
        if self._parallel is not None:
            self._parallel.say_digest(prepared.digest)
            if self._interrupted:
                self._parallel.say_interrupted()
        values = self._step(batch, rate, decay) if self._deferred is None else self._deferred(batch, rate, decay)
        return values, rate, decay

    def _step(self, batch: Batch, rate: float, decay: float) -> Tensor:
        """One step that ends before the update if its numbers are not finite."""
        terms, norms = self._gradients(batch)
        norm = torch.linalg.vector_norm(norms)
        values = torch.cat([terms, norm[None]])
        # A sum of finite numbers may overflow as well: which number is at fault, if any, the watch finds out.
        if not math.isfinite(sum(values.tolist()) + float(self._same_data)):
            self._watch.update(self.step, torch.cat([terms[1:], norms, self._same_data[None]]))
            self._raise_if_failed()
        if self.options.grad_clip is not None:
            clip_gradients(self.parameters, norm, self.options.grad_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._updating = True
        with self._threads_of_update():
            self.optimizer.step()
            self._average.update(decay)
        self._count_writes()
        self.step += 1
        self._updating = False
        return values

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

    def _count_writes(self) -> None:
        """Count the weights' versions up: fused optimisers and replayed graphs write without, and others go by them."""
        torch.autograd.graph.increment_version(self._written)

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
            self._parallel.raise_if_failed()
            if self._heeded(self._parallel.step):
                self._parallel.end_alike()
        if name == _SAME_DATA:
            raise ValueError(
                f"step {self.step + 1}: processes that train together read different batches from the DataLoader. Each "
                "must get the whole stream in the same order: seed it alike (generator=torch.Generator().manual_seed"
                "(...), and whatever else draws in it), or pass the Dataset itself"
            )
        raise self._non_finite(self.step + 1, name)

    # Of processes that train together:

    def _heeded(self, step: int) -> bool:
        """Whether the host looks at what the others said with that step."""
        return self._deferred is None or self._reads(step) or step > self.end_step

    def _stops(self) -> bool:
        if self._parallel is None:
            return super()._stops()
        return self._heeded(self.step) and self._parallel.interrupted()

    def _meet(self) -> None:
        if self._parallel is None:
            return
        if self._interrupted:
            self._parallel.say_interrupted()
        self._parallel.meet()
        if self._parallel.interrupted():
            raise KeyboardInterrupt
        # Statistics that a network keeps of its inputs are those of each process's own rows.
        parallel.share_buffers(self)

    def _leave(self, error: BaseException) -> None:
        if self._parallel is not None and not self._parallel.over:
            self._parallel.leave(error, self._heeded)

    def _part(self) -> None:
        if self._parallel is not None:
            self._parallel.wait()


def train(
    model: Potential,
    data: Data,
    steps: int,
    *,
    callbacks: Sequence[Callback] = (),
    resume: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Trainer:
    """``Trainer(model, **options)`` and one ``fit``; returns the trainer, whose ``ema_model`` is the result."""
    trainer = Trainer(model, **options)
    trainer.fit(data, steps, callbacks=callbacks, resume=resume)
    return trainer


def _defers(model: Potential) -> bool:
    """Whether the host should not wait for every step's numbers: on CUDA, whose queue the wait would empty."""
    return isinstance(model, Potential) and any(p.is_cuda for p in model.parameters())


class _DeferredStep:
    """A training step that the host does not wait for: learning rate, decay and step number are on the device too.

    A step whose numbers are not finite, and every one after it, changes nothing; the host learns of it when it next
    reads. With an engine whose work can be captured, the whole step (the batch, where ``draws`` are given: then none is
    passed; loss, gradients, checks, optimiser, average) becomes one CUDA graph after `EAGER_STEPS` ordinary ones, and
    is launched by one call from then on. During a fit the model's tensors must stay where they are.
    """

    EAGER_STEPS = 2
    """Kernels are compiled and the optimiser's state is made before anything is captured."""

    def __init__(self, trainer: Trainer, draws: DeviceBatches | None = None) -> None:
        device, dtype = trainer.device, trainer.dtype
        self._trainer = trainer
        self.draws = draws
        self._rate = torch.zeros((), dtype=torch.float32, device=device)
        self._decay = torch.zeros((), dtype=dtype, device=device)
        self._step = torch.zeros((), dtype=torch.int64, device=device)
        parallel = trainer._parallel
        capturable = trainer.engine.capturable and (parallel is None or parallel.capturable)
        self._eager_left = self.EAGER_STEPS if capturable and device.type == "cuda" else None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: Batch | None = None
        self._values = torch.empty(0)
        for group in trainer.optimizer.param_groups:
            group["lr"] = self._rate
            group["capturable"] = device.type == "cuda"

    def __call__(self, batch: Batch | None, rate: float, decay: float) -> Tensor:
        """One step; (loss, linear, quadratic, gradient norm) on the device."""
        trainer = self._trainer
        self._rate.fill_(rate)
        self._decay.fill_(decay)
        self._step.fill_(trainer.step)
        if self.draws is not None:
            self.draws.prepare(trainer.step)
        if self._graph is None and self._eager_left == 0:
            self._capture(batch)
        if self._graph is None:
            values = self._run(batch)
            self._eager_left = None if self._eager_left is None else self._eager_left - 1
        else:
            values = self._replay(batch)
        trainer._count_writes()
        trainer.step += 1
        trainer._updating = False
        if trainer._reads(trainer.step):
            trainer._raise_if_failed()
        return values

    def _run(self, batch: Batch | None) -> Tensor:
        trainer = self._trainer
        if self.draws is not None:
            batch = self.draws(self._step)
        elif batch is None:
            raise RuntimeError("a step without a batch")
        terms, norms = trainer._gradients(batch)
        norm = torch.linalg.vector_norm(norms)
        failed = trainer._watch.update(self._step, torch.cat([terms[1:], norms, trainer._same_data[None]]))
        if trainer.options.grad_clip is not None:
            clip_gradients(trainer.parameters, norm, trainer.options.grad_clip)
        trainer._updating = True
        trainer.optimizer.found_inf = failed.to(torch.float32)  # type: ignore[attr-defined]
        trainer.optimizer.step()
        trainer._average.update(self._decay, (~failed).to(trainer.dtype))
        return torch.cat([terms, norm[None]])

    def _capture(self, batch: Batch | None) -> None:
        """Record the step, on copies of a batch that is given, or go on without a graph and say why."""
        self._batch = None if batch is None else Batch(*(part.clone() for part in batch))
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads, such as the one that pins batches ahead and NCCL's own, may go on with theirs.
            stream = _capture_stream(self._trainer.device)
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self._values = self._run(self._batch)
        except RuntimeError as error:
            self._eager_left = None
            warnings.warn(
                f"the training step cannot be a CUDA graph, so it is launched op by op: {error}", stacklevel=5
            )
            return
        self._graph = graph

    def _replay(self, batch: Batch | None) -> Tensor:
        if self._graph is None:
            raise RuntimeError("no step has been captured")
        for place, part in zip(self._batch or (), batch or (), strict=True):
            place.copy_(part)
        self._trainer._updating = True
        self._graph.replay()
        if self._trainer._parallel is not None:
            self._trainer._parallel.step = self._trainer.step + 1
        return self._values.clone()


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """A stream of this device: PyTorch's own one for graphs is of the device that it first recorded on."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class _FiniteWatch:
    """Notes, on the device, the first step whose numbers are not finite, for the host to ask about later.

    ``names`` say what each number is. ``deferred`` is whether the host asks only now and then.
    """

    def __init__(self, names: Sequence[str], device: torch.device, deferred: bool) -> None:
        self.names = list(names)
        self.device = device
        self.deferred = deferred
        self.reset()

    def reset(self) -> None:
        """Forget a failure."""
        self._failed = torch.zeros((), dtype=torch.bool, device=self.device)
        self._bad = torch.zeros(len(self.names), dtype=torch.bool, device=self.device)
        self._step = torch.zeros((), dtype=torch.int64, device=self.device)

    def update(self, step: int | Tensor, numbers: Tensor) -> Tensor:
        """Look at a step's numbers, (len(names),); returns a 0-dim bool: whether this or an earlier step failed."""
        # In place: a captured step goes on with the same memory.
        bad = ~torch.isfinite(numbers)
        first = bad.any() & ~self._failed
        self._bad.copy_(torch.where(first, bad, self._bad))
        self._step.copy_(torch.where(first, step, self._step))
        self._failed.logical_or_(first)
        return self._failed

    def failure(self) -> tuple[int, str] | None:
        """The 0-based step and the name of its first bad number, or None. Waits for the device."""
        if not bool(self._failed):
            return None
        return int(self._step), self.names[int(self._bad.nonzero()[0])]
