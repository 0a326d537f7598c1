"""Pictures: what is in the files, that they are written whole or not at all, and the errors for unsuitable input."""

import builtins
import math
import sys

import numpy as np
import pytest
import torch

from vapo_fast import plots
from vapo_fast.homotopy import DataHomotopy, LinearHomotopy
from vapo_fast.plots import curves, plane
from vapo_fast.potentials import GaussianMixturePotential, MLPPotential, Potential

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def two_modes() -> GaussianMixturePotential:
    """Modes at (-1, 0) and (1, 0): left and right halves of the plane, little in between."""
    weights = torch.tensor([0.5, 0.5], dtype=torch.float64)
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    covariances = 0.01 * torch.eye(2, dtype=torch.float64).repeat(2, 1, 1)
    return GaussianMixturePotential(weights, means, covariances, DataHomotopy(1.0, 0.2))


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_sample_grid_shows_every_image_in_its_place(tmp_path):
    levels = torch.linspace(-1.0, 1.0, 6)
    path = plots.sample_grid(levels[:, None, None, None].expand(6, 1, 8, 8), tmp_path / "grid.png", columns=3)
    drawn = pixels(path)
    tile = drawn.shape[1] // 3
    assert drawn.shape[:2] == (2 * tile, 3 * tile)
    for i, level in enumerate(levels.tolist()):
        centre = drawn[i // 3 * tile + tile // 2, i % 3 * tile + tile // 2]
        assert centre.tolist() == pytest.approx([round((level + 1) * 127.5)] * 3, abs=1)


def test_sample_grid_keeps_colours_and_orientation_and_clips(tmp_path):
    image = -torch.ones(1, 3, 50, 60)
    image[0, 0, :25] = 5.0  # red above
    image[0, 2, :, 30:] = 1.0  # blue on the right
    drawn = pixels(plots.sample_grid(image, tmp_path / "grid.png"))
    assert drawn[10, 10].tolist() == [255, 0, 0]
    assert drawn[10, 50].tolist() == [255, 0, 255]
    assert drawn[40, 10].tolist() == [0, 0, 0]
    assert drawn[40, 50].tolist() == [0, 0, 255]


def test_sample_grid_title_adds_a_line(tmp_path):
    images = torch.zeros(4, 1, 8, 8)
    plain = pixels(plots.sample_grid(images, tmp_path / "a.png"))
    titled = pixels(plots.sample_grid(images, tmp_path / "b.png", title="epoch 3"))
    assert titled.shape[0] > plain.shape[0]
    assert (titled[:20] < 128).any()


def test_interpolation_strip_runs_left_to_right(tmp_path):
    images = torch.linspace(-1, 1, 5)[:, None, None, None].expand(5, 1, 8, 8)
    drawn = pixels(plots.interpolation_strip(images, tmp_path / "strip.png"))
    width = drawn.shape[1] / 5
    row = [int(drawn[10, int((i + 0.5) * width), 0]) for i in range(5)]
    assert row == pytest.approx([0, 64, 128, 191, 255], abs=1)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(2, 8, 8), ValueError, r"shape \(N, C, H, W\).*got \(2, 8, 8\)"),
        (torch.zeros(2, 2, 8, 8), ValueError, "C 1 or 3"),
        (torch.zeros(0, 1, 8, 8), ValueError, "N >= 1"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), TypeError, "floating-point tensor.*got torch.uint8"),
        (np.zeros((2, 1, 8, 8)), TypeError, "got ndarray"),
        (torch.full((2, 1, 8, 8), math.nan), ValueError, "images has NaN or infinite entries in 2 of 2 rows"),
    ],
)
def test_unsuitable_images(images, error, message, tmp_path):
    with pytest.raises(error, match=message):
        plots.sample_grid(images, tmp_path / "grid.png")
    assert list(tmp_path.iterdir()) == []


def test_unsuitable_paths_and_numbers(tmp_path):
    images = torch.zeros(2, 1, 8, 8)
    with pytest.raises(ValueError, match=r"path must end in \.png or \.pdf or \.svg, got 'x\.jpg'"):
        plots.sample_grid(images, "x.jpg")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        plots.sample_grid(images, tmp_path / "folder.png")
    with pytest.raises(ValueError, match="columns must be a positive integer, got 0"):
        plots.sample_grid(images, tmp_path / "grid.png", columns=0)
    with pytest.raises(ValueError, match="at least the two ends"):
        plots.interpolation_strip(images[:1], tmp_path / "strip.png")


