"""What every job along a model's flow shares: checks of the model and its arguments, and batches that fit in memory."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from vapo_fast.core import checks
from vapo_fast.core.memory import free_memory, or_none_if_out_of_memory
from vapo_fast.core.modes import evaluation_mode
from vapo_fast.engines import Engine, Job
from vapo_fast.engines.base import COUNTS_BYTES, Progress, saved_bytes_per_sample
from vapo_fast.ode import PIController, Solution, SolveOptions
from vapo_fast.ode.tableaus import TABLEAUS
from vapo_fast.potentials.base import Potential, model_dtype_device

Result = TypeVar("Result")

# Share of the free memory that a default batch may use; the estimate behind it does not see a network's workspaces.
_MEMORY_SHARE = 0.4
# States, stages and temporaries that a step keeps for each sample.
_STATES_PER_SAMPLE = 24


def solve_in_batches(
    engine: Engine,
    model: Potential,
    start: Callable[[int, int], Tensor],
    n: int,
    t_from: float,
    t_to: float,
    job: Job,
    *,
    batch_size: int | None = None,
    progress: bool = False,
) -> Solution:
    """Solve n samples, as many at a time as fit; ``start(i, j)`` gives the states of samples i to j - 1."""

    _check_result_fits(model, n, 1 + len(job.solve.t_eval or ()))
    with evaluation(model), progress_bar("sampling", n, progress) as report:

        def solve(first: int, last: int) -> Solution:
            tell = None if report is None else lambda ended: report(first + ended)
            return engine.solve(model, start(first, last), t_from, t_to, job, tell)

        size = batch_size_for(engine, model, n, job) if batch_size is None else batch_size
        return Solution.concatenate(in_batches(solve, n, size, report))


def in_batches(
    compute: Callable[[int, int], Result], n: int, batch_size: int, report: Progress | None = None
) -> list[Result]:
    """``compute(i, j)`` for samples i to j - 1, for consecutive batches of all n; smaller ones when memory runs out.

    ``report`` is told after each batch how many samples are done.
    """
    size = checks.positive_int("batch_size", batch_size)
    parts: list[Result] = []
    done = 0
    while done < n:
        last = min(done + size, n)
        part = or_none_if_out_of_memory(partial(compute, done, last))
        if part is None:
            if last - done == 1:
                raise MemoryError(
                    f"out of memory with one sample at a time, after {done} of {n} samples; "
                    "use a smaller model or a machine with more memory"
                )
            size = max(1, (last - done) // 2)
            warnings.warn(f"out of memory: going on with batches of {size} samples", RuntimeWarning, stacklevel=4)
            continue
        parts.append(part)
        done = last
        if report is not None:
            report(done)
    return parts


def batch_size_for(engine: Engine, model: Potential, n: int, job: Job, probes: int = 0) -> int:
    """How many of n samples a share of the free memory holds, by what the engine or a trial says that one needs."""
    dtype, device = model_dtype_device(model)
    free = free_memory(device)
    if free is None:
        return n
    bytes_per_sample = engine.bytes_per_sample(model, dtype, job, probes)
    if bytes_per_sample is None:
        saved = or_none_if_out_of_memory(partial(saved_bytes_per_sample, model, dtype, device))
        if saved is None:
            return 1
        state = math.prod(model.event_shape) * dtype.itemsize
        bytes_per_sample = _STATES_PER_SAMPLE * state + 3 * saved
    return max(1, min(n, int(_MEMORY_SHARE * free / bytes_per_sample)))


def _check_result_fits(model: Potential, n: int, states: int) -> None:
    """MemoryError if n samples of so many states, and the copy that joins the batches, cannot be held."""
    dtype, device = model_dtype_device(model)
    free = free_memory(device)
    need = 2 * n * (states * math.prod(model.event_shape) * dtype.itemsize + COUNTS_BYTES)
    if free is not None and need > free:
        raise MemoryError(
            f"n={n} samples need about {need / 2**30:.3g} GiB and {free / 2**30:.3g} GiB are free on {device}; "
            "draw them in several calls (sample i depends on the seed and i only, so give each call its own seed)"
        )


@contextmanager
def evaluation(model: Potential) -> Iterator[None]:
    """Evaluation mode without gradients."""
    # In the caller's inference mode, tensors could not take part in the field's autograd.
    with evaluation_mode(model), torch.inference_mode(False), torch.no_grad():
        yield


# From the data to the noise, steps first have to be short and then meet bounds that move with them: the controller's
# memory saves rejections there. The other way it only holds steps back (docs/notes/performance.md).
TO_NOISE_SHARE = 0.2


def solve_options(
    method: str,
    rtol: float,
    atol: float | None,
    steps: int | None,
    max_steps: int,
    proportional_share: float = PIController.proportional_share,
) -> SolveOptions:
    """Options of a solve; what is for adaptive methods is left out for one with fixed steps."""
    checks.one_of("method", method, TABLEAUS)
    if TABLEAUS[method].adaptive:
        return SolveOptions(method, rtol, atol, steps, max_steps, proportional_share=proportional_share)
    return SolveOptions(method, steps=steps, max_steps=max_steps)


@contextmanager
def progress_bar(what: str, n: int, show: bool) -> Iterator[Progress | None]:
    """What to tell how many of n samples are done, to be shown; None if nothing is to be shown."""
    if not show:
        yield None
        return
    try:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError as error:
        raise ImportError("progress=True needs the package rich: pip install rich") from error
    with Progress(TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task(what, total=n)
        yield lambda done: bar.update(task, completed=done)
