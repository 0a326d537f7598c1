"""Explicit Runge-Kutta integration of a batch, with step sizes, times and outcomes per sample.

What other engines repeat:

- **Time is float64 per sample**, whatever the state's dtype; the field is shown t rounded to the state's dtype. In
  float32 a sum of steps near t = 9 would drift by half of 1e-6 at each step, and one number per sample costs nothing.
- **Everything of the state's size is in the state's dtype**: stages ``x + h (a_1 k_1 + a_2 k_2 + ...)``, summed left to
  right without zero coefficients; the error ratio; its sum over the event folded in halves (`row_rms`).
- **The controller is float64** from correctly rounded operations (`controller`).

So for a field that treats rows alike, a row's result has the same bits in any batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vapo_fast.core import checks
from vapo_fast.ode.options import DEFAULT_MAX_STEPS, SolveOptions, times_of
from vapo_fast.ode.solution import Solution, Status
from vapo_fast.ode.stages import (
    SMALLEST_STEP_ULPS,
    FirstStep,
    between,
    combine,
    error_ratio,
    expand,
    finite_rows,
    next_step,
    passed,
    row_rms,
)
from vapo_fast.ode.tableaus import Tableau

__all__ = ["Field", "check_state", "checked", "error_ratio", "integrate", "row_rms", "solve"]

Field = Callable[..., Tensor]

# A row that has not ended carries the status it will have if the steps run out.
_UNFINISHED = Status.MAX_STEPS


def solve(
    field: Field,
    x0: Tensor,
    t0: float,
    t1: float,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    method: str = "dopri5",
    steps: int | None = None,
    max_steps: int = DEFAULT_MAX_STEPS,
    t_eval: Tensor | Sequence[float] | None = None,
    first_step: float | None = None,
    proportional_share: float = 0.0,
    args: Sequence[Tensor] = (),
    throw: bool = True,
) -> Solution:
    """Integrate ``dx/dt = field(x, t)`` from t0 to t1 (either direction), each sample with its own steps.

    A step is accepted if the root mean square of ``error / (atol + rtol max(|x|, |x_new|))`` over the event is at most
    1. Samples that have ended are left out of the field's batch. One number is read from the device per step. The
    result is not differentiable.

    Args:
        field: maps x (n, *event), t (n,) and rows of ``args`` to (n, *event); n shrinks as samples end.
        x0: (B, *event), float32 or float64.
        t0, t1: start and end time. Equal times return x0.
        rtol, atol: tolerances of the adaptive methods (default 1e-5; atol defaults to rtol).
        method: dopri5, tsit5, bosh3 (adaptive); heun, rk4, euler (fixed step).
        steps: number of equal steps of a fixed-step method.
        max_steps: most steps, accepted and rejected together, that an adaptive method may try per sample.
        t_eval: times, ordered from t0 to t1, at which to return the state too. It does not change the steps: values
            come from the method's continuous extension (order 4 for dopri5 and tsit5, 3 for bosh3 and rk4, 2 heun, 1
            euler).
        first_step: first step size of an adaptive method; default: chosen per sample, for one more evaluation.
        proportional_share: in [0, 1), how much the step controller of an adaptive method remembers (`PIController`).
            0 lets steps grow fastest, as from the noise to the data; 0.2 saves rejections where they have to shrink.
        args: tensors (B, ...), constants of each sample that the field is given after t.
        throw: raise `SolveError` at the end if a sample failed; False returns the solution as it is.
    Returns: `Solution`. A sample that fails keeps its last accepted state and does not touch the others.
    Raises:
        SolveError: some samples failed and throw is true.
        TypeError, ValueError: a bad argument, or a field whose result has the wrong shape, dtype or device.
    """
    options = SolveOptions(method, rtol, atol, steps, max_steps, first_step, proportional_share, times_of(t_eval))
    if isinstance(x0, Tensor) and x0.requires_grad and torch.is_grad_enabled():
        raise ValueError("x0 requires grad, but a solve is not differentiable; pass x0.detach()")
    solution = integrate(field, x0, t0, t1, options, args)
    return solution.raise_for_failures() if throw else solution


@torch.no_grad()
def integrate(
    field: Field,
    x0: Tensor,
    t0: float,
    t1: float,
    options: SolveOptions,
    args: Sequence[Tensor] = (),
    progress: Callable[[int], None] | None = None,
) -> Solution:
    """`solve` with its options in one object; never raises for samples that fail.

    ``progress`` is told how many samples have ended whenever some have.
    """
    start, stop = checks.finite_float("t0", t0), checks.finite_float("t1", t1)
    check_state(x0, args)
    options.check_dtype(x0.dtype)
    options.check_times(start, stop)
    results = _Results(x0, start, stop, options, progress)
    live = _Live.begin(x0, start, tuple(args))
    live = results.retire_finished(live.ended(~finite_rows(x0), Status.NON_FINITE))
    if start == stop:
        return results.finish(live, Status.SUCCESS)
    shown = checked(field)
    if options.tableau.adaptive:
        return _integrate_adaptive(shown, live, results, options)
    return _integrate_fixed(shown, live, results, options)


def _integrate_adaptive(field: Field, live: _Live, results: _Results, options: SolveOptions) -> Solution:
    tableau, span = options.tableau, abs(results.t1 - results.t0)
    direction = 1.0 if results.t1 > results.t0 else -1.0
    smallest_step = SMALLEST_STEP_ULPS * torch.finfo(torch.float64).eps * max(abs(results.t0), abs(results.t1))
    controller = options.controller
    exponents = controller.exponents(tableau.error_order)
    if live.count:
        live = replace(live, f=field(live.x, live.t, *live.args), nfe=live.nfe + 1)
        live = _with_first_step(field, live, options, direction, span)
        live = results.retire_finished(live.ended(~finite_rows(live.f), Status.NON_FINITE))
    for _ in range(options.max_steps):
        if live.count == 0:
            break
        h, t_new, last = next_step(live.t, live.h, results.t1, direction)
        x_new, stages = _step(tableau, field, live, direction * h)
        ratio = error_ratio(tableau, stages, live.x, x_new, h, options.tolerances)
        accepted = controller.accepts(ratio)
        step = _Step(live, accepted, t_new, x_new, direction * h, stages)
        h_next = h * controller.factor(ratio, live.previous_ratio, live.after_rejection, exponents)
        live = replace(
            live,
            x=torch.where(expand(accepted, x_new), x_new, live.x),
            f=torch.where(expand(accepted, x_new), stages[-1], live.f),
            t=torch.where(accepted, t_new, live.t),
            h=h_next,
            previous_ratio=controller.remember(ratio, live.previous_ratio),
            after_rejection=~accepted,
            nfe=live.nfe + (tableau.stages - 1),
            accepted=live.accepted + accepted,
            rejected=live.rejected + ~accepted,
        )
        live = live.ended(accepted & last, Status.SUCCESS)
        hopeless = ~accepted & (h_next < smallest_step)
        live = live.ended(hopeless & torch.isfinite(ratio), Status.STEP_TOO_SMALL)
        live = live.ended(hopeless & ~torch.isfinite(ratio), Status.NON_FINITE)
        live = results.retire_finished(live, step)
    return results.finish(live, Status.MAX_STEPS)


def _integrate_fixed(field: Field, live: _Live, results: _Results, options: SolveOptions) -> Solution:
    tableau, steps = options.tableau, options.steps or 0
    for i in range(steps):
        if live.count == 0:
            break
        t = results.t0 + (results.t1 - results.t0) * (i / steps)
        t_end = results.t1 if i == steps - 1 else results.t0 + (results.t1 - results.t0) * ((i + 1) / steps)
        live = replace(live, f=field(live.x, live.t, *live.args))
        h = torch.full_like(live.t, t_end - t)
        x_new, stages = _step(tableau, field, live, h)
        accepted = finite_rows(x_new)
        t_new = torch.full_like(live.t, t_end)
        step = _Step(live, accepted, t_new, x_new, h, stages)
        live = replace(
            live,
            x=torch.where(expand(accepted, x_new), x_new, live.x),
            t=torch.where(accepted, t_new, live.t),
            nfe=live.nfe + tableau.stages,
            accepted=live.accepted + accepted,
            rejected=live.rejected + ~accepted,
        )
        live = results.retire_finished(live.ended(~accepted, Status.NON_FINITE), step)
    return results.finish(live, Status.SUCCESS)


def _step(tableau: Tableau, field: Field, live: _Live, h: Tensor) -> tuple[Tensor, list[Tensor]]:
    """One step of signed size h (n,) from ``live``, whose f is the first stage: the new state and all stages."""
    width = expand(h.to(live.x.dtype), live.x)
    stages = [live.f]
    point = live.x
    for weights, node in zip(tableau.a, tableau.c[1:], strict=True):
        point = live.x + width * combine(weights, stages)
        stages.append(field(point, live.t + node * h, *live.args))
    # With fsal the last point was the new state.
    return (point if tableau.fsal else live.x + width * combine(tableau.b, stages)), stages


def _with_first_step(field: Field, live: _Live, options: SolveOptions, direction: float, span: float) -> _Live:
    if options.first_step is not None:
        return replace(live, h=torch.full_like(live.t, min(options.first_step, span)))
    first = FirstStep(live.x, live.f, options.tolerances, span)
    at_probe = field(first.probe(direction), live.t + direction * first.trial, *live.args)
    return replace(live, h=first.size(at_probe, options.tableau.error_order), nfe=live.nfe + 1)


def _read(*counts: Tensor) -> list[int]:
    """Bring counts to the host: the only place where a solve waits for the device."""
    return [int(count) for count in torch.stack(counts).tolist()]


@dataclass(frozen=True)
class _Live:
    """The samples still being integrated; every tensor has one row for each."""

    row: Tensor
    x: Tensor
    f: Tensor
    t: Tensor
    h: Tensor
    previous_ratio: Tensor
    after_rejection: Tensor
    status: Tensor
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    args: tuple[Tensor, ...]

    @staticmethod
    def begin(x0: Tensor, t0: float, args: tuple[Tensor, ...]) -> _Live:
        row = torch.arange(x0.shape[0], device=x0.device)
        ones = torch.ones(x0.shape[0], dtype=torch.float64, device=x0.device)
        zeros = torch.zeros_like(row)
        unfinished = torch.full_like(row, _UNFINISHED)
        return _Live(row, x0, x0, t0 * ones, ones, ones, zeros > 0, unfinished, zeros, zeros, zeros, args)

    @property
    def count(self) -> int:
        return self.row.shape[0]

    def ended(self, which: Tensor, status: Status) -> _Live:
        return replace(self, status=torch.where(which, int(status), self.status))

    def take(self, keep: Tensor) -> _Live:
        values = {name: value[keep] for name, value in vars(self).items() if name != "args"}
        return _Live(**values, args=tuple(value[keep] for value in self.args))


@dataclass(frozen=True)
class _Step:
    """A step tried from ``before``: which rows accepted it, where it led, its signed size and its stages."""

    before: _Live
    accepted: Tensor
    t_new: Tensor
    x_new: Tensor
    h: Tensor
    stages: list[Tensor]

    def due(self, times: Tensor) -> Tensor:
        """(n, m) bool: which of the m output times this step passed; each belongs to exactly one accepted step."""
        return passed(times, self.before.t[:, None], self.t_new[:, None]) & self.accepted[:, None]

    def state_at(self, rows: Tensor, times: Tensor, tableau: Tableau) -> Tensor:
        """The continuous extension at one time for each given row."""
        before, stages = self.before, [stage[rows] for stage in self.stages]
        clock = self.h[rows], before.t[rows], self.t_new[rows]
        return between(tableau, stages, before.x[rows], self.x_new[rows], *clock, times)


class _Results:
    """The whole batch: where samples are put when they end, and their states at ``t_eval``."""

    def __init__(
        self, x0: Tensor, t0: float, t1: float, options: SolveOptions, progress: Callable[[int], None] | None
    ) -> None:
        self.t0, self.t1, self._tableau, self._progress = t0, t1, options.tableau, progress
        rows = x0.shape[0]
        self._x = x0.clone()
        self._t = torch.full((rows,), t0, dtype=torch.float64, device=x0.device)
        self._status, self._nfe, self._accepted, self._rejected = (
            torch.zeros(rows, dtype=torch.int64, device=x0.device) for _ in range(4)
        )
        self._ys: Tensor | None = None
        self._times = torch.empty(0)
        if options.t_eval is not None:
            self._times = torch.tensor(options.t_eval, dtype=torch.float64, device=x0.device)
            self._ys = x0.new_full((len(options.t_eval), *x0.shape), torch.nan)
            for i, time in enumerate(options.t_eval):
                if time == t0:
                    self._ys[i] = x0

    def retire_finished(self, live: _Live, step: _Step | None = None) -> _Live:
        """Write the outputs that ``step`` passed, put away the rows that ended, and return the others."""
        running = live.status == _UNFINISHED
        if self._ys is None or step is None:
            (still,) = _read(running.sum())
        else:
            due = step.due(self._times)
            still, outputs = _read(running.sum(), due.sum())
            # The sizes are known by now, so finding the places needs no further wait for the device.
            rows, columns = torch.nonzero_static(due, size=outputs).unbind(1)
            self._ys[columns, step.before.row[rows]] = step.state_at(rows, self._times[columns], self._tableau)
        if still == live.count:
            return live
        self._put(live, live.status)
        self._tell(still)
        return live.take(torch.nonzero_static(running, size=still).flatten())

    def finish(self, live: _Live, status: Status) -> Solution:
        """Put away the rows that are left, with ``status``, and hand out the result."""
        self._put(live, torch.full_like(live.status, int(status)))
        if live.count:
            self._tell(0)
        return Solution(self._x, self._t, self._status, self._nfe, self._accepted, self._rejected, self._ys)

    def _tell(self, running: int) -> None:
        if self._progress is not None:
            self._progress(len(self._x) - running)

    def _put(self, live: _Live, status: Tensor) -> None:
        # All rows are written, running ones too: they will be written again, and a selection would wait for the device.
        for whole, part in (
            (self._x, live.x),
            (self._t, live.t),
            (self._status, status),
            (self._nfe, live.nfe),
            (self._accepted, live.accepted),
            (self._rejected, live.rejected),
        ):
            whole[live.row] = part


def checked(field: Field) -> Field:
    """``field`` shown times in the state's dtype, its result held to the state's shape, dtype and device."""

    def evaluate(x: Tensor, t: Tensor, *args: Tensor) -> Tensor:
        value: object = field(x, t.to(x.dtype), *args)
        if not isinstance(value, Tensor):
            raise TypeError(
                f"field must return a tensor of the shape of x, {tuple(x.shape)}, got {type(value).__name__}"
            )
        if value.shape != x.shape:
            raise ValueError(f"field must return the shape of x, {tuple(x.shape)}, got {tuple(value.shape)}")
        if value.dtype != x.dtype:
            raise TypeError(f"field must return the dtype of x, {x.dtype}, got {value.dtype}")
        if value.device != x.device:
            raise ValueError(f"field must return a tensor on the device of x, {x.device}, got {value.device}")
        return value

    return evaluate


def check_state(x0: Tensor, args: Sequence[Tensor]) -> None:
    """TypeError or ValueError unless x0 is a batch of states and ``args`` have its rows."""
    if not isinstance(x0, Tensor):
        raise TypeError(f"x0 must be a torch.Tensor of shape (B, *event), got {type(x0).__name__}")
    if x0.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x0 must be float32 or float64, got {x0.dtype}; convert with .float() or .double()")
    if x0.dim() < 1 or x0.numel() == 0:
        raise ValueError(f"x0 must have shape (B, *event) with at least one sample and element, got {tuple(x0.shape)}")
    for i, value in enumerate(args):
        if not isinstance(value, Tensor) or value.dim() < 1 or value.shape[0] != x0.shape[0]:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"args[{i}] must be a tensor with one row for each of the {x0.shape[0]} samples, got {got}"
            )