def test_a_failed_write_leaves_the_older_picture(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    path = plots.sample_grid(torch.zeros(1, 1, 8, 8), tmp_path / "grid.png")
    before = path.read_bytes()

    def half_written(self, target, **options):
        target.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Figure, "savefig", half_written)
    with pytest.raises(OSError, match="No space left"):
        plots.sample_grid(torch.ones(1, 1, 8, 8), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["grid.png"]


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *arguments, **options):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install 'vapo-fast\[demo\]'"):
        plots.sample_grid(torch.zeros(1, 1, 8, 8), tmp_path / "grid.png")


def test_pyplot_is_never_imported(tmp_path, two_modes):
    for name in [name for name in sys.modules if name.startswith("matplotlib.pyplot")]:
        pytest.skip(f"{name} was imported before this test")
    plots.sample_grid(torch.zeros(1, 1, 8, 8), tmp_path / "grid.png")
    plots.samples_2d(two_modes, tmp_path / "flow.png", n=8, trajectories=2, rtol=1e-2)
    assert "matplotlib.pyplot" not in sys.modules


def test_point_sets_have_a_panel_each_of_one_scale(tmp_path):
    sets = {"near": torch.zeros(50, 2), "far": torch.full((50, 2), 3.0)}
    drawn = pixels(plots.point_sets(sets, tmp_path / "p.png", title="two"))
    assert drawn.shape[1] == pytest.approx(880, abs=2)
    with pytest.raises(ValueError, match="at least one set of points"):
        plots.point_sets({}, tmp_path / "p.png")
    with pytest.raises(ValueError, match=r"shape \(B, 2\)"):
        plots.point_sets({"a": torch.zeros(3, 3)}, tmp_path / "p.png")


@pytest.mark.parametrize("with_data", [False, True])
def test_samples_2d_writes_its_panels(two_modes, tmp_path, with_data):
    data = two_modes.sample_data(100, seed=0).float() if with_data else None
    path = plots.samples_2d(two_modes, tmp_path / "new" / "flow.png", data=data, n=64, trajectories=8, rtol=1e-3)
    assert pixels(path).shape[1] == pytest.approx(440 * (4 if with_data else 3), abs=2)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_landscape_is_the_normalised_log_density(two_modes, share):
    extent = (-2.0, 2.0, -2.0, 2.0)
    t = share * two_modes.homotopy.t1
    height = plane._height(two_modes, t, extent, cells=41, rtol=1e-8)
    axis = torch.linspace(-2, 2, 41, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1).reshape(-1, 2)
    exact = two_modes.marginal_log_density(points, t).reshape(41, 41)
    assert np.abs(height - exact.numpy()).max() < 1e-6
    if share == 1.0:
        # Rows are y, columns x: the modes lie on the middle row.
        assert sorted(np.argsort(height.ravel())[-2:].tolist()) == [20 * 41 + 10, 20 * 41 + 30]


class UnevenModes(Potential):
    """The exact potential but for a step in the empty middle of the plane, such as training leaves there."""

    def __init__(self, exact: GaussianMixturePotential, step: float) -> None:
        super().__init__(exact.event_shape, exact.homotopy, time_dependent=True)
        self.exact, self.step = exact, step

    def value(self, x, t):
        return self.exact(x, t) + self.step * torch.sigmoid(60.0 * x[:, 0])


def test_the_landscape_shows_modes_that_the_read_out_does_not_compare(two_modes):
    """Between separated modes the read-out of a trained potential is off by any constant; the picture must not be."""
    covariances = 0.0025 * torch.eye(2, dtype=torch.float64).repeat(2, 1, 1)
    exact = GaussianMixturePotential(two_modes.log_weights.exp(), two_modes.means, covariances, DataHomotopy(1.0, 0.05))
    model, t = UnevenModes(exact, 0.02), exact.homotopy.t1
    read_out = exact.homotopy.log_density(model(exact.means, t), exact.means, t)
    assert float(read_out[1] - read_out[0]) > plane._DEPTH  # one of them would be left dark
    height = plane._height(model, t, (-1.0, 1.0, -1.0, 1.0), cells=3)
    assert height[1, 0] == pytest.approx(height[1, 2], abs=0.5)
    assert height[1, 0] == pytest.approx(float(exact.marginal_log_density(exact.means, t)[0]), abs=0.5)


