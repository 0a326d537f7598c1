"""The two programs of a solve on the device: the first evaluations, and one attempted step of every row.

Both are masked: rows that have ended are computed with and not written. Neither waits for the host, changes a shape,
or decides anything by what is in memory, so that each can be recorded once and replayed. Their semantics, and for a
field that treats rows alike their very bits on the CPU, are those of `vapo_fast.ode.solve`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vapo_fast.ode.controller import Exponents, PIController
from vapo_fast.ode.masked_state import ROWS_WITH_MORE_STEPS, RUNNING, RUNNING_ROWS, State
from vapo_fast.ode.options import SolveOptions
from vapo_fast.ode.settings import SETTINGS
from vapo_fast.ode.solution import Status
from vapo_fast.ode.stages import (
    STRETCH,
    FirstStep,
    between,
    combine,
    error_ratio,
    expand,
    finite_rows,
    next_step,
    passed,
)
from vapo_fast.ode.tableaus import TABLEAUS, Tableau

Field = Callable[..., Tensor]
"""(x (R, *event), t (R,), *args) to (R, *event)."""

# Its exponents are among a solve's numbers, so that one recording serves all.
_CONTROLLER = PIController()
_PLACE = {name: i for i, name in enumerate(SETTINGS)}


@dataclass(frozen=True)
class Plan:
    """What of a solve is part of the program itself; all other numbers are read from memory (`SETTINGS`).

    Attributes:
        method: name of the tableau. outputs: number of output times.
        chooses_first_step: whether the first step size costs an evaluation.
    """

    method: str
    outputs: int = 0
    chooses_first_step: bool = True

    @staticmethod
    def of(options: SolveOptions) -> Plan:
        """The plan of a solve with these options."""
        return Plan(options.method, len(options.t_eval or ()), options.first_step is None)

    @property
    def tableau(self) -> Tableau:
        """The method's coefficients."""
        return TABLEAUS[self.method]

    @property
    def first_stage(self) -> int:
        """The first stage that a step evaluates: in an adaptive method the very first is kept from before."""
        return 1 if self.tableau.adaptive else 0


class Ops(Protocol):
    """The arithmetic of a step between two evaluations of the field."""

    def stage(self, state: State, settings: Tensor, plan: Plan, index: int) -> None:
        """Where and when stage ``index`` is evaluated, into ``state.point`` and ``state.time``.

        Before the first of a step the flags may be cleared.
        """

    def finish_step(self, state: State, settings: Tensor, plan: Plan) -> None:
        """The end of a step: error, decision, output times, counts, status, flags.

        Accepted states become the current ones.
        """


@torch.no_grad()
def begin(field: Field, state: State, settings: Tensor, plan: Plan) -> None:
    """Before the first step: looks at the start, evaluates the field there, chooses the step's size."""
    value = _reader(settings)
    _end(state, ~finite_rows(state.x), Status.NON_FINITE)
    if plan.tableau.adaptive:
        running = state.status == RUNNING
        state.time.copy_(state.t)
        f = state.stages[0]
        f.copy_(field(state.x, state.time, *state.args))
        state.nfe.add_(running)
        if plan.chooses_first_step:
            first = FirstStep(state.x, f, (value("rtol"), value("atol")), value("span"))
            state.point.copy_(first.probe(value("direction")))
            state.time.copy_(state.t + value("direction") * first.trial)
            at_probe = field(state.point, state.time, *state.args)
            state.h.copy_(first.size(at_probe, plan.tableau.error_order))
            state.nfe.add_(running)
        else:
            state.h.copy_(value("first_step").expand_as(state.h))
        _end(state, ~finite_rows(f), Status.NON_FINITE)
    _raise_flags(state, value, plan)


@torch.no_grad()
def attempt(field: Field, state: State, settings: Tensor, plan: Plan, ops: Ops) -> None:
    """One attempted step of every row that runs."""
    for index in range(plan.first_stage, plan.tableau.stages):
        ops.stage(state, settings, plan, index)
        state.stages[index].copy_(field(state.point, state.time, *state.args))
    ops.finish_step(state, settings, plan)


