"""Flow matching in one readable loop, on the data, times, noise, optimiser and averaging of `vapo_fast.Trainer`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from benchmarks.studies.quality.velocity import VelocityUNet
from vapo_fast import noise, ode
from vapo_fast.loss import Batch, loss_weight
from vapo_fast.ode import Solution, SolveOptions
from vapo_fast.training.batches import Batches, Data, as_source
from vapo_fast.training.device_batches import DeviceBatches
from vapo_fast.training.optimizer import RunningAverage, make_optimizer, set_gradients
from vapo_fast.training.options import TrainingOptions, ema_decay_at, learning_rate
from vapo_fast.training.prefetch import batches_ahead, prepared

AfterStep = Callable[[int], None]


class FlowMatching:
    """Train a velocity network: ``L = E w(t) |v(x, t) - u(x | x_data)|^2 / 2``.

    Args:
        model: trained in place; ``average`` holds the running average of its weights.
        options: those of `vapo_fast.Trainer`, with the same meaning; batch k of a run is the same as its batch k.
        bf16: run the network's products in bfloat16.
        compiled: run the network through `torch.compile`.
    """

    def __init__(
        self, model: VelocityUNet, options: TrainingOptions, *, bf16: bool = False, compiled: bool = False
    ) -> None:
        self.model = model
        self.average = copy.deepcopy(model).requires_grad_(False).eval()
        self.options = options
        self.step = 0
        self._parameters = list(model.parameters())
        self._device = self._parameters[0].device
        self.optimizer = make_optimizer(self._parameters, options, fused=self._device.type == "cuda")
        self._averaging = RunningAverage(self.average, model)
        self._bf16 = bf16
        self._network = torch.compile(model) if compiled else model

    def fit(self, data: Data, steps: int, after_step: AfterStep | None = None) -> None:
        """Do ``steps`` more steps; ``after_step`` is told the number of all that are done, after each."""
        o = self.options
        start, end = self.step, self.step + steps
        self.model.train()
        with self._batches(data, range(start, end)) as batch_of:
            while self.step < end:
                batch = batch_of(self.step)
                set_gradients(self._parameters, torch.autograd.grad(self.loss(*batch), self._parameters))
                self.optimizer.param_groups[0]["lr"] = learning_rate(o, self.step, start, end)
                self.optimizer.step()
                self._averaging.update(ema_decay_at(o, self.step))
                self.step += 1
                if after_step is not None:
                    after_step(self.step)

    @contextmanager
    def _batches(self, data: Data, steps: range) -> Iterator[Callable[[int], Batch]]:
        """Batches by step, made as the trainer makes them: by the device where the data lies there, else ahead."""
        o, source = self.options, as_source(data, self.model.event_shape, seed=self.options.seed)
        batches = Batches(
            source, self.model.homotopy, o.seed, o.batch_size, o.time_sampling, self._device, torch.float32, o.augment
        )
        on_device = DeviceBatches.of(batches)
        if on_device is not None:
            yield partial(_drawn_there, on_device, torch.zeros((), dtype=torch.int64, device=self._device))
            return
        ahead = batches_ahead(o.prefetch, source, self._device)
        with prepared(batches.draw, steps, ahead, self._device) as drawn:
            yield lambda step: batches.place(step, drawn(step))

    def loss(self, x_data: Tensor, t: Tensor, draws: Tensor) -> Tensor:
        """The mean over a batch; what `vapo_fast.energy_loss` is for ``v = grad Phi``, plus ``E w |u|^2 / 2``."""
        path = self.model.homotopy
        point = path.perturb(x_data, t, draws)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            velocity = self._network(point.x, t)
        error = (velocity - point.velocity).flatten(1).square().sum(1)
        return (loss_weight(path, self.options.weight, t) * 0.5 * error).mean()


def _drawn_there(batches: DeviceBatches, number: Tensor, step: int) -> Batch:
    batches.prepare(step)
    return batches(number.fill_(step))


@torch.no_grad()
def sample(model: VelocityUNet, n: int, *, rtol: float, seed: int = 0, batch_size: int = 500) -> Solution:
    """n samples by the per-sample solver of `vapo_fast.sample`, from the same draws of the prior."""
    path, device = model.homotopy, next(model.parameters()).device
    options, parts = SolveOptions(rtol=rtol), []
    for first in range(0, n, batch_size):
        rows = range(first, min(first + batch_size, n))
        x0 = path.omega * noise.normal(seed, rows, model.event_shape, device=device)
        parts.append(ode.integrate(model, x0, path.t0, path.t1, options))
    return Solution.concatenate(parts).raise_for_failures()


def parameters(model: torch.nn.Module) -> int:
    """Number of trainable values."""
    return sum(math.prod(p.shape) for p in model.parameters())
