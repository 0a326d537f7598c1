"""The study of step control: each constant takes effect, and evaluations are compared at equal error."""

import copy

import numpy as np
import pytest
import torch

import vapo_fast as vf
from benchmarks.potentials import start
from benchmarks.studies import step_control
from benchmarks.studies.step_control import DEFAULT, Choice, Outcome, both_ways, evaluations_at, outcomes, rows


@pytest.fixture(scope="module")
def problem():
    torch.manual_seed(0)
    potential = vf.MLPPotential((2,), vf.DataHomotopy(omega=1.0, sigma=0.1), widths=(16, 16))
    path, x0 = potential.homotopy, start(potential, step_control.ROWS)
    double = copy.deepcopy(potential).double()
    tight = vf.ode.solve(lambda x, t: double.field(x, t)[1], x0.double(), path.t0, path.t1, rtol=1e-9)
    return both_ways(potential, tight.x.numpy())


def test_every_choice_changes_the_steps_and_none_the_result(problem):
    default = outcomes(problem["to data"], "dopri5", DEFAULT)
    assert [outcome.rtol for outcome in default] == list(step_control.TOLERANCES)
    for outcome in default:
        assert outcome.failed == 0
        assert outcome.error < 50 * outcome.rtol
    cautious, remembering = (outcomes(problem["to data"], "dopri5", c) for c in (Choice(0.01), Choice(1.0, 0.2)))
    for other in (cautious, remembering):
        assert sum(o.evaluations for o in other) > sum(o.evaluations for o in default)
        for row in rows(other, default):
            assert float(row["same_tolerance"]) == pytest.approx(1.0, abs=0.6)


def test_the_way_back_leads_to_the_start(problem):
    way_back = problem["to noise"]
    assert (way_back.t0, way_back.t1) == (problem["to data"].t1, problem["to data"].t0)
    np.testing.assert_allclose(way_back.exact, problem["to data"].x0, rtol=1e-3, atol=1e-3)
    for outcome in outcomes(way_back, "dopri5", DEFAULT):
        assert outcome.error < 1e3 * outcome.rtol


def test_evaluations_at_an_error_between_two_solves():
    solves = [Outcome(1e-3, 10.0, 0.0, 0, 1e-3), Outcome(1e-4, 40.0, 0.0, 0, 1e-5)]
    assert evaluations_at(1e-4, solves) == pytest.approx(20.0)
    assert evaluations_at(1e-3, solves) == pytest.approx(10.0)
    assert evaluations_at(2e-3, solves) is None
    assert evaluations_at(0.9e-5, solves) is None
    (row,) = rows([Outcome(1e-3, 30.0, 0.5, 0, 1e-4)], solves[:1])
    assert (row["same_tolerance"], row["same_error"]) == ("3.000", "")
    assert np.isfinite(float(row["error_rms"]))
