"""Bits per dimension against closed forms, dequantisation and its refusals."""

import math

import pytest
import torch
from scipy import stats

import vapo_fast as vf
from tests.support.exact import gaussian
from vapo_fast.noise import normal

PATH = vf.DataHomotopy(1.0, 0.01)


def centred(scale, dimension):
    return gaussian([0.0] * dimension, scale**2, PATH)


def quantised(n, dimension, scale, levels, seed=0):
    x = scale * normal(seed, range(n), (dimension,), dtype=torch.float64)
    return 2.0 * ((x.clamp(-1, 1) + 1.0) * (levels - 1) / 2.0).round() / (levels - 1) - 1.0


@pytest.mark.parametrize("levels", [17, 256])
def test_bits_are_those_of_the_density_at_the_dequantised_points(levels):
    model = centred(0.3, 3)
    x = quantised(20, 3, 0.3, levels)
    found = vf.bits_per_dim(model, x, levels=levels, seed=4, rtol=1e-8)
    y = vf.dequantise(x, levels=levels, seed=4)
    nats = model.marginal_log_density(y, PATH.t1) + 3 * math.log(2.0 / (levels - 1))
    torch.testing.assert_close(found.values, -nats / (3 * math.log(2.0)), rtol=0, atol=1e-6)
    assert bool((found.standard_error == 0).all())


def test_bits_are_those_of_the_exact_discrete_distribution_where_it_is_smooth():
    # P(k) of a Gaussian is the difference of its distribution function at the ends of the step.
    scale, levels, dimension = 0.3, 256, 16
    x = quantised(400, dimension, scale, levels)
    found = float(vf.bits_per_dim(centred(scale, dimension), x, rtol=1e-6).values.mean())
    kernel = PATH.kernel(PATH.t1)
    spread = math.sqrt((scale * float(kernel.alpha)) ** 2 + float(kernel.beta) ** 2)
    half = 1.0 / (levels - 1)
    mass = stats.norm.cdf((x.numpy() + half) / spread) - stats.norm.cdf((x.numpy() - half) / spread)
    exact = float(-torch.log2(torch.from_numpy(mass)).mean())
    assert found == pytest.approx(exact, abs=2e-3)
    # The entropy of N(0, scale^2) is ln(scale sqrt(2 pi e)) nats; it is not reached by a model of another scale.
    entropy = (0.5 * math.log(2 * math.pi * math.e * scale**2) - math.log(2.0 * half)) / math.log(2.0)
    assert found == pytest.approx(entropy, abs=0.05)
    assert float(vf.bits_per_dim(centred(0.6, dimension), x, rtol=1e-6).values.mean()) > found + 0.2


def test_a_change_of_levels_changes_bits_by_the_logarithm_of_the_step():
    # Where the density is smooth over either step, four times coarser levels save two bits.
    x = quantised(300, 4, 0.25, 65)
    model = centred(0.25, 4)
    fine, coarse = (vf.bits_per_dim(model, x, levels=levels, rtol=1e-6).values.mean() for levels in (257, 65))
    assert float(fine - coarse) == pytest.approx(2.0, abs=0.02)


def test_images_and_hutchinson():
    torch.manual_seed(0)
    model = vf.UNetPotential((1, 8, 8), vf.DataHomotopy(sigma=0.05), channels=4, multipliers=(1,), blocks=1)
    torch.nn.init.normal_(model.output.weight, std=0.05)
    x = vf.data.load("digits").tensor()[:2]
    exact = vf.bits_per_dim(model, x, levels=17, rtol=1e-2)
    estimate = vf.bits_per_dim(model, x, levels=17, rtol=1e-2, trace="hutchinson", probes=16)
    assert exact.values.shape == (2,)
    assert bool((estimate.standard_error > 0).all())
    assert bool(((estimate.values - exact.values).abs() < 6 * estimate.standard_error + 1e-3).all())
    single = vf.bits_per_dim(model, x, levels=17, rtol=1e-2, trace="hutchinson", probes=1)
    assert bool(torch.isnan(single.standard_error).all())
    assert bool(torch.isfinite(single.values).all())


def test_dequantising_stays_in_the_step_and_depends_on_the_row():
    x = quantised(50, 6, 0.5, 256)
    y = vf.dequantise(x, seed=1)
    assert float((y - x).abs().max()) <= 1.0 / 255
    assert float((y - x).mean()) == pytest.approx(0.0, abs=3 * 2.0 / 255 / math.sqrt(12 * 300))
    torch.testing.assert_close(vf.dequantise(x[:7], seed=1), y[:7], rtol=0, atol=0)
    assert not torch.equal(vf.dequantise(x, seed=2), y)


def test_what_is_not_quantised_is_refused():
    x = quantised(4, 2, 0.5, 17).float()
    with pytest.raises(ValueError, match=r"levels=256 values from -1 to 1"):
        vf.dequantise(x + 0.001)
    with pytest.raises(ValueError, match="in row 2 is not one of them"):
        vf.dequantise(torch.cat((x[:2], x[2:] + 0.03)), levels=17)
    with pytest.raises(ValueError, match="is not one of them"):
        vf.dequantise(torch.full((1, 2), 1.5), levels=17)
    with pytest.raises(ValueError, match="is not one of them"):
        vf.dequantise(torch.full((1, 2), float("nan")))
    with pytest.raises(TypeError, match=r"torch\.int64"):
        vf.dequantise(torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="x must have shape"):
        vf.bits_per_dim(centred(0.3, 3), x.double())
