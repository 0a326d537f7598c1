"""Sampling: carry the prior to the data along ``dx/dt = grad Phi(x, t)``, and interpolate through that map."""

from __future__ import annotations

import torch
from torch import Tensor

from vapo_fast import noise
from vapo_fast.core import checks
from vapo_fast.engines import Job, choose
from vapo_fast.ode import Solution
from vapo_fast.ode.options import DEFAULT_MAX_STEPS, DEFAULT_RTOL
from vapo_fast.potentials.base import Potential, check_events, check_model, end_time, model_dtype_device
from vapo_fast.sampling.batching import TO_NOISE_SHARE, solve_in_batches, solve_options


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
    engine: str = "auto",
    precision: str = "auto",
    progress: bool = False,
    throw: bool = True,
    return_solution: bool = False,
    max_steps: int = DEFAULT_MAX_STEPS,
) -> Tensor | Solution:
    """Draw n samples: sample i starts at ``omega`` times the noise of (seed, i) and follows the flow to ``t_end``.

    Args:
        model: the potential; its ``homotopy`` gives the prior and the times. Its parameters' dtype and device are used.
        n: how many.
        rtol, atol, method, steps, max_steps: as for `vapo_fast.ode.solve`; tolerances are for adaptive methods only,
            and ``steps`` for fixed-step ones.
        t_end: end time; default ``homotopy.t1``. Beyond t1 only for a time-independent potential (`validate_t_end`).
        seed: integer in [0, 2^64).
        batch_size: samples integrated at a time; default: as many as fit, halved (with a warning) when memory runs out.
            The result depends on it only by the rounding of libraries that choose kernels by shape.
        engine, precision: see `vapo_fast.engines`.
        progress: show a progress bar (needs rich).
        throw: raise `SolveError`, once all batches are done, if a sample failed; its ``.solution`` holds all states.
        return_solution: return the `Solution` of all samples instead of the tensor.
    Returns: (n, *event_shape), or the `Solution` with it as ``x``; not differentiable.
    Raises:
        SolveError: see ``throw``.
        UnsupportedJobError: the named engine cannot do this.
        TypeError, ValueError: bad argument, or a model with NaN parameters.
        MemoryError: not even one sample at a time fits.
    """
    solution = solve_samples(
        model,
        range(checks.positive_int("n", n)),
        Job("solve", precision, solve_options(method, rtol, atol, steps, max_steps)),
        t_end=t_end,
        seed=seed,
        batch_size=batch_size,
        engine=engine,
        progress=progress,
    )
    if throw:
        solution.raise_for_failures()
    return solution if return_solution else solution.x


def solve_samples(
    model: Potential,
    rows: range,
    job: Job,
    *,
    t_end: float | None,
    seed: int,
    batch_size: int | None,
    engine: str,
    progress: bool,
) -> Solution:
    """The solution of the samples with the consecutive numbers ``rows``; other arguments and errors as for `sample`."""
    check_model(model)
    end = end_time(model, t_end)
    dtype, device = model_dtype_device(model)
    chosen = choose(engine, model, device, dtype, job)
    noise.check_seed(seed)

    def start(first: int, last: int) -> Tensor:
        numbers = range(rows.start + first, rows.start + last)
        return model.homotopy.omega * noise.normal(seed, numbers, model.event_shape, dtype=dtype, device=device)

    return solve_in_batches(
        chosen, model, start, len(rows), model.homotopy.t0, end, job, batch_size=batch_size, progress=progress
    )


