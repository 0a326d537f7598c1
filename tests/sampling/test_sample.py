"""Sampling with exact potentials against closed forms; splits and memory; interpolation; end times; bad inputs."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from vapo_fast import noise
from vapo_fast.core import memory
from vapo_fast.engines import Job, ReferenceEngine, UnsupportedJobError
from vapo_fast.homotopy import DataHomotopy, LinearHomotopy
from vapo_fast.ode import Solution, SolveError
from vapo_fast.potentials import MLPPotential, Potential
from vapo_fast.potentials.gaussian_mixture import GaussianMixturePotential
from vapo_fast.sampling import batching
from vapo_fast.sampling import sample as sampling
from vapo_fast.sampling.end_time import validate_t_end
from vapo_fast.sampling.sample import interpolate, sample, spherical

DATA_PATH, LINEAR_PATH = DataHomotopy(1.0, 0.1), LinearHomotopy(1.0, 0.9)
PATHS = [DATA_PATH, LINEAR_PATH, DataHomotopy(1.7, 0.2)]
MEAN, SD = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), 0.5


def gaussian(path):
    return GaussianMixturePotential(torch.ones(1), MEAN[None], SD**2 * torch.eye(3)[None], path)


def mixture(path):
    return GaussianMixturePotential(
        torch.tensor([0.25, 0.75]),
        torch.tensor([[-1.0, 0.0], [1.0, 0.5]]),
        torch.tensor([[[0.04, 0.0], [0.0, 0.04]], [[0.2, 0.1], [0.1, 0.15]]]),
        path,
    )


def one_dimensional(path):
    return GaussianMixturePotential(
        torch.tensor([0.3, 0.7]), torch.tensor([[-2.0], [1.0]]), torch.tensor([[[0.09]], [[0.25]]]), path
    )


class Well(torch.nn.Module):
    """Phi = -|x|^2/2, x(t) = x0 e^-t; with a switch to count the calls and break some."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        return -0.5 * self.scale * x.flatten(1).square().sum(1)


def well(shape=(2,), path=DATA_PATH):
    return Potential.from_module(Well(), shape, path)


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
    drawn = sample(gaussian(path), n, rtol=1e-8, seed=3)
    assert (drawn - expected).abs().max() < 1e-6


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_mixture_samples_pass_kolmogorov_smirnov_on_both_axes(path):
    model = mixture(path)
    drawn = sample(model, 6_000, rtol=1e-5, seed=1)
    for axis in range(2):
        assert scipy.stats.kstest(drawn[:, axis].numpy(), marginal_cdf(model, axis, path.t1)).pvalue > 1e-3


@pytest.mark.parametrize("path", [DATA_PATH, LINEAR_PATH], ids=str)
def test_quantile_grid_in_one_dimension(path):
    """A map of the line that keeps order carries quantiles to quantiles: W1 on a grid of levels."""
    model, levels = one_dimensional(path), (np.arange(400) + 0.5) / 400
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
    model = mixture(DATA_PATH)
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
    drawn = sample(mixture(DATA_PATH).float(), 100)
    assert drawn.dtype == torch.float32
    torch.testing.assert_close(drawn.double(), sample(mixture(DATA_PATH), 100), rtol=0, atol=2e-3)


@pytest.mark.parametrize("method", ["euler", "heun", "rk4", "tsit5", "bosh3"])
def test_methods(method):
    steps = None if method in {"tsit5", "bosh3"} else 400
    exact = sample(mixture(DATA_PATH), 20, rtol=1e-9)
    drawn = sample(mixture(DATA_PATH), 20, method=method, steps=steps)
    torch.testing.assert_close(drawn, exact, rtol=0, atol=0.02 if method == "euler" else 1e-3)


