"""likelihood, ood, interpolate, compose and refine end to end on tiny budgets: files, numbers, one-line errors."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

import vapo_fast as vf
from vapo_fast.cli.app import app
from vapo_fast.cli.output import USAGE

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


@pytest.fixture(scope="module")
def points(tmp_path_factory) -> list[Path]:
    runs = tmp_path_factory.mktemp("points")
    for name in ("8gaussians", "2moons"):
        code, _, text = run("train", "--data", name, "--sigma", 0.05, "--widths", 8, "--steps", 2, "--batch-size", 8,
                            "--sample-every", 0, "--no-progress", "--out", runs / name)  # fmt: skip
        assert code == 0, text
    return [runs / "8gaussians", runs / "2moons"]


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


def test_held_out_needs_a_class_that_was_held_out(tmp_path):
    whole = train(tmp_path / "whole", "--classes", "0,1,2,3,4,5,6,7,8,9")
    code, _, text = run("ood", whole, "--outside", "held-out")
    assert (code, text) == (USAGE, "error: --outside held-out: the run was trained on every class of digits")


def test_a_strip_is_between_images_of_the_models_shape(threes, tmp_path):
    code, _, text = run("plot", "interpolation", threes, "--data", "8gaussians", "-o", tmp_path / "s.png")
    assert code == USAGE
    assert "8gaussians has events of shape (2,), and the model of (1, 8, 8)" in text


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


COUNTS = [
    (["likelihood", "{run}", "-n", 0], "--n must be 1 or more, got 0"),
    (["likelihood", "{run}", "-n", -1], "--n must be 1 or more, got -1"),
    (["likelihood", "{run}", "--levels", 0], "--levels must be 2 or more, got 0"),
    (["likelihood", "{run}", "--probes", 0], "--probes must be 1 or more, got 0"),
    (["ood", "{run}", "--outside", "noise", "-n", -5], "--n must be 1 or more, got -5"),
    (["ood", "{run}", "--outside", "noise", "--n-likelihood", -1], "--n-likelihood must be 0 or more, got -1"),
    (["ood", "{run}", "--outside", "noise", "--draws", 0], "--draws must be 1 or more, got 0"),
    (["ood", "{run}", "--outside", "noise", "--noise-levels", "a,b"], "--noise-levels must be numbers"),
    (["ood", "{run}", "--outside", "noise", "--noise-levels", "2"], "each of --noise-levels must be in [0.04994, 1]"),
    (["interpolate", "{run}", "-n", 1], "--n must be 2 or more, got 1"),
    (["interpolate", "{run}", "--data", "digits", "--pairs", 37], "--pairs must be at most 36"),
    (["compose", "{run}", "{run}", "-n", 0], "--n must be 1 or more, got 0"),
    (["compose", "{run}", "{run}", "--refine", -1], "--refine must be 0 or more, got -1"),
    (["compose", "{run}", "{run}", "--weights", "1;1"], "--weights must be numbers"),
    (["refine", "{run}", "-n", -1], "--n must be 1 or more, got -1"),
    (["refine", "{run}", "--steps", 0], "--steps must be 1 or more, got 0"),
    (["refine", "{run}", "--adapt", -1], "--adapt must be 0 or more, got -1"),
    (["refine", "{run}", "--noise-level", 2], "--noise-level must be in [0.04994, 1], the path's noise, got 2"),
    (["refine", "{run}", "--from", "{text}"], "cannot be read as .npy: it does not begin as such a file does"),
]


@pytest.mark.parametrize(("words", "message"), COUNTS)
def test_a_number_that_makes_no_sense_is_refused_by_its_options_name(words, message, threes, tmp_path):
    """-1 events were all but the last, and 0 levels were the default."""
    (tmp_path / "text.npy").write_text("numbers")
    places = {"run": threes, "text": tmp_path / "text.npy"}
    code, _, text = run(*(str(word).format(**places) for word in words), "--rtol", 1e-2)
    assert code == USAGE
    assert message in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("words", "option", "ending"),
    [
        (["likelihood", "{run}", "-n", 1], "--out", ".png"),
        (["likelihood", "{run}", "-n", 1], "--json", ".json"),
        (["ood", "{run}", "--outside", "noise"], "--out", ".png"),
        (["ood", "{run}", "--outside", "noise"], "--json", ".json"),
        (["interpolate", "{run}"], "--out", ".png"),
        (["compose", "{run}", "{run}"], "--out", ".png"),
        (["compose", "{run}", "{run}"], "--save", ".safetensors"),
        (["refine", "{run}"], "--out", ".npy"),
        (["evaluate", "{run}", "--extractor", "pixels"], "--out", ".json"),
        (["sample", "{run}"], "--out", ".npy"),
        (["plot", "landscape", "{points}"], "--out", ".png"),
        (["plot", "animation", "{points}"], "--out", ".gif"),
    ],
)
def test_what_cannot_be_written_is_known_before_the_work(words, option, ending, threes, points, tmp_path, monkeypatch):
    from vapo_fast.cli import applications, density, evaluate, plot, sample
    from vapo_fast.plots import plane

    def work(*arguments, **options):
        raise AssertionError("the work was begun")

    for name in ("bits_per_dim", "ood_scores"):
        monkeypatch.setattr(density, name, work)
    for module in (applications, plot):
        monkeypatch.setattr(module, "interpolate_samples", work)
    for module in (applications, evaluate, plot, sample):
        monkeypatch.setattr(module, "solve", work)
    monkeypatch.setattr(plane, "_flow", work)
    (tmp_path / "file").write_text("in the way")
    places = {"run": threes, "points": points[0]}
    code, _, text = run(*(str(word).format(**places) for word in words), option, tmp_path / "file" / f"x{ending}")
    assert code == USAGE, text
    assert text.startswith(f"error: {option}: "), text
    assert "cannot be made, a file is in the way" in text


def test_pictures_that_cannot_be_drawn_are_known_before_the_work(threes, tmp_path, monkeypatch):
    from vapo_fast.cli import density

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(density, "bits_per_dim", lambda *a, **k: pytest.fail("the work was begun"))
    code, _, text = run("likelihood", threes, "-n", 1, "-o", tmp_path / "l.png")
    assert (code, text) == (USAGE, "error: pictures need matplotlib and pillow: pip install 'vapo-fast[demo]'")


@pytest.mark.parametrize("command", ["likelihood", "ood"])
def test_a_picture_of_another_format_is_refused_before_the_work(command, threes):
    code, _, text = run(command, threes, *(["--outside", "noise"] if command == "ood" else []), "-o", "x.jpg")
    assert (code, text) == (USAGE, "error: --out must end in .png or .pdf or .svg, got 'x.jpg'")


def test_one_event_has_no_standard_error(threes):
    code, out, text = run("likelihood", threes, "-n", 1, "--probes", 1, "--rtol", 1e-2)
    assert code == 0, text
    assert re.fullmatch(r"-?\d+\.\d{4} bits per dimension \(1 events of digits\)\n", out)


def test_points_are_composed_refined_and_told_from_other_points(points, tmp_path):
    """Pictures of points show what those of images do; other sets of points can be foreign to them."""
    code, _, text = run("compose", *points, "-n", 30, "--refine", 2, "--rtol", 1e-2, "-o", tmp_path / "c.png")
    assert code == 0, text
    assert pixels(tmp_path / "c.png").shape[1] == 4 * 440  # both, composed and refined
    code, _, text = run("refine", points[0], "-n", 30, "--steps", 2, "--rtol", 1e-2, "-o", tmp_path / "r.png")
    assert code == 0, text
    assert pixels(tmp_path / "r.png").shape[1] == 2 * 440
    code, _, text = run("ood", points[0], "--outside", "2moons", "-n", 30, "--json", tmp_path / "o.json")
    assert code == 0, text
    model = vf.load(points[0] / "model.safetensors")
    rows = {}
    for name in ("8gaussians", "2moons"):
        events = vf.data.load(name, split="test")
        rows[name] = events.batch(vf.noise.permutation(0, len(events), 0)[:30])
    expected = vf.auroc(*(vf.ood_scores(model, x) for x in rows.values()))
    assert json.loads((tmp_path / "o.json").read_text())["auroc"]["2moons"]["read-out"] == pytest.approx(expected)
    for outside, shape in (("digits", "(1, 8, 8)"), ("flip", "(2,)")):
        code, _, text = run("ood", points[0], "--outside", outside, "-n", 5)
        assert code == USAGE
        assert f"shape {shape}" in text
    code, _, text = run("interpolate", points[0])
    assert code == USAGE
    assert "--out must be a .npy for events of shape (2,)" in text


def test_a_set_of_points_is_not_foreign_to_images(threes):
    code, _, text = run("ood", threes, "--outside", "8gaussians")
    assert code == USAGE
    assert "8gaussians has events of shape (2,), and the model of (1, 8, 8)" in text


def test_every_model_has_a_row_of_its_own(threes, eights, tmp_path):
    """Both files are called model.safetensors: one row hid the other."""
    files = [folder / "model.safetensors" for folder in (threes, eights)]
    code, _, text = run("compose", *files, "-n", 2, "--rtol", 1e-2, "-o", tmp_path / "c.png")
    assert code == 0, text
    assert pixels(tmp_path / "c.png").shape[0] == 24 + 3 * 42
    code, _, text = run("compose", threes, threes, "-n", 2, "--rtol", 1e-2, "-o", tmp_path / "same.png")
    assert code == 0, text
    assert pixels(tmp_path / "same.png").shape[0] == 24 + 3 * 42


def test_evaluate_looks_at_shapes_before_it_trains_a_classifier(points, monkeypatch):
    from vapo_fast import metrics

    monkeypatch.setattr(metrics.CNNExtractor, "train", lambda *a, **k: pytest.fail("the classifier was trained"))
    code, _, text = run("evaluate", points[0], "--data", "digits")
    assert code == USAGE
    assert "events of one shape, got (2,) and (1, 8, 8)" in text


def test_a_training_log_that_is_no_text(threes):
    code, _, text = run("plot", "curve", threes / "model.safetensors")
    assert code == USAGE
    assert "is not a training log: it lacks the columns" in text
