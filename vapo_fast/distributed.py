"""Several processes at one job, under its public name: `vapo_fast.core.processes`, and samples drawn in shares."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from vapo_fast.core import checks
from vapo_fast.core.processes import (
    ProcessFailedError,
    World,
    communicable,
    copy_from_first,
    from_first,
    launched,
    process_group,
    process_number,
    raise_failures,
    together,
    told_failures,
    world,
)
from vapo_fast.engines import Job
from vapo_fast.ode import Solution
from vapo_fast.ode.options import DEFAULT_MAX_STEPS, DEFAULT_RTOL
from vapo_fast.potentials.base import Potential
from vapo_fast.sampling.batching import solve_options
from vapo_fast.sampling.sample import solve_samples

__all__ = [
    "ProcessFailedError",
    "World",
    "copy_from_first",
    "from_first",
    "launched",
    "process_group",
    "process_number",
    "raise_failures",
    "sample",
    "together",
    "told_failures",
    "world",
]


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
    """`vapo_fast.sample`, each process drawing its share; every process gets all samples.

    Sample i depends on (seed, i) alone, so that the result is that of one process. With an engine whose rows have the
    same bits in any batch (native, triton) it is the same to the last bit; with the others, whose libraries choose
    kernels by shape, it is if ``batch_size`` is given (processes take whole batches of it), else within the tolerance.

    Args: as for `vapo_fast.sample`, alike on every process; the model's weights too. ``progress`` shows process 0's.
    Returns: as `vapo_fast.sample`.
    Raises: as `vapo_fast.sample`, `SolveError` with the solution of all samples on every process; ProcessFailedError
        if another process failed.
    """
    here = world()
    checks.positive_int("n", n)
    unit = 1 if batch_size is None else checks.positive_int("batch_size", batch_size)
    rows = here.share(n, unit)

    def draw(rows: range) -> Solution:
        return solve_samples(
            model,
            rows,
            Job("solve", precision, solve_options(method, rtol, atol, steps, max_steps)),
            t_end=t_end,
            seed=seed,
            batch_size=batch_size,
            engine=engine,
            progress=progress and here.is_first,
        )

    # A process without samples of its own still checks the arguments, and learns what a solution looks like.
    solution = together(lambda: draw(rows or range(1)))
    if here.size > 1:
        solution = _gathered(solution, [World(rank, here.size).share(n, unit) for rank in range(here.size)])
    if throw:
        solution.raise_for_failures()
    return solution if return_solution else solution.x


def _gathered(own: Solution, shares: list[range]) -> Solution:
    """The solution of all samples, of which each process has those in its share."""
    rank, n = world().rank, shares[-1].stop
    joined: dict[str, Any] = {}
    for field in dataclasses.fields(Solution):
        value = getattr(own, field.name)
        if not isinstance(value, Tensor):
            joined[field.name] = value
            continue
        rows_at = 1 if field.name == "ys" else 0
        value = value.transpose(0, rows_at)
        host = communicable(value)
        whole = torch.empty((n, *host.shape[1:]), dtype=host.dtype, device=host.device)
        whole[shares[rank].start : shares[rank].stop] = host[: len(shares[rank])]
        for source, share in enumerate(shares):
            if share:
                dist.broadcast(whole[share.start : share.stop], src=source)
        joined[field.name] = whole.to(value.device).transpose(0, rows_at).contiguous()
    return Solution(**joined)
