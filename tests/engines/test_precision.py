"""The Triton engine's choice of arithmetic by tolerance, with made-up noise, and the jobs that it refuses."""

import warnings

import pytest
import torch

import vapo_fast as vf
from vapo_fast.engines import Job, LossOptions, TritonEngine
from vapo_fast.engines.precision import RoundingNoise
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


def mixture():
    return vf.GaussianMixturePotential([1.0], [[0.0, 0.0]], [[[1.0, 0.0], [0.0, 1.0]]], PATH)


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
    assert RoundingNoise(Emulated()).cheapest(model, 0.0, PATH.t1, SolveOptions(rtol=rtol)) == expected


def test_a_noisier_model_needs_more(model):
    noise = RoundingNoise(Emulated({"ieee": 0.0, "bf16": 3e-2, "tf32": 4e-3}))
    assert noise.cheapest(model, 0.0, PATH.t1, SolveOptions(rtol=1e-3)) == "float32"


def test_share_is_linear_in_the_tolerance_and_zero_for_float32(model):
    noise = RoundingNoise(Emulated())
    loose, tight = (noise.share(model, "tf32", 0.0, PATH.t1, SolveOptions(rtol=rtol)) for rtol in (1e-3, 1e-5))
    assert tight == pytest.approx(100 * loose, rel=1e-6)
    assert noise.share(model, "float32", 0.0, PATH.t1, SolveOptions()) == 0.0


def test_noise_that_is_not_finite_is_too_much(model):
    noise = RoundingNoise(Emulated({"ieee": 0.0, "bf16": float("nan"), "tf32": float("inf")}))
    assert noise.cheapest(model, 0.0, PATH.t1, SolveOptions(rtol=1e-1)) == "float32"


def test_measured_once_for_each_state_of_the_weights(model):
    gradient = Emulated()
    noise = RoundingNoise(gradient)
    for rtol in (1e-3, 1e-4, 1e-5):
        noise.cheapest(model, 0.0, PATH.t1, SolveOptions(rtol=rtol))
    assert sorted(gradient.calls) == ["bf16", "ieee", "ieee", "tf32"]
    with torch.no_grad():
        model.hidden[0].weight.mul_(2.0)
    noise.cheapest(model, 0.0, PATH.t1, SolveOptions(rtol=1e-3))
    assert len(gradient.calls) == 6


def test_writes_that_no_counter_sees_are_measured_again(model):
    """A replayed CUDA graph, or ``.data``: an untrained output, all zeros, has no noise; later it has."""

    def gradient(model, x, t, precision):
        size = float(model.output.weight.detach().abs().max())
        return torch.full_like(x, size * (1.0 + ERRORS[precision]))

    noise, options = RoundingNoise(gradient), SolveOptions(rtol=1e-5)
    assert noise.cheapest(model, 0.0, PATH.t1, options) == "bf16"
    version = model.output.weight._version
    model.output.weight.data.fill_(5.0)
    assert model.output.weight._version == version
    assert noise.cheapest(model, 0.0, PATH.t1, options) == "float32"


def test_points_are_spread_along_the_path(model):
    seen = []

    def gradient(model, x, t, precision):
        seen.append((x, t))
        return torch.zeros_like(x)

    RoundingNoise(gradient).share(model, "tf32", 0.0, PATH.t1, SolveOptions())
    x, t = seen[0]
    assert x.shape == (RoundingNoise.POINTS, 16)
    assert x.dtype == t.dtype == torch.float32
    assert float(t.min()) == PATH.t0
    assert float(t.max()) == pytest.approx(PATH.t1)
    kernel = PATH.kernel(t)
    expected = (kernel.alpha.square() + kernel.beta.square()).sqrt()
    assert float((x.square().mean(1).sqrt() / expected).mean()) == pytest.approx(1.0, abs=0.05)


@pytest.fixture
def engine():
    engine = TritonEngine()
    engine._noise = RoundingNoise(Emulated())
    return engine


@pytest.mark.parametrize(("rtol", "expected"), [(1e-3, "bf16"), (1e-4, "tf32"), (1e-5, "float32")])
def test_the_engine_chooses_by_tolerance(engine, model, rtol, expected):
    assert engine._precision(model, 0.0, PATH.t1, Job("solve", solve=SolveOptions(rtol=rtol))) == expected


def test_forcing_a_noisier_one_is_warned_of(engine, model):
    job = Job("solve", "tf32", solve=SolveOptions(rtol=1e-6))
    with pytest.warns(UserWarning, match=r"precision='tf32' rounds .* times what rtol=1e-06 .* chooses 'float32'"):
        assert engine._precision(model, 0.0, PATH.t1, job) == "tf32"


@pytest.mark.parametrize(("precision", "rtol"), [("tf32", 1e-3), ("bf16", 1e-2), ("float32", 1e-6)])
def test_forcing_one_that_is_good_enough_is_not(engine, model, precision, rtol):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        job = Job("solve", precision, solve=SolveOptions(rtol=rtol))
        assert engine._precision(model, 0.0, PATH.t1, job) == precision


@pytest.mark.parametrize("rtol", [1e-1, 1e-3])
def test_traces_are_float32_unless_told(engine, model, rtol):
    """What is measured is the gradient's noise, not the second derivatives'."""
    options = SolveOptions(rtol=rtol)
    assert engine._precision(model, 0.0, PATH.t1, Job("solve_with_trace", solve=options)) == "float32"
    assert engine._precision(model, 0.0, PATH.t1, Job("solve_with_trace", "bf16", solve=options)) == "bf16"
    assert engine._precision(model, 0.0, PATH.t1, Job("solve", solve=options)) == "bf16"


def test_fixed_steps_have_no_tolerance_to_go_by(engine, model):
    assert engine._precision(model, 0.0, PATH.t1, Job("solve", solve=SolveOptions("rk4", steps=4))) == "float32"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.double(), "the model's dtype is torch.float64; this engine computes in float32"),
        (lambda m: MLPPotential((513,), PATH, (8,)), "the model has 513 coordinates; this engine takes 512"),
        (lambda m: MLPPotential((2,), PATH, (1025,)), "the model has a layer of 1025 units; this engine takes 1024"),
        (lambda m: MLPPotential((2,), PATH, (4,) * 65), "the model has 65 hidden layers; this engine takes 64"),
        (
            lambda m: mixture().float(),
            "the model is a GaussianMixturePotential; this engine knows the formulas of MLPPot",
        ),
    ],
)
def test_models_that_the_engine_does_not_take(model, change, message):
    changed = change(model)
    dtype = next(t for t in (*changed.parameters(), *changed.buffers()) if t.is_floating_point()).dtype
    assert (
        TritonEngine(device_type="cpu").supports(changed, torch.device("cpu"), dtype, Job("solve")).startswith(message)
    )


def test_models_elsewhere_and_other_precisions_are_refused(model):
    engine = TritonEngine()
    told = engine.supports(model, torch.device("cpu"), torch.float32, Job("solve"))
    assert told == "the model is on cpu; this engine runs on CUDA"
    cpu = TritonEngine(device_type="cpu")
    assert "float64" in cpu.supports(model, torch.device("cpu"), torch.float32, Job("solve", "float64"))
    loss = Job("loss_and_grads", loss=LossOptions("covariance", baseline=lambda x, t: x[:, 0]))
    assert "baseline" in cpu.supports(model, torch.device("cpu"), torch.float32, loss)
    assert cpu.supports(model, torch.device("cpu"), torch.float32, Job("solve")) is None
