"""The step controller on scripted error ratios, without an ODE."""

import math

import pytest
import torch

from vapo_fast.ode.controller import PIController, initial_step, trial_step

CONTROLLER = PIController()
OF_FIVE = CONTROLLER.exponents(5)


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("ratio", [0.0, 1e-30, 0.5, 1.0])
def test_accepts(ratio):
    assert CONTROLLER.accepts(numbers(ratio)).item()


@pytest.mark.parametrize("ratio", [math.nextafter(1.0, 2.0), 2.0, math.inf, math.nan])
def test_rejects(ratio):
    assert not CONTROLLER.accepts(numbers(ratio)).item()


@pytest.mark.parametrize("share", [0.0, 0.2])
@pytest.mark.parametrize("order", [3, 5])
def test_factor_follows_the_formula(order, share):
    ratio, previous = numbers(0.3, 0.02, 0.9, 40.0), numbers(1.0, 0.4, 1e-4, 0.5)
    expected = [
        0.9 * r ** -((1 - 0.75 * share) / order) * p ** (share / order) if r <= 1 else 0.9 * r ** (-1 / order)
        for r, p in zip(ratio.tolist(), previous.tolist(), strict=True)
    ]
    controller = PIController(share)
    factor = controller.factor(ratio, previous, torch.zeros(4, dtype=torch.bool), controller.exponents(order))
    assert factor.tolist() == pytest.approx(expected, rel=1e-14)


def test_factor_stays_within_its_limits():
    ratio = numbers(0.0, 1e-300, 1e300, math.inf, math.nan, 1e-12)
    factor = CONTROLLER.factor(ratio, torch.ones_like(ratio), torch.zeros(6, dtype=torch.bool), OF_FIVE)
    assert factor.tolist() == [10.0, 10.0, 0.2, 0.2, 0.2, 10.0]


def test_no_growth_right_after_a_rejection():
    ratio = numbers(1e-6, 0.99)
    after = CONTROLLER.factor(ratio, torch.ones_like(ratio), torch.ones(2, dtype=torch.bool), OF_FIVE)
    assert after[0] == 1.0
    assert after[1] < 1.0


def test_a_rejected_step_never_grows():
    ratio = numbers(math.nextafter(1.0, 2.0), 1.5)
    loose = PIController(safety=1.5)
    assert (loose.factor(ratio, torch.ones_like(ratio), torch.zeros(2, dtype=torch.bool), OF_FIVE) <= 1.0).all()


def test_memory_of_the_last_accepted_ratio():
    remembered = CONTROLLER.remember(numbers(0.5, 0.0, 3.0, math.nan), numbers(0.1, 0.1, 0.1, 0.1))
    assert remembered.tolist() == [0.5, 1e-4, 0.1, 0.1]


def test_scripted_sequence():
    """Ratios 4 (reject), 0.5 (accept, no growth), 0.01 (accept, grows) from h = 1."""
    h, previous, after = numbers(1.0), numbers(1.0), torch.tensor([False])
    exponents = PIController(0.2).exponents(5)
    taken = []
    for ratio in (4.0, 0.5, 0.01):
        r = numbers(ratio)
        h = h * CONTROLLER.factor(r, previous, after, exponents)
        previous, after = CONTROLLER.remember(r, previous), ~CONTROLLER.accepts(r)
        taken.append(h.item())
    first = 0.9 * 4.0**-0.2
    second = first * min(1.0, 0.9 * 0.5**-0.17)
    third = second * 0.9 * 0.01**-0.17 * 0.5**0.04
    assert taken == pytest.approx([first, second, third], rel=1e-14)


def test_factor_does_not_depend_on_the_place_in_the_batch():
    ratio = torch.rand(101, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    previous, after = ratio.flip(0), torch.zeros(101, dtype=torch.bool)
    whole = CONTROLLER.factor(ratio, previous, after, OF_FIVE)
    rows = [slice(i, i + 1) for i in range(101)]
    alone = torch.cat([CONTROLLER.factor(ratio[row], previous[row], after[:1], OF_FIVE) for row in rows])
    assert torch.equal(whole, alone)


def test_initial_step_formula():
    state, field = numbers(1e5, 1e5, 1e-6), numbers(2e5, 1e3, 1.0)
    trial = trial_step(state, field, 10.0)
    assert trial.tolist() == pytest.approx([0.005, 1.0, 1e-6], rel=1e-15)
    change = numbers(1e3, 1.0, 0.0)
    step = initial_step(field, change, trial, 10.0, 5)
    expected = [
        min(100 * t, (1.0 / max(f, c / t)) ** 0.2)
        for t, f, c in zip(trial.tolist(), field.tolist(), change.tolist(), strict=True)
    ]
    assert step.tolist() == pytest.approx(expected, rel=1e-13)


def test_initial_step_corners():
    trial = numbers(1e-6, 1e-6, 1e-6, 1e-6)
    step = initial_step(numbers(0.0, 1.0, 1.0, 1e-4), numbers(0.0, math.nan, math.inf, 0.0), trial, 5e-5, 5)
    assert step.tolist() == pytest.approx([1e-6, 1e-6, 1e-6, 5e-5])
    assert trial_step(numbers(0.0), numbers(1.0), 1e-9).tolist() == [1e-9]
