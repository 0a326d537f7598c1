"""Pictures: image grids, two-dimensional flows, training curves. They need the extra ``vapo-fast[demo]`` (matplotlib).

Every function writes one file, atomically, and returns its path; none touches pyplot or any other global state of
matplotlib. The ending of the file name chooses the format: .png, .pdf or .svg, and .gif for `animation_2d`.
"""

from __future__ import annotations

import csv
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vapo_fast import noise, ode
from vapo_fast.core import checks
from vapo_fast.potentials.base import Potential, check_model, end_time, model_dtype_device
from vapo_fast.sampling.batching import evaluation
from vapo_fast.sampling.density import log_likelihood, log_prior

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PathLike = str | os.PathLike[str]
Array = np.ndarray[Any, Any]

_FIGURE_FORMATS = (".png", ".pdf", ".svg")
_DPI = 110
_SAMPLE_COLOUR, _DATA_COLOUR, _LINE_COLOUR = "#1b4f8a", "#8a4b1b", "#3a3a3a"
# How far below its maximum, in nats, a density is still drawn: exp(-12) is invisible beside 1.
_DEPTH = 12.0
# The tolerance that a landscape is integrated with, for colours half a nat apart; there is one for each frame of an
# animation, which are coarser.
_RTOL = 1e-3
_FRAME_CELLS, _FRAME_RTOL = 64, 1e-2
_MOST_STEPS = 1000
_SMALLEST_TILE = 40  # pixels: smaller images are enlarged by a whole factor
_GAP = 2  # pixels between two tiles


def sample_grid(images: Tensor, path: PathLike, columns: int | None = None, title: str | None = None) -> Path:
    """Draw images as tiles of one picture, row by row.

    Args:
        images: (N, C, H, W) with C 1 (grey) or 3 (RGB) and values in [-1, 1]; values outside are clipped.
        path: file to write.
        columns: tiles in a row; default: about the square root of N.
        title: a line of text above.
    Raises: TypeError or ValueError for other shapes or NaN; ImportError without matplotlib.
    """
    pixels = _image_pixels(images)
    n = pixels.shape[0]
    columns = math.ceil(math.sqrt(n)) if columns is None else min(n, checks.positive_int("columns", columns))
    return _save(_tiles(pixels, columns, title), path)


def interpolation_strip(images: Tensor, path: PathLike, title: str | None = None) -> Path:
    """Draw an interpolation, from its first image on the left to its last on the right, with the position below.

    Args, errors: as `sample_grid`; at least two images.
    """
    pixels = _image_pixels(images)
    n = pixels.shape[0]
    if n < 2:
        raise ValueError(f"images must hold at least the two ends of an interpolation, got {n}")
    captions = [f"{i / (n - 1):.2f}" for i in range(n)]
    return _save(_tiles(pixels, n, title, captions), path)


def image_rows(rows: Mapping[str, Tensor], path: PathLike, title: str | None = None) -> Path:
    """Draw sets of images below each other, each a row of tiles with its name on the left.

    Args:
        rows: name to images (N, C, H, W) as for `sample_grid`, all of one height and width; N may differ.
        path: file to write.
        title: a line of text above.
    Raises: as `sample_grid`; ValueError for no rows or for images of different sizes.
    """
    if not rows:
        raise ValueError("rows must hold at least one set of images, got none")
    pixels = {name: _image_pixels(images) for name, images in rows.items()}
    sizes = {part.shape[1:3] for part in pixels.values()}
    if len(sizes) > 1:
        raise ValueError(f"rows must hold images of one size, got {', '.join(map(str, sorted(sizes)))}")
    columns = max(len(part) for part in pixels.values())
    blank = np.full_like(next(iter(pixels.values()))[:1], 255)
    padded = [np.concatenate([part, blank.repeat(columns - len(part), axis=0)]) for part in pixels.values()]
    return _save(_tiles(np.concatenate(padded), columns, title, labels=list(pixels)), path)