def test_end_time_of_time_independent_potentials():
    x0 = noise.normal(0, range(10), (2,))
    torch.testing.assert_close(sample(well(), 10, rtol=1e-6, t_end=7.0), x0 * math.exp(-7.0), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(sample(well(), 10, rtol=1e-6, t_end=0.5), x0 * math.exp(-0.5), rtol=1e-4, atol=1e-5)


def test_model_modes_and_parameters_are_left_as_they_were():
    class WithDropout(Well):
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
    assert model.module.scale.grad is None
    assert model.module.scale.requires_grad


def test_works_inside_no_grad_and_inference_mode():
    expected = sample(well(), 5)
    with torch.no_grad():
        assert torch.equal(sample(well(), 5), expected)
    model = well()
    with torch.inference_mode():
        assert torch.equal(sample(model, 5), expected)
        assert interpolate(model, expected[0], expected[1], 3).shape == (3, 2)


class Explosive(Well):
    """Samples whose first coordinate is above 1.5 at the start leave for infinity."""

    def forward(self, x):
        return torch.where(x[:, 0] > 1.5, x[:, 0] ** 4, -0.5 * x.square().sum(1)) * self.scale


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


def test_memory_that_holds_cached_files_counts_as_free(monkeypatch, tmp_path):
    cpu = torch.device("cpu")
    (tmp_path / "meminfo").write_text("MemTotal: 8000 kB\nMemFree:  10 kB\nMemAvailable:    6000 kB\n")
    monkeypatch.setattr(memory, "MEMORY_INFO", tmp_path / "meminfo")
    assert memory.free_memory(cpu) == 6000 * 1024
    monkeypatch.setattr(memory, "MEMORY_INFO", tmp_path / "none")
    assert memory.free_memory(cpu) != 6000 * 1024


WHOLE = 6000 * 1024


def _group(place, limit, usage, cache):
    place.mkdir(parents=True, exist_ok=True)
    names = (
        ("memory.max", "memory.current")
        if cache == "inactive_file"
        else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )
    for name, text in zip((*names, "memory.stat"), (limit, usage, f"anon 5\n{cache} 400\nfile 7"), strict=True):
        (place / name).write_text(f"{text}\n")


@pytest.mark.parametrize(
    ("memberships", "groups", "free"),
    [
        ("0::/job/step\n", {"job/step": ("max", 0), "job": (5000, 3000)}, 2400),
        ("0::/job/step\n", {"job/step": (3000, 2999), "job": (5000, 3000)}, 401),
        ("0::/\n", {"": (900, 700)}, 600),
        ("0::/\n", {"": ("max", 700)}, WHOLE),
        ("0::/\n", {"": (700, 9000)}, 0),
        ("5:cpu:/a\n4:memory,pids:/outside/name\n0::/\n", {"memory": (900, 700)}, 600),
        ("4:memory:/a\n", {"memory/a": (9223372036854771712, 10)}, WHOLE),
        ("", {}, WHOLE),
    ],
)
def test_a_containers_limit_counts(memberships, groups, free, monkeypatch, tmp_path):
    (tmp_path / "meminfo").write_text("MemAvailable: 6000 kB\n")
    (tmp_path / "own").write_text(memberships)
    for name, (limit, usage) in groups.items():
        kind = "total_inactive_file" if name.startswith("memory") else "inactive_file"
        _group(tmp_path / "groups" / name, limit, usage, kind)
    monkeypatch.setattr(memory, "MEMORY_INFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "groups")
    found = memory.free_memory(torch.device("cpu"))
    assert found == free
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert memory.free_memory(torch.device("cpu")) == found // 2


def test_what_pytorch_keeps_and_would_give_back_is_free(monkeypatch):
    def segment(size, active=0, device=1, pool=(0, 0)):
        return {"total_size": size, "active_size": active, "device": device, "segment_pool_id": pool}

    kept = [segment(100), segment(20), segment(1000, active=1), segment(3000, device=0), segment(5000, pool=(0, 7))]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7, 10_000))
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: kept)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert memory.free_memory(torch.device("cuda", 1)) == 127
    assert memory.free_memory(torch.device("cuda")) == 3007


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


