"""Langevin refinement: the density it keeps, counted acceptance, NaN states, noise by sample, and bad inputs."""

import math

import pytest
import torch
from scipy import stats

import vapo_fast as vf
from vapo_fast.noise import normal
from vapo_fast.potentials.base import Potential

PATH = vf.DataHomotopy(1.0, 0.3)


def mixture(path=PATH):
    means = torch.tensor([[-0.5, 0.2], [0.4, -0.3]])
    covariances = torch.tensor([[[0.09, 0.03], [0.03, 0.05]], [[0.04, 0.0], [0.0, 0.16]]])
    return vf.GaussianMixturePotential(torch.tensor([0.4, 0.6]), means, covariances, path)


def drawn(model, n, t, seed=0):
    """Exact samples of the path's density at t."""
    data = model.sample_data(n, seed=seed)
    return model.homotopy.perturb(data, t, normal(seed, range(n), model.event_shape, dtype=data.dtype)).x


def test_mala_keeps_a_mixture():
    model, n = mixture(), 6000
    x = drawn(model, n, PATH.t1)
    result = vf.refine(model, x, 15, step_size=2.0, seed=5)
    assert float((result.x - x).abs().mean()) > 0.2  # it has moved
    fresh = drawn(model, 60_000, PATH.t1, seed=9)
    for axis in range(2):
        assert stats.ks_2samp(result.x[:, axis].numpy(), fresh[:, axis].numpy()).pvalue > 1e-3
    assert stats.ks_2samp(result.x.sum(1).numpy(), fresh.sum(1).numpy()).pvalue > 1e-3
    mean, covariance = fresh.mean(0), torch.cov(fresh.T)
    torch.testing.assert_close(result.x.mean(0), mean, rtol=0, atol=5 * math.sqrt(float(covariance.diag().max()) / n))
    torch.testing.assert_close(torch.cov(result.x.T), covariance, rtol=0, atol=0.03)
    assert 0.3 < float(result.acceptance.mean()) < 0.95


def test_mala_finds_a_gaussian_and_an_unadjusted_chain_is_biased_as_the_formula_says():
    # ULA on N(m, S) has variance S / (1 - h / (2 S)).
    path = vf.DataHomotopy(1.0, 0.5)
    model = vf.GaussianMixturePotential(torch.ones(1), torch.tensor([[0.7]]), torch.tensor([[[0.3]]]), path)
    k = path.kernel(path.t1)
    variance = 0.3 * float(k.alpha) ** 2 + float(k.beta) ** 2
    mean = 0.7 * float(k.alpha)
    h = 0.8 * variance
    step_size = h / float(k.beta) ** 2
    x = 0.1 * normal(3, range(20_000), (1,), dtype=torch.float64)
    adjusted = vf.refine(model, x, 40, step_size=step_size)
    assert float(adjusted.x.mean()) == pytest.approx(mean, abs=0.02)
    assert float(adjusted.x.var()) == pytest.approx(variance, rel=0.04)
    z = (adjusted.x.flatten() - mean) / math.sqrt(variance)
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-3
    unadjusted = vf.refine(model, x, 40, step_size=step_size, adjusted=False)
    assert float(unadjusted.x.var()) == pytest.approx(variance / (1.0 - h / (2.0 * variance)), rel=0.04)
    assert bool((unadjusted.acceptance == 1.0).all())


def test_it_works_at_other_times_and_on_the_linear_path():
    path = vf.LinearHomotopy(1.0, 0.9)
    model, t = mixture(path), 0.5
    x = drawn(model, 5000, t)
    result = vf.refine(model, x, 10, t=t, step_size=0.6)
    fresh = drawn(model, 50_000, t, seed=4)
    assert stats.ks_2samp(result.x[:, 0].numpy(), fresh[:, 0].numpy()).pvalue > 1e-3
    expected = model.marginal_log_density(result.x, t)
    gap = result.log_density - expected
    torch.testing.assert_close(gap, gap.mean().expand_as(gap), rtol=0, atol=1e-9)


def test_acceptance_counts_proposals_and_falls_with_the_step():
    model = mixture()
    x = drawn(model, 300, PATH.t1)
    rates = []
    for step_size in (0.02, 2.0, 40.0):
        result = vf.refine(model, x, 20, step_size=step_size)
        assert bool(((result.acceptance >= 0) & (result.acceptance <= 1)).all())
        torch.testing.assert_close(result.acceptance * 20, (result.acceptance * 20).round())
        torch.testing.assert_close(result.step_size, torch.full((300,), step_size, dtype=torch.float64))
        rates.append(float(result.acceptance.mean()))
    assert rates[0] > 0.97
    assert rates[0] > rates[1] > rates[2]