def test_points_that_cannot_be_integrated_are_left_dark(two_modes, monkeypatch, tmp_path):
    def every_other_fails(model, x, **options):
        values = two_modes.marginal_log_density(x, two_modes.homotopy.t1)
        return torch.where(torch.arange(len(x)) % 2 == 0, values, torch.nan)

    monkeypatch.setattr(plane, "log_likelihood", every_other_fails)
    height = plane._height(two_modes, 1.0, (-1.0, 1.0, -1.0, 1.0), cells=5)
    assert np.isneginf(height.ravel()[1::2]).all()
    assert np.isfinite(height.ravel()[::2]).all()
    plots.samples_2d(two_modes, tmp_path / "flow.png", n=8, rtol=1e-2)
    monkeypatch.setattr(plane, "log_likelihood", lambda model, x, **options: torch.full((len(x),), torch.nan))
    with pytest.raises(ValueError, match="no point of the plane could be integrated"):
        plots.samples_2d(two_modes, tmp_path / "none.png", n=8, rtol=1e-2)


def test_the_flow_begins_in_the_prior_and_ends_on_the_modes(two_modes):
    flow = plane._flow(two_modes, n=512, frames=5, t_end=None, seed=3, rtol=1e-5)
    assert flow.times == pytest.approx(np.linspace(0.0, two_modes.homotopy.t1, 5).tolist())
    assert flow.ys.shape == (5, 512, 2)
    assert flow.ys[0].std(axis=0) == pytest.approx([1.0, 1.0], abs=0.15)
    assert np.abs(np.abs(flow.ys[-1][:, 0]) - 1.0).max() < 1.2
    assert (flow.ys[-1][:, 0] > 0).mean() == pytest.approx(0.5, abs=0.1)


def test_samples_of_the_picture_are_those_of_sample(two_modes):
    from vapo_fast.sampling.sample import sample

    flow = plane._flow(two_modes, n=16, frames=3, t_end=None, seed=7, rtol=1e-8)
    drawn = sample(two_modes, 16, rtol=1e-8, seed=7)
    assert np.abs(flow.ys[-1] - drawn.double().numpy()).max() < 1e-5


def test_a_model_in_training_mode_is_drawn_in_evaluation_mode(tmp_path):
    class Noisy(torch.nn.Module):
        def forward(self, x):
            return (-0.5 if not self.training else torch.nan) * x.square().sum(1)

    model = Potential.from_module(Noisy().eval(), (2,), LinearHomotopy()).train()
    plots.samples_2d(model, tmp_path / "flow.png", n=4)
    assert model.training


def test_animation_2d_has_the_asked_frames(tmp_path):
    model = MLPPotential((2,), LinearHomotopy(1.0, 0.9), widths=(8,), time_dependent=False)
    path = plots.animation_2d(model, tmp_path / "flow.gif", n=32, frames=5, frames_per_second=10, rtol=1e-2)
    with Image.open(path) as image:
        durations = []
        for i in range(image.n_frames):
            image.seek(i)
            durations.append(image.info["duration"])
    # Pillow joins frames that do not differ, and adds up how long they last.
    assert sum(durations) == 4 * 100 + 1000
    assert len(durations) >= 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n must be a positive integer"),
        ({"trajectories": -1}, "trajectories must be a non-negative integer"),
        ({"t_end": -1.0}, "t_end must be after the start of the path, 0, got -1"),
        ({"t_end": 30.0}, "t_end must be at most 3.2581, where the path of this time-dependent potential ends"),
        ({"rtol": 0.0}, "rtol"),
        ({"cells": 1}, "cells must be at least 2, got 1"),
        ({"data": torch.zeros(3, 3)}, r"data must have shape \(B, 2\)"),
    ],
)
def test_samples_2d_bad_arguments(two_modes, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        plots.samples_2d(two_modes, tmp_path / "flow.png", **({"n": 4} | options))


def test_samples_2d_needs_the_plane(tmp_path):
    model = MLPPotential((3,), DataHomotopy(), widths=(8,))
    with pytest.raises(ValueError, match=r"event_shape \(2,\) to be drawn on the plane, got \(3,\)"):
        plots.samples_2d(model, tmp_path / "flow.png")
    with pytest.raises(ValueError, match=r"frames must be at least 2"):
        plots.animation_2d(model, tmp_path / "flow.gif", frames=1)
    with pytest.raises(ValueError, match=r"path must end in \.gif"):
        plots.animation_2d(model, tmp_path / "flow.png")


HEADER = "step,loss,linear,quadratic,grad_norm,lr,ema_decay,samples_per_second,seconds"


def write_log(path, rows):
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    return path


def test_training_curve(tmp_path):
    rows = [f"{i},{-1 + 1 / i},{-2 + 1 / i},1.0,{1 / i},1e-3,0.9,100.0,{i / 10}" for i in range(1, 101)]
    path = plots.training_curve(write_log(tmp_path / "log.csv", rows), tmp_path / "curve.png", title="a run")
    assert (pixels(path) < 200).any()


def test_training_curve_of_a_single_reading(tmp_path):
    log = write_log(tmp_path / "log.csv", ["1,0.0,0.0,0.0,0.0,1e-3,0.9,100.0,0.1"])
    assert plots.training_curve(log, tmp_path / "curve.png").exists()


def test_the_running_mean():
    mean = curves._running_mean(np.array([1.0, 3.0, 5.0, 7.0]), 2)
    assert mean.tolist() == [1.0, 2.0, 4.0, 6.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER + "\n", "has no readings yet"),
        ("a,b\n1,2\n", "lacks the columns step, loss, linear, quadratic, grad_norm"),
        (HEADER + "\n1,x,0,0,0,0,0,0,0\n", "line 2, is not a row"),
        (HEADER + "\n1,0,0,0,1,0,0,0,0\n2,nan,0,0,1,0,0,0,0\n", "step 2 is not finite"),
    ],
)
def test_unsuitable_logs(tmp_path, text, message):
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        plots.training_curve(tmp_path / "log.csv", tmp_path / "curve.png")