def interpolate(
    model: Potential,
    x_a: Tensor,
    x_b: Tensor,
    n: int,
    *,
    rtol: float = DEFAULT_RTOL,
    atol: float | None = None,
    method: str = "dopri5",
    steps: int | None = None,
    t_end: float | None = None,
    batch_size: int | None = None,
    engine: str = "auto",
    precision: str = "auto",
    throw: bool = True,
    max_steps: int = DEFAULT_MAX_STEPS,
) -> Tensor:
    """n points from x_a to x_b along the model: back to the prior, around the sphere there, forward again.

    Args:
        x_a, x_b: the ends, (*event_shape) or (B, *event_shape), in the model's dtype and on its device.
        n: number of points, ends included, at least 2. The first and last are x_a and x_b to the last bit.
        Others: as for `sample`; with ``throw=False`` a point that failed is where its integration stopped.
    Returns: (n, *event_shape), or (B, n, *event_shape) for batches.
    Raises: as `sample`.
    """
    check_model(model)
    if checks.positive_int("n", n) < 2:
        raise ValueError(f"n must be at least 2, as it counts both ends, got {n}")
    single = isinstance(x_a, Tensor) and tuple(x_a.shape) == model.event_shape
    if isinstance(x_a, Tensor) and isinstance(x_b, Tensor) and x_a.shape != x_b.shape:
        raise ValueError(f"x_a and x_b must have one shape, got {tuple(x_a.shape)} and {tuple(x_b.shape)}")
    ends = [check_events(model, name, x.unsqueeze(0) if single else x) for name, x in (("x_a", x_a), ("x_b", x_b))]
    end, start_time = end_time(model, t_end), model.homotopy.t0
    to_data = Job("solve", precision, solve_options(method, rtol, atol, steps, max_steps))
    to_noise = Job("solve", precision, solve_options(method, rtol, atol, steps, max_steps, TO_NOISE_SHARE))
    chosen = choose(engine, model, ends[0].device, ends[0].dtype, to_data)
    rows = ends[0].shape[0]

    def carry(x: Tensor, t_from: float, t_to: float, job: Job) -> Tensor:
        # x may be an inference tensor; the copy is made where autograd works.
        solution = solve_in_batches(
            chosen, model, lambda i, j: x[i:j].clone(), x.shape[0], t_from, t_to, job, batch_size=batch_size
        )
        return (solution.raise_for_failures() if throw else solution).x

    frames = [ends[0]]
    if n > 2:
        z_a, z_b = carry(torch.cat(ends).detach(), end, start_time, to_noise).reshape(2, rows, *model.event_shape)
        between = torch.stack([spherical(z_a, z_b, i / (n - 1)) for i in range(1, n - 1)])
        carried = carry(between.flatten(0, 1), start_time, end, to_data)
        frames += carried.reshape(n - 2, rows, *model.event_shape).unbind(0)
    frames.append(ends[1])
    result = torch.stack([frame.detach() for frame in frames], dim=1)
    return result[0] if single else result


def spherical(z_a: Tensor, z_b: Tensor, s: float) -> Tensor:
    """The point at fraction s in [0, 1] from z_a to z_b (B, *event): direction along a great circle, norm linear.

    ``((1 - s)|a| + s|b|) (cos(s angle) a/|a| + sin(s angle) w)``, w the unit vector orthogonal to a in their plane.
    Opposite points define no plane; the axis in which a is smallest then completes it. With a zero end, or in one
    dimension, the path is the straight line.
    """
    a, b = z_a.flatten(1), z_b.flatten(1)
    straight = (1.0 - s) * a + s * b
    if a.shape[1] == 1:
        return straight.reshape(z_a.shape)
    norm_a, norm_b = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    zero = (norm_a == 0) | (norm_b == 0)
    u, other = a / torch.where(zero, 1.0, norm_a), b / torch.where(zero, 1.0, norm_b)
    cosine = (u * other).sum(1, keepdim=True)
    w = other - cosine * u
    sine = w.norm(dim=1, keepdim=True)
    degenerate = sine < 16.0 * torch.finfo(a.dtype).eps
    axis = torch.zeros_like(u).scatter_(1, u.abs().argmin(dim=1, keepdim=True), 1.0)
    axis = axis - (axis * u).sum(1, keepdim=True) * u
    w = torch.where(degenerate, axis, w)
    w = w / w.norm(dim=1, keepdim=True).clamp_min(torch.finfo(a.dtype).tiny)
    angle = torch.atan2(sine, cosine)
    curved = ((1.0 - s) * norm_a + s * norm_b) * (torch.cos(s * angle) * u + torch.sin(s * angle) * w)
    return torch.where(zero, straight, curved).reshape(z_a.shape)
