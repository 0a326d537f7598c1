"""A solve's numbers in the order in which programs on a device read them: interval, tolerances, limits, controller."""

from __future__ import annotations

import torch
from torch import Tensor

from vapo_fast.core.transfer import to_device
from vapo_fast.ode.options import SolveOptions
from vapo_fast.ode.stages import SMALLEST_STEP_ULPS

SETTINGS = (
    "t0",
    "t1",
    "span",
    "direction",
    "smallest_step",
    "rtol",
    "atol",
    "first_step",
    "max_steps",
    "steps",
    "first_output",
    "accepted_exponent",
    "previous_exponent",
    "rejected_exponent",
    "error_order_inverse",
)
"""Order of the numbers that `settings` gives. ``first_step`` is 0 if it is to be chosen; ``first_output`` is the number
of output times that are t0 itself."""


def settings(options: SolveOptions, t0: float, t1: float) -> list[float]:
    """The numbers of `SETTINGS`."""
    order = options.tableau.error_order
    exponents = options.controller.exponents(order) if order else (0.0, 0.0, 0.0)
    span = abs(t1 - t0)
    rtol, atol = options.tolerances if options.tableau.adaptive else (0.0, 0.0)
    first = 0.0 if options.first_step is None else min(options.first_step, span)
    smallest = SMALLEST_STEP_ULPS * torch.finfo(torch.float64).eps * max(abs(t0), abs(t1))
    at_start = sum(time == t0 for time in options.t_eval or ())
    return [
        t0,
        t1,
        span,
        1.0 if t1 > t0 else -1.0,
        smallest,
        rtol,
        atol,
        first,
        float(options.max_steps),
        float(options.steps or 0),
        float(at_start),
        *exponents,
        1.0 / order if order else 0.0,
    ]


def numbers(values: list[float], device: torch.device) -> Tensor:
    """float64 numbers on a device, without the host's waiting for it."""
    return to_device(torch.tensor(values, dtype=torch.float64, device="cpu"), device)
