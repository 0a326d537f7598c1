"""Derivatives of a potential, for engines to solve and train with: autograd's, or explicit ones for our networks."""

from __future__ import annotations

import warnings
import weakref
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from vapo_fast.core.memory import MemoryEstimate, free_memory, or_none_if_out_of_memory
from vapo_fast.engines.autocast import arithmetic
from vapo_fast.engines.base import Job, LossAndGrads, saved_bytes_per_sample
from vapo_fast.engines.explicit import explicit_passes, unlike_a_plain_network
from vapo_fast.loss import Batch, EnergyLoss, energy_loss
from vapo_fast.potentials.base import Potential

# What is alive at once of what autograd keeps for one evaluation: itself, and gradients on their way back. A second
# derivative keeps the graph of the first too.
_ACTIVATIONS, _SECOND_ACTIVATIONS = 3, 9
# Share of the free memory that one loss's activations may take before blocks are computed twice instead.
_LOSS_SHARE = 0.6
# Whether they are, for each number of rows. Decided once: gradients differ in their last bits, and on CUDA the memory
# that PyTorch keeps from one step for the next does not count as free.
_RECOMPUTED: weakref.WeakKeyDictionary[Potential, dict[tuple[object, ...], bool]] = weakref.WeakKeyDictionary()


class Derivatives(Protocol):
    """Of one potential; ``precision`` is one of "float64", "float32", "tf32", "bf16"."""

    def field(self, x: Tensor, t: Tensor, precision: str) -> tuple[Tensor, Tensor]:
        """Phi (B,) and grad Phi (B, *event), detached."""

    def gradient_and_trace(self, x: Tensor, t: Tensor, probes: Tensor | None, precision: str) -> tuple[Tensor, Tensor]:
        """grad Phi (B, *event), and the trace of its Jacobian (B, 1), or estimates (B, m) of it.

        ``probes`` (B, m, D) are directions v, each for an estimate ``v . (Hessian v)``; None is for the exact trace.
        """

    def loss_and_grads(self, batch: Batch, job: Job, precision: str) -> LossAndGrads:
        """As `Engine.loss_and_grads`."""

    def memory(self, dtype: torch.dtype, device: torch.device, trace: bool, precision: str) -> MemoryEstimate | None:
        """Memory of `field`, or of `gradient_and_trace`; None if not even one sample fits."""


class ExplicitDerivatives(Derivatives):
    """`vapo_fast.engines.explicit`: no autograd graph. Only for potentials that `unlike_a_plain_network` accepts."""

    def __init__(self, potential: Potential) -> None:
        self._passes = explicit_passes(potential)

    def field(self, x: Tensor, t: Tensor, precision: str) -> tuple[Tensor, Tensor]:
        return self._passes.field(x, t, precision)

    def gradient_and_trace(self, x: Tensor, t: Tensor, probes: Tensor | None, precision: str) -> tuple[Tensor, Tensor]:
        return self._passes.field_and_trace(x, t, probes, precision)[1:]

    def loss_and_grads(self, batch: Batch, job: Job, precision: str) -> LossAndGrads:
        compute = partial(self._passes.loss_and_grads, batch, job.loss.estimator, job.loss.weight, precision)
        rows, device = batch.x_data.shape[0], batch.x_data.device
        known = _RECOMPUTED.setdefault(self._passes.potential, {})
        key = rows, device, precision
        if key not in known:
            free = free_memory(device)
            need = rows * self._passes.bytes_per_sample("loss_and_grads", precision)
            need += self._passes.bytes_of_weights(precision)
            known[key] = free is not None and need > _LOSS_SHARE * free
        # While a graph is recorded memory cannot be given back and tried again.
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return LossAndGrads(*compute(recompute=known[key]))
        result = or_none_if_out_of_memory(partial(compute, recompute=known[key]))
        if result is None and not known[key]:
            known[key] = True
            warnings.warn(
                f"out of memory for the gradients of {rows} samples: the network's blocks are computed twice from now "
                "on, which takes less (as does a larger accumulate)",
                RuntimeWarning,
                stacklevel=4,
            )
            result = or_none_if_out_of_memory(partial(compute, recompute=True))
        if result is None:
            raise MemoryError(
                f"out of memory for the gradients of {rows} samples, also with blocks computed twice; use a larger "
                "accumulate, a smaller batch_size or a smaller model"
            )
        return LossAndGrads(*result)

    def memory(self, dtype: torch.dtype, device: torch.device, trace: bool, precision: str) -> MemoryEstimate | None:
        sample = self._passes.bytes_per_sample("field_and_trace" if trace else "field", precision)
        return MemoryEstimate(sample, self._passes.bytes_of_weights(precision))


