"""Statuses, merging, and the error that counts failures."""

import pytest
import torch

from vapo_fast.ode import Solution, SolveError, Status


def make(status, ys=None):
    status = torch.tensor([int(s) for s in status])
    n = len(status)
    zeros = torch.zeros(n, dtype=torch.int64)
    return Solution(
        torch.arange(float(n))[:, None], torch.zeros(n, dtype=torch.float64), status, zeros, zeros, zeros, ys
    )


def test_every_status_has_a_message():
    assert [status.name for status in Status] == ["SUCCESS", "MAX_STEPS", "STEP_TOO_SMALL", "NON_FINITE"]
    assert len({status.message for status in Status}) == 4


def test_error_counts_failures_by_status_and_carries_the_solution():
    solution = make([Status.SUCCESS, Status.NON_FINITE, Status.MAX_STEPS, Status.NON_FINITE])
    with pytest.raises(
        SolveError, match=r"3 of 4 samples .* 1 MAX_STEPS \(first: sample 2.* 2 NON_FINITE \(first: sample 1"
    ) as e:
        solution.raise_for_failures()
    assert e.value.solution is solution
    assert solution.success.tolist() == [True, False, False, False]


def test_success_passes_through():
    solution = make([Status.SUCCESS])
    assert solution.raise_for_failures() is solution


def test_concatenate():
    first = make([Status.SUCCESS, Status.MAX_STEPS], torch.zeros(3, 2, 1))
    second = make([Status.NON_FINITE], torch.ones(3, 1, 1))
    whole = Solution.concatenate([first, second])
    assert whole.status.tolist() == [0, 1, 3]
    assert whole.x.flatten().tolist() == [0.0, 1.0, 0.0]
    assert whole.ys.shape == (3, 3, 1)
    assert whole.ys[:, 2].eq(1).all()
    assert Solution.concatenate([make([Status.SUCCESS])]).ys is None
