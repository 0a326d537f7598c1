"""The choice of arithmetic by tolerance, with made-up noise: what is measured on a device is tested there."""

import pytest
import torch

from vapo_fast.engines._precision import Noise
from vapo_fast.homotopy import DataHomotopy
from vapo_fast.ode import SolveOptions
from vapo_fast.potentials import MLPPotential

PATH = DataHomotopy(1.0, 0.1)
# Relative errors of the gradient as METHOD's emulation found them.
ERRORS = {"ieee": 0.0, "bf16": 1.2e-3, "tf32": 1.7e-4}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MLPPotential((16,), PATH, (8,))


class Emulated:
    """Gradients of unit size with the errors of a precision; counts its calls."""

    def __init__(self, errors=ERRORS):
        self.errors = errors
        self.calls = []

    def __call__(self, model, x, t, precision):
        self.calls.append(precision)
        generator = torch.Generator().manual_seed(3)
        exact = torch.randn(x.shape, generator=generator)
        return exact * (1.0 + self.errors[precision] * torch.randn(x.shape, generator=generator))


@pytest.mark.parametrize(
    ("rtol", "expected"), [(1e-2, "bf16"), (1e-3, "bf16"), (1e-4, "tf32"), (1e-5, "float32"), (1e-6, "float32")]
)
def test_the_cheapest_arithmetic_below_the_tolerance(model, rtol, expected):
    assert Noise(Emulated()).cheapest(model, 0.0, PATH.t1, SolveOptions(rtol=rtol)) == expected


def test_a_noisier_model_needs_more(model):
    noise = Noise(Emulated({"ieee": 0.0, "bf16": 3e-2, "tf32": 4e-3}))
    assert noise.cheapest(model, 0.0, PATH.t1, SolveOptions(rtol=1e-3)) == "float32"


def test_share_is_linear_in_the_tolerance_and_zero_for_float32(model):
    noise = Noise(Emulated())
    loose, tight = (noise.share(model, "tf32", 0.0, PATH.t1, SolveOptions(rtol=rtol)) for rtol in (1e-3, 1e-5))
    assert tight == pytest.approx(100 * loose, rel=1e-6)
    assert noise.share(model, "float32", 0.0, PATH.t1, SolveOptions()) == 0.0


def test_noise_that_is_not_finite_is_too_much(model):
    noise = Noise(Emulated({"ieee": 0.0, "bf16": float("nan"), "tf32": float("inf")}))
    assert noise.cheapest(model, 0.0, PATH.t1, SolveOptions(rtol=1e-1)) == "float32"


def test_measured_once_for_each_state_of_the_weights(model):
    gradient = Emulated()
    noise = Noise(gradient)
    for rtol in (1e-3, 1e-4, 1e-5):
        noise.cheapest(model, 0.0, PATH.t1, SolveOptions(rtol=rtol))
    assert sorted(gradient.calls) == ["bf16", "ieee", "ieee", "tf32"]
    with torch.no_grad():
        model.hidden[0].weight.mul_(2.0)
    noise.cheapest(model, 0.0, PATH.t1, SolveOptions(rtol=1e-3))
    assert len(gradient.calls) == 6


def test_points_are_spread_along_the_path(model):
    seen = []

    def gradient(model, x, t, precision):
        seen.append((x, t))
        return torch.zeros_like(x)

    Noise(gradient).share(model, "tf32", 0.0, PATH.t1, SolveOptions())
    x, t = seen[0]
    assert x.shape == (Noise.POINTS, 16)
    assert x.dtype == t.dtype == torch.float32
    assert float(t.min()) == PATH.t0
    assert float(t.max()) == pytest.approx(PATH.t1)
    kernel = PATH.kernel(t)
    expected = (kernel.alpha.square() + kernel.beta.square()).sqrt()
    assert float((x.square().mean(1).sqrt() / expected).mean()) == pytest.approx(1.0, abs=0.05)
