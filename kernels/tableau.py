"""A solve's numbers as the kernels read them: the tableau by phases, and the settings of controller and interval.

A sample goes through *phases*, each of which is one evaluation of the field at ``x + width sum_j a_j k_j``:

    0      the first stage, at x itself
    1      the probe of the initial step (adaptive methods)
    i + 1  stage i = 1 .. s - 1 (counted from 0); with i = s - 1 the step is complete

so samples of one tile can be in different phases, and one that ends is replaced at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vapo_fast.ode import SolveOptions
from vapo_fast.ode.controller import PIController
from vapo_fast.ode.solve import _SMALLEST_STEP_ULPS
from vapo_fast.ode.tableaus import Tableau

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

# Where the parts of `phases` begin, in units that depend on the number of stages s.


def phases(tableau: Tableau) -> list[float]:
    """[s + 1][s] coefficients by phase; [s + 1] nodes; [s] weights; [s] error weights; [s][degree] dense output."""
    s = tableau.stages
    rows = [[0.0] * s, [1.0] + [0.0] * (s - 1)]
    rows += [[*row, *[0.0] * (s - len(row))] for row in tableau.a]
    nodes = [0.0, 1.0, *tableau.c[1:]]
    error = tableau.error or (0.0,) * s
    flat = [value for row in rows[: max(2, s + 1)] for value in row]
    return [*flat, *nodes, *tableau.b, *error, *(value for row in tableau.dense for value in row)]


def settings(options: SolveOptions, t0: float, t1: float) -> list[float]:
    """The numbers of `SETTINGS`."""
    order, controller = options.tableau.error_order, PIController()
    beta = controller.integral_share / order if order else 0.0
    alpha = 1.0 / order - 0.75 * beta if order else 0.0
    span = abs(t1 - t0)
    rtol, atol = options.tolerances if options.tableau.adaptive else (0.0, 0.0)
    first = 0.0 if options.first_step is None else min(options.first_step, span)
    smallest = _SMALLEST_STEP_ULPS * torch.finfo(torch.float64).eps * max(abs(t0), abs(t1))
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
        alpha,
        beta,
        -1.0 / order if order else 0.0,
        1.0 / order if order else 0.0,
    ]


def numbers(values: list[float], device: torch.device) -> Tensor:
    """float64 numbers on a device, without the host's waiting for it."""
    host = torch.tensor(values, dtype=torch.float64, device="cpu")
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host
