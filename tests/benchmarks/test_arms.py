"""Every adapter does its job: at a tight tolerance its states are the float64 solution's, its gradients likewise."""

import numpy as np
import pytest
import torch

from benchmarks import measure
from benchmarks.cases import Case
from benchmarks.peers import ARMS
from benchmarks.peers.base import Arm, DisagreementError, UnavailableError
from benchmarks.peers.machine import PEAK
from benchmarks.peers.vapo_arms import OTHER_TOLERANCES
from benchmarks.spread import Error
from benchmarks.workloads import Problem, Workloads
from vapo_fast.core import extension

# Without it nothing measures the machine beside the arms.
needs_native = pytest.mark.skipif(extension.unavailable_reason() is not None, reason="needs the native extension")
# Two compilations of half a minute in all: left to `make test-all`.
SLOW = ("torch.compile", "torchdiffeq compiled")


def arms(job: str, *more: object) -> list[object]:
    return [
        pytest.param(arm, *more, id="-".join((name, *map(str, more))), marks=[pytest.mark.slow] * (name in SLOW))
        for name, arm in ARMS.items()
        if job in arm.jobs and "cpu" in arm.devices
    ]


def runner(arm: Arm, problem: Problem):
    reason = arm.missing()
    if reason:
        pytest.skip(reason)
    torch.set_num_threads(problem.case.threads)
    try:
        return arm.prepare(problem)
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def workloads(tmp_path_factory: pytest.TempPathFactory) -> Workloads:
    return Workloads(tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("arm", arms("solve"))
def test_solves_come_close_to_the_float64_solution(arm: Arm, workloads: Workloads):
    problem = workloads.problem(Case("solve", "random", 3, (16, 16), 5, 1, rtol=5e-6))
    one = runner(arm, problem)
    outcome = one.outcome()
    assert outcome.x is not None
    assert outcome.x.shape == (5, 3)
    assert outcome.failed == 0
    # Twenty times the tolerance of the case, or of an arm that has a looser one.
    looser = max(1.0, OTHER_TOLERANCES.get(arm.name.rpartition(" ")[2], 1.0))
    assert Error.of(outcome.x, problem.reference).largest < 1e-4 * looser
    assert outcome.evaluations is not None
    assert np.all(outcome.evaluations >= 20)
    assert np.all(outcome.evaluations < 400)
    assert outcome.field_share is None or 0.0 < outcome.field_share <= 1.0
    timings = one.run(3)
    assert len(timings.seconds) == 3
    assert all(second > 0 for second in timings.seconds)
    one.close()


@pytest.mark.parametrize("arm", arms("solve_fixed"))
def test_equal_steps_are_equal(arm: Arm, workloads: Workloads):
    problem = workloads.problem(Case("solve_fixed", "random", 3, (16, 16), 5, 1, steps=40))
    one = runner(arm, problem)
    outcome = one.outcome()
    assert outcome.x is not None
    assert outcome.evaluations is not None
    assert float(outcome.evaluations.mean()) == 160.0
    assert Error.of(outcome.x, problem.reference).largest < 2e-5
    one.close()


@pytest.mark.parametrize("arm", arms("loss"))
def test_gradients_are_the_float64_ones(arm: Arm, workloads: Workloads):
    problem = workloads.problem(Case("loss", "random", 3, (16, 24), 40, 1))
    one = runner(arm, problem)
    gradient = one.outcome().gradient
    assert gradient is not None
    exact = problem.exact_gradient
    assert np.linalg.norm(gradient - exact) < 1e-4 * np.linalg.norm(exact)
    one.close()


@pytest.mark.parametrize(("arm", "job"), [*arms("field", "field"), *arms("trainer", "trainer")])
def test_the_other_jobs_run(arm: Arm, job: str, workloads: Workloads):
    problem = workloads.problem(Case(job, "random", 3, (16, 24), 40, 1))
    one = runner(arm, problem)
    assert len(one.run(2).seconds) == 2
    found = one.outcome().field
    assert (found is not None) == (job == "field" and "product" not in arm.name)
    if found is not None:
        exact = problem.exact_field
        assert np.abs(found - exact).max() < 1e-5 * np.abs(exact).max()
    one.close()


@pytest.mark.parametrize("arm", arms("sample"))
def test_whole_samples_are_the_solves(arm: Arm, workloads: Workloads):
    problem = workloads.problem(Case("sample", "random", 3, (16, 16), 5, 1))
    outcome = runner(arm, problem).outcome()
    assert outcome.x is not None
    assert outcome.failed == 0
    assert outcome.precision == "float32"
    assert Error.of(outcome.x, problem.reference).largest < 1e-4


@needs_native
def test_a_peer_that_computes_something_else_is_left_out_and_ours_stops_all(
    workloads: Workloads, monkeypatch: pytest.MonkeyPatch
):
    def wrong(problem: Problem):
        raise DisagreementError("the field differs")

    case, limits = Case("solve", "random", 3, (16, 16), 5, 1, rtol=1e-3), measure.Limits(round_seconds=0.0)
    monkeypatch.setitem(ARMS, "scipy", Arm(**{**vars(ARMS["scipy"]), "missing": lambda: None, "prepare": wrong}))
    result = measure.measure(case, workloads, limits, ["reference", "scipy"], lambda line: None)
    assert list(result.arms) == ["reference", PEAK]
    assert result.skipped == {"scipy": "DisagreementError: the field differs"}
    monkeypatch.setitem(ARMS, "reference", Arm(**{**vars(ARMS["reference"]), "prepare": wrong}))
    with pytest.raises(DisagreementError, match="the field differs"):
        measure.measure(case, workloads, limits, ["reference"], lambda line: None)


@needs_native
def test_a_case_stops_making_arms_ready_when_its_time_is_up(workloads: Workloads):
    case, limits = Case("solve", "random", 3, (16, 16), 5, 1, rtol=1e-3), measure.Limits(case_seconds=-1.0)
    result = measure.measure(case, workloads, limits, ["reference"], lambda line: None)
    assert list(result.arms) == [PEAK]  # the machine is measured always
    assert "are up" in result.skipped["reference"]


@needs_native
def test_a_missing_peer_is_named_and_the_others_are_measured(workloads: Workloads, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    monkeypatch.setitem(ARMS, "scipy", Arm(**{**vars(ARMS["scipy"]), "missing": lambda: "it is not installed"}))

    def broken(problem: Problem):
        raise RuntimeError("out of paper\nand more")

    monkeypatch.setitem(ARMS, "torchode", Arm(**{**vars(ARMS["torchode"]), "missing": lambda: None, "prepare": broken}))
    case = Case("solve", "random", 3, (16, 16), 5, 1, rtol=1e-3)
    limits = measure.Limits(round_seconds=0.0)
    result = measure.measure(case, workloads, limits, ["reference", "scipy", "torchode"], said.append)
    assert list(result.arms) == ["reference", PEAK]
    assert result.skipped == {"scipy": "it is not installed", "torchode": "RuntimeError: out of paper"}
    assert said == ["  skipped scipy: it is not installed", "  skipped torchode: RuntimeError: out of paper"]
    assert len(result.arms["reference"].rounds) == limits.rounds


def test_an_arm_that_takes_too_long_is_named(workloads: Workloads):
    case = Case("solve", "random", 3, (16, 16), 5, 1, rtol=1e-3)
    limits = measure.Limits(run_seconds=1e-9)
    result = measure.measure(case, workloads, limits, ["reference"], lambda line: None)
    assert not result.arms
    assert "over the limit" in result.skipped["reference"]
