"""The derivatives of a potential that the graph engine's programs are made of: written out by hand, or autograd's."""

from __future__ import annotations

import warnings
import weakref
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from vapo_fast.core.memory import free_memory, or_none_if_out_of_memory
from vapo_fast.engines.autocast import arithmetic
from vapo_fast.engines.base import Job, LossAndGrads, saved_bytes_per_sample
from vapo_fast.engines.explicit import explicit_passes, unlike_a_plain_network
from vapo_fast.engines.reference import ReferenceEngine, gradient_and_trace
from vapo_fast.loss import Batch
from vapo_fast.potentials.base import Potential

# What is alive at once of what autograd keeps for one evaluation: itself, and gradients on their way back. A second
# derivative keeps the graph of the first too.
_ACTIVATIONS, _SECOND_ACTIVATIONS = 3, 9
# Share of the free memory that one loss's activations may take before blocks are computed twice instead.
_LOSS_SHARE = 0.6
# Whether they are, for each number of rows. Decided once: gradients differ in their last bits, and on CUDA the memory
# that PyTorch keeps from one step for the next does not count as free.
_RECOMPUTED: weakref.WeakKeyDictionary[Potential, dict[tuple[object, ...], bool]] = weakref.WeakKeyDictionary()


class Needs(NamedTuple):
    """Bytes that an evaluation takes: the activations of one sample, and copies of weights whatever the batch."""

    sample: int
    weights: int


class Derivatives(Protocol):
    """Of one potential; ``precision`` is one of "float64", "float32", "tf32", "bf16"."""

    def field(self, x: Tensor, t: Tensor, precision: str) -> tuple[Tensor, Tensor]:
        """Phi (B,) and grad Phi (B, *event), detached."""

    def gradient_and_trace(self, x: Tensor, t: Tensor, probes: Tensor | None, precision: str) -> tuple[Tensor, Tensor]:
        """As `vapo_fast.engines.reference.gradient_and_trace`."""

    def loss_and_grads(self, batch: Batch, job: Job, precision: str) -> LossAndGrads:
        """As `Engine.loss_and_grads`."""

    def needs(self, dtype: torch.dtype, device: torch.device, trace: bool, precision: str) -> Needs | None:
        """Memory of `field`, or of `gradient_and_trace`; None if not even one sample fits."""


class ByHand(Derivatives):
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

    def needs(self, dtype: torch.dtype, device: torch.device, trace: bool, precision: str) -> Needs | None:
        sample = self._passes.bytes_per_sample("field_and_trace" if trace else "field", precision)
        return Needs(sample, self._passes.bytes_of_weights(precision))


class ByAutograd(Derivatives):
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
        with arithmetic(precision, batch.x_data.device.type):
            return ReferenceEngine().loss_and_grads(self._potential, batch, job)

    def needs(self, dtype: torch.dtype, device: torch.device, trace: bool, precision: str) -> Needs | None:
        saved = or_none_if_out_of_memory(partial(saved_bytes_per_sample, self._potential, dtype, device))
        return None if saved is None else Needs((_SECOND_ACTIVATIONS if trace else _ACTIVATIONS) * saved, 0)


def derivatives(potential: Potential) -> Derivatives:
    """By hand where there are explicit passes, else autograd's."""
    return ByAutograd(potential) if unlike_a_plain_network(potential) else ByHand(potential)
