"""Langevin dynamics on the density that a potential reads out, to refine samples at the end of the path."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vapo_fast import noise
from vapo_fast.core import checks
from vapo_fast.engines import Engine, Job, choose
from vapo_fast.homotopy import expand_time
from vapo_fast.potentials.base import Potential, check_events, check_model
from vapo_fast.sampling.batching import batch_size_for, evaluation, in_batches
from vapo_fast.sampling.density import read_out

# Roberts and Rosenthal (1998): MALA on a product density mixes fastest at steps 2 h = 1.65^2 D^(-1/3), where this share
# of the proposals is accepted.
_OPTIMAL_STEP = 1.65**2 / 2.0
_TARGET = 0.574
# Robbins-Monro: gains k^-0.6 sum to infinity and their squares do not.
_GAIN_POWER = 0.6
_STEP_BITS = 31
_ROW_BITS = 32


class Refined(NamedTuple):
    """Result of `refine`, a row a sample.

    Attributes:
        x: (B, *event) the states after the last step.
        log_density: (B,) float64, the read-out ln rho(x, t) there, up to a constant of t.
        acceptance: (B,) float64 in [0, 1], the share of the ``steps`` proposals that were accepted.
        step_size: (B,) float64, the step size of these steps, in units of the path's noise variance at t.
    """

    x: Tensor
    log_density: Tensor
    acceptance: Tensor
    step_size: Tensor


def refine(
    model: Potential,
    x: Tensor,
    steps: int,
    *,
    t: float | None = None,
    step_size: float | None = None,
    adjusted: bool = True,
    adapt_steps: int = 0,
    seed: int = 0,
    batch_size: int | None = None,
    engine: str = "auto",
) -> Refined:
    r"""Move samples by Langevin dynamics on rho(x, t), the density that the potential reads out at time t.

    A proposal is ``y = x + h grad ln rho(x) + sqrt(2 h) noise`` with ``grad ln rho = p grad Phi + 2 q x`` (p, q:
    `Homotopy.density_coefficients`). The adjusted chain (MALA) accepts it with probability
    ``min(1, rho(y) q(x|y) / (rho(x) q(y|x)))``, which leaves the read-out's density exactly invariant. The unadjusted
    chain (ULA) accepts every proposal and has a bias of order h. A proposal whose density or gradient is NaN or
    infinite is never accepted. Unlike the flow, this needs no exact transport: it repairs samples of a composed
    potential (`vapo_fast.SumPotential`), or of one whose flow and density disagree. Near a mode a step moves by about
    the noise at t, so the chain refines samples and does not mix between modes.

    Args:
        model: a time-dependent potential (a time-independent one has no exact read-out).
        x: (B, *event_shape), in the model's dtype and on its device; B < 2^32.
        steps: how many proposals, >= 1.
        t: time of the path, in [t0, t1]; default its end.
        step_size: h in units of the noise variance ``kernel(t).beta**2``; default ``1.36 D^(-1/3)``, near the best for
            MALA on a density that is as narrow as the noise in every direction.
        adjusted: MALA, or ULA.
        adapt_steps: number of MALA steps before the ``steps``, which tune each sample's step size towards an
            acceptance of 57.4 %. Adaptation breaks invariance, so it ends before the measured steps begin.
        seed: sample i's noise in step k depends on (seed, i, k) only.
        batch_size: samples moved at a time; default: as many as fit.
        engine: see `vapo_fast.engines`.
    Returns: `Refined`.
    Raises: TypeError, ValueError for a bad argument or a model with NaN parameters; UnsupportedJobError.
    """
    check_model(model)
    check_events(model, "x", x)
    if not model.time_dependent:
        raise ValueError("model must be time-dependent: Phi(x) alone has no exact log-density read-out to follow")
    count = checks.positive_int("steps", steps)
    adapting = checks.non_negative_int("adapt_steps", adapt_steps)
    if count + adapting >= 1 << _STEP_BITS or len(x) >= 1 << _ROW_BITS:
        raise ValueError(
            f"steps + adapt_steps must be below 2^31 and rows below 2^32, got {count + adapting}, {len(x)}"
        )
    if not isinstance(adjusted, bool):
        raise TypeError(f"adjusted must be True or False, got {adjusted!r}")
    if adapting and not adjusted:
        raise ValueError("adapt_steps tunes an acceptance rate, and adjusted=False has none; leave one of them out")
    dimension = math.prod(model.event_shape)
    if step_size is None:
        step_size = _OPTIMAL_STEP * dimension ** (-1.0 / 3.0)
    relative = checks.positive_float("step_size", step_size)
    noise.check_seed(seed)
    path = model.homotopy
    time = path.t1 if t is None else checks.finite_float("t", t)
    if not path.t0 <= time <= path.t1:
        raise ValueError(f"t must be in [{path.t0:g}, {path.t1:g}], the times of {path!r}, got {t!r}")
    job = Job("field")
    chosen = choose(engine, model, x.device, x.dtype, job)
    with evaluation(model):
        start = x.detach().clone()
        size = batch_size_for(chosen, model, len(x), job) if batch_size is None else batch_size

        def move(first: int, last: int) -> Refined:
            chain = _Chain(
                chosen, model, start[first:last], first=first, t=time, step_size=relative, seed=seed, adjusted=adjusted
            )
            for k in range(adapting):
                chain.adapt(k)
            chain.accepted.zero_()
            for k in range(adapting, adapting + count):
                chain.step(k)
            return Refined(chain.x, chain.log_density, chain.accepted / count, chain.step_size / chain.variance)

        parts = in_batches(move, len(x), size)
    return Refined(*(torch.cat(column) for column in zip(*parts, strict=True)))


class _Chain:
    """The states of some samples, with the density and its gradient there."""

    def __init__(
        self,
        engine: Engine,
        model: Potential,
        x: Tensor,
        *,
        first: int,
        t: float,
        step_size: float,
        seed: int,
        adjusted: bool,
    ) -> None:
        self._field, self._seed, self._adjusted = engine.prepared_field(model), seed, adjusted
        self._rows = torch.arange(first, first + len(x), device=x.device)
        self._t = x.new_full((len(x),), t)
        self._coefficients = model.homotopy.density_coefficients(t)
        self.variance = float(model.homotopy.kernel(t).beta) ** 2
        self.step_size = torch.full((len(x),), step_size * self.variance, dtype=torch.float64, device=x.device)
        self.accepted = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        self.x = x
        self.log_density, self._gradient = self._read_out(x)

    def step(self, k: int) -> Tensor:
        """Step k; the probability (B,) with which each proposal was taken."""
        h = expand_time(self.step_size.to(self.x.dtype), self.x)
        draw = noise.normal(
            self._seed,
            self._index(k),
            tuple(self.x.shape[1:]),
            stream=noise.Stream.LANGEVIN,
            dtype=self.x.dtype,
            device=self.x.device,
        )
        proposal = self.x + h * self._gradient + (2.0 * h).sqrt() * draw
        log_density, gradient = self._read_out(proposal)
        sound = torch.isfinite(log_density) & torch.isfinite(gradient).flatten(1).all(1)
        if self._adjusted:
            # x - y - h grad(y) with the definition of y inserted, so that nothing of the size of x cancels.
            reverse = (2.0 * h).sqrt() * draw + h * (self._gradient + gradient)
            forward = 0.5 * _square(draw)
            ratio = log_density - self.log_density + forward - _square(reverse) / (4.0 * self.step_size)
            # A NaN ratio compares false, so the proposal is not taken.
            probability = torch.where(sound & (ratio > -torch.inf), ratio.clamp(max=0.0).exp(), 0.0)
            u = noise.uniform(
                self._seed,
                self._index(k),
                (),
                stream=noise.Stream.METROPOLIS,
                dtype=torch.float64,
                device=self.x.device,
            )
            taken = u < probability
        else:
            probability, taken = sound.to(torch.float64), sound
        taken_rows = expand_time(taken, self.x)
        self.x = torch.where(taken_rows, proposal, self.x)
        self._gradient = torch.where(taken_rows, gradient, self._gradient)
        self.log_density = torch.where(taken, log_density, self.log_density)
        self.accepted += taken
        return probability

    def adapt(self, k: int) -> None:
        """Step k, after which each sample's step size moves towards the target acceptance."""
        probability = self.step(k)
        self.step_size *= torch.exp((probability - _TARGET) * (k + 1) ** -_GAIN_POWER)

    def _index(self, k: int) -> Tensor:
        return self._rows + (k << _ROW_BITS)

    def _read_out(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """ln rho (B,) in float64, and its gradient in x's dtype."""
        phi, gradient = self._field(x, self._t)
        p, q = map(float, self._coefficients)
        return read_out(self._coefficients, phi, x), p * gradient + (2.0 * q) * x


def _square(x: Tensor) -> Tensor:
    """|x|^2 of each row, float64."""
    return x.flatten(1).double().square().sum(1)
