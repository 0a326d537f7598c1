"""Per-sample Runge-Kutta integration in PyTorch: `solve`, its `Solution` and `Status`."""

from vapo_fast.ode.controller import PIController
from vapo_fast.ode.options import SolveOptions
from vapo_fast.ode.solution import Solution, SolveError, Status
from vapo_fast.ode.solve import integrate, solve
from vapo_fast.ode.tableaus import TABLEAUS, Tableau

__all__ = [
    "TABLEAUS",
    "PIController",
    "Solution",
    "SolveError",
    "SolveOptions",
    "Status",
    "Tableau",
    "integrate",
    "solve",
]
