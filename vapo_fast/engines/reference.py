"""The definition of correct: autograd fields and the PyTorch solver, for any potential on any device."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vapo_fast import ode
from vapo_fast.engines.base import Engine, Job, LossAndGrads, Progress
from vapo_fast.loss import Batch, EnergyLoss, energy_loss
from vapo_fast.ode import Solution
from vapo_fast.potentials.base import Potential

_NAMES = {torch.float32: "float32", torch.float64: "float64"}


class ReferenceEngine(Engine):
    """Pure PyTorch; see the module's docstring."""

    name = "reference"

    def available(self) -> str | None:
        return None

    def supports(self, potential: Potential, device: torch.device, dtype: torch.dtype, job: Job) -> str | None:
        if dtype not in _NAMES:
            return f"the model's dtype is {dtype}; this engine computes in float32 or float64 (convert with .float())"
        if job.kind == "loss_and_grads" and job.precision == "bf16" and dtype == torch.float32:
            # Phi itself is then known to 8 bits only, too few for its product with an innovation of zero mean.
            return "precision='bf16' goes with estimator='velocity'" if job.loss.estimator != "velocity" else None
        if job.precision not in ("auto", _NAMES[dtype]):
            return f"precision={job.precision!r} is not the model's own, {_NAMES[dtype]}, the one this engine uses"
        return None

    def field(self, potential: Potential, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return potential.field(x, t)

    def solve(
        self, potential: Potential, x0: Tensor, t0: float, t1: float, job: Job, progress: Progress | None = None
    ) -> Solution:
        solution = ode.integrate(lambda x, t: potential.field(x, t)[1], x0, t0, t1, job.solve)
        return replace(solution, engine=self.name, precision=_NAMES[x0.dtype])

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
        event, dimension = x0.shape[1:], x0[0].numel()
        integrals = 1 if probes is None else probes.shape[1]

        def augmented(state: Tensor, t: Tensor, *rows: Tensor) -> Tensor:
            x = state[:, :dimension].reshape(-1, *event)
            gradient, trace = gradient_and_trace(potential, x, t, rows[0] if rows else None)
            return torch.cat((gradient.flatten(1), trace), dim=1)

        start = torch.cat((x0.flatten(1), x0.new_zeros(x0.shape[0], integrals)), dim=1)
        solution = ode.integrate(augmented, start, t0, t1, job.solve, () if probes is None else (probes,))
        x = solution.x[:, :dimension].reshape(-1, *event)
        ys = None if solution.ys is None else solution.ys[:, :, :dimension].reshape(-1, *x.shape)
        named = replace(solution, x=x, ys=ys, engine=self.name, precision=_NAMES[x0.dtype])
        return named, solution.x[:, dimension:]

    def loss_and_grads(self, potential: Potential, batch: Batch, job: Job) -> LossAndGrads:
        options = job.loss
        parameters = {name: p for name, p in potential.named_parameters() if p.requires_grad}
        with torch.enable_grad():
            with torch.autocast(batch.x_data.device.type, torch.bfloat16, enabled=job.precision == "bf16"):
                loss = energy_loss(potential, *batch, options.estimator, options.weight, options.baseline)
            grads = torch.autograd.grad(loss.total, list(parameters.values()), materialize_grads=True)
        return LossAndGrads(EnergyLoss(*(term.detach() for term in loss)), dict(zip(parameters, grads, strict=True)))


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
