"""What the aim of the first step costs: evaluations, rejections and error of solves that aim at other scaled errors.

``python benchmarks/first_step.py`` writes benchmarks/results/first_step.csv anew: for each workload, method, tolerance
and aim, means over samples of the reference's solve in float32, and the root mean square error against float64.
"""

from __future__ import annotations

import csv
import importlib
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor

import vapo_fast as vf
from benchmarks.cases import SHAPES, UNEVEN, Case
from benchmarks.workloads import Workloads, start
from vapo_fast.ode import controller

RESULTS = Path(__file__).parent / "results" / "first_step.csv"
CACHE = Path("out/benchmarks")
WORKLOADS = (("random", SHAPES[0]), ("random", SHAPES[1]), *UNEVEN)
METHODS = ("dopri5", "tsit5", "bosh3")
TOLERANCES = (1e-3, 1e-5)
AIMS = (0.01, 0.1, 1.0)
ROWS = 128
FIELDS = ("workload", "dimension", "method", "rtol", "aim", "evaluations", "rejected", "failed", "error_rms")

# The package's attribute `solve` is the function; the module is where it looks its first step up.
_SOLVER = importlib.import_module("vapo_fast.ode.solve")


def main() -> None:
    """Measure all and write the file."""
    workloads = Workloads(CACHE)
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        for name, (dimension, widths) in WORKLOADS:
            potential = workloads.problem(Case("solve", name, dimension, widths, ROWS, threads=1)).source
            exact = workloads.reference(potential, ROWS)
            for method in METHODS:
                for rtol in TOLERANCES:
                    for aim in AIMS:
                        with mock.patch.object(_SOLVER, "initial_step", _aiming_at(aim)):
                            solution = _solve(potential, method, rtol)
                        error = np.sqrt(np.square(solution.x.numpy() - exact).mean())
                        row = (name, dimension, method, rtol, aim, *_means(solution), f"{error:.3g}")
                        writer.writerow(dict(zip(FIELDS, row, strict=True)))
            print(f"{name}, d {dimension}: done", flush=True)


def _aiming_at(aim: float) -> Callable[[Tensor, Tensor, Tensor, float, int], Tensor]:
    """`controller.initial_step` with an aim other than 1: the error is as the step to the power of its order."""

    def initial_step(field: Tensor, change: Tensor, trial: Tensor, span: float, error_order: int) -> Tensor:
        return controller.initial_step(field / aim, change / aim, trial, span, error_order)

    return initial_step


def _solve(potential: vf.MLPPotential, method: str, rtol: float) -> vf.ode.Solution:
    path = potential.homotopy
    x0 = start(potential, ROWS)
    return vf.ode.solve(
        lambda x, t: potential.field(x, t)[1], x0, path.t0, path.t1, rtol=rtol, method=method, throw=False
    )


def _means(solution: vf.ode.Solution) -> tuple[str, str, int]:
    counts = (f"{part.to(torch.float64).mean():.2f}" for part in (solution.nfe, solution.rejected))
    return (*counts, int((~solution.success).sum()))


if __name__ == "__main__":
    main()