def point_sets(sets: Mapping[str, Tensor], path: PathLike, title: str | None = None) -> Path:
    """Draw sets of points of the plane beside each other, each a panel of one scale with its name above.

    Args:
        sets: name to points (N, 2), N >= 1.
        path: file to write.
        title: a line of text above all.
    Raises: ValueError for no sets, other shapes or NaN; ImportError without matplotlib.
    """
    if not sets:
        raise ValueError("sets must hold at least one set of points, got none")
    points = {name: _points(f"sets[{name!r}]", part) for name, part in sets.items()}
    extent = _extent(np.concatenate(list(points.values())))
    figure = _figure(4.0 * len(points), 4.3)
    for i, (name, part) in enumerate(points.items()):
        axes = figure.add_subplot(1, len(points), i + 1)
        _scatter(axes, part, _SAMPLE_COLOUR)
        _frame(axes, f"{name} ({len(part)})", extent)
    if title is not None:
        figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    return _save(figure, path)


def score_histograms(scores: Mapping[str, Tensor], path: PathLike, label: str, title: str | None = None) -> Path:
    """Draw the distributions of a score on several sets in one panel, as outlines of equal area.

    Args:
        scores: name to (N,) finite scores; the first is drawn filled.
        path: file to write.
        label: what the score is, below the axis.
    Raises: TypeError or ValueError for no sets, other shapes or NaN; ImportError without matplotlib.
    """
    if not scores:
        raise ValueError("scores must hold at least one set, got none")
    values: dict[str, Array] = {}
    for name, part in scores.items():
        if not isinstance(part, Tensor) or not part.is_floating_point() or part.dim() != 1 or not len(part):
            raise TypeError(f"scores[{name!r}] must be a floating-point tensor (N,) with N >= 1, got {part!r}")
        values[name] = checks.all_finite(f"scores[{name!r}]", part).detach().double().cpu().numpy()
    # Stray scores, orders of magnitude away, would leave one bar for all the rest; they are counted in the end bins.
    low, high = (float(f([np.quantile(v, q) for v in values.values()])) for f, q in ((min, 0.02), (max, 0.98)))
    edges = np.linspace(low, high if high > low else low + 1.0, 60)
    figure = _figure(7.0, 3.6)
    axes = figure.add_subplot(1, 1, 1)
    for i, (name, found) in enumerate(values.items()):
        height, _ = np.histogram(np.clip(found, edges[0], edges[-1]), edges, density=True)
        axes.stairs(height, edges, fill=i == 0, alpha=0.35 if i == 0 else 1.0, label=name)
    axes.set_xlabel(label, fontsize=9)
    axes.set_yticks([])
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=8, frameon=False)
    if title is not None:
        axes.set_title(title, fontsize=10)
    figure.tight_layout()
    return _save(figure, path)