class AutogradDerivatives(Derivatives):
    """Reverse mode, and reverse over reverse for second derivatives: any potential."""

    def __init__(self, potential: Potential) -> None:
        self._potential = potential

    def field(self, x: Tensor, t: Tensor, precision: str) -> tuple[Tensor, Tensor]:
        with arithmetic(precision, x.device.type):
            return self._potential.field(x, t)

    def gradient_and_trace(self, x: Tensor, t: Tensor, probes: Tensor | None, precision: str) -> tuple[Tensor, Tensor]:
        with arithmetic(precision, x.device.type):
            return gradient_and_trace(self._potential, x, t, probes)

    def loss_and_grads(self, batch: Batch, job: Job, precision: str) -> LossAndGrads:
        options = job.loss
        parameters = {name: p for name, p in self._potential.named_parameters() if p.requires_grad}
        with torch.enable_grad():
            with arithmetic(precision, batch.x_data.device.type):
                loss = energy_loss(self._potential, *batch, options.estimator, options.weight, options.baseline)
            grads = torch.autograd.grad(loss.total, list(parameters.values()), materialize_grads=True)
        return LossAndGrads(EnergyLoss(*(term.detach() for term in loss)), dict(zip(parameters, grads, strict=True)))

    def memory(self, dtype: torch.dtype, device: torch.device, trace: bool, precision: str) -> MemoryEstimate | None:
        saved = or_none_if_out_of_memory(partial(saved_bytes_per_sample, self._potential, dtype, device))
        return None if saved is None else MemoryEstimate((_SECOND_ACTIVATIONS if trace else _ACTIVATIONS) * saved, 0)


def explicit_or_autograd(potential: Potential) -> Derivatives:
    """Explicit derivatives where there are such for the potential, else autograd's."""
    return AutogradDerivatives(potential) if unlike_a_plain_network(potential) else ExplicitDerivatives(potential)


def gradient_and_trace(potential: Potential, x: Tensor, t: Tensor, probes: Tensor | None) -> tuple[Tensor, Tensor]:
    """grad Phi (B, *event) and the trace of its Jacobian (B, 1), or one estimate for each of (B, m, D) probes (B, m).

    One reverse pass through the gradient for each coordinate (exact) or probe v (``v . grad(grad Phi . v)``).
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        _, gradient = potential.field(x, t, create_graph=True)
        flat = gradient.flatten(1)

        def second(direction: Tensor) -> Tensor:
            if not flat.requires_grad:
                return flat.new_zeros(flat.shape[0])
            projected = (flat * direction).sum()
            (row,) = torch.autograd.grad(projected, x, retain_graph=True, materialize_grads=True)
            return (row.flatten(1) * direction).sum(1)

        if probes is None:
            unit = torch.eye(flat.shape[1], dtype=flat.dtype, device=flat.device)
            trace = torch.stack([second(direction) for direction in unit], dim=1).sum(1, keepdim=True)
        else:
            trace = torch.stack([second(direction) for direction in probes.unbind(1)], dim=1)
    return gradient.detach(), trace.detach()
