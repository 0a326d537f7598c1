"""Flow matching in one readable loop, on the data, times, noise, optimiser and averaging of `vapo_fast.Trainer`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.quality.velocity import VelocityUNet
from vapo_fast import noise, ode
from vapo_fast.batches import Data, as_source, training_batch
from vapo_fast.loss import loss_weight
from vapo_fast.ode import Solution, SolveOptions
from vapo_fast.optim import (
    RunningAverage,
    TrainingOptions,
    ema_decay_at,
    learning_rate,
    make_optimizer,
    set_gradients,
)

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
        o, source = self.options, as_source(data, self.model.event_shape, seed=self.options.seed)
        start, end = self.step, self.step + steps
        self.model.train()
        while self.step < end:
            batch = training_batch(
                source,
                self.step,
                homotopy=self.model.homotopy,
                seed=o.seed,
                batch_size=o.batch_size,
                time_sampling=o.time_sampling,
                device=self._device,
                dtype=torch.float32,
            )
            set_gradients(self._parameters, torch.autograd.grad(self.loss(*batch), self._parameters))
            self.optimizer.param_groups[0]["lr"] = learning_rate(o, self.step, start, end)
            self.optimizer.step()
            self._averaging.update(ema_decay_at(o, self.step))
            self.step += 1
            if after_step is not None:
                after_step(self.step)

    def loss(self, x_data: Tensor, t: Tensor, draws: Tensor) -> Tensor:
        """The mean over a batch; what `vapo_fast.energy_loss` is for ``v = grad Phi``, plus ``E w |u|^2 / 2``."""
        path = self.model.homotopy
        point = path.perturb(x_data, t, draws)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            velocity = self._network(point.x, t)
        error = (velocity - point.velocity).flatten(1).square().sum(1)
        return (loss_weight(path, self.options.weight, t) * 0.5 * error).mean()


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