def samples_2d(
    model: Potential,
    path: PathLike,
    *,
    data: Tensor | None = None,
    n: int = 4096,
    trajectories: int = 48,
    cells: int = 96,
    t_end: float | None = None,
    seed: int = 0,
    rtol: float = 1e-5,
) -> Path:
    """Draw a potential on the plane: its samples, its landscape and some of the paths that lead there.

    The landscape of a time-dependent potential is `vapo_fast.log_likelihood` at the end time, the normalised density of
    these samples, integrated at rtol 1e-3 from each point of a grid; points that need more than a thousand steps are
    left dark. (The read-out of `vapo_fast.log_density` would be cheaper, and at the path's end it shows one of several
    separated modes only: see there.) That of a time-independent potential is the potential itself, maximum at 0.

    Args:
        model: a potential with event_shape (2,).
        path: file to write.
        data: (N, 2) data to show beside the samples.
        n: number of samples, >= 1. trajectories: how many of them to show with their paths, >= 0.
        cells: of the landscape, a side, >= 2; its cost grows with their square.
        t_end: time to integrate to; default: the path's end.
        seed, rtol: as for `vapo_fast.sample`; sample i is the same in both.
    Raises: ValueError for another event_shape or bad numbers, SolveError, ImportError without matplotlib.
    """
    n, trajectories = checks.positive_int("n", n), checks.non_negative_int("trajectories", trajectories)
    if checks.positive_int("cells", cells) < 2:
        raise ValueError(f"cells must be at least 2, got {cells}")
    flow = _flow(model, n, 65, t_end, seed, rtol)
    points = None if data is None else _points("data", data)
    extent = _extent(flow.ys[-1] if points is None else np.concatenate([points, flow.ys[-1]]))
    figure = _figure(4.0 * (3 + (points is not None)), 4.3)
    panels: list[tuple[str, Callable[[Axes], None]]] = []
    if points is not None:
        panels.append((f"data ({len(points)})", functools.partial(_scatter, points=points, colour=_DATA_COLOUR)))
    panels.append(
        (
            f"samples ({n}, t = {flow.times[-1]:.3g})",
            functools.partial(_scatter, points=flow.ys[-1], colour=_SAMPLE_COLOUR),
        )
    )
    name = "log-likelihood of the flow, nats" if model.time_dependent else "potential, below maximum"
    panels.append((name, lambda axes: _landscape(figure, axes, model, flow.times[-1], extent, cells)))
    panels.append((f"trajectories ({min(n, trajectories)})", lambda axes: _paths(axes, flow.ys[:, :trajectories])))
    for i, (title, draw) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), i + 1)
        draw(axes)
        # Paths begin in the wide prior, so that panel shows more of the plane.
        _frame(
            axes, title, _extent(flow.ys[0, :trajectories], extent) if i == len(panels) - 1 and trajectories else extent
        )
    figure.tight_layout()
    return _save(figure, path)


