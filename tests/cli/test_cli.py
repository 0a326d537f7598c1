"""The command line end to end on tiny budgets: files written, exit codes, one-line errors, interruption and resume."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from vapo_fast import checkpoint, plots
from vapo_fast.cli import evaluate, info, inputs
from vapo_fast.cli.app import app
from vapo_fast.cli.output import FAILED, USAGE
from vapo_fast.core import extension

TINY = ["--widths", "16,16", "--batch-size", "32", "--no-progress", "--warmup-steps", "2"]


def run(*arguments: object) -> "Outcome":
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return Outcome(result)


class Outcome:
    def __init__(self, result):
        self.code, self.out, self.err, self.all = result.exit_code, result.stdout, result.stderr, result.output
        # What the user reads, without the line breaks and boxes that the terminal's width puts into help and errors.
        self.plain = " ".join("".join(c if c not in "│╭╮╰╯─" else " " for c in result.output).split())


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "points"
    outcome = run("train", "--data", "8gaussians", "--steps", 12, "--sample-every", 6, "--out", out, *TINY)
    assert outcome.code == 0, outcome.all
    assert outcome.out.strip() == str(out / "model.safetensors")
    return out


@pytest.fixture(scope="module")
def trained_images(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "images"
    settings = {"data": "digits", "channels": 8, "blocks": 1, "batch_size": 8, "steps": 2, "sample_every": 0}
    out.parent.joinpath("a.yaml").write_text(yaml.safe_dump(settings))
    outcome = run("train", "--config", out.parent / "a.yaml", "--out", out, "--no-progress", "--multipliers", "1,1")
    assert outcome.code == 0, outcome.all
    return out


def test_train_writes_what_it_says(trained):
    names = {path.relative_to(trained).as_posix() for path in trained.rglob("*") if path.is_file()}
    expected = {"resolved.yaml", "training.csv", "training.png", "model.safetensors", "step-00000012.safetensors"}
    assert names == expected | {"samples/samples-00000006.png", "samples/samples-00000012.png"}
    resolved = yaml.safe_load((trained / "resolved.yaml").read_text())
    assert (resolved["steps"], resolved["model"], resolved["widths"]) == (12, "mlp", [16, 16])
    assert len((trained / "training.csv").read_text().splitlines()) == 13


def test_the_picture_of_the_training_names_the_run_and_not_where_it_lies(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(plots, "training_curve", lambda log, path, title=None: titles.append(title))
    command = ["--data", "2moons", "--steps", 1, "--sample-every", 0, "--no-progress", *TINY]
    assert run("train", *command, "--out", tmp_path / "moons").code == 0
    assert titles == ["moons"]


def test_the_resolved_file_gives_the_same_run_again(trained, tmp_path):
    outcome = run("train", "--config", trained / "resolved.yaml", "--out", tmp_path / "again", "--no-progress")
    assert outcome.code == 0, outcome.all
    first, second = (checkpoint.load(folder / "model.safetensors") for folder in (trained, tmp_path / "again"))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_flags_override_the_file(trained_images):
    resolved = yaml.safe_load((trained_images / "resolved.yaml").read_text())
    assert (resolved["data"], resolved["model"], resolved["multipliers"]) == ("digits", "unet", [1.0, 1.0])
    assert not (trained_images / "samples").exists()


def test_times_augmentation_and_precision_reach_the_run_and_its_checkpoint(tmp_path):
    command = ["--data", "digits", "--n", 40, "--channels", 4, "--multipliers", "1", "--blocks", 1, "--batch-size", 8]
    weights = {}
    flags = ["--augment", "flip", "--precision", "bf16", "--prefetch", 2, "--time-sampling", "uniform"]
    for name, extra in (("plain", []), ("all", flags)):
        out = tmp_path / name
        outcome = run("train", *command, "--steps", 3, "--sample-every", 0, "--out", out, "--no-progress", *extra)
        assert outcome.code == 0, outcome.all
        weights[name] = list(checkpoint.load(out / "model.safetensors").parameters())
    assert any(not torch.equal(a, b) for a, b in zip(*weights.values(), strict=True))
    resolved = yaml.safe_load((out / "resolved.yaml").read_text())
    assert (resolved["augment"], resolved["precision"], resolved["prefetch"]) == ("flip", "bf16", 2)
    saved = checkpoint.describe(out / "step-00000003.safetensors").training
    assert (saved["options"]["augment"], saved["options"]["time_sampling"]) == ("flip", "uniform")
    outcome = run("train", "--resume", tmp_path / "plain", "--steps", 5, "--augment", "flip", "--no-progress")
    assert outcome.code == 0, outcome.all
    assert "with other options (augment None -> 'flip')" in outcome.plain


def test_minutes_become_steps(tmp_path):
    outcome = run("train", "--data", "2moons", "--minutes", 0.01, "--sample-every", 0, "--out", tmp_path / "r", *TINY)
    assert outcome.code == 0, outcome.all
    resolved = yaml.safe_load((tmp_path / "r" / "resolved.yaml").read_text())
    assert resolved["steps"] >= 1
    assert resolved["minutes"] is None
    assert f"0.01 minutes hold about {resolved['steps']} steps" in outcome.err


def test_a_run_is_not_overwritten(trained):
    outcome = run("train", "--data", "8gaussians", "--steps", 12, "--out", trained, *TINY)
    assert outcome.code == USAGE
    assert "holds the checkpoints of a run; continue it with --resume" in outcome.plain


def test_resume_goes_on_to_more_steps(trained, tmp_path):
    import shutil

    shutil.copytree(trained, tmp_path / "r")
    outcome = run("train", "--resume", tmp_path / "r", "--steps", 15, "--sample-every", 0, "--no-progress")
    assert outcome.code == 0, outcome.all
    steps = [line.split(",")[0] for line in (tmp_path / "r" / "training.csv").read_text().splitlines()[1:]]
    assert steps == [str(i) for i in range(1, 16)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_and_resumed_is_the_unbroken_run(tmp_path, number):
    """Ctrl-C a real process in the middle of a run, resume it, and get the weights of a run left in peace."""
    common = ["--data", "8gaussians", "--steps", "150", "--sample-every", "0", *TINY]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "vapo_fast", "train"]
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    process = subprocess.Popen(
        [*command, *common, "--out", str(broken)], env=environment, stderr=subprocess.PIPE, text=True
    )
    log = broken / "training.csv"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (log.exists() and len(log.read_text().splitlines()) > 20):
        time.sleep(0.002)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert errors.count("interrupted after step") == 1
    assert "fit(" not in errors
    assert f"Continue with: vapo-fast train --resume {broken}" in errors
    assert not (broken / "model.safetensors").exists()
    for arguments in (["--resume", str(broken), "--no-progress"], [*common, "--out", str(whole)]):
        done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    first, second = (checkpoint.load(folder / "model.safetensors") for folder in (broken, whole))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_sample_numbers_do_not_depend_on_the_batch_size(trained, tmp_path):
    for name, extra in (("a", []), ("b", ["--batch-size", 3])):
        outcome = run(
            "sample", trained, "-n", 8, "-o", tmp_path / f"{name}.npy", "--rtol", 1e-4, "--no-progress", *extra
        )
        assert outcome.code == 0, outcome.all
    a, b = np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy")
    assert a.shape == (8, 2)
    assert np.abs(a - b).max() < 1e-3
    engine = "reference" if extension.unavailable_reason() else "native"
    assert f"8 samples by engine {engine} in float32" in outcome.err


def test_samples_that_run_out_of_steps_are_told_and_may_have_more(trained, tmp_path):
    """The error asks for more max_steps, so there is a flag for them."""
    common = ["-n", 3, "--rtol", 1e-4, "--no-progress"]
    for command in (["sample", trained, "-o", tmp_path / "x.npy"], ["evaluate", trained]):
        outcome = run(*command, *common[:4], "--max-steps", 2, "--no-progress")
        assert outcome.code == FAILED
        assert "3 of 3 samples did not reach the end time: 3 MAX_STEPS" in outcome.plain
    outcome = run("sample", trained, "-o", tmp_path / "x.npy", *common, "--max-steps", 500)
    assert outcome.code == 0, outcome.all
    outcome = run("sample", trained, "-o", tmp_path / "x.npy", *common, "--max-steps", 0)
    assert (outcome.code, "max_steps must be a positive integer, got 0" in outcome.plain) == (USAGE, True)
    outcome = run("sample", trained, "-o", tmp_path / "x.png", *common, "--max-steps", 9)
    assert (outcome.code, "--max-steps cannot be used for a picture of points" in outcome.plain) == (USAGE, True)


def test_sample_pictures(trained, trained_images, tmp_path):
    assert run("sample", trained, "-n", 16, "-o", tmp_path / "points.png", "--rtol", 1e-2).code == 0
    outcome = run("sample", trained_images, "-n", 4, "-o", tmp_path / "images.png", "--rtol", 1e-2, "--columns", 4)
    assert outcome.code == 0, outcome.all
    assert {p.name for p in tmp_path.iterdir()} == {"points.png", "images.png"}


def test_a_picture_of_points_refuses_what_it_would_ignore(trained, tmp_path):
    options = ["--engine", "native", "--method", "tsit5", "--batch-size", 3]
    outcome = run("sample", trained, "-n", 16, "-o", tmp_path / "points.png", *options)
    assert outcome.code == USAGE
    assert "--method, --batch-size, --engine cannot be used for a picture of points" in outcome.plain
    assert list(tmp_path.iterdir()) == []


def test_a_users_own_file_of_points(tmp_path):
    """Trained on, drawn and judged, although one file has no test split and is sorted."""
    points = np.sort(np.random.default_rng(0).normal(size=(600, 2)).astype(np.float32), axis=0)
    np.save(tmp_path / "train.npy", points[::2])
    np.save(tmp_path / "test.npy", points[1::2])
    model = tmp_path / "run"
    settings = ["--data", tmp_path / "train.npy", "--steps", 2, "--sample-every", 0, "--out", model]
    assert run("train", *settings, *TINY).code == 0
    outcome = run("plot", "landscape", model, "-n", 16, "-o", tmp_path / "a.png", "--rtol", 1e-2)
    assert outcome.code == 0, outcome.all
    outcome = run("evaluate", model)
    assert outcome.code == USAGE
    assert "--test-data is needed" in outcome.plain
    scores = tmp_path / "s.json"
    options = ["--test-data", tmp_path / "test.npy", "-n", 100, "--rtol", 1e-2, "-o", scores]
    outcome = run("evaluate", model, *options, "--no-progress")
    assert outcome.code == 0, outcome.all
    report = json.loads(scores.read_text())
    assert (report["n_fake"], report["n_real"]) == (100, 300)


def test_a_users_own_folder_of_images(tmp_path):
    """One folder without a test split is judged beside another."""
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 8, 8), dtype=np.uint8)
    for name, images in zip(("mine", "others"), pixels, strict=True):
        (tmp_path / name).mkdir()
        for i, picture in enumerate(images):
            image.fromarray(picture).save(tmp_path / name / f"{i}.png")
    np.save(tmp_path / "fake.npy", np.zeros((12, 1, 8, 8), dtype=np.float32))
    arguments = ["evaluate", tmp_path / "fake.npy", "--data", tmp_path / "mine"]
    outcome = run(*arguments)
    assert outcome.code == USAGE
    assert "--test-data is needed" in outcome.plain
    outcome = run(*arguments, "--test-data", tmp_path / "others", "-o", tmp_path / "s.json")
    assert outcome.code == 0, outcome.all
    report = json.loads((tmp_path / "s.json").read_text())
    assert (report["n_fake"], report["n_real"], report["extractor"]) == (12, 20, "pixels")


def test_parts_of_sorted_data_are_shuffled():
    from vapo_fast.data import ArrayDataset

    whole = ArrayDataset("sorted", np.arange(1000.0, dtype=np.float32)[:, None], labels=torch.arange(1000))
    part = inputs.at_most(whole, 100)
    assert len(part) == 100
    assert torch.equal(part.tensor()[:, 0].long(), part.labels)
    assert part.labels.max() > 800
    assert inputs.at_most(whole, 1000) is whole


def test_evaluate_a_run_and_a_file(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "_EVALUATED", 400)
    outcome = run("evaluate", trained, "-n", 200, "--rtol", 1e-3, "-o", tmp_path / "scores.json", "--no-progress")
    assert outcome.code == 0, outcome.all
    report = json.loads((tmp_path / "scores.json").read_text())
    assert report["data"] == "8gaussians"
    assert report["n_fake"] == 200
    assert report["metrics"]["sliced_wasserstein"]["value"] > report["metrics"]["sliced_wasserstein"]["floor"]
    assert "sliced_wasserstein" in outcome.out


def test_evaluate_real_images_as_if_generated(tmp_path):
    """Real digits judged as samples score near their floor, and all classes are there."""
    from vapo_fast.data import load

    np.save(tmp_path / "real.npy", load("digits", split="test").tensor().numpy())
    outcome = run(
        "evaluate", tmp_path / "real.npy", "--data", "digits", "--extractor", "pixels", "-o", tmp_path / "s.json"
    )
    assert outcome.code == 0, outcome.all
    report = json.loads((tmp_path / "s.json").read_text())
    assert set(report["class_shares"]) == {str(i) for i in range(10)}
    assert min(report["class_shares"].values()) > 0.04
    wasserstein = report["metrics"]["sliced_wasserstein"]
    assert wasserstein["value"] < 2 * wasserstein["floor"]


def test_plots(trained, trained_images, tmp_path):
    for arguments in (
        ["curve", trained, "-o", tmp_path / "a.png"],
        ["landscape", trained, "-o", tmp_path / "b.png", "-n", 32, "--rtol", 1e-2],
        ["animation", trained, "-o", tmp_path / "c.gif", "-n", 16, "--frames", 2, "--rtol", 1e-2],
        ["interpolation", trained_images, "-o", tmp_path / "d.png", "-n", 3, "--rtol", 1e-2],
        ["interpolation", trained_images, "-o", tmp_path / "e.png", "-n", 3, "--data", "digits", "--rtol", 1e-2],
    ):
        outcome = run("plot", *arguments)
        assert outcome.code == 0, outcome.all
        assert Path(outcome.out.strip()).stat().st_size > 500


def test_info():
    outcome = run("info")
    assert outcome.code == 0
    for word in ("torch", torch.__version__, "reference", "usable", "cpu"):
        assert word in outcome.out
    facts = json.loads(run("info", "--json").out)
    assert facts["engines"]["reference"] == "usable"
    assert facts["versions"]["torch"] == torch.__version__


def test_info_says_why_the_extension_is_missing(monkeypatch):
    monkeypatch.setattr(info.extension, "unavailable_reason", lambda: "it was not built: CompileError: no g++\nline 2")
    outcome = run("info")
    assert outcome.out.count("it was not built: CompileError: no g++") == 1
    assert "line 2" not in outcome.out


@pytest.mark.skipif(extension.unavailable_reason() is not None, reason=str(extension.unavailable_reason()))
def test_info_names_the_kernels(monkeypatch):
    facts = json.loads(run("info", "--json").out)
    assert facts["engines"]["native"] == "usable"
    kernels = facts["native extension"]["kernels"]
    assert kernels == f"{extension.chosen_instruction_set()} (of {', '.join(extension.instruction_sets())})"
    monkeypatch.setenv("VAPO_FAST_INSTRUCTION_SET", "sse9")
    outcome = run("info")
    assert outcome.code == 0
    assert "none: environment variable VAPO_FAST_INSTRUCTION_SET names none: 'sse9'" in outcome.out


@pytest.mark.parametrize("command", [[], ["train"], ["sample"], ["evaluate"], ["plot"], ["plot", "curve"], ["info"]])
def test_help(command):
    outcome = run(*command, "--help")
    assert outcome.code == 0
    assert "Usage:" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "error: data is needed: the name of a data set or the path of a file or folder (--data)"),
        (["train", "--data", "8gaussian"], "name must be one of '8gaussians'"),
        (["train", "--data", "none/at/all.npy"], "no file or folder at"),
        (["train", "--data", "8gaussians", "--lr", "-1"], "lr must be a finite number > 0, got -1.0"),
        (["train", "--data", "8gaussians", "--lr", "fast"], "Invalid value for '--lr'"),
        (["train", "--data", "8gaussians", "--learning-rate", "1"], "No such option: --learning-rate"),
        (["train", "--data", "8gaussians", "--widths", "8,x"], "widths must be a list such as [128, 128], got '8,x'"),
        (["train", "--data", "8gaussians", "--steps", "1", "--minutes", "1"], "give steps or minutes, not both"),
        (["train", "--data", "8gaussians", "--device", "abacus"], "device 'abacus' cannot be used here"),
        (["train", "--data", "8gaussians", "--augment", "flip"], "augment='flip' is for images"),
        (
            ["train", "--data", "2moons", "--time-sampling", "even"],
            "time_sampling must be one of 'log_noise', 'uniform', got",
        ),
        (["train", "--data", "digits", "--augment", "crop"], "augment must be one of 'flip', got 'crop'"),
        (["train", "--data", "8gaussians", "--prefetch", "-2"], "prefetch must be a non-negative integer, got -2"),
        (["train", "--data", "8gaussians", "--precision", "half"], "precision must be one of 'auto', 'float64'"),
        (
            ["train", "--data", "8gaussians", "--engine", "reference", "--precision", "float64"],
            "precision='float64' is not the model's own, float32",
        ),
        (["train", "--data", "8gaussians", "--model", "unet"], "event_shape"),
        (["train", "--data", "8gaussians", "--t1", "2", "--homotopy", "linear"], "t1 must be below 1"),
        (["train", "--config", "none.yaml"], "there is no configuration file at none.yaml"),
        (["train", "--resume", "none"], "there is no run to resume in none"),
        (["sample"], "Missing argument"),
        (["sample", "x", "-o", "x.jpg"], "--out must end in .npy or .png, got 'x.jpg'"),
        (["evaluate", "x.npy"], "--data is needed"),
        (["evaluate", "x.npy", "--data", "digits", "-o", "x.txt"], "--out must end in .json"),
        (["evaluate", "none.npy", "--data", "digits"], "there are no samples at none.npy"),
        (["nonsense"], "No such command 'nonsense'"),
    ],
)
def test_wrong_usage(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = run(*arguments)
    assert outcome.code == USAGE
    assert message in outcome.plain
    assert "Traceback" not in outcome.all
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["sample", "none.safetensors"], FAILED, "there is no checkpoint at none.safetensors"),
        (["sample", "junk.safetensors"], FAILED, "cannot be read as safetensors"),
        (["plot", "curve", "none.csv"], USAGE, "there is no training log at none.csv"),
        (["evaluate", "short.npy", "--data", "8gaussians"], USAGE, "fake must have at least k + 1 = 6 events, got 2"),
        (["evaluate", "wide.npy", "--data", "8gaussians"], USAGE, "events of one shape, got (3,) and (2,)"),
    ],
)
def test_failures(arguments, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    np.save(tmp_path / "short.npy", np.zeros((2, 2), dtype=np.float32))
    np.save(tmp_path / "wide.npy", np.zeros((20, 3), dtype=np.float32))
    outcome = run(*arguments)
    assert outcome.code == code
    assert message in outcome.plain
    assert len(outcome.err.strip().splitlines()) == 1
    assert "Traceback" not in outcome.all


def test_debug_adds_the_traceback(tmp_path):
    outcome = run("sample", tmp_path / "none.safetensors", "--debug")
    assert outcome.code == FAILED
    assert "Traceback" in outcome.err


def test_a_diverging_run_fails_and_says_where(tmp_path):
    arguments = ["--data", "8gaussians", "--lr", 1e30, "--steps", 20, "--sample-every", 0, "--out", tmp_path / "r"]
    outcome = run("train", *arguments, *TINY, "--warmup-steps", 0)
    assert outcome.code == FAILED
    assert "error: step" in outcome.plain
    assert "Lower lr" in outcome.plain


def test_interpolation_of_points_is_refused(trained, tmp_path):
    outcome = run("plot", "interpolation", trained, "-o", tmp_path / "a.png", "--rtol", 1e-2)
    assert outcome.code == USAGE
    assert "images must have shape (N, C, H, W)" in outcome.plain
