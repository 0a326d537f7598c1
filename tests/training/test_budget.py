"""How many steps fit into a time."""

import time

import pytest
import torch

from vapo_fast.homotopy import DataHomotopy
from vapo_fast.potentials import MLPPotential
from vapo_fast.training.budget import steps_within


def test_the_model_is_left_as_it_was_and_more_time_holds_more_steps():
    model = MLPPotential((2,), DataHomotopy(), widths=(8,))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = torch.randn(64, 2)
    few, many = (steps_within(seconds, model, data, batch_size=16, log_every=5) for seconds in (1.0, 100.0))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert 1 <= few < many


def test_slow_steps_end_the_trial_early():
    def slow(t):
        time.sleep(0.02)
        return torch.ones_like(t)

    model = MLPPotential((2,), DataHomotopy(), widths=(8,))
    began = time.perf_counter()
    steps = steps_within(0.5, model, torch.randn(64, 2), batch_size=16, weight=slow)
    assert time.perf_counter() - began < 0.5
    assert 1 <= steps <= 25


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_unsuitable_times(seconds):
    with pytest.raises(ValueError, match="seconds must be"):
        steps_within(seconds, MLPPotential((2,), DataHomotopy(), widths=(8,)), torch.randn(8, 2))
