"""The choice of the end time by held-out data."""

import math

import pytest
import torch

from tests.support.exact import well
from vapo_fast import noise
from vapo_fast.homotopy import DataHomotopy
from vapo_fast.ode import SolveError
from vapo_fast.sampling.end_time import validate_t_end
from vapo_fast.sampling.sample import sample

PATH = DataHomotopy(1.0, 0.1)


def test_finds_the_time_that_fits():
    """With Phi = -|x|^2/2 the spread at time t is e^-t: data of spread e^-3 are met at t = 3, beyond or before t1."""
    for path in (DataHomotopy(1.0, 0.1), DataHomotopy(1.0, 0.5)):
        held_out = math.exp(-3.0) * noise.normal(9, range(2_000), (2,))
        result = validate_t_end(well(path=path), held_out, candidates=[1.0, 2.0, 3.0, 4.0, 5.0])
        assert result.t_end == 3.0
        assert result.candidates.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
        assert int(result.scores.argmin()) == 2
    default = validate_t_end(well(), held_out, n=500)
    assert default.candidates[0] == pytest.approx(0.5 * PATH.t1)
    assert default.candidates[-1] == pytest.approx(2.0 * PATH.t1)


def test_warns_of_a_best_time_at_the_edge():
    held_out = 0.1 * noise.normal(1, range(400), (2,))
    for candidates, edge in (([0.5, 1.0], "last"), ([2.3, 4.0, 5.0], "first")):
        with pytest.warns(UserWarning, match=f"is the {edge} candidate; a better one may lie beyond"):
            validate_t_end(well(), held_out, candidates=candidates)


def test_keeps_the_times_before_a_failure():
    held_out = math.exp(-3.0) * noise.normal(1, range(400), (2,))
    whole = validate_t_end(well(), held_out, candidates=[1.0, 3.0, 5.0, 200.0])
    steps = sample(well(), 400, t_end=100.0, return_solution=True).accepted.max().item()
    cut = validate_t_end(well(), held_out, candidates=[1.0, 3.0, 5.0, 200.0], max_steps=steps)
    assert cut.t_end == whole.t_end == 3.0
    torch.testing.assert_close(cut.scores[:3], whole.scores[:3])
    assert math.isinf(cut.scores[3])
    with pytest.raises(SolveError):
        validate_t_end(well(), held_out, candidates=[1.0, 3.0], max_steps=1)


def test_held_out_data_must_be_finite():
    with pytest.raises(ValueError, match="held_out has NaN"):
        validate_t_end(well(), torch.full((5, 2), torch.nan))
