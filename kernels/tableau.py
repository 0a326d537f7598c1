"""A solve's numbers as the kernels read them: the tableau by phases, and the settings of controller and interval.

A sample goes through *phases*, each of which is one evaluation of the field at ``x + width sum_j a_j k_j``:

    0      the first stage, at x itself
    1      the probe of the initial step (adaptive methods)
    i + 1  stage i = 1 .. s - 1 (counted from 0); with i = s - 1 the step is complete

so samples of one tile can be in different phases, and one that ends is replaced at once.
"""

from __future__ import annotations

from vapo_fast.ode.settings import SETTINGS, numbers, settings
from vapo_fast.ode.tableaus import Tableau

__all__ = ["SETTINGS", "numbers", "phases", "settings"]

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
