"""likelihood, ood, interpolate, compose and refine end to end on tiny budgets: files, numbers, one-line errors."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

import vapo_fast as vf
from vapo_fast.cli import USAGE, app

TINY = ["--channels", 4, "--multipliers", "1", "--blocks", 1, "--batch-size", 8, "--steps", 3, "--sample-every", 0]


def run(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    plain = " ".join("".join(c if c not in "│╭╮╰╯─┃━┡╇┩┏┳┓" else " " for c in result.output).split())
    return result.exit_code, result.stdout, plain


def train(out: Path, *more) -> Path:
    code, _, text = run("train", "--data", "digits", "--sigma", 0.05, "--out", out, "--no-progress", *TINY, *more)
    assert code == 0, text
    return out


@pytest.fixture(scope="module")
def threes(tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("runs") / "threes", "--classes", "3,5", "--n", 40)


@pytest.fixture(scope="module")
def eights(tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("runs") / "eights", "--classes", 8)


def pixels(path: Path) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(path))


def test_a_run_of_some_classes_says_so_and_is_resumed_with_them(threes, tmp_path):
    resolved = yaml.safe_load((threes / "resolved.yaml").read_text())
    assert (resolved["classes"], resolved["n"]) == ([3, 5], 40)
    code, _, text = run("train", "--data", "digits", "--classes", "3,12", "--out", tmp_path / "a", *TINY)
    assert code == USAGE
    assert "classes must be one or more of 0, 1, 2" in text
    code, _, text = run("train", "--data", "digits", "--classes", 3, "--n", 5000, "--out", tmp_path / "a", *TINY)
    assert code == USAGE
    assert "n must be at most" in text


def test_evaluate_compares_with_the_runs_classes(threes, tmp_path):
    code, _, text = run(
        "evaluate", threes, "--extractor", "pixels", "--rtol", 1e-2, "--out", tmp_path / "s.json", "--no-progress"
    )
    assert code == 0, text
    report = json.loads((tmp_path / "s.json").read_text())
    assert set(report["class_shares"]) == {"3", "5"}
    held_out = vf.data.of_classes(vf.data.load("digits", split="test"), [3, 5])
    assert report["n_fake"] == len(held_out)


def test_likelihood(threes, tmp_path):
    picture, numbers = tmp_path / "l.png", tmp_path / "l.json"
    code, out, text = run(
        "likelihood", threes, "-n", 4, "--probes", 2, "--rtol", 1e-2, "-o", picture, "--json", numbers, "--seed", 3
    )
    assert code == 0, text
    report = json.loads(numbers.read_text())
    assert (report["n"], report["levels"], report["data"]) == (4, 17, "digits")
    events = vf.data.of_classes(vf.data.load("digits", split="test"), [3, 5])
    x = events.batch(vf.noise.permutation(0, len(events), 0)[:4])
    model = vf.load(threes / "model.safetensors")
    bits = vf.bits_per_dim(model, x, levels=17, seed=3, rtol=1e-2, trace="hutchinson", probes=2)
    assert report["bits_per_dim"] == pytest.approx(float(bits.values.double().mean()), rel=1e-6)
    assert f"{report['bits_per_dim']:.4f}" in out
    assert pixels(picture).shape[2] >= 3


def test_ood(threes, tmp_path):
    picture, numbers = tmp_path / "o.png", tmp_path / "o.json"
    flags = ["--outside", "held-out", "--outside", "noise", "--outside", "flip"]
    code, _, text = run(
        "ood", threes, *flags, "-n", 30, "--noise-levels", "0.05,0.5", "--n-likelihood", 3, "--probes", 1,
        "--rtol", 1e-2, "-o", picture, "--json", numbers,
    )  # fmt: skip
    assert code == 0, text
    report = json.loads(numbers.read_text())
    assert list(report["auroc"]) == ["held-out", "noise", "flip"]
    kinds = ["read-out at 0.05", "read-out at 0.5", "likelihood"]
    assert list(report["auroc"]["noise"]) == [k + s for k in kinds for s in ("", ", typicality")]
    model = vf.load(threes / "model.safetensors")
    inside = vf.data.of_classes(vf.data.load("digits", split="test"), [3, 5])
    inside = inside.batch(vf.noise.permutation(0, len(inside), 0)[:30])
    scores = [vf.ood_scores(model, x, noise_level=0.5) for x in (inside, inside.flip(-2))]
    assert report["auroc"]["flip"]["read-out at 0.5"] == pytest.approx(vf.auroc(*scores))
    assert picture.stat().st_size > 1000


def test_ood_resizes_a_foreign_set_and_refuses_what_makes_no_sense(threes, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "grey.npz", x_train=np.zeros((3, 12, 12), np.uint8), x_test=np.zeros((3, 12, 12), np.uint8))
    images = rng.integers(0, 256, (20, 12, 12), dtype=np.uint8)
    (tmp_path / "folder" / "test").mkdir(parents=True)
    from PIL import Image

    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "folder" / "test" / f"{i}.png")
    code, _, text = run("ood", threes, "--outside", tmp_path / "folder", "-n", 20)
    assert code == 0, text
    assert re.search(r"read-out [^a-z]*[01]\.\d\d\d", text)
    colours = tmp_path / "colours" / "test"
    colours.mkdir(parents=True)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(colours / f"{i}.png")
    code, _, text = run("ood", threes, "--outside", colours.parent)
    assert code == USAGE
    assert "images of shape (3, 8, 8), and the model of (1, 8, 8)" in text
    code, _, text = run("ood", threes, "--outside", "held-out", "--inside", "cifar10")
    assert code == USAGE


def test_held_out_needs_a_run_of_some_classes(tmp_path):
    whole = train(tmp_path / "whole")
    code, _, text = run("ood", whole, "--outside", "held-out")
    assert code == USAGE
    assert "trained with --classes" in text


def test_interpolate(threes, tmp_path):
    code, _, text = run(
        "interpolate", threes, "--data", "digits", "--pairs", 2, "-n", 4, "--rtol", 1e-2, "-o", tmp_path / "i.npy"
    )
    assert code == 0, text
    frames = np.load(tmp_path / "i.npy")
    events = vf.data.of_classes(vf.data.load("digits", split="test"), [3, 5])
    ends = events.batch(vf.noise.permutation(0, len(events), 0)[:4]).numpy()
    assert frames.shape == (2, 4, 1, 8, 8)
    np.testing.assert_array_equal(frames[:, 0], ends[:2])
    np.testing.assert_array_equal(frames[:, -1], ends[2:])
    code, _, text = run("interpolate", threes, "--pairs", 2, "-n", 3, "--rtol", 1e-2, "-o", tmp_path / "i.png")
    assert code == 0, text
    assert pixels(tmp_path / "i.png").shape[:2] == (2 * 42, 3 * 42)
    assert run("interpolate", threes, "-o", tmp_path / "i.txt")[0] == USAGE
    assert run("interpolate", threes, "--pairs", 0)[0] == USAGE


def test_compose_and_refine(threes, eights, tmp_path):
    saved = tmp_path / "both.safetensors"
    code, _, text = run(
        "compose", threes, eights, "--weights", "0.5,0.7", "-n", 3, "--refine", 2, "--rtol", 1e-2,
        "-o", tmp_path / "c.png", "--save", saved,
    )  # fmt: skip
    assert code == 0, text
    assert "acceptance" in text
    both = vf.load(saved)
    assert isinstance(both, vf.SumPotential)
    parts = [vf.load(run / "model.safetensors") for run in (threes, eights)]
    assert (both.weights, both.reference_scale) == ((0.5, 0.7), parts[0].data_scale)
    x = 0.5 * torch.ones(2, 1, 8, 8)
    expected = vf.SumPotential(parts, (0.5, 0.7), reference_scale=parts[0].data_scale)
    torch.testing.assert_close(both(x, 1.0), expected(x, 1.0))
    code, _, text = run(
        "refine", saved, "-n", 3, "--steps", 4, "--adapt", 2, "--rtol", 1e-2, "-o", tmp_path / "r.npy", "--seed", 2
    )
    assert code == 0, text
    start = vf.sample(both, 3, rtol=1e-2, seed=2)
    result = vf.refine(both, start, 4, adapt_steps=2, seed=2)
    np.testing.assert_allclose(np.load(tmp_path / "r.npy"), result.x.numpy(), rtol=0, atol=1e-5)
    assert f"acceptance {float(result.acceptance.mean()):.3f} over 4 steps" in text
    code, _, text = run("refine", saved, "--from", tmp_path / "r.npy", "--steps", 1, "-o", tmp_path / "r.png",
                        "--unadjusted", "--noise-level", 0.3)  # fmt: skip
    assert code == 0, text
    assert pixels(tmp_path / "r.png").shape[0] == 24 + 2 * 42


def test_compose_refuses_models_that_do_not_fit(threes, tmp_path):
    other = train(tmp_path / "other", "--sigma", 0.1)
    code, _, text = run("compose", threes, other)
    assert code == USAGE
    assert "potentials must have one homotopy" in text
    assert run("compose", threes)[0] == USAGE
    code, _, text = run("compose", threes, threes, "--weights", "1")
    assert code == USAGE
    assert "weights must be 2 numbers" in text
    code, _, text = run("compose", threes, threes, "--weights", "a,b")
    assert code == USAGE


def test_the_data_of_a_model_without_a_run_must_be_named(threes, tmp_path):
    vf.save(vf.load(threes / "model.safetensors"), tmp_path / "m.safetensors")
    code, _, text = run("likelihood", tmp_path / "m.safetensors")
    assert code == USAGE
    assert "resolved.yaml" in text
    code, _, text = run("likelihood", threes, "--data", "8gaussians")
    assert code == USAGE
    assert "events of shape (2,)" in text
    code, _, text = run("likelihood", threes, "--levels", 256, "-n", 2, "--rtol", 1e-2)
    assert code == USAGE
    assert "is not one of them" in text