class TorchOps(Ops):
    """`Ops` in PyTorch, on any device: the definition that kernels are compared with."""

    def stage(self, state: State, settings: Tensor, plan: Plan, index: int) -> None:
        _, signed, _, _ = _try(state, settings, plan)
        tableau = plan.tableau
        if index == 0:
            state.point.copy_(state.x)
        else:
            width = expand(signed.to(state.x.dtype), state.x)
            state.point.copy_(state.x + width * combine(tableau.a[index - 1], state.stages[:index]))
        state.time.copy_(state.t + tableau.c[index] * signed)

    def finish_step(self, state: State, settings: Tensor, plan: Plan) -> None:
        value, tableau, x = _reader(settings), plan.tableau, state.x
        size, signed, t_new, last = _try(state, settings, plan)
        running = state.status == RUNNING
        if tableau.fsal:
            x_new = state.point
        else:
            x_new = x + expand(signed.to(x.dtype), x) * combine(tableau.b, state.stages)
        if tableau.adaptive:
            ratio = error_ratio(tableau, state.stages, x, x_new, size, (value("rtol"), value("atol")))
            accepted = running & _CONTROLLER.accepts(ratio)
            exponents = Exponents(*map(value, ("accepted_exponent", "previous_exponent", "rejected_exponent")))
            factor = _CONTROLLER.factor(ratio, state.previous_ratio, state.after_rejection != 0, exponents)
            h_next = size * factor
            state.previous_ratio.copy_(
                torch.where(running, _CONTROLLER.remember(ratio, state.previous_ratio), state.previous_ratio)
            )
            hopeless = ~accepted & (h_next < value("smallest_step"))
        else:
            accepted = running & finite_rows(x_new)
            h_next = size
        rejected = running & ~accepted
        for k in range(plan.outputs):
            time = state.times[k]
            due = accepted & passed(time, state.t, t_new)
            y = between(tableau, state.stages, x, x_new, signed, state.t, t_new, time)
            state.ys[k].copy_(torch.where(expand(due, y), y, state.ys[k]))
        state.nfe.add_(running * (tableau.stages - plan.first_stage))
        state.accepted.add_(accepted)
        state.rejected.add_(rejected)
        x.copy_(torch.where(expand(accepted, x), x_new, x))
        state.t.copy_(torch.where(accepted, t_new, state.t))
        _end(state, accepted & last, Status.SUCCESS)
        if tableau.adaptive:
            f = state.stages[0]
            f.copy_(torch.where(expand(accepted, x), state.stages[-1], f))
            state.h.copy_(torch.where(running, h_next, state.h))
            state.after_rejection.copy_(torch.where(running, ~accepted, state.after_rejection != 0))
            _end(state, hopeless & torch.isfinite(ratio), Status.STEP_TOO_SMALL)
            _end(state, hopeless & ~torch.isfinite(ratio), Status.NON_FINITE)
            _end(state, state.accepted + state.rejected >= value("max_steps"), Status.MAX_STEPS)
        else:
            _end(state, rejected, Status.NON_FINITE)
        _raise_flags(state, value, plan)


def _reader(settings: Tensor) -> Callable[[str], Tensor]:
    """0-dim float64 numbers of `SETTINGS` by name."""
    return lambda name: settings[_PLACE[name]]


def _try(state: State, settings: Tensor, plan: Plan) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The step that each row is at: its size and signed size, its end, and whether that is the end of the solve."""
    value = _reader(settings)
    if plan.tableau.adaptive:
        size, t_new, last = next_step(state.t, state.h, value("t1"), value("direction"))
        return size, value("direction") * size, t_new, last
    done, steps = state.accepted.to(torch.float64), value("steps")
    last = done + 1.0 >= steps
    span = value("t1") - value("t0")
    t_new = torch.where(last, value("t1"), value("t0") + span * ((done + 1.0) / steps))
    signed = t_new - (value("t0") + span * (done / steps))
    return signed, signed, t_new, last


def _end(state: State, which: Tensor, status: Status) -> None:
    """Rows that run and are marked end so."""
    ended = (state.status == RUNNING) & which
    state.status.copy_(torch.where(ended, int(status), state.status))


def _raise_flags(state: State, value: Callable[[str], Tensor], plan: Plan) -> None:
    running = state.status == RUNNING
    if plan.tableau.adaptive:
        last = state.h * STRETCH >= (value("t1") - state.t).abs()
    else:
        last = state.accepted + 1 >= value("steps")
    state.flags[RUNNING_ROWS].copy_(running.sum())
    state.flags[ROWS_WITH_MORE_STEPS].copy_((running & ~last).sum())
