"""Sampling in one readable loop, by plain autograd: what `vapo_fast.sample` must agree with."""

from __future__ import annotations

import torch
from torch import Tensor

from vapo_fast import noise, ode
from vapo_fast.core import checks
from vapo_fast.ode import Solution
from vapo_fast.ode.options import DEFAULT_MAX_STEPS, DEFAULT_RTOL
from vapo_fast.potentials.base import Potential, check_model, end_time, model_dtype_device
from vapo_fast.sampling.batching import evaluation, solve_options


def sample(
    model: Potential,
    n: int,
    *,
    rtol: float = DEFAULT_RTOL,
    atol: float | None = None,
    method: str = "dopri5",
    steps: int | None = None,
    t_end: float | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
    throw: bool = True,
    return_solution: bool = False,
    max_steps: int = DEFAULT_MAX_STEPS,
) -> Tensor | Solution:
    """Draw n samples; arguments, result and errors are those of `vapo_fast.sample`, minus engine and precision.

    ``batch_size`` defaults to all at once, and ``progress`` is accepted and shows nothing.
    """
    check_model(model)
    n = checks.positive_int("n", n)
    size = n if batch_size is None else checks.positive_int("batch_size", batch_size)
    path, end = model.homotopy, end_time(model, t_end)
    options = solve_options(method, rtol, atol, steps, max_steps)
    dtype, device = model_dtype_device(model)

    # dx/dt = + grad Phi(x, t): samples ascend the potential.
    def field(x: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(model(x, t).sum(), x)
        return gradient

    parts = []
    with evaluation(model):
        for first in range(0, n, size):
            # x(t0) = omega noise: sample i has draw i of the seed, whatever the batches.
            rows = range(first, min(first + size, n))
            x0 = path.omega * noise.normal(seed, rows, model.event_shape, dtype=dtype, device=device)
            parts.append(ode.integrate(field, x0, path.t0, end, options))
    solution = Solution.concatenate(parts)
    if throw:
        solution.raise_for_failures()
    return solution if return_solution else solution.x