def animation_2d(
    model: Potential,
    path: PathLike,
    *,
    n: int = 1500,
    frames: int = 48,
    frames_per_second: int = 16,
    t_end: float | None = None,
    seed: int = 0,
    rtol: float = 1e-5,
) -> Path:
    """Write a GIF of the flow from the prior to the data, with the landscape of `samples_2d` at each time beside it.

    Of a time-dependent potential each frame's landscape is integrated anew, at rtol 1e-2 from a coarser grid.

    Args:
        model, t_end, seed, rtol: as `samples_2d`. path: a .gif.
        n: number of samples, >= 1. frames: pictures at equal steps of the path's time, >= 2; the last stays a second.
        frames_per_second: 1 to 50.
    Raises: as `samples_2d`.
    """
    n = checks.positive_int("n", n)
    if checks.positive_int("frames", frames) < 2:
        raise ValueError(f"frames must be at least 2, the start and the end, got {frames}")
    if checks.positive_int("frames_per_second", frames_per_second) > 50:
        raise ValueError(f"frames_per_second must be at most 50, a GIF's shortest delay, got {frames_per_second}")
    path = _target(path, (".gif",))
    flow = _flow(model, n, frames, t_end, seed, rtol)
    extent = _extent(np.concatenate([flow.ys[0], flow.ys[-1]]))
    figure = _figure(8.0, 4.3, dpi=80)
    left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    _frame(left, "samples", extent)
    _frame(right, "log-likelihood of the flow" if model.time_dependent else "potential", extent)
    dots = left.scatter(flow.ys[0, :, 0], flow.ys[0, :, 1], s=3, color=_SAMPLE_COLOUR, linewidths=0)
    height = _height(model, flow.times[0], extent, _FRAME_CELLS, _FRAME_RTOL)
    surface = right.imshow(height, extent=extent, origin="lower", cmap="magma", interpolation="bilinear")
    depth = _depth(model, height)
    figure.tight_layout()
    pictures = []
    for time, x in zip(flow.times, flow.ys, strict=True):
        dots.set_offsets(x)
        if model.time_dependent:
            height = _height(model, time, extent, _FRAME_CELLS, _FRAME_RTOL)
            surface.set_data(height)
        surface.set_clim(height.max() - depth, height.max())
        left.set_title(f"samples, t = {time:.2f}", fontsize=10)
        pictures.append(_pillow_image(figure))
    milliseconds = [1000 // frames_per_second] * (frames - 1) + [1000]
    options = {"save_all": True, "append_images": pictures[1:], "duration": milliseconds, "loop": 0}
    return _write(path, lambda temporary: pictures[0].save(temporary, format="GIF", **options))


def training_curve(csv_path: PathLike, path: PathLike, title: str | None = None) -> Path:
    """Draw a training log (`vapo_fast.callbacks.CSVLogger`): loss, its two terms and the gradient norm by step.

    Pale lines are the readings, full ones their running mean over a fiftieth of the run. The loss is an energy: its
    minimum is below zero and unknown, so what counts is that it levels off.

    Raises: ValueError if the file is missing, empty, or not such a log; ImportError without matplotlib.
    """
    log = _read_log(Path(csv_path))
    figure = _figure(12.0, 3.6)
    steps = log["step"]
    panels = (("loss", ("loss",)), ("terms of the loss", ("linear", "quadratic")), ("gradient norm", ("grad_norm",)))
    for i, (name, columns) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), i + 1)
        for column, colour in zip(columns, (_SAMPLE_COLOUR, _DATA_COLOUR), strict=False):
            mean = _running_mean(log[column], max(1, len(steps) // 50))
            axes.plot(steps, log[column], color=colour, alpha=0.25, linewidth=0.7)
            axes.plot(steps, mean, color=colour, linewidth=1.4, label=f"{column} (last {mean[-1]:.4g})")
        if columns == ("grad_norm",) and bool((log["grad_norm"] > 0).all()):
            axes.set_yscale("log")
        else:
            axes.set_ylim(*_robust_limits(np.concatenate([log[column] for column in columns])))
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.tick_params(which="both", labelsize=8)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, frameon=False)
    if title is not None:
        figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    return _save(figure, path)


class _Flow(NamedTuple):
    """Times (F,) and states (F, n, 2) of samples on their way."""

    times: list[float]
    ys: Array


def _flow(model: Potential, n: int, frames: int, t_end: float | None, seed: int, rtol: float) -> _Flow:
    check_model(model)
    if model.event_shape != (2,):
        raise ValueError(f"model must have event_shape (2,) to be drawn on the plane, got {model.event_shape}")
    homotopy, end = model.homotopy, end_time(model, t_end)
    dtype, device = model_dtype_device(model)
    x0 = homotopy.omega * noise.normal(seed, range(n), (2,), dtype=dtype, device=device)
    times = np.linspace(homotopy.t0, end, frames).tolist()
    times[-1] = end
    with evaluation(model):
        solution = ode.solve(
            lambda x, t: model.field(x, t)[1], x0, homotopy.t0, end, rtol=rtol, atol=rtol, method="dopri5", t_eval=times
        )
    if solution.ys is None:
        raise RuntimeError("the solver returned no states at t_eval")
    return _Flow(times, solution.ys.double().cpu().numpy())


def _height(
    model: Potential, t: float, extent: tuple[float, float, float, float], cells: int, rtol: float = _RTOL
) -> Array:
    """(cells, cells) log-likelihood in nats, -inf where it cannot be integrated; or the potential, its maximum at 0."""
    x, y = np.linspace(extent[0], extent[1], cells), np.linspace(extent[2], extent[3], cells)
    grid = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    dtype, device = model_dtype_device(model)
    points = torch.from_numpy(grid).to(device, dtype)
    if not model.time_dependent:
        with evaluation(model):
            values = model(points, t)
        values = values - values.max()
    elif t <= model.homotopy.t0:
        values = log_prior(points, model.homotopy.omega)
    else:
        found = log_likelihood(model, points, rtol=rtol, t_end=t, max_steps=_MOST_STEPS, throw=False)
        values = (found[0] if isinstance(found, tuple) else found).nan_to_num(nan=-math.inf, neginf=-math.inf)
    height: Array = values.double().cpu().numpy().reshape(cells, cells)
    if not np.isfinite(height.max()):
        raise ValueError(f"there is no landscape at t = {t:.4g}: no point of the plane could be integrated from there")
    return height


def _depth(model: Potential, height: Array) -> float:
    """How far below the maximum the colours reach: a fixed span of nats, or, for Phi(x), most of the span it has."""
    return _DEPTH if model.time_dependent else max(-float(np.quantile(height, 0.1)), 1e-6)


def _landscape(
    figure: Figure, axes: Axes, model: Potential, t: float, extent: tuple[float, float, float, float], cells: int
) -> None:
    height = _height(model, t, extent, cells)
    x, y = (np.linspace(extent[i], extent[i + 1], height.shape[0]) for i in (0, 2))
    top = float(height.max())
    bottom = top - _depth(model, height)
    levels = np.linspace(bottom, top, 25)
    drawn = axes.contourf(x, y, np.clip(height, bottom, top), levels=levels, cmap="magma")
    bar = figure.colorbar(
        drawn, ax=axes, fraction=0.046, pad=0.03, ticks=levels[::6], format="%.3g" if top == 0 else "%.1f"
    )
    bar.ax.tick_params(labelsize=7)


def _scatter(axes: Axes, points: Array, colour: str) -> None:
    axes.scatter(points[:, 0], points[:, 1], s=2, alpha=0.5, color=colour, linewidths=0, rasterized=True)


def _paths(axes: Axes, ys: Array) -> None:
    if ys.shape[1] == 0:
        return
    axes.plot(ys[:, :, 0], ys[:, :, 1], color=_LINE_COLOUR, alpha=0.45, linewidth=0.7)
    axes.scatter(ys[0, :, 0], ys[0, :, 1], s=8, color="#9a9a9a", linewidths=0, zorder=3, label="prior")
    axes.scatter(ys[-1, :, 0], ys[-1, :, 1], s=10, color=_SAMPLE_COLOUR, linewidths=0, zorder=4, label="sample")
    axes.legend(fontsize=8, loc="upper right", framealpha=0.8)


def _frame(axes: Axes, title: str, extent: tuple[float, float, float, float]) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlim(extent[0], extent[1])
    axes.set_ylim(extent[2], extent[3])
    axes.set_aspect("equal")
    axes.tick_params(labelsize=8)


def _extent(
    points: Array, include: tuple[float, float, float, float] | None = None
) -> tuple[float, float, float, float]:
    """A square (left, right, bottom, top) about the origin that shows all but stray points."""
    reach = 1.15 * float(np.quantile(np.abs(points), 0.998)) if points.size else 1.0
    reach = max(reach, 1e-6, include[1] if include is not None else 0.0)
    return -reach, reach, -reach, reach


def _points(name: str, x: Tensor) -> Array:
    checks.all_finite(name, checks.batch_of_events(name, x, (2,)))
    return x.detach().double().cpu().numpy()


def _image_pixels(images: Tensor) -> Array:
    """(N, C, H, W) in [-1, 1] to uint8 (N, H, W, 3)."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        found = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a floating-point tensor (N, C, H, W) with values in [-1, 1], got {found}")
    if images.dim() != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(f"images must have shape (N, C, H, W) with N >= 1 and C 1 or 3, got {tuple(images.shape)}")
    checks.all_finite("images", images)
    scaled = images.detach().float().cpu().clamp(-1.0, 1.0).add(1.0).mul(127.5).round().to(torch.uint8)
    pixels: Array = scaled.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    return pixels


def _tiles(
    pixels: Array, columns: int, title: str | None, captions: Sequence[str] = (), labels: Sequence[str] = ()
) -> Figure:
    """A figure in which each picture element of the tiles is a whole number of pixels.

    Captions go below the columns, labels to the left of the rows.
    """
    n, height, width, _ = pixels.shape
    factor = max(1, math.ceil(_SMALLEST_TILE / min(height, width)))
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    rows = math.ceil(n / columns)
    cell_height, cell_width = height * factor + _GAP, width * factor + _GAP
    canvas = np.full((rows * cell_height, columns * cell_width, 3), 255, dtype=np.uint8)
    for i, tile in enumerate(pixels):
        top, left = i // columns * cell_height, i % columns * cell_width
        canvas[top : top + height * factor, left : left + width * factor] = tile
    header, footer = (24 if title else 0), (18 if captions else 0)
    margin = 8 + 7 * max(map(len, labels), default=-1) if labels else 0
    full_height, full_width = canvas.shape[0] + header + footer, max(canvas.shape[1] + margin, 8 * len(title or ""))
    figure = _figure(full_width / 100, full_height / 100, dpi=100)
    axes = figure.add_axes(
        (margin / full_width, footer / full_height, canvas.shape[1] / full_width, canvas.shape[0] / full_height),
        frameon=False,
    )
    axes.set_axis_off()
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    if title:
        figure.text(4 / full_width, 1.0 - 5 / full_height, title, fontsize=9, va="top", ha="left")
    for i, label in enumerate(labels):
        middle = footer + canvas.shape[0] - (i + 0.5) * cell_height
        figure.text(4 / full_width, middle / full_height, label, fontsize=7, va="center", ha="left")
    for i, caption in enumerate(captions):
        centre = margin + (i + 0.5) * cell_width
        figure.text(centre / full_width, 3 / full_height, caption, fontsize=7, va="bottom", ha="center")
    return figure


def _running_mean(values: Array, window: int) -> Array:
    """The mean of the last ``window`` readings at each one (of fewer at the start)."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    last = np.arange(1, len(values) + 1)
    first = np.maximum(0, last - window)
    means: Array = (sums[last] - sums[first]) / (last - first)
    return means


def _robust_limits(values: Array) -> tuple[float, float]:
    """Limits that a few spikes do not decide."""
    low, high = (float(q) for q in np.quantile(values, [0.005, 0.99]))
    margin = 0.08 * (high - low) or 0.5 * max(abs(high), 1e-3)
    return low - margin, high + margin


def _read_log(path: Path) -> dict[str, Array]:
    wanted = ("step", "loss", "linear", "quadratic", "grad_norm")
    if not path.is_file():
        raise ValueError(f"there is no training log at {path}")
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.DictReader(file)
        missing = [name for name in wanted if name not in (reader.fieldnames or [])]
        if missing:
            raise ValueError(f"{path} is not a training log: it lacks the columns {', '.join(missing)}")
        rows = []
        for row in reader:
            try:
                rows.append([float(row[name]) for name in wanted])
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {reader.line_num}, is not a row of a training log: {error}") from error
    if not rows:
        raise ValueError(f"{path} has no readings yet")
    values = np.array(rows)
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: step {int(rows[int((~np.isfinite(values)).any(1).argmax())][0])} is not finite")
    return dict(zip(wanted, values.T, strict=True))


def require() -> None:
    """ImportError, which says what to install, where pictures cannot be drawn."""
    try:
        import matplotlib.figure  # noqa: F401
        import PIL.Image  # noqa: F401 (asked for before the work rather than after)
    except ImportError as error:
        raise ImportError("pictures need matplotlib and pillow: pip install 'vapo-fast[demo]'") from error


def _figure(width: float, height: float, dpi: int = _DPI) -> Figure:
    require()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi)
    FigureCanvasAgg(figure)
    return figure


def _pillow_image(figure: Figure) -> Any:
    from PIL import Image

    canvas: Any = figure.canvas
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()).quantize(128)


def _save(figure: Figure, path: PathLike) -> Path:
    target = _target(path, _FIGURE_FORMATS)
    return _write(target, lambda temporary: figure.savefig(temporary, format=target.suffix[1:].lower()))


def _target(path: PathLike, formats: tuple[str, ...]) -> Path:
    path = Path(path)
    if path.suffix.lower() not in formats:
        raise ValueError(f"path must end in {' or '.join(formats)}, got {str(path)!r}")
    if path.is_dir():
        raise ValueError(f"path must be a file, and {str(path)!r} is a folder")
    return path


def _write(path: Path, write: Callable[[Path], object]) -> Path:
    """Write beside the target, then rename, so that a reader never finds half a picture."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(
            f"path must lie in a folder, and {str(path.parent)!r} cannot be one: a file is in the way"
        ) from None
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
