"""A solve's numbers as the kernels read them: the method's coefficients, and the settings of controller and interval.

A sample of a fused solve is at a *stage slot*, which names the evaluation of the field that is its next:

    slot 0        the first stage, at x itself
    slot 1        the probe of the initial step (adaptive methods)
    slot i + 1    stage i = 1 .. s - 1 (counted from 0); with i = s - 1 the step is complete

Samples of one tile can be in different slots, so one that ends is replaced at once. A slot has a row of coefficients
and a node, both for an evaluation at ``x + width sum_j a_j k_j``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from vapo_fast.ode.options import SolveOptions
from vapo_fast.ode.settings import SETTINGS, numbers, settings
from vapo_fast.ode.tableaus import Tableau

T0 = tl.constexpr(SETTINGS.index("t0"))
T1 = tl.constexpr(SETTINGS.index("t1"))
SPAN = tl.constexpr(SETTINGS.index("span"))
DIRECTION = tl.constexpr(SETTINGS.index("direction"))
SMALLEST_STEP = tl.constexpr(SETTINGS.index("smallest_step"))
RTOL = tl.constexpr(SETTINGS.index("rtol"))
ATOL = tl.constexpr(SETTINGS.index("atol"))
FIRST_STEP = tl.constexpr(SETTINGS.index("first_step"))
LARGEST_STEPS = tl.constexpr(SETTINGS.index("max_steps"))
STEPS = tl.constexpr(SETTINGS.index("steps"))
FIRST_OUTPUT = tl.constexpr(SETTINGS.index("first_output"))
ACCEPTED_EXPONENT = tl.constexpr(SETTINGS.index("accepted_exponent"))
PREVIOUS_EXPONENT = tl.constexpr(SETTINGS.index("previous_exponent"))
REJECTED_EXPONENT = tl.constexpr(SETTINGS.index("rejected_exponent"))
ERROR_ORDER_INVERSE = tl.constexpr(SETTINGS.index("error_order_inverse"))


class Numbers(NamedTuple):
    """float64 numbers of a solve: `slot_table`, and `vapo_fast.ode.settings.settings`."""

    table: Any
    settings: Any


def numbers_of(options: SolveOptions, t0: float, t1: float, device: torch.device) -> Numbers:
    """A solve's numbers on a device."""
    return Numbers(slot_table(options.tableau, device), numbers(settings(options, t0, t1), device))


def slot_table(tableau: Tableau, device: torch.device) -> Tensor:
    """A method's coefficients, float64, on a device.

    [s + 1][s] coefficients by slot; [s + 1] nodes; [s] weights; [s] error weights; [s][degree] dense output. A method
    of one stage has two slots.
    """
    s = tableau.stages
    rows = [[0.0] * s, [1.0] + [0.0] * (s - 1)]
    rows += [[*row, *[0.0] * (s - len(row))] for row in tableau.a]
    nodes = [0.0, 1.0, *tableau.c[1:]]
    error = tableau.error or (0.0,) * s
    flat = [value for row in rows for value in row]
    flat += [*nodes, *tableau.b, *error, *(value for row in tableau.dense for value in row)]
    return numbers(flat, device)