def test_adapting_reaches_the_target_and_then_stops():
    model = mixture()
    x = drawn(model, 400, PATH.t1)
    for start in (0.1, 20.0):
        result = vf.refine(model, x, 60, step_size=start, adapt_steps=80)
        assert float(result.acceptance.mean()) == pytest.approx(0.574, abs=0.08)
        assert float(result.step_size.log().std()) > 0  # each sample has its own


def test_a_row_depends_on_its_number_only():
    model = mixture()
    x = drawn(model, 30, PATH.t1)
    whole = vf.refine(model, x, 7, step_size=2.0, seed=2, adapt_steps=3)
    split = vf.refine(model, x, 7, step_size=2.0, seed=2, adapt_steps=3, batch_size=11)
    for a, b in zip(whole, split, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    again = vf.refine(model, x, 7, step_size=2.0, seed=2, adapt_steps=3)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    other = vf.refine(model, x, 7, step_size=2.0, seed=3, adapt_steps=3)
    assert not torch.equal(other.x, whole.x)


class Cliff(Potential):
    """A Gaussian whose value is NaN to the right of 1."""

    def __init__(self):
        super().__init__((1,), PATH)
        self.inner = vf.GaussianMixturePotential(torch.ones(1), torch.zeros(1, 1), torch.ones(1, 1, 1), PATH)

    def value(self, x, t):
        return torch.where(x[:, 0] > 1.0, torch.nan, self.inner(x, t))


@pytest.mark.parametrize("adjusted", [True, False])
def test_states_without_a_density_are_never_entered(adjusted):
    x = normal(0, range(500), (1,), dtype=torch.float64).clamp(max=0.99)
    result = vf.refine(Cliff(), x, 30, step_size=3.0, adjusted=adjusted)
    assert bool((result.x <= 1.0).all())
    assert bool(torch.isfinite(result.log_density).all())
    assert float(result.acceptance.min()) < 1.0


def test_a_start_without_a_density_stays_and_spoils_no_neighbour():
    x = torch.tensor([[2.0], [0.3]], dtype=torch.float64)
    result = vf.refine(Cliff(), x, 20, step_size=1.0)
    assert (float(result.x[0]), float(result.acceptance[0])) == (2.0, 0.0)
    assert math.isnan(float(result.log_density[0]))
    alone = vf.refine(Cliff(), torch.tensor([[0.0], [0.3]], dtype=torch.float64), 20, step_size=1.0)
    assert float(alone.x[1]) == float(result.x[1])


def test_the_model_and_the_input_are_left_as_they_were():
    model = vf.MLPPotential((2,), PATH, (8,)).train()
    x = normal(0, range(4), (2,))
    kept = x.clone()
    result = vf.refine(model, x, 3)
    assert model.training
    assert torch.equal(x, kept)
    assert not result.x.requires_grad
    assert result.x.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"step_size": 0.0}, "step_size must be a finite number > 0"),
        ({"step_size": float("nan")}, "step_size"),
        ({"adapt_steps": -1}, "adapt_steps"),
        ({"seed": -1}, "seed"),
        ({"batch_size": 0}, "batch_size"),
        ({"engine": "fast"}, "engine must be one of"),
        ({"x": torch.zeros(2, 3)}, "x must have shape"),
    ],
)
def test_bad_inputs(change, words):
    arguments = {"model": vf.MLPPotential((2,), PATH, (4,)), "x": torch.zeros(2, 2), "steps": 1, **change}
    model, x, steps = (arguments.pop(name) for name in ("model", "x", "steps"))
    with pytest.raises(ValueError, match=words):
        vf.refine(model, x, steps, **arguments)


def test_wrong_types():
    model = vf.MLPPotential((2,), PATH, (4,))
    with pytest.raises(TypeError, match="adjusted must be True or False"):
        vf.refine(model, torch.zeros(1, 2), 1, adjusted=1)
    with pytest.raises(TypeError, match="dtype"):
        vf.refine(model, torch.zeros(1, 2, dtype=torch.float64), 1)
