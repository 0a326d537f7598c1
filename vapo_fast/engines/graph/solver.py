"""Whole solves by masked steps: chunks that fit in memory, smaller batches as samples end, results by number."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor

from vapo_fast.core.memory import or_none_if_out_of_memory
from vapo_fast.engines.graph.buckets import Buckets
from vapo_fast.engines.graph.launch import Launcher, Recorder
from vapo_fast.ode.masked_state import State
from vapo_fast.ode.masked_step import Field, Ops, Plan, TorchOps, attempt, begin
from vapo_fast.ode.options import SolveOptions
from vapo_fast.ode.settings import SETTINGS, numbers, settings
from vapo_fast.ode.solution import Solution

Progress = Callable[[int], None]


class Solver:
    """Solves with one plan and one kind of state; memory and recorded programs are kept from one to the next.

    Not for two threads at once. The field is given anew for every solve and must be the same function of the same
    memory each time: recordings read its parameters where they lie.

    Args:
        plan: what is part of the programs. buckets: the batch sizes. recorder: makes recordings.
        ops: the arithmetic between evaluations.
        around: a context in which each program runs, and is recorded.
    """

    def __init__(
        self,
        plan: Plan,
        buckets: Buckets,
        recorder: Recorder,
        ops: Ops | None = None,
        around: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.plan, self.buckets = plan, buckets
        self._around = around
        self._ops = TorchOps() if ops is None else ops
        self._recorder = recorder
        self._launcher = Launcher(recorder)
        self._state: State | None = None
        self._settings = torch.empty(0)

    @torch.no_grad()
    def solve(
        self,
        field: Field,
        x0: Tensor,
        t0: float,
        t1: float,
        options: SolveOptions,
        args: Sequence[Tensor] = (),
        progress: Progress | None = None,
    ) -> Solution:
        """`vapo_fast.ode.integrate`, for t0 != t1 and checked arguments.

        Where memory runs out, chunks are halved, for later solves too, with one warning.

        Raises: MemoryError if one sample does not fit.
        """
        n = x0.shape[0]
        results = _Results(x0, len(options.t_eval or ()))
        warned, done = False, 0
        with self._recorder.context():
            while done < n:
                rows = self.buckets.chunk(n - done)
                part = slice(done, done + rows)
                chunk = partial(
                    self._chunk,
                    field,
                    x0[part],
                    t0,
                    t1,
                    options,
                    [value[part] for value in args],
                    results,
                    done,
                    progress,
                )
                if or_none_if_out_of_memory(chunk) is not None:
                    done += rows
                    continue
                self._state = None
                self._launcher.forget()
                if rows == 1:
                    raise MemoryError("out of memory with one sample at a time")
                self.buckets = self.buckets.halved(rows)
                if not warned:
                    warnings.warn(
                        f"out of memory with {rows} samples at a time: going on with {self.buckets.limit}",
                        RuntimeWarning,
                        stacklevel=3,
                    )
                    warned = True
        return results.solution(n)

    def _chunk(
        self,
        field: Field,
        x0: Tensor,
        t0: float,
        t1: float,
        options: SolveOptions,
        args: Sequence[Tensor],
        results: _Results,
        first: int,
        progress: Progress | None,
    ) -> bool:
        n, plan = x0.shape[0], self.plan
        size = self.buckets.first(n)
        state = self._memory(size, x0, args).first(size)
        values = self._settings
        values.copy_(numbers(settings(options, t0, t1), values.device))
        state.load(x0, t0, options.t_eval or (), args, results.discard_row - first)
        state.row.add_(first)

        ended = 0

        def report(running: int) -> None:
            nonlocal ended
            ended = max(ended, n - running)
            if progress is not None:
                progress(first + ended)

        # What a key names is run on the same memory each time: rows are always the first ones.
        start = partial(self._inside, begin, field, state, values, plan)
        self._launcher.once(("begin", size), start)
        most = options.max_steps if plan.tableau.adaptive else options.steps or 0
        running = n
        while running > 0 and most > 0:
            step = partial(self._inside, attempt, field, state, values, plan, self._ops)
            stop_at = self.buckets.below(size)
            running, tried = self._launcher.until(("step", size), step, state.flags, stop_at, most, report)
            most -= tried
            smaller = self.buckets.fit(running, size)
            if running > 0 and smaller < size:
                results.put(state)
                size, state = smaller, state.compact(smaller)
        if running > 0:
            raise RuntimeError(f"{running} samples did not end in the largest number of steps")
        results.put(state)
        return True

    def _inside(self, program: Callable[..., None], *arguments: object) -> None:
        # What autocast keeps must not outlive the program: a recording would read it after it is freed.
        with self._around():
            program(*arguments)

    def _memory(self, rows: int, x0: Tensor, args: Sequence[Tensor]) -> State:
        """The state, larger than before if need be."""
        if self._state is None or self._state.rows < rows:
            self._launcher.forget()
            self._state = None  # before the new one is made, so that both need not fit
            self._state = State.allocate(rows, x0, self.plan.tableau, self.plan.outputs, args)
            self._settings = torch.zeros(len(SETTINGS), dtype=torch.float64, device=x0.device)
        return self._state


class _Results:
    """The whole batch, by sample number; one row more, for rows without a sample."""

    def __init__(self, x0: Tensor, outputs: int) -> None:
        rows = x0.shape[0] + 1
        self.discard_row = rows - 1
        self._x = x0.new_empty(rows, *x0.shape[1:])
        self._t = torch.empty(rows, dtype=torch.float64, device=x0.device)
        self._counts = tuple(torch.empty(rows, dtype=torch.int64, device=x0.device) for _ in range(4))
        self._ys = x0.new_empty(outputs, rows, *x0.shape[1:]) if outputs else None

    def put(self, state: State) -> None:
        """All rows of a state at their places; those that still run will be put again."""
        counts = (state.status, state.nfe, state.accepted, state.rejected)
        for whole, part in zip((self._x, self._t, *self._counts), (state.x, state.t, *counts), strict=True):
            whole.index_copy_(0, state.row, part)
        if self._ys is not None:
            self._ys.index_copy_(1, state.row, state.ys)

    def solution(self, n: int) -> Solution:
        """The first n rows, in memory of their own."""
        ys = None if self._ys is None else self._ys[:, :n].clone()
        status, nfe, accepted, rejected = (count[:n] for count in self._counts)
        return Solution(self._x[:n], self._t[:n], status, nfe, accepted, rejected, ys)
