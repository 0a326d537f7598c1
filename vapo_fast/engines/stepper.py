"""How an engine's solves step: the protocol, and `integrate`, which is `vapo_fast.ode`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from vapo_fast import ode
from vapo_fast.core.memory import MemoryEstimate
from vapo_fast.engines.base import Progress
from vapo_fast.ode import Solution, SolveOptions
from vapo_fast.potentials.base import Potential


@dataclass(frozen=True)
class Flow:
    """An initial value problem ``dx/dt = field(x, t, *args)`` of one potential.

    Attributes:
        field: (x (n, *event), t (n,), rows of args) to (n, *event).
        x0: (B, *event). t0, t1: start and end. args: tensors (B, ...), constants of each sample.
        contents: what the field computes: "gradient", or the gradient with the "trace" or with "probes".
        precision: in which arithmetic: one of "float64", "float32", "tf32", "bf16".
        memory: what one evaluation takes; None if not even one sample fits.
    """

    potential: Potential
    field: Callable[..., Tensor]
    x0: Tensor
    t0: float
    t1: float
    options: SolveOptions
    args: tuple[Tensor, ...]
    contents: str
    precision: str
    memory: Callable[[], MemoryEstimate | None]


class Stepper(Protocol):
    """Solves flows; a failed sample shows in the status and is not raised."""

    splits_batches: bool
    """Whether it finds out by itself how many samples fit in memory at a time."""

    def solve(self, flow: Flow, progress: Progress | None) -> Solution:
        """`vapo_fast.ode.integrate` of the flow. ``progress`` may be told now and then how many samples have ended."""


class Integrate(Stepper):
    """The PyTorch solver, on any device; samples that have ended leave the batch after each step."""

    splits_batches = False

    def solve(self, flow: Flow, progress: Progress | None) -> Solution:
        return ode.integrate(flow.field, flow.x0, flow.t0, flow.t1, flow.options, flow.args, progress)


integrate = Integrate()
