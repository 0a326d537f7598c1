"""Training in one readable loop, by plain autograd: what `vapo_fast.Trainer` must agree with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vapo_fast.loss import loss_weight
from vapo_fast.potentials.base import Potential
from vapo_fast.training.batches import Data, as_source, training_batch
from vapo_fast.training.optimizer import set_gradients
from vapo_fast.training.options import TrainingOptions, ema_decay_at, learning_rate, with_options
from vapo_fast.training.run import Callback, Clock, Metrics, TrainingRun


class Trainer(TrainingRun):
    """Train a potential; arguments, attributes and errors are those of `vapo_fast.Trainer`, minus engine and precision.

    ``accumulate`` is accepted and has no effect: micro-batches give the gradient of the whole batch, taken here; so is
    ``prefetch``. Each of several processes does the whole run.
    """

    @with_options(TrainingOptions)
    def __init__(self, model: Potential, **given: Any) -> None:
        super().__init__(model, TrainingOptions.for_model(model, **given))

    def fit(
        self,
        data: Data,
        steps: int,
        callbacks: Sequence[Callback] = (),
        resume: str | os.PathLike[str] | None = None,
    ) -> None:
        """Train for ``steps`` steps, as `vapo_fast.Trainer.fit`."""
        source = as_source(data, self.model.event_shape, seed=self.options.seed)
        self._begin(steps, resume)
        clock = Clock(self.step * self.options.batch_size)
        o, model, path = self.options, self.model, self.model.homotopy
        with self._running(callbacks) as after_step:
            while self.step < self.end_step:
                # Data, noise ~ N(0, I) and times t, a function of (seed, step).
                x_data, t, noise = training_batch(
                    source,
                    self.step,
                    homotopy=path,
                    seed=o.seed,
                    batch_size=o.batch_size,
                    time_sampling=o.time_sampling,
                    device=self.device,
                    dtype=self.dtype,
                    augment=o.augment,
                )
                # x = alpha x_data + beta noise, u = alpha' x_data + beta' noise.
                point = path.perturb(x_data, t, noise)
                x = point.x.requires_grad_()
                phi = model(x, t)
                (gradient,) = torch.autograd.grad(phi.sum(), x, create_graph=True)

                # L = E w(t) [1/2 |grad Phi|^2 - grad Phi . u], or with + Phi innovation for the second term.
                w = loss_weight(path, o.weight, t)
                quadratic = (w * 0.5 * gradient.flatten(1).square().sum(1)).mean()
                if o.estimator == "velocity":
                    linear = (w * -(gradient * point.velocity).flatten(1).sum(1)).mean()
                else:
                    centred = phi if o.baseline is None else phi - o.baseline(x_data, t)
                    linear = (w * centred * point.innovation).mean()
                loss = linear + quadratic

                # d loss / d parameters, through grad Phi: double backward.
                parameters = list(self.parameters.values())
                gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
                norm = self._checked_norm(linear, quadratic, gradients)
                scale = 1.0 if o.grad_clip is None else min(1.0, o.grad_clip / norm)
                set_gradients(parameters, [scale * g for g in gradients])

                # Adam; then ema <- decay ema + (1 - decay) model.
                rate, decay = learning_rate(o, self.step, self.start_step, self.end_step), ema_decay_at(o, self.step)
                self.optimizer.param_groups[0]["lr"] = rate
                self._updating = True
                self.optimizer.step()
                with torch.no_grad():
                    for average, current in zip(self.ema_model.parameters(), model.parameters(), strict=True):
                        average.add_((1.0 - decay) * (current - average))
                    for kept, buffer in zip(self.ema_model.buffers(), model.buffers(), strict=True):
                        kept.copy_(buffer)
                self.step += 1
                self._updating = False

                if self.step % self.read_interval == 0 or self.step == self.end_step:
                    terms = (loss.item(), linear.item(), quadratic.item(), norm)
                    speed, seconds = clock.read(self.step * o.batch_size)
                    after_step(Metrics(*terms, rate, decay, speed, seconds))
                else:
                    after_step(None)

    def _checked_norm(self, linear: Tensor, quadratic: Tensor, gradients: Sequence[Tensor]) -> float:
        """The 2-norm of the gradient; NonFiniteLossError, before any update, if a term or a gradient is not finite."""
        norms = torch.stack([gradient.norm() for gradient in gradients])
        names = ["linear term", "quadratic term", *(f"gradient of {name}" for name in self.parameters)]
        for name, value in zip(names, (linear, quadratic, *norms), strict=True):
            if not torch.isfinite(value):
                self._restore_buffers()
                raise self._non_finite(self.step + 1, name)
        return float(norms.norm())
