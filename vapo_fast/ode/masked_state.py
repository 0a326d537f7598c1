"""Everything that a step of a batch reads and writes, in memory that stays where it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from vapo_fast.ode.settings import numbers
from vapo_fast.ode.tableaus import Tableau

RUNNING = -1
"""The status of a sample that has not ended; others are `vapo_fast.Status`."""
RUNNING_ROWS, ROWS_WITH_MORE_STEPS = 0, 1
"""Places in `State.flags`."""


@dataclass(frozen=True)
class State:
    """Rows of samples; a batch of fewer rows is the first rows of the same memory.

    Attributes:
        x: (R, *event) states. point: where the field is evaluated; after the last stage, the new state.
        stages: s tensors like x, one after the other in memory. In an adaptive method the first is the field at x, kept
            from step to step.
        time: (R,) in x's dtype: the time that the field is shown.
        t, h, previous_ratio: (R,) float64: time, size of the next step, error ratio of the last accepted one.
        after_rejection, status, nfe, accepted, rejected: (R,) int64.
        row: (R,) int64, the sample's number in the result.
        flags: (2,) int64, after a step: how many rows run; how many of them will not end with the next step.
        ys: (m, R, *event) states at the output times; no memory if there are none.
        times: (m,) float64 output times.
        args: tensors (R, ...), constants of each sample.
    """

    x: Tensor
    point: Tensor
    stages: tuple[Tensor, ...]
    time: Tensor
    t: Tensor
    h: Tensor
    previous_ratio: Tensor
    after_rejection: Tensor
    status: Tensor
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    row: Tensor
    flags: Tensor
    ys: Tensor
    times: Tensor
    args: tuple[Tensor, ...]

    @staticmethod
    def allocate(rows: int, like: Tensor, tableau: Tableau, outputs: int, args: Sequence[Tensor]) -> State:
        """Memory for so many rows like those of ``like`` (B, *event) and ``args``; nothing in it runs.

        Images lie in channels-last memory, as convolutions read them; the order within a row means nothing here.
        """
        device = like.device
        layout = torch.channels_last if like.dim() == 4 else torch.contiguous_format

        def states() -> Tensor:
            return _states(rows, like, layout)

        def clock() -> Tensor:
            return torch.zeros(rows, dtype=torch.float64, device=device)

        def counts() -> Tensor:
            return torch.zeros(rows, dtype=torch.int64, device=device)

        stages = _states(tableau.stages * rows, like, layout)
        return State(
            x=states(),
            point=states(),
            stages=tuple(stages[i * rows : (i + 1) * rows] for i in range(tableau.stages)),
            time=torch.zeros(rows, dtype=like.dtype, device=device),
            t=clock(),
            h=clock(),
            previous_ratio=clock(),
            after_rejection=counts(),
            status=counts(),
            nfe=counts(),
            accepted=counts(),
            rejected=counts(),
            row=counts(),
            flags=torch.zeros(2, dtype=torch.int64, device=device),
            ys=_states(outputs * rows, like, layout).reshape(outputs, rows, *like.shape[1:]),
            times=torch.zeros(outputs, dtype=torch.float64, device=device),
            args=tuple(value.new_zeros(rows, *value.shape[1:]) for value in args),
        )

    @property
    def rows(self) -> int:
        """R."""
        return self.x.shape[0]

    def first(self, rows: int) -> State:
        """The first rows, in the same memory."""
        if rows == self.rows:
            return self
        cut = {f.name: getattr(self, f.name) for f in fields(State)}
        for name in (*_MOVING, "point", "time"):
            cut[name] = cut[name][:rows]
        cut["stages"] = tuple(stage[:rows] for stage in self.stages)
        cut["args"] = tuple(value[:rows] for value in self.args)
        cut["ys"] = self.ys[:, :rows]
        return replace(self, **cut)

    def load(self, x0: Tensor, t0: float, outputs: Sequence[float], args: Sequence[Tensor], discard_row: int) -> None:
        """Samples before their first step, in the first rows; the others have ended, with number ``discard_row``."""
        n = x0.shape[0]
        self.x[:n].copy_(x0)
        self.x[n:].zero_()
        self.stages[0].zero_()
        for mine, given in zip(self.args, args, strict=True):
            mine[:n].copy_(given)
        self.t.fill_(t0)
        self.h.fill_(1.0)
        self.previous_ratio.fill_(1.0)
        for counts in (self.after_rejection, self.nfe, self.accepted, self.rejected):
            counts.zero_()
        self.status[:n].fill_(RUNNING)
        self.status[n:].zero_()
        self.row[:n].copy_(torch.arange(n, device=self.row.device))
        self.row[n:].fill_(discard_row)
        self.flags[RUNNING_ROWS].fill_(n)
        self.flags[ROWS_WITH_MORE_STEPS].zero_()
        if outputs:
            self.times.copy_(numbers(list(outputs), self.times.device))
            self.ys.fill_(torch.nan)
            self.ys[: sum(time == t0 for time in outputs), :n] = x0

    def compact(self, rows: int) -> State:
        """The first ``rows`` rows, which now hold all that run, and as many of the others as there is room for.

        Rows keep their order. The host does not wait for the device; how many run must be known to fit.
        """
        # Rows that run first, in their order, then some that have ended: those are in the result, and stay as they are.
        order = torch.argsort((self.status != RUNNING).to(torch.int8), stable=True)[:rows]
        for value in (*(getattr(self, name) for name in _MOVING), self.stages[0], *self.args):
            value[:rows].copy_(value.index_select(0, order))
        if self.ys.shape[0]:
            self.ys[:, :rows].copy_(self.ys.index_select(1, order))
        return self.first(rows)


_MOVING = ("x", "t", "h", "previous_ratio", "after_rejection", "status", "nfe", "accepted", "rejected", "row")


def _states(count: int, like: Tensor, layout: torch.memory_format) -> Tensor:
    # Zeros, so that what a field makes of rows that hold no sample is harmless.
    return torch.empty((count, *like.shape[1:]), dtype=like.dtype, device=like.device, memory_format=layout).zero_()
