"""The sum of potentials: read-outs add, flows of equal Gaussians are exact, parts must fit, files bring it back."""

import itertools

import pytest
import torch

import vapo_fast as vf
from tests.support.exact import gaussian
from vapo_fast.noise import normal
from vapo_fast.potentials import potential_from_config

PATHS = [vf.DataHomotopy(1.0, 0.1), vf.LinearHomotopy(1.3, 0.9)]


def mixture(path):
    means = torch.tensor([[-1.0, 0.3], [0.8, -0.5], [0.2, 1.1]])
    covariances = torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.1, 0.0], [0.0, 0.4]], [[0.05, 0.0], [0.0, 0.05]]])
    return vf.GaussianMixturePotential(torch.tensor([0.2, 0.5, 0.3]), means, covariances, path)


def points(n=40, seed=3):
    return 1.5 * normal(seed, range(n), (2,), dtype=torch.float64)


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.4, 0.6), (1.0, -0.5), (2.5, 0.7), (1.7, 0.9)])
def test_read_outs_add(path, weights):
    a, b, s = mixture(path), gaussian([0.4, -0.2], 0.3, path), 0.8
    both = vf.SumPotential([a, b], weights, reference_scale=s)
    x = points()
    for fraction in (0.0, 1e-6, 0.3, 0.8, 1.0):
        t = path.t0 + fraction * (path.t1 - path.t0)
        k = path.kernel(t)
        variance = float(k.alpha * s) ** 2 + float(k.beta) ** 2
        reference = -0.5 * x.square().sum(1) / variance
        parts = (m.marginal_log_density(x, t) for m in (a, b))
        expected = sum(w * p for w, p in zip(weights, parts, strict=True)) + (1.0 - sum(weights)) * reference
        found = vf.log_density(both, x, t)
        gap = found - expected
        # At the start every part is the prior, so the sum is, for any weights.
        bound = 1e-10 if fraction == 0.0 else 1e-8 * max(1.0, float(expected.abs().max()))
        assert float((gap - gap.mean()).abs().max()) < bound, fraction
        assert bool(torch.isfinite(both.field(x, t)[1]).all())


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_the_flow_of_gaussians_as_wide_as_the_reference_is_exact(path):
    s, weights, means = 0.6, (1.0, 0.8), ([1.0, -0.5], [0.3, 0.9])
    parts = [gaussian(m, s**2, path) for m in means]
    both = vf.SumPotential(parts, weights, reference_scale=s)
    mean = sum(w * torch.tensor(m, dtype=torch.float64) for w, m in zip(weights, means, strict=True))
    product = gaussian(mean, s**2, path)
    x, t = points(), 0.6 * path.t1
    torch.testing.assert_close(both.field(x, t)[1], product.field(x, t)[1], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(vf.sample(both, 20, rtol=1e-8), vf.sample(product, 20, rtol=1e-8), rtol=0, atol=1e-6)


def test_the_flow_of_unlike_gaussians_misses_the_product_and_mala_finds_it():
    path = vf.DataHomotopy(1.0, 0.2)
    s, variances = 1.0, (0.25, 0.5)
    both = vf.SumPotential([gaussian([0.5], v, path) for v in variances], reference_scale=s)
    k = path.kernel(path.t1)
    alpha, noise = float(k.alpha) ** 2, float(k.beta) ** 2
    precision = sum(1.0 / (alpha * v + noise) for v in variances) - 1.0 / (alpha * s**2 + noise)
    flowed = vf.sample(both, 2000, rtol=1e-6)
    assert abs(float(flowed.var()) * precision - 1.0) > 0.1
    refined = vf.refine(both, flowed, 60, step_size=6.0)
    assert abs(float(refined.x.var()) * precision - 1.0) < 0.08


def test_a_sum_of_weight_one_needs_no_reference():
    path = PATHS[0]
    parts = [mixture(path), gaussian([0.4, -0.2], 0.3, path)]
    x = points()
    one, other = (vf.SumPotential(parts, (0.25, 0.75), reference_scale=s)(x, 1.0) for s in (0.1, 10.0))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    torch.testing.assert_close(one, 0.25 * parts[0](x, 1.0) + 0.75 * parts[1](x, 1.0))


def test_networks_in_the_gauge_count_their_quadratic_once():
    path = vf.DataHomotopy(1.0, 0.05)
    parts = []
    for seed in range(2):
        torch.manual_seed(seed)
        part = vf.MLPPotential((3,), path, (8,), data_scale=0.7).double()
        torch.nn.init.normal_(part.output.weight)
        parts.append(part)
    both = vf.SumPotential(parts, reference_scale=0.7)
    untrained = vf.MLPPotential((3,), path, (8,), data_scale=0.7).double()
    x = normal(0, range(10), (3,), dtype=torch.float64)
    for t in (0.0, 2.0, path.t1):
        networks = sum(part(x, t) - untrained(x, t) for part in parts)
        torch.testing.assert_close(both(x, t), untrained(x, t) + networks, rtol=1e-9, atol=1e-9)


def test_files_bring_it_back_also_nested(tmp_path):
    path = PATHS[0]
    mlp = vf.MLPPotential((2,), path, (8, 8))
    torch.nn.init.normal_(mlp.output.weight)
    inner = vf.SumPotential([mlp, vf.MLPPotential((2,), path, (4,))], (0.3, 0.7))
    outer = vf.SumPotential([inner, mlp], (1.0, 0.5), reference_scale=0.9)
    vf.save(outer, tmp_path / "sum.safetensors")
    back = vf.load(tmp_path / "sum.safetensors")
    x = points().float()
    assert type(back) is vf.SumPotential
    assert (back.weights, back.reference_scale) == ((1.0, 0.5), 0.9)
    torch.testing.assert_close(back(x, 2.0), outer(x, 2.0), rtol=0, atol=0)
    assert potential_from_config(outer.config()).config() == outer.config()


def test_a_wrapped_module_cannot_be_brought_back(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Flatten(0))

    class Timed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, x, t):
            return self.inner(x)

    wrapped = vf.Potential.from_module(Timed(), (2,), PATHS[0], time_dependent=True)
    vf.save(vf.SumPotential([wrapped]), tmp_path / "a.safetensors")
    with pytest.raises(vf.CheckpointError, match="ModulePotential"):
        vf.load(tmp_path / "a.safetensors")


