"""`evaluate`: every value beside its floor, named honestly."""

import json

import pytest
import torch

from vapo_fast import data, metrics
from vapo_fast.metrics import evaluate, report


@pytest.fixture(scope="module")
def moons():
    x = data.load("2moons", n=1_500).tensor()
    return {"fresh": x[:400], "real": x[400:1_000], "reference_split": x[1_000:1_500]}


def test_real_data_scores_its_floor_and_wrong_data_does_not(moons):
    good = evaluate(moons["fresh"], moons["real"], reference_split=moons["reference_split"], floor_trials=4)
    bad = evaluate(moons["fresh"] * 0.5, moons["real"], reference_split=moons["reference_split"], floor_trials=4)
    assert set(good["metrics"]) == {
        "sliced_wasserstein", "FD-pixels", "kernel_distance", "precision", "recall", "density", "coverage"
    }  # fmt: skip
    for name, entry in good["metrics"].items():
        spread = 6 * entry["floor_sd"] + 0.02
        assert abs(entry["value"] - entry["floor"]) < spread, name
    for name in ("sliced_wasserstein", "FD-pixels", "kernel_distance"):
        assert bad["metrics"][name]["value"] > 5 * abs(bad["metrics"][name]["floor"])
    for name in ("precision", "recall", "coverage"):
        assert bad["metrics"][name]["value"] < bad["metrics"][name]["floor"] - 0.2


def test_report_states_sizes_extractor_and_warnings(moons):
    found = evaluate(moons["fresh"], moons["real"], reference_split=moons["reference_split"][:300], floor_trials=1)
    assert (found["n_fake"], found["n_real"], found["n_features"]) == (300, 600, 2)
    assert found["extractor"] == "pixels"
    assert found["metrics"]["precision"]["floor_sd"] is None
    assert found["warnings"] == [
        "FD-pixels is biased at 300 against 600 samples (advised: 10000 each); read it only beside its floor"
    ]
    assert json.loads(json.dumps(found)) == found


def test_first_floor_is_the_given_split(moons):
    real, reference = moons["real"], moons["reference_split"]
    found = evaluate(moons["fresh"], real, reference_split=reference[:400], floor_trials=1)["metrics"]
    assert found["FD-pixels"]["floor"] == pytest.approx(metrics.frechet_distance(reference[:400], real), rel=1e-6)
    assert found["FD-pixels"]["value"] == pytest.approx(metrics.frechet_distance(moons["fresh"], real), rel=1e-6)
    expected = metrics.prdc(real, moons["fresh"])
    assert {name: found[name]["value"] for name in expected} == pytest.approx(expected)


def test_what_is_cut_off_is_chosen_at_random(moons):
    """A reference sorted by class must not be cut to its first classes."""
    ordered = moons["reference_split"][moons["reference_split"][:, 0].argsort()]
    found = evaluate(moons["fresh"][:200], moons["real"], reference_split=ordered, floor_trials=1)["metrics"]
    assert found["sliced_wasserstein"]["floor"] < 0.15


def test_singular_fits_are_called_out():
    digits = data.load("digits").tensor()
    found = evaluate(digits[:50], digits[100:150], reference_split=digits[200:250], floor_trials=1)
    assert any("64-dimensional covariance to 50 samples: it is singular" in text for text in found["warnings"])


def test_data_sets_are_accepted_and_runs_repeat():
    train, test = data.load("digits", n=300), data.load("digits", split="test")
    network = metrics.CNNExtractor.train(train, epochs=1)
    first = evaluate(test, train, reference_split=test, extractor=network, floor_trials=2)
    assert f"FD-{network.name}" in first["metrics"]
    assert "FID" not in first["metrics"]
    assert first == evaluate(test, train, reference_split=test, extractor=network, floor_trials=2)


def test_only_inception_is_called_fid(moons, monkeypatch):
    class FakeInception(metrics.PixelExtractor):
        name = "inception-v3"

    fake, real, reference = moons["fresh"], moons["real"], moons["reference_split"]
    by_name_only = evaluate(fake, real, reference_split=reference, extractor=FakeInception(), floor_trials=1)
    assert "FID" not in by_name_only["metrics"]
    monkeypatch.setattr(report, "InceptionExtractor", FakeInception)
    assert (
        "FID" in evaluate(fake, real, reference_split=reference, extractor=FakeInception(), floor_trials=1)["metrics"]
    )


def test_bad_inputs(moons):
    fake, real, reference = moons["fresh"], moons["real"], moons["reference_split"]
    with pytest.raises(ValueError, match=r"fake must have at least k \+ 1 = 6 events, got 5"):
        evaluate(fake[:5], real, reference_split=reference)
    with pytest.raises(ValueError, match="reference_split has NaN"):
        evaluate(fake, real, reference_split=reference * torch.nan)
    with pytest.raises(ValueError, match=r"fake and real must hold events of one shape, got \(1, 2\) and \(2,\)"):
        evaluate(fake[:, None], real, reference_split=reference)
    with pytest.raises(TypeError, match="real must be a Dataset or a floating-point tensor"):
        evaluate(fake, [1, 2], reference_split=reference)
    with pytest.raises(ValueError, match="extractor must be 'pixels'"):
        evaluate(fake, real, reference_split=reference, extractor="vgg")
    with pytest.raises(TypeError, match="extractor must be a name or a callable with a name, got int"):
        evaluate(fake, real, reference_split=reference, extractor=3)
    with pytest.raises(ValueError, match="floor_trials must be a positive integer, got 0"):
        evaluate(fake, real, reference_split=reference, floor_trials=0)
