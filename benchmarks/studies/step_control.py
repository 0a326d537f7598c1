"""What the step controller's constants cost: evaluations, rejections and error with others in their place.

    python -m benchmarks.studies.step_control

It writes benchmarks/results/step_control.csv anew: for each workload, method, tolerance and choice, means over samples
of the reference's solve in float32, and the root mean square error against float64, from the noise to the data and back
from where that leads. A choice is an aim of the first step (the scaled error it is chosen for) and a proportional share
of the controller. Ratios are to the defaults: ``same_tolerance`` of evaluations at this tolerance, ``same_error`` of
evaluations to those with which the defaults would have made the same error, between their tolerances by a straight line
in logarithms; empty where the error lies outside them.
"""

from __future__ import annotations

import copy
import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import vapo_fast as vf
from benchmarks.cases import SHAPES, UNEVEN, Case
from benchmarks.measure import default_cache
from benchmarks.potentials import start
from benchmarks.provenance import RESULTS
from benchmarks.workloads import Workloads
from vapo_fast.ode import controller, stages

CSV = RESULTS / "step_control.csv"
WORKLOADS = (("random", SHAPES[0]), ("random", SHAPES[1]), *UNEVEN)
METHODS = ("dopri5", "tsit5", "bosh3")
TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6)
ROWS = 128
FIELDS = (
    "workload", "dimension", "direction", "method", "aim", "proportional_share", "rtol", "evaluations", "rejected",
    "failed", "error_rms", "same_tolerance", "same_error",
)  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """Constants of step control; `DEFAULT` are the package's."""

    aim: float = 1.0
    proportional_share: float = 0.0


DEFAULT = Choice()
CHOICES = (DEFAULT, Choice(aim=0.01), Choice(aim=0.1), Choice(proportional_share=0.1), Choice(proportional_share=0.2))


@dataclass(frozen=True)
class Problem:
    """A field, where a solve starts, and where it leads exactly."""

    potential: vf.MLPPotential
    x0: Tensor
    t0: float
    t1: float
    exact: NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """Means over the samples of one solve."""

    rtol: float
    evaluations: float
    rejected: float
    failed: int
    error: float


def main() -> None:
    """Measure all and write the file."""
    workloads = Workloads(default_cache())
    with CSV.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        for name, (dimension, widths) in WORKLOADS:
            potential = workloads.problem(Case("solve", name, dimension, widths, ROWS, threads=1)).source
            for direction, solves in both_ways(potential, workloads.reference(potential, ROWS)).items():
                for method in METHODS:
                    default = outcomes(solves, method, DEFAULT)
                    for choice in CHOICES:
                        found = default if choice == DEFAULT else outcomes(solves, method, choice)
                        common = {"workload": name, "dimension": dimension, "direction": direction, "method": method}
                        common |= {"aim": choice.aim, "proportional_share": choice.proportional_share}
                        writer.writerows({**common, **row} for row in rows(found, default))
            print(f"{name}, d {dimension}: done", flush=True)


def both_ways(potential: vf.MLPPotential, at_data: NDArray[np.float64]) -> dict[str, Problem]:
    """From the prior's draws to ``at_data``, and from there, rounded to float32, back to wherever that leads."""
    path, ends = potential.homotopy, torch.from_numpy(at_data).float()
    double = copy.deepcopy(potential).double()
    back = vf.ode.solve(
        lambda x, t: double.field(x, t)[1], ends.double(), path.t1, path.t0, rtol=1e-10, max_steps=1_000_000
    )
    return {
        "to data": Problem(potential, start(potential, ROWS), path.t0, path.t1, at_data),
        "to noise": Problem(potential, ends, path.t1, path.t0, back.x.numpy()),
    }


def outcomes(problem: Problem, method: str, choice: Choice) -> list[Outcome]:
    """Solves to every tolerance."""
    results = []
    for rtol in TOLERANCES:
        with mock.patch.object(stages, "initial_step", _aiming_at(choice.aim)):
            solution = vf.ode.solve(
                lambda x, t: problem.potential.field(x, t)[1],
                problem.x0,
                problem.t0,
                problem.t1,
                rtol=rtol,
                method=method,
                proportional_share=choice.proportional_share,
                throw=False,
            )
        evaluations, rejected = (float(part.to(torch.float64).mean()) for part in (solution.nfe, solution.rejected))
        error = float(np.sqrt(np.square(solution.x.numpy() - problem.exact).mean()))
        results.append(Outcome(rtol, evaluations, rejected, int((~solution.success).sum()), error))
    return results


def rows(found: Sequence[Outcome], default: Sequence[Outcome]) -> Iterator[dict[str, object]]:
    """What is written of each outcome."""
    for outcome, same in zip(found, default, strict=True):
        alike = evaluations_at(outcome.error, default)
        yield {
            "rtol": outcome.rtol,
            "evaluations": f"{outcome.evaluations:.2f}",
            "rejected": f"{outcome.rejected:.2f}",
            "failed": outcome.failed,
            "error_rms": f"{outcome.error:.3g}",
            "same_tolerance": f"{outcome.evaluations / same.evaluations:.3f}",
            "same_error": "" if alike is None else f"{outcome.evaluations / alike:.3f}",
        }


def evaluations_at(error: float, outcomes: Sequence[Outcome]) -> float | None:
    """How many evaluations these solves would have needed for an error that lies between theirs."""
    ordered = sorted(outcomes, key=lambda outcome: outcome.error)
    errors, evaluations = (np.log([getattr(o, name) for o in ordered]) for name in ("error", "evaluations"))
    if not errors[0] <= np.log(error) <= errors[-1]:
        return None
    return float(np.exp(np.interp(np.log(error), errors, evaluations)))


def _aiming_at(aim: float) -> Callable[[Tensor, Tensor, Tensor, float | Tensor, int], Tensor]:
    """`controller.initial_step` with an aim other than 1: the error is as the step to the power of its order."""

    def initial_step(field: Tensor, change: Tensor, trial: Tensor, span: float | Tensor, error_order: int) -> Tensor:
        return controller.initial_step(field / aim, change / aim, trial, span, error_order)

    return initial_step


if __name__ == "__main__":
    main()