def test_parts_that_do_not_fit_are_refused():
    path = PATHS[0]
    a = vf.MLPPotential((2,), path, (4,))
    others = {
        "homotopy": vf.MLPPotential((2,), PATHS[1], (4,)),
        "dtype": vf.MLPPotential((2,), path, (4,)).double(),
    }
    for words, other in others.items():
        with pytest.raises(ValueError, match=words) as caught:
            vf.SumPotential([a, other])
        assert "position 1" in str(caught.value)
    with pytest.raises(TypeError, match="Linear at position 0"):
        vf.SumPotential([torch.nn.Linear(2, 1)])
    with pytest.raises(ValueError, match="at least one"):
        vf.SumPotential([])
    with pytest.raises(ValueError, match="finite"):
        vf.SumPotential([a, a], [1.0, float("nan")])
    with pytest.raises(ValueError, match="reference_scale"):
        vf.SumPotential([a], reference_scale=0.0)


def test_value_matches_finite_differences():
    path = PATHS[1]
    both = vf.SumPotential([mixture(path), gaussian([0.4, -0.2], 0.3, path)], (1.2, 0.7), reference_scale=0.5)
    x, t, step = points(6), 0.7, 1e-5
    _, gradient = both.field(x, t)
    for i, j in itertools.product(range(6), range(2)):
        moved = [x.clone(), x.clone()]
        moved[0][i, j] += step
        moved[1][i, j] -= step
        slope = (both(moved[0], t)[i] - both(moved[1], t)[i]) / (2 * step)
        assert float(slope - gradient[i, j]) == pytest.approx(0.0, abs=1e-7)
