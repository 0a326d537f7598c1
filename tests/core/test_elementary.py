"""The float64 functions that noise and step control share, against mpmath-free references and at their corners."""

import math
from fractions import Fraction

import pytest
import torch

from vapo_fast.core import elementary


def test_log_matches_libm_over_all_magnitudes():
    generator = torch.Generator().manual_seed(0)
    mantissa = 1.0 + torch.rand(20_000, dtype=torch.float64, generator=generator)
    exponent = torch.randint(-1000, 1000, (20_000,), generator=generator)
    x = torch.ldexp(mantissa, exponent)
    expected = torch.tensor([math.log(value) for value in x.tolist()], dtype=torch.float64)
    assert ((elementary.log(x) - expected).abs() <= 4e-16 * expected.abs().clamp_min(1.0)).all()


def test_log_keeps_relative_accuracy_near_one():
    x = torch.tensor(
        [1.0, 1.0 - 2.0**-33, 1.0 + 2.0**-40, math.sqrt(0.5), math.sqrt(2.0), 0.5, 2.0], dtype=torch.float64
    )
    expected = torch.tensor([math.log(value) for value in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(elementary.log(x), expected, rtol=5e-16, atol=0.0)


def test_exp_matches_libm_and_is_held_at_its_limits():
    x = torch.linspace(-690.0, 690.0, 30_001, dtype=torch.float64)
    expected = torch.tensor([math.exp(value) for value in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(elementary.exp(x), expected, rtol=4e-16, atol=0.0)
    ends = elementary.exp(torch.tensor([-1e9, 1e9, 0.0], dtype=torch.float64))
    assert ends.tolist() == pytest.approx([math.exp(-700), math.exp(700), 1.0], rel=1e-15)
    assert ends[2] == 1.0


def test_cos_sin_match_libm_and_are_exact_at_quarter_turns():
    u = torch.linspace(0.0, 1.0, 40_001, dtype=torch.float64)
    cosine, sine = elementary.cos_sin_turns(u)
    torch.testing.assert_close(cosine, torch.cos(2.0 * math.pi * u), rtol=0.0, atol=1e-15)
    torch.testing.assert_close(sine, torch.sin(2.0 * math.pi * u), rtol=0.0, atol=1e-15)
    cosine, sine = elementary.cos_sin_turns(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64))
    assert cosine.tolist() == [1.0, 0.0, -1.0, 0.0, 1.0]
    assert sine.tolist() == [0.0, 1.0, 0.0, -1.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sqrt_is_correctly_rounded(dtype):
    """Against exact rational arithmetic: the root lies within half a unit in the last place."""
    x = torch.rand(400, dtype=dtype, generator=torch.Generator().manual_seed(0)) * 4.0
    root = elementary.sqrt(x)
    assert root.dtype == dtype
    for square, value in zip(x.tolist(), root.tolist(), strict=True):
        below, above = (
            float(torch.nextafter(torch.tensor(value, dtype=dtype), torch.tensor(to, dtype=dtype))) for to in (0.0, 9.0)
        )
        low, high = (Fraction(value) + Fraction(below)) / 2, (Fraction(value) + Fraction(above)) / 2
        assert low * low <= Fraction(square) <= high * high
    corners = elementary.sqrt(torch.tensor([0.0, math.inf, math.nan], dtype=dtype))
    assert corners[:2].tolist() == [0.0, math.inf]
    assert corners[2].isnan()


@pytest.mark.parametrize("function", [elementary.log, elementary.exp, lambda u: elementary.cos_sin_turns(u)[0]])
def test_a_value_does_not_depend_on_its_place_in_the_tensor(function):
    x = torch.rand(1_003, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 0.9 + 0.05
    alone = torch.cat([function(value.reshape(1)) for value in x])
    assert torch.equal(function(x), alone)
