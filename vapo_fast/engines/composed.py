"""An engine put together from two parts: derivatives of a potential, and a stepper that solves with them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from vapo_fast.core.extension import DTYPE_NAMES
from vapo_fast.engines.base import Engine, Field, Job, LossAndGrads, Progress
from vapo_fast.engines.derivatives import Derivatives
from vapo_fast.engines.precision import RoundingNoise
from vapo_fast.engines.stepper import Flow, Stepper
from vapo_fast.loss import Batch
from vapo_fast.ode import Solution
from vapo_fast.potentials.base import Potential

# States of a sample that an evaluation and a step hold beside the stages: x, the point, temporaries between them.
STATES = 12
# Bytes of a sample's times, status and counts.
COUNTS_BYTES = 80
# States that the caller holds for each sample, and two for each output time: the result, and what is made of it.
_CALLERS_STATES = 4
# Points at which the noise of a reduced arithmetic is measured: a network for images is slow, and has many coordinates.
_NOISE_POINTS = 32


class ComposedEngine(Engine):
    """Derivatives times stepper.

    As it stands it takes models in float32 and float64, and computes in the model's own type (a loss in bf16 too).

    Args:
        name: of the engine.
        derivatives: gives the derivatives of a potential as it is now.
        stepper: solves.
    """

    def __init__(self, name: str, derivatives: Callable[[Potential], Derivatives], stepper: Stepper) -> None:
        self.name = name
        self._derivatives = derivatives
        self._stepper = stepper
        self._noise = RoundingNoise(self._gradient, _NOISE_POINTS)

    def available(self) -> str | None:
        return None

    def supports(self, potential: Potential, device: torch.device, dtype: torch.dtype, job: Job) -> str | None:
        if dtype not in DTYPE_NAMES:
            return f"the model's dtype is {dtype}; this engine computes in float32 or float64 (convert with .float())"
        if job.kind == "loss_and_grads" and job.precision == "bf16" and dtype == torch.float32:
            return unlike_a_loss_in_bf16(job)
        if job.precision not in ("auto", DTYPE_NAMES[dtype]):
            return f"precision={job.precision!r} is not the model's own, {DTYPE_NAMES[dtype]}, the one this engine uses"
        return None

    def stepper_on(self, device: torch.device) -> Stepper:
        """What solves on a device."""
        return self._stepper

    def bytes_per_sample(self, potential: Potential, dtype: torch.dtype, job: Job, probes: int = 0) -> int | None:
        reference = potential.reference_tensor()
        device = torch.device("cpu") if reference is None else reference.device
        dimension = math.prod(potential.event_shape)
        if job.kind == "field":
            states = STATES * dimension
        else:
            states = (_CALLERS_STATES + 2 * len(job.solve.t_eval or ())) * (dimension + max(1, probes))
        drawn = 4 * probes * dimension * torch.float64.itemsize
        held = states * dtype.itemsize + drawn + COUNTS_BYTES
        if job.kind != "field" and self.stepper_on(device).splits_batches:
            return held
        trace = job.kind == "solve_with_trace"
        memory = self._derivatives(potential).memory(dtype, device, trace, DTYPE_NAMES[dtype])
        if memory is None:
            return None
        inside = 0 if job.kind == "field" else (STATES + job.solve.tableau.stages) * (dimension + max(1, probes))
        return held + inside * dtype.itemsize + memory.sample

    def field(self, potential: Potential, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return self._derivatives(potential).field(x, t, DTYPE_NAMES[x.dtype])

    def prepared_field(self, potential: Potential) -> Field:
        of = self._derivatives(potential)  # which keeps transformed weights from one call to the next
        return lambda x, t: of.field(x, t, DTYPE_NAMES[x.dtype])

    def solve(
        self, potential: Potential, x0: Tensor, t0: float, t1: float, job: Job, progress: Progress | None = None
    ) -> Solution:
        of = self._derivatives(potential)
        precision = self._precision(potential, x0, t0, t1, job)

        def field(x: Tensor, t: Tensor) -> Tensor:
            return of.field(x, t, precision)[1]

        memory = partial(of.memory, x0.dtype, x0.device, False, precision)
        flow = Flow(potential, field, x0, t0, t1, job.solve, (), "gradient", precision, memory)
        return self._solve(flow, progress)

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
        of = self._derivatives(potential)
        precision = self._precision(potential, x0, t0, t1, job)
        event, dimension = x0.shape[1:], x0[0].numel()
        integrals = 1 if probes is None else probes.shape[1]

        def augmented(state: Tensor, t: Tensor, *rows: Tensor) -> Tensor:
            x = state[:, :dimension].reshape(-1, *event)
            gradient, trace = of.gradient_and_trace(x, t, rows[0] if rows else None, precision)
            return torch.cat((gradient.flatten(1), trace), dim=1)

        start = torch.cat((x0.flatten(1), x0.new_zeros(x0.shape[0], integrals)), dim=1)
        args = () if probes is None else (probes.detach().to(x0.dtype),)
        contents = "trace" if probes is None else "probes"
        memory = partial(of.memory, x0.dtype, x0.device, True, precision)
        flow = Flow(potential, augmented, start, t0, t1, job.solve, args, contents, precision, memory)
        solution = self._solve(flow, progress)
        x = solution.x[:, :dimension].reshape(-1, *event)
        ys = None if solution.ys is None else solution.ys[:, :, :dimension].reshape(-1, *x.shape)
        return replace(solution, x=x, ys=ys), solution.x[:, dimension:]

    def loss_and_grads(self, potential: Potential, batch: Batch, job: Job) -> LossAndGrads:
        precision = DTYPE_NAMES[batch.x_data.dtype] if job.precision == "auto" else job.precision
        return self._derivatives(potential).loss_and_grads(batch, job, precision)

    def _solve(self, flow: Flow, progress: Progress | None) -> Solution:
        # Tensors made in the caller's inference mode could not take part in the field's autograd later.
        with torch.inference_mode(False), torch.no_grad():
            solution = self.stepper_on(flow.x0.device).solve(flow, progress)
        return replace(solution, engine=self.name, precision=flow.precision)

    def _precision(self, potential: Potential, x0: Tensor, t0: float, t1: float, job: Job) -> str:
        """The arithmetic of a solve: the cheapest whose noise the tolerance does not see, or what the user says."""
        own = DTYPE_NAMES[x0.dtype]
        if job.precision == own or (job.precision == "auto" and (x0.dtype == torch.float64 or not x0.is_cuda)):
            return own
        # The noise that is measured is the gradient's; a second derivative has its own.
        if not job.solve.tableau.adaptive or (job.kind == "solve_with_trace" and job.precision == "auto"):
            return own if job.precision == "auto" else job.precision
        with torch.inference_mode(False), torch.no_grad():
            return self._noise.choose(potential, job.precision, t0, t1, job.solve)

    def _gradient(self, potential: Potential, x: Tensor, t: Tensor, precision: str) -> Tensor:
        """grad Phi in an arithmetic; NaN in a reduced one that the potential's modules, or the device, refuse."""
        of = self._derivatives(potential)
        if precision == "ieee":
            return of.field(x, t, "float32")[1]
        try:
            return of.field(x, t, precision)[1]
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError):
            return torch.full_like(x, torch.nan)


def unlike_a_loss_in_bf16(job: Job) -> str | None:
    """Why a loss cannot be computed in bf16; None if it can."""
    if job.loss.estimator == "velocity":
        return None
    # Phi itself is then known to 8 bits only, too few for its product with an innovation of zero mean.
    return "precision='bf16' goes with estimator='velocity'"