def test_a_missing_log(tmp_path):
    with pytest.raises(ValueError, match=r"there is no training log at .*none\.csv"):
        plots.training_curve(tmp_path / "none.csv", tmp_path / "curve.png")


def test_image_rows_put_each_set_in_its_row_beside_its_name(tmp_path):
    rows = {"dark": -torch.ones(3, 1, 8, 8), "bright rows": torch.zeros(2, 1, 8, 8)}
    drawn = pixels(plots.image_rows(rows, tmp_path / "rows.png"))
    tile, margin = 42, drawn.shape[1] - 3 * 42
    assert drawn.shape[0] == 2 * tile
    assert margin > 40
    assert drawn[20, margin + 20].tolist() == drawn[20, margin + 2 * tile + 20].tolist() == [0, 0, 0]
    assert drawn[tile + 20, margin + tile + 20].tolist() == pytest.approx([128] * 3, abs=1)
    assert drawn[tile + 20, margin + 2 * tile + 20].tolist() == [255, 255, 255]  # the shorter row is padded
    assert (drawn[:tile, :margin] < 128).any()
    assert (drawn[tile:, :margin] < 128).any()


def test_image_rows_refuse_what_is_no_table(tmp_path):
    with pytest.raises(ValueError, match="at least one set"):
        plots.image_rows({}, tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"images of one size, got \(4, 4\), \(8, 8\)"):
        plots.image_rows({"a": torch.zeros(1, 1, 8, 8), "b": torch.zeros(1, 1, 4, 4)}, tmp_path / "a.png")
    with pytest.raises(ValueError, match="NaN"):
        plots.image_rows({"a": torch.full((1, 1, 4, 4), math.nan)}, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_score_histograms_show_every_set(tmp_path):
    scores = {"inside": torch.linspace(0.0, 1.0, 50), "outside": torch.linspace(5.0, 6.0, 50, dtype=torch.float64)}
    drawn = pixels(plots.score_histograms(scores, tmp_path / "s.png", "score", title="two sets"))
    coloured = (drawn.max(axis=2).astype(int) - drawn.min(axis=2)) > 40
    third = drawn.shape[1] // 3
    assert coloured[:, :third].any()
    assert coloured[:, 2 * third :].any()
    # A single score, and one far away, still make a picture.
    plots.score_histograms({"one": torch.zeros(1)}, tmp_path / "one.png", "score")
    plots.score_histograms({"far": torch.tensor([0.0, 0.1, 1e9])}, tmp_path / "far.png", "score")


def test_score_histograms_refuse_bad_scores(tmp_path):
    with pytest.raises(ValueError, match="at least one set"):
        plots.score_histograms({}, tmp_path / "a.png", "score")
    with pytest.raises(TypeError, match="scores\\['a'\\] must be a floating-point tensor"):
        plots.score_histograms({"a": torch.zeros(2, 2)}, tmp_path / "a.png", "score")
    with pytest.raises(ValueError, match="scores\\['a'\\] has NaN"):
        plots.score_histograms({"a": torch.tensor([math.nan])}, tmp_path / "a.png", "score")
