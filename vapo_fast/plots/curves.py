"""Curves: training logs, and distributions of scores."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from vapo_fast.core import checks
from vapo_fast.plots.files import DATA_COLOUR, SAMPLE_COLOUR, Array, PathLike, new_figure, save


def training_curve(csv_path: PathLike, path: PathLike, title: str | None = None) -> Path:
    """Draw a training log (`vapo_fast.callbacks.CSVLogger`): loss, its two terms and the gradient norm by step.

    Pale lines are the readings, full ones their running mean over a fiftieth of the run. The loss is an energy: its
    minimum is below zero and unknown, so what counts is that it levels off.

    Raises: ValueError if the file is missing, empty, or not such a log; ImportError without matplotlib.
    """
    log = _read_log(Path(csv_path))
    figure = new_figure(12.0, 3.6)
    steps = log["step"]
    panels = (("loss", ("loss",)), ("terms of the loss", ("linear", "quadratic")), ("gradient norm", ("grad_norm",)))
    for i, (name, columns) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), i + 1)
        for column, colour in zip(columns, (SAMPLE_COLOUR, DATA_COLOUR), strict=False):
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
    return save(figure, path)


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
    figure = new_figure(7.0, 3.6)
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
    return save(figure, path)


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
