"""The engine contract, the registry, and the choice of an engine for a job.

An engine does numerical jobs for a potential: its field, solves of its flow, losses with gradients. Before a job it is
asked `Engine.supports`, which answers None or the reason why not. ``auto`` takes the first engine by priority that
supports the job. A user who names an engine gets that engine or its reason, never another one. The environment variable
VAPO_FAST_ENGINE takes the place of ``auto``. A program can `register` an engine of its own.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from vapo_fast.core import checks
from vapo_fast.loss import Baseline, Batch, EnergyLoss, Weight
from vapo_fast.ode import Solution, SolveOptions
from vapo_fast.potentials.base import Potential

ENVIRONMENT_VARIABLE = "VAPO_FAST_ENGINE"

PRECISIONS = ("auto", "float64", "float32", "tf32", "bf16")
"""Arithmetic of a field's matrix products: "auto" lets the engine choose by tolerance and say so in the `Solution`;
"float64" and "float32" are the model's own dtype; "tf32" and "bf16" are reduced products for loose tolerances only."""

Progress = Callable[[int], None]

Field = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

JobKind = Literal["field", "solve", "solve_with_trace", "loss_and_grads"]


COUNTS_BYTES = 40
"""Bytes of a sample's time, status and counts in a `Solution`."""


class UnsupportedJobError(ValueError):
    """The named engine cannot do the job, or no engine can; the message holds the reason."""


@dataclass(frozen=True)
class LossOptions:
    """Options of `vapo_fast.energy_loss`."""

    estimator: str = "velocity"
    weight: Weight = "inverse_variance"
    baseline: Baseline | None = None


@dataclass(frozen=True)
class Job:
    """What an engine is asked to do: the kind of job, its precision (one of `PRECISIONS`) and its options."""

    kind: JobKind
    precision: str = "auto"
    solve: SolveOptions = field(default_factory=SolveOptions)
    loss: LossOptions = field(default_factory=LossOptions)

    def __post_init__(self) -> None:
        checks.one_of("precision", self.precision, PRECISIONS)


class LossAndGrads(NamedTuple):
    """Detached loss terms, and the gradient of ``loss.total`` for each trainable parameter by name."""

    loss: EnergyLoss
    grads: dict[str, Tensor]


class Engine(ABC):
    """One way of computing. Methods may assume that `supports` answered None for the job."""

    name: str
    priority: int = 0
    """``auto`` asks engines of higher priority first. The library's own have 10 (reference) to 40 (triton)."""
    capturable: bool = False
    """Whether losses with gradients only launch work, so that a training step can be captured as a CUDA graph."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        # What an engine keeps belongs to a process: copies and pickles of what refers to it, such as a trainer, mean
        # the engine registered where they are made.
        if _REGISTRY.get(self.name) is self:
            return registered, (self.name,)
        return super().__reduce_ex__(protocol)

    @abstractmethod
    def available(self) -> str | None:
        """None if the engine can run on this machine, else the reason why not."""

    @abstractmethod
    def supports(self, potential: Potential, device: torch.device, dtype: torch.dtype, job: Job) -> str | None:
        """None if the engine does this job for this potential, else the reason why not."""

    def bytes_per_sample(self, potential: Potential, dtype: torch.dtype, job: Job, probes: int = 0) -> int | None:
        """Memory that a solve needs for each sample, the caller's start and probes included.

        None if that is for a trial to find out: what autograd keeps of one evaluation of the field is then counted.
        ``probes`` is the number of directions for each sample in a "solve_with_trace", 0 for the exact Laplacian.
        """
        return None

    @abstractmethod
    def field(self, potential: Potential, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Phi (B,) and grad Phi (B, *event), detached."""

    def prepared_field(self, potential: Potential) -> Field:
        """`field` as a function of x and t alone, for many calls during which the potential stays as it is."""
        return partial(self.field, potential)

    @abstractmethod
    def solve(
        self,
        potential: Potential,
        x0: Tensor,
        t0: float,
        t1: float,
        job: Job,
        progress: Progress | None = None,
    ) -> Solution:
        """Integrate ``dx/dt = grad Phi(x, t)`` from t0 to t1; a failed sample shows in the status and is not raised.

        ``progress`` may be told now and then how many samples have ended.
        """

    def solve_with_trace(
        self,
        potential: Potential,
        x0: Tensor,
        t0: float,
        t1: float,
        job: Job,
        probes: Tensor | None,
        progress: Progress | None = None,
    ) -> tuple[Solution, Tensor]:
        """Integrate x together with ``integral of the Laplacian of Phi dt``, from t0 to t1.

        Args:
            probes: None for the exact Laplacian; (B, m, D) probe vectors v for m estimates ``v . (Hessian v)`` each.
            progress: as for `solve`.
        Returns: the solution for x, and the integrals (B, 1) or (B, m).
        Raises: UnsupportedJobError from an engine without second derivatives.
        """
        raise UnsupportedJobError(
            f"engine {self.name!r} has no second derivatives of a potential, which this job needs"
        )

    @abstractmethod
    def loss_and_grads(self, potential: Potential, batch: Batch, job: Job) -> LossAndGrads:
        """The energy loss of a batch and its gradient with respect to the parameters."""


