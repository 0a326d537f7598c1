"""Pictures of images: grids, strips and rows of tiles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vapo_fast.core import checks
from vapo_fast.plots.files import Array, PathLike, new_figure, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    return save(_tiles(pixels, columns, title), path)


def interpolation_strip(images: Tensor, path: PathLike, title: str | None = None) -> Path:
    """Draw an interpolation, from its first image on the left to its last on the right, with the position below.

    Args, errors: as `sample_grid`; at least two images.
    """
    pixels = _image_pixels(images)
    n = pixels.shape[0]
    if n < 2:
        raise ValueError(f"images must hold at least the two ends of an interpolation, got {n}")
    captions = [f"{i / (n - 1):.2f}" for i in range(n)]
    return save(_tiles(pixels, n, title, captions), path)


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
    return save(_tiles(np.concatenate(padded), columns, title, labels=list(pixels)), path)


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
    figure = new_figure(full_width / 100, full_height / 100, dpi=100)
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
