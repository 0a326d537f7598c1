"""Out-of-distribution scores against closed forms; AUROC against counting pairs; refusals."""

import math
import sys
import warnings

import pytest
import torch

import vapo_fast as vf
from vapo_fast.noise import Stream, normal

PATH = vf.DataHomotopy(1.0, 0.05)


def mixture():
    means = torch.tensor([[-0.7, 0.2], [0.6, -0.3]])
    covariances = torch.tensor([[[0.02, 0.0], [0.0, 0.05]], [[0.03, 0.01], [0.01, 0.02]]])
    return vf.GaussianMixturePotential(torch.tensor([0.3, 0.7]), means, covariances, PATH)


def test_the_read_out_score_is_the_log_density_of_the_perturbed_point():
    model = mixture()
    x = model.sample_data(12, seed=1)
    levels = [0.4, 0.1, float(PATH.kernel(PATH.t1).beta)]
    found = vf.ood_scores(model, x, noise_level=levels, draws=3, seed=7)
    assert found.shape == (12, 3)
    for column, level in enumerate(levels):
        t = float(PATH.time_at_noise_level(level))
        expected = torch.zeros(12, dtype=torch.float64)
        for draw in range(3):
            rows = torch.arange(12) + (draw << 32)
            at = PATH.perturb(x, t, normal(7, rows, (2,), stream=Stream.PROBE, dtype=torch.float64)).x
            expected += model.marginal_log_density(at, t) / 3
        gap = found[:, column] - expected
        torch.testing.assert_close(gap, gap.mean().expand_as(gap), rtol=0, atol=1e-8)
    torch.testing.assert_close(vf.ood_scores(model, x, draws=3, seed=7), found[:, 2], rtol=0, atol=1e-9)


def test_the_likelihood_score_is_the_log_likelihood():
    model = mixture()
    x = model.sample_data(5)
    found = vf.ood_scores(model, x, "likelihood", rtol=1e-8)
    torch.testing.assert_close(found, model.marginal_log_density(x, PATH.t1), rtol=0, atol=1e-5)


def test_scores_tell_far_data_from_the_models_own():
    model = mixture()
    inside, outside = model.sample_data(300, seed=2), model.sample_data(300, seed=3) + 1.5
    for options in ({"noise_level": 0.2}, {"score": "likelihood", "rtol": 1e-4}):
        scores = [vf.ood_scores(model, x, **options) for x in (inside, outside)]
        assert vf.auroc(*scores) > 0.98
    assert vf.auroc(*(vf.ood_scores(model, model.sample_data(300, seed=s)) for s in (4, 5))) == pytest.approx(
        0.5, abs=0.08
    )


def test_rows_do_not_depend_on_the_batch():
    model = mixture()
    x = model.sample_data(9)
    whole = vf.ood_scores(model, x, noise_level=0.3, draws=2)
    torch.testing.assert_close(vf.ood_scores(model, x, noise_level=0.3, draws=2, batch_size=4), whole)


def test_auroc_counts_pairs():
    inside, outside = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([2.0, 0.0])
    pairs = [(a > b) + 0.5 * (a == b) for a in inside for b in outside]
    assert vf.auroc(inside, outside) == pytest.approx(float(sum(pairs)) / 6)
    assert vf.auroc(torch.ones(3), torch.ones(5)) == 0.5
    assert vf.auroc(torch.zeros(3), torch.ones(5)) == 0.0


def test_auroc_is_scikit_learns_and_does_without_it(monkeypatch):
    from sklearn.metrics import roc_auc_score

    inside = normal(1, range(300), (), dtype=torch.float64).mul(4).round()  # many ties
    outside = normal(2, range(170), (), dtype=torch.float64).mul(3).round() - 1.0
    truth = torch.cat((torch.ones(300), torch.zeros(170))).numpy()
    expected = roc_auc_score(truth, torch.cat((inside, outside)).numpy())
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    assert vf.auroc(inside, outside) == pytest.approx(expected, abs=1e-12)
    assert vf.auroc(inside.float(), outside) == pytest.approx(expected, abs=1e-12)
    assert vf.auroc(outside, inside) == pytest.approx(1.0 - expected, abs=1e-12)


def test_typicality_sees_both_sides():
    reference = torch.linspace(-1.0, 1.0, 101)
    scores = torch.tensor([0.0, 5.0, -5.0])
    torch.testing.assert_close(vf.typicality(scores, reference), torch.tensor([0.0, -5.0, -5.0]))
    levels = torch.stack((scores, scores + 1.0), dim=1)
    both = vf.typicality(levels, torch.stack((reference, reference + 1.0), dim=1))
    torch.testing.assert_close(both, vf.typicality(scores, reference)[:, None].expand(3, 2))


def test_refusals():
    model = mixture()
    x = model.sample_data(3)
    with pytest.raises(ValueError, match="noise_level must hold at least one"):
        vf.ood_scores(model, x, noise_level=[])
    with pytest.raises(ValueError, match="draws must be a positive"):
        vf.ood_scores(model, x, draws=0)
    with pytest.raises(ValueError, match="are for score='read_out'"):
        vf.ood_scores(model, x, "likelihood", draws=2)
    with pytest.raises(TypeError, match="rtol cannot be used with score='read_out'"):
        vf.ood_scores(model, x, rtol=1e-3)
    with pytest.raises(ValueError, match="outside has NaN"):
        vf.auroc(torch.zeros(2), torch.tensor([0.0, math.nan]))
    with pytest.raises(TypeError, match="inside must be a floating-point tensor"):
        vf.auroc([0.0], torch.zeros(2))
    with pytest.raises(ValueError, match="reference must hold"):
        vf.typicality(torch.zeros(3), torch.zeros(3, 2))
    with pytest.raises(TypeError, match="scores must be"):
        vf.typicality(torch.zeros(3, dtype=torch.int64), torch.zeros(3))


def test_auroc_of_columns_warns_of_nothing():
    inside, outside = (normal(seed, range(50), (3,), dtype=torch.float64) for seed in (3, 4))
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = [vf.auroc(inside[:, i], outside[:, i]) for i in range(3)]
    finally:
        torch.set_warn_always(False)
    assert found == [vf.auroc(inside[:, i].clone(), outside[:, i].clone()) for i in range(3)]
