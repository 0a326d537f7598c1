"""Sampling with exact potentials against closed forms; splits of the batch, and memory that runs out."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from tests.support.exact import Quadratic, gaussian, line_mixture, plane_mixture, well
from vapo_fast import noise
from vapo_fast.engines import Job, ReferenceEngine
from vapo_fast.homotopy import DataHomotopy, LinearHomotopy
from vapo_fast.ode import Solution, SolveError
from vapo_fast.potentials import MLPPotential, Potential
from vapo_fast.sampling import batching
from vapo_fast.sampling import sample as sampling
from vapo_fast.sampling.sample import interpolate, sample

DATA_PATH, LINEAR_PATH = DataHomotopy(1.0, 0.1), LinearHomotopy(1.0, 0.9)
PATHS = [DATA_PATH, LINEAR_PATH, DataHomotopy(1.7, 0.2)]
MEAN, SD = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), 0.5


def marginal_cdf(model, axis, t):
    k = model.homotopy.kernel(t)
    covariances = torch.einsum("kij,kj,klj->kil", model.axes, model.variances, model.axes)
    centre = (k.alpha * model.means[:, axis]).numpy()
    spread = (k.beta**2 + k.alpha**2 * covariances[:, axis, axis]).sqrt().numpy()
    weights = model.log_weights.exp().numpy()
    return lambda x: (weights * scipy.stats.norm.cdf((np.asarray(x)[..., None] - centre) / spread)).sum(-1)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_gaussian_data_gives_the_affine_map(path):
    n = 200
    start, end = path.kernel(path.t0), path.kernel(path.t1)
    spread = [float(k.beta**2 + k.alpha**2 * SD**2) for k in (start, end)]
    x0 = path.omega * noise.normal(3, range(n), (3,), dtype=torch.float64)
    expected = end.alpha * MEAN + math.sqrt(spread[1] / spread[0]) * (x0 - start.alpha * MEAN)
    drawn = sample(gaussian(MEAN, SD**2, path), n, rtol=1e-8, seed=3)
    assert (drawn - expected).abs().max() < 1e-6


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_mixture_samples_pass_kolmogorov_smirnov_on_both_axes(path):
    model = plane_mixture(path)
    drawn = sample(model, 6_000, rtol=1e-5, seed=1)
    for axis in range(2):
        assert scipy.stats.kstest(drawn[:, axis].numpy(), marginal_cdf(model, axis, path.t1)).pvalue > 1e-3


@pytest.mark.parametrize("path", [DATA_PATH, LINEAR_PATH], ids=str)
def test_quantile_grid_in_one_dimension(path):
    """A map of the line that keeps order carries quantiles to quantiles: W1 on a grid of levels."""
    model, levels = line_mixture(path), (np.arange(400) + 0.5) / 400
    x0 = torch.tensor(path.omega * scipy.stats.norm.ppf(levels))[:, None]
    carried = ReferenceEngine().solve(
        model,
        x0,
        path.t0,
        path.t1,
        sampling.Job("solve", solve=sampling.solve_options("dopri5", 1e-8, None, None, 10_000)),
    )
    cdf = marginal_cdf(model, 0, path.t1)
    low, high = np.full(400, -10.0), np.full(400, 10.0)
    for _ in range(60):
        middle = 0.5 * (low + high)
        below = cdf(middle) < levels
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    assert np.abs(carried.x[:, 0].numpy() - low).mean() <= 3e-5


def test_sample_i_depends_on_seed_and_index_only():
    model = plane_mixture(DATA_PATH)
    whole = sample(model, 50, rtol=1e-6, return_solution=True)
    assert isinstance(whole, Solution)
    assert (whole.engine, whole.precision) == ("reference", "float64")
    for size in (1, 7, 50, 1000):
        split = sample(model, 50, rtol=1e-6, batch_size=size, return_solution=True)
        torch.testing.assert_close(split.x, whole.x, rtol=1e-12, atol=1e-12)
        assert torch.equal(split.accepted, whole.accepted)
    torch.testing.assert_close(sample(model, 20, rtol=1e-6), whole.x[:20], rtol=1e-12, atol=1e-12)
    assert not torch.equal(sample(model, 20, seed=1), whole.x[:20])
    assert torch.equal(sample(model, 50, rtol=1e-6), whole.x)


def test_float32_model():
    drawn = sample(plane_mixture(DATA_PATH).float(), 100)
    assert drawn.dtype == torch.float32
    torch.testing.assert_close(drawn.double(), sample(plane_mixture(DATA_PATH), 100), rtol=0, atol=2e-3)


@pytest.mark.parametrize("method", ["euler", "heun", "rk4", "tsit5", "bosh3"])
def test_methods(method):
    steps = None if method in {"tsit5", "bosh3"} else 400
    exact = sample(plane_mixture(DATA_PATH), 20, rtol=1e-9)
    drawn = sample(plane_mixture(DATA_PATH), 20, method=method, steps=steps)
    torch.testing.assert_close(drawn, exact, rtol=0, atol=0.02 if method == "euler" else 1e-3)


def test_end_time_of_time_independent_potentials():
    x0 = noise.normal(0, range(10), (2,))
    torch.testing.assert_close(sample(well(), 10, rtol=1e-6, t_end=7.0), x0 * math.exp(-7.0), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(sample(well(), 10, rtol=1e-6, t_end=0.5), x0 * math.exp(-0.5), rtol=1e-4, atol=1e-5)


def test_model_modes_and_parameters_are_left_as_they_were():
    class WithDropout(Quadratic):
        def __init__(self):
            super().__init__()
            self.drop = torch.nn.Dropout(0.5)
            self.frozen = torch.nn.Dropout(0.5).eval()

        def forward(self, x):
            return super().forward(self.drop(x))

    model = Potential.from_module(WithDropout(), (2,), DATA_PATH)
    model.module.frozen.eval()
    assert torch.equal(sample(model, 5), sample(well(), 5))
    assert model.training
    assert model.module.drop.training
    assert not model.module.frozen.training
    assert model.module.curvature.grad is None
    assert model.module.curvature.requires_grad


def test_works_inside_no_grad_and_inference_mode():
    expected = sample(well(), 5)
    with torch.no_grad():
        assert torch.equal(sample(well(), 5), expected)
    model = well()
    with torch.inference_mode():
        assert torch.equal(sample(model, 5), expected)
        assert interpolate(model, expected[0], expected[1], 3).shape == (3, 2)


class Explosive(Quadratic):
    """Samples whose first coordinate is above 1.5 at the start leave for infinity."""

    def forward(self, x):
        return torch.where(x[:, 0] > 1.5, x[:, 0] ** 4, -0.5 * x.square().sum(1)) * -self.curvature


def test_failures_are_raised_at_the_end_with_every_batch():
    model = Potential.from_module(Explosive(), (2,), DATA_PATH)
    bad = noise.normal(0, range(100), (2,))[:, 0] > 1.5
    with pytest.raises(SolveError, match=f"{int(bad.sum())} of 100 samples") as error:
        sample(model, 100, batch_size=30)
    assert torch.equal(~error.value.solution.success, bad)
    solution = sample(model, 100, batch_size=30, throw=False, return_solution=True)
    assert torch.equal(solution.x, error.value.solution.x)
    assert sample(model, 100, throw=False).shape == (100, 2)


@pytest.mark.parametrize(
    "failure", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), torch.OutOfMemoryError()]
)
def test_out_of_memory_halves_the_batch_and_goes_on(monkeypatch, failure):
    sizes, original = [], ReferenceEngine.solve

    def limited(self, potential, x0, *rest):
        sizes.append(x0.shape[0])
        if x0.shape[0] > 6:
            raise failure
        return original(self, potential, x0, *rest)

    expected = sample(well(), 20)
    monkeypatch.setattr(ReferenceEngine, "solve", limited)
    with pytest.warns(RuntimeWarning, match=r"going on with batches of (10|5) samples"):
        drawn = sample(well(), 20)
    assert sizes == [20, 10, 5, 5, 5, 5]
    assert torch.equal(drawn, expected)


def test_out_of_memory_at_one_sample_and_other_errors(monkeypatch):
    def broken(error):
        def solve(*args):
            raise error

        return solve

    monkeypatch.setattr(ReferenceEngine, "solve", broken(MemoryError()))
    with pytest.warns(RuntimeWarning, match="batches of 1"), pytest.raises(MemoryError, match="after 0 of 3 samples"):
        sample(well(), 3)
    monkeypatch.setattr(ReferenceEngine, "solve", broken(RuntimeError("size mismatch")))
    with pytest.raises(RuntimeError, match="size mismatch"):
        sample(well(), 3)


def test_more_samples_than_memory_can_hold_are_refused_at_once():
    with pytest.raises(
        MemoryError, match=r"n=1000000000000000 samples need about .* GiB .* draw them in several calls"
    ):
        sample(well(), 10**15)


def test_default_batch_follows_the_free_memory(monkeypatch):
    small, large = well(), MLPPotential((2,), DATA_PATH, widths=(256, 256))

    def size(model, n):
        return batching.batch_size_for(ReferenceEngine(), model, n, Job("solve"))

    monkeypatch.setattr(batching, "free_memory", lambda device: 1 << 20)
    assert 1 <= size(large, 10**9) < size(small, 10**9) < 10**5
    assert size(small, 3) == 3
    monkeypatch.setattr(batching, "free_memory", lambda device: None)
    assert size(small, 10**9) == 10**9
    monkeypatch.setattr(batching, "free_memory", lambda device: 1 << 14)
    torch.testing.assert_close(sample(large, 9), sample(large, 9, batch_size=9), rtol=1e-4, atol=1e-4)


def test_an_engine_that_knows_what_it_needs_is_not_tried(monkeypatch):
    class Frugal(ReferenceEngine):
        def bytes_per_sample(self, potential, dtype, job, probes=0):
            assert (potential, dtype, job.kind, probes) == (model, torch.float64, "solve", 0)
            return 1 << 10

    model = well().double()
    monkeypatch.setattr(batching, "saved_bytes_per_sample", None)  # would fail if called
    monkeypatch.setattr(batching, "free_memory", lambda device: 1 << 20)
    assert batching.batch_size_for(Frugal(), model, 10**9, Job("solve")) == int(0.4 * 2**10)


def test_progress_bar(capsys):
    sample(well(), 10, batch_size=4, progress=True)
    assert "10/10" in capsys.readouterr().out
    sample(well(), 10)
    assert capsys.readouterr().out == ""