_REGISTRY: dict[str, Engine] = {}


def register(engine: Engine) -> None:
    """Make an engine known under its name, in place of any other of that name; ValueError for the name "auto"."""
    if engine.name == "auto":
        raise ValueError("an engine must not be called 'auto', which asks for any")
    _REGISTRY[engine.name] = engine


def registered(name: str) -> Engine:
    """The engine with this name; ValueError if there is none."""
    return _REGISTRY[checks.one_of("engine", name, _by_priority())]


def engines() -> dict[str, str]:
    """Every engine's name, in the order of priority, with "usable", or the reason why it is not."""
    return {name: _REGISTRY[name].available() or "usable" for name in _by_priority()}


def _by_priority() -> list[str]:
    return sorted(_REGISTRY, key=lambda name: -_REGISTRY[name].priority)


def choose(name: str, potential: Potential, device: torch.device, dtype: torch.dtype, job: Job) -> Engine:
    """The engine that will do a job.

    Args:
        name: "auto" or an engine's name. "auto" gives way to the environment variable VAPO_FAST_ENGINE if that is set.
    Raises:
        UnsupportedJobError: the named engine cannot do the job, or with "auto" none can; the reasons are in the
            message.
        ValueError: no such engine.
    """
    known = _by_priority()
    checks.one_of("engine", name, ("auto", *known))
    origin = f"engine={name!r}"
    if name == "auto" and os.environ.get(ENVIRONMENT_VARIABLE):
        name = checks.one_of(ENVIRONMENT_VARIABLE, os.environ[ENVIRONMENT_VARIABLE], ("auto", *known))
        origin = f"{ENVIRONMENT_VARIABLE}={name}"
    reasons = {}
    for candidate in known if name == "auto" else (name,):
        engine = _REGISTRY[candidate]
        reason = engine.available() or engine.supports(potential, device, dtype, job)
        if reason is None:
            return engine
        reasons[candidate] = reason
    if name == "auto":
        listed = "; ".join(f"{candidate}: {reason}" for candidate, reason in reasons.items())
        raise UnsupportedJobError(f"no engine can do this {job.kind!r} job: {listed}")
    raise UnsupportedJobError(f"{origin} cannot do this {job.kind!r} job: {reasons[name]}")


def fused_bytes_per_sample(potential: Potential, dtype: torch.dtype, job: Job, probes: int) -> int:
    """`Engine.bytes_per_sample` of an engine whose steps need no memory that grows with the batch."""
    dimension = math.prod(potential.event_shape)
    # The start, a copy of it that becomes the result, and what the caller makes of both.
    states = (4 + len(job.solve.t_eval or ())) * (dimension + max(1, probes))
    # A caller draws probes in float64 and compares before it converts.
    drawn = 4 * probes * dimension
    return states * dtype.itemsize + drawn * torch.float64.itemsize + COUNTS_BYTES


def saved_bytes_per_sample(model: Potential, dtype: torch.dtype, device: torch.device) -> int:
    """What autograd keeps for two samples, less what it keeps for one: parameters drop out of the difference."""
    kept = [0, 0]
    for rows in (1, 2):

        def count(tensor: Tensor, rows: int = rows) -> Tensor:
            kept[rows - 1] += tensor.numel() * tensor.element_size()
            return tensor

        x = torch.zeros(rows, *model.event_shape, dtype=dtype, device=device)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model.field(x, model.homotopy.t1)
    return max(0, kept[1] - kept[0])