def test_interpolation_keeps_its_ends_and_goes_through_the_prior():
    model, path = gaussian(DATA_PATH), DATA_PATH
    ends = sample(model, 4, rtol=1e-9)
    a, b = ends[:2], ends[2:]
    frames = interpolate(model, a, b, 5, rtol=1e-9)
    assert frames.shape == (2, 5, 3)
    assert torch.equal(frames[:, 0], a)
    assert torch.equal(frames[:, -1], b)
    z = noise.normal(0, range(4), (3,), dtype=torch.float64)
    k = path.kernel(path.t1)
    spread = (k.beta**2 + k.alpha**2 * SD**2).sqrt()
    for i in range(1, 4):
        torch.testing.assert_close(
            frames[:, i], k.alpha * MEAN + spread * spherical(z[:2], z[2:], i / 4), rtol=0, atol=1e-6
        )
    single = interpolate(model, a[0], b[0], 5, rtol=1e-9)
    torch.testing.assert_close(single, frames[0], rtol=1e-10, atol=1e-10)
    assert torch.equal(interpolate(model, a, b, 2), torch.stack((a, b), 1))


def test_spherical():
    a = torch.tensor([[3.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    b = torch.tensor([[0.0, 1.0], [-1.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    half = spherical(a, b, 0.5)
    root = math.sqrt(0.5)
    expected = [[2 * root, 2 * root], [0.0, 1.0], [1.5, 0.0], [1.0, 0.0], [0.0, 0.0]]
    torch.testing.assert_close(half, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    for s, end in ((0.0, a), (1.0, b)):
        torch.testing.assert_close(spherical(a, b, s), end, rtol=1e-12, atol=1e-12)
    line = spherical(torch.tensor([[1.0]]), torch.tensor([[-1.0]]), 0.25)
    assert line.tolist() == [[0.5]]


def test_spherical_is_smooth_near_opposite_and_equal_points():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(50, 8, generator=generator)
    for b in (-a + 1e-6 * torch.randn(50, 8, generator=generator), a + 1e-7 * torch.randn(50, 8, generator=generator)):
        middle = spherical(a, b, 0.5)
        assert middle.isfinite().all()
        torch.testing.assert_close(middle.norm(dim=1), a.norm(dim=1), rtol=1e-4, atol=0.0)


def test_validate_t_end_finds_the_time_that_fits():
    """With Phi = -|x|^2/2 the spread at time t is e^-t: data of spread e^-3 are met at t = 3, beyond or before t1."""
    for path in (DataHomotopy(1.0, 0.1), DataHomotopy(1.0, 0.5)):
        held_out = math.exp(-3.0) * noise.normal(9, range(2_000), (2,))
        result = validate_t_end(well(path=path), held_out, candidates=[1.0, 2.0, 3.0, 4.0, 5.0])
        assert result.t_end == 3.0
        assert result.candidates.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
        assert int(result.scores.argmin()) == 2
    default = validate_t_end(well(), held_out, n=500)
    assert default.candidates[0] == pytest.approx(0.5 * DATA_PATH.t1)
    assert default.candidates[-1] == pytest.approx(2.0 * DATA_PATH.t1)


def test_validate_t_end_warns_of_a_best_time_at_the_edge():
    held_out = 0.1 * noise.normal(1, range(400), (2,))
    for candidates, edge in (([0.5, 1.0], "last"), ([2.3, 4.0, 5.0], "first")):
        with pytest.warns(UserWarning, match=f"is the {edge} candidate; a better one may lie beyond"):
            validate_t_end(well(), held_out, candidates=candidates)


def test_validate_t_end_keeps_the_times_before_a_failure():
    held_out = math.exp(-3.0) * noise.normal(1, range(400), (2,))
    whole = validate_t_end(well(), held_out, candidates=[1.0, 3.0, 5.0, 200.0])
    steps = sample(well(), 400, t_end=100.0, return_solution=True).accepted.max().item()
    cut = validate_t_end(well(), held_out, candidates=[1.0, 3.0, 5.0, 200.0], max_steps=steps)
    assert cut.t_end == whole.t_end == 3.0
    torch.testing.assert_close(cut.scores[:3], whole.scores[:3])
    assert math.isinf(cut.scores[3])
    with pytest.raises(SolveError):
        validate_t_end(well(), held_out, candidates=[1.0, 3.0], max_steps=1)


def test_validate_t_end_refuses_time_dependent_potentials():
    with pytest.raises(ValueError, match="time-independent potentials"):
        validate_t_end(mixture(DATA_PATH), torch.zeros(5, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="held_out has NaN"):
        validate_t_end(well(), torch.full((5, 2), torch.nan))
    with pytest.raises(ValueError, match="candidates must increase"):
        validate_t_end(well(), torch.zeros(5, 2), candidates=[2.0, 1.0])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": torch.nn.Linear(2, 1)}, TypeError, "model must be a Potential, got Linear.*from_module"),
        ({"n": 0}, ValueError, "n must be a positive integer, got 0"),
        ({"n": 2.5}, TypeError, "n must be a positive integer"),
        ({"rtol": 0.0}, ValueError, "rtol must be"),
        ({"rtol": 1e-9}, ValueError, "use float64"),
        ({"atol": -1.0}, ValueError, "atol must be"),
        ({"method": "rk45"}, ValueError, "method must be one of"),
        ({"method": "rk4"}, ValueError, "steps is required"),
        ({"steps": 4}, ValueError, "steps=4 does not go with"),
        ({"max_steps": 0}, ValueError, "max_steps must be"),
        ({"t_end": 0.0}, ValueError, "t_end must be after the start of the path"),
        ({"t_end": math.nan}, ValueError, "t_end must be finite"),
        ({"seed": -1}, ValueError, "seed must be"),
        ({"batch_size": 0}, ValueError, "batch_size must be a positive integer"),
        ({"engine": "gpu"}, ValueError, "engine must be one of"),
        ({"precision": "fp8"}, ValueError, "precision must be one of"),
        ({"precision": "bf16", "engine": "reference"}, UnsupportedJobError, "bf16"),
    ],
)
def test_bad_inputs_are_named(changes, error, message):
    arguments = {"model": well(), "n": 3} | changes
    with pytest.raises(error, match=message):
        sample(arguments.pop("model"), arguments.pop("n"), **arguments)


def test_past_the_end_of_a_time_dependent_path():
    with pytest.raises(ValueError, match=r"t_end must be at most 4\.6"):
        sample(mixture(DATA_PATH), 3, t_end=5.0)


def test_a_diverged_model_is_named_by_its_parameter():
    model = well()
    with torch.no_grad():
        model.module.scale.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"model parameter 'module.scale' has NaN"):
        sample(model, 3)


@pytest.mark.parametrize(
    ("a", "b", "n", "error", "message"),
    [
        (torch.zeros(2), torch.zeros(2), 1, ValueError, "n must be at least 2"),
        (torch.zeros(2), torch.zeros(3, 2), 3, ValueError, "x_a and x_b must have one shape"),
        (torch.zeros(3), torch.zeros(3), 3, ValueError, r"x_a must have shape \(B, 2\)"),
        (torch.zeros(0, 2), torch.zeros(0, 2), 3, ValueError, "x_a must hold at least one sample"),
        (torch.zeros(2).double(), torch.zeros(2).double(), 3, TypeError, "x_a has dtype torch.float64"),
        (torch.zeros(2), torch.tensor([0.0, torch.inf]), 3, ValueError, "x_b has NaN or infinite"),
        ([0.0, 0.0], [0.0, 0.0], 3, TypeError, "x_a must be a torch.Tensor"),
    ],
)
def test_interpolation_bad_inputs(a, b, n, error, message):
    with pytest.raises(error, match=message):
        interpolate(well(), a, b, n)
