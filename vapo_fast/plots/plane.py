"""Pictures of the plane: points, and the samples, landscape and paths of a two-dimensional potential."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vapo_fast import noise, ode
from vapo_fast.core import checks
from vapo_fast.plots.files import (
    DATA_COLOUR,
    LINE_COLOUR,
    SAMPLE_COLOUR,
    Array,
    PathLike,
    new_figure,
    pillow_image,
    save,
    target_path,
    write,
)
from vapo_fast.potentials.base import Potential, check_model, end_time, model_dtype_device
from vapo_fast.sampling.batching import evaluation
from vapo_fast.sampling.density import log_likelihood, log_prior

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Extent = tuple[float, float, float, float]
"""Left, right, bottom, top."""

# How far below its maximum, in nats, a density is still drawn: exp(-12) is invisible beside 1.
_DEPTH = 12.0
# The tolerance that a landscape is integrated with, for colours half a nat apart; there is one for each frame of an
# animation, which are coarser.
_RTOL = 1e-3
_FRAME_CELLS, _FRAME_RTOL = 64, 1e-2
_MOST_STEPS = 1000


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
    figure = new_figure(4.0 * len(points), 4.3)
    for i, (name, part) in enumerate(points.items()):
        axes = figure.add_subplot(1, len(points), i + 1)
        _scatter(axes, part, SAMPLE_COLOUR)
        _frame(axes, f"{name} ({len(part)})", extent)
    if title is not None:
        figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    return save(figure, path)


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
    figure = new_figure(4.0 * (3 + (points is not None)), 4.3)
    panels: list[tuple[str, Callable[[Axes], None]]] = []
    if points is not None:
        panels.append((f"data ({len(points)})", functools.partial(_scatter, points=points, colour=DATA_COLOUR)))
    panels.append(
        (
            f"samples ({n}, t = {flow.times[-1]:.3g})",
            functools.partial(_scatter, points=flow.ys[-1], colour=SAMPLE_COLOUR),
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
    return save(figure, path)


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
    path = target_path(path, (".gif",))
    flow = _flow(model, n, frames, t_end, seed, rtol)
    extent = _extent(np.concatenate([flow.ys[0], flow.ys[-1]]))
    figure = new_figure(8.0, 4.3, dpi=80)
    left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    _frame(left, "samples", extent)
    _frame(right, "log-likelihood of the flow" if model.time_dependent else "potential", extent)
    dots = left.scatter(flow.ys[0, :, 0], flow.ys[0, :, 1], s=3, color=SAMPLE_COLOUR, linewidths=0)
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
        pictures.append(pillow_image(figure))
    milliseconds = [1000 // frames_per_second] * (frames - 1) + [1000]
    options = {"save_all": True, "append_images": pictures[1:], "duration": milliseconds, "loop": 0}
    return write(path, lambda temporary: pictures[0].save(temporary, format="GIF", **options))


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


def _height(model: Potential, t: float, extent: Extent, cells: int, rtol: float = _RTOL) -> Array:
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


def _landscape(figure: Figure, axes: Axes, model: Potential, t: float, extent: Extent, cells: int) -> None:
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
    axes.plot(ys[:, :, 0], ys[:, :, 1], color=LINE_COLOUR, alpha=0.45, linewidth=0.7)
    axes.scatter(ys[0, :, 0], ys[0, :, 1], s=8, color="#9a9a9a", linewidths=0, zorder=3, label="prior")
    axes.scatter(ys[-1, :, 0], ys[-1, :, 1], s=10, color=SAMPLE_COLOUR, linewidths=0, zorder=4, label="sample")
    axes.legend(fontsize=8, loc="upper right", framealpha=0.8)


def _frame(axes: Axes, title: str, extent: Extent) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlim(extent[0], extent[1])
    axes.set_ylim(extent[2], extent[3])
    axes.set_aspect("equal")
    axes.tick_params(labelsize=8)


def _extent(points: Array, include: Extent | None = None) -> Extent:
    """A square (left, right, bottom, top) about the origin that shows all but stray points."""
    reach = 1.15 * float(np.quantile(np.abs(points), 0.998)) if points.size else 1.0
    reach = max(reach, 1e-6, include[1] if include is not None else 0.0)
    return -reach, reach, -reach, reach


def _points(name: str, x: Tensor) -> Array:
    checks.all_finite(name, checks.batch_of_events(name, x, (2,)))
    return x.detach().double().cpu().numpy()
