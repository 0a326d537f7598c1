"""How to solve: the method, its tolerances and limits, checked once for every engine."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from vapo_fast.core import checks
from vapo_fast.ode.controller import PIController
from vapo_fast.ode.tableaus import TABLEAUS, Tableau

DEFAULT_RTOL = 1e-5
DEFAULT_MAX_STEPS = 10_000


@dataclass(frozen=True)
class SolveOptions:
    """Arguments of `vapo_fast.ode.solve` that say how; see there for what each means.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value, or does not go with the method.
    """

    method: str = "dopri5"
    rtol: float | None = None
    atol: float | None = None
    steps: int | None = None
    max_steps: int = DEFAULT_MAX_STEPS
    first_step: float | None = None
    proportional_share: float = PIController.proportional_share
    t_eval: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        checks.one_of("method", self.method, TABLEAUS)
        checks.positive_int("max_steps", self.max_steps)
        share = checks.non_negative_float("proportional_share", self.proportional_share)
        if share >= 1.0:
            raise ValueError(f"proportional_share must be at least 0 and below 1, got {share:g}")
        object.__setattr__(self, "proportional_share", share)
        if self.tableau.adaptive:
            if self.steps is not None:
                raise ValueError(
                    f"steps={self.steps!r} does not go with method={self.method!r}, which chooses its own steps; "
                    f"give rtol and atol, or a fixed-step method ({_methods(adaptive=False)})"
                )
            rtol = checks.positive_float("rtol", DEFAULT_RTOL if self.rtol is None else self.rtol)
            atol = rtol if self.atol is None else checks.non_negative_float("atol", self.atol)
            object.__setattr__(self, "rtol", rtol)
            object.__setattr__(self, "atol", atol)
            if self.first_step is not None:
                checks.positive_float("first_step", self.first_step)
            return
        if self.steps is None:
            raise ValueError(
                f"steps is required by the fixed-step method {self.method!r}: how many equal steps to take"
            )
        checks.positive_int("steps", self.steps)
        for name in ("rtol", "atol", "first_step", "proportional_share"):
            if getattr(self, name) not in (None, PIController.proportional_share):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} does not go with the fixed-step method {self.method!r}, which "
                    f"estimates no error; give steps, or an adaptive method ({_methods(adaptive=True)})"
                )

    @property
    def tableau(self) -> Tableau:
        """The method's coefficients."""
        return TABLEAUS[self.method]

    @property
    def controller(self) -> PIController:
        """Chooses the steps of an adaptive method."""
        return PIController(self.proportional_share)

    @property
    def tolerances(self) -> tuple[float, float]:
        """(rtol, atol) of an adaptive method."""
        if self.rtol is None or self.atol is None:
            raise ValueError(f"the fixed-step method {self.method!r} has no tolerances")
        return self.rtol, self.atol

    def check_dtype(self, dtype: torch.dtype) -> None:
        """ValueError if the tolerances ask for more than ``dtype`` can hold."""
        if not self.tableau.adaptive:
            return
        rtol, atol = self.tolerances
        floor = 4.0 * torch.finfo(dtype).eps
        if rtol < floor and atol < floor:
            raise ValueError(
                f"rtol={rtol:g} and atol={atol:g} are both below {floor:.2g}, four units in the last place of {dtype}; "
                "raise one of them or use float64"
            )

    def check_times(self, t0: float, t1: float) -> None:
        """ValueError if ``t_eval`` is not ordered from t0 to t1 inside the interval."""
        if self.t_eval is None:
            return
        direction = 1.0 if t1 >= t0 else -1.0
        ordered = (t0, *self.t_eval, t1)
        for i, (before, after) in enumerate(pairwise(ordered)):
            if not direction * (after - before) >= 0.0:
                raise ValueError(
                    f"t_eval must be ordered from t0={t0:g} to t1={t1:g} and stay between them, but {before:g} is "
                    f"followed by {after:g} at position {i}"
                )


def times_of(t_eval: object, name: str = "t_eval") -> tuple[float, ...] | None:
    """``t_eval`` (None, a 1-D tensor or a sequence of numbers) as a tuple of floats; TypeError/ValueError otherwise."""
    if t_eval is None:
        return None
    if isinstance(t_eval, Tensor):
        if t_eval.dim() != 1:
            raise ValueError(f"{name} must have one dimension, got shape {tuple(t_eval.shape)}")
        t_eval = t_eval.tolist()
    if not isinstance(t_eval, (list, tuple)):
        raise TypeError(f"{name} must be a 1-D tensor or a sequence of numbers, got {type(t_eval).__name__}")
    if not t_eval:
        raise ValueError(f"{name} must hold at least one time; leave it out for the default")
    return tuple(checks.finite_float(f"each time in {name}", value) for value in t_eval)


def _methods(*, adaptive: bool) -> str:
    return ", ".join(name for name, tableau in TABLEAUS.items() if tableau.adaptive == adaptive)
