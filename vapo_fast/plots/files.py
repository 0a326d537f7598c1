"""Figures and the files they go to: matplotlib is imported here, and only when a figure is made."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PathLike = str | os.PathLike[str]
Array = np.ndarray[Any, Any]

SAMPLE_COLOUR, DATA_COLOUR, LINE_COLOUR = "#1b4f8a", "#8a4b1b", "#3a3a3a"

_FIGURE_FORMATS = (".png", ".pdf", ".svg")
_DPI = 110


def require() -> None:
    """ImportError, which says what to install, where pictures cannot be drawn."""
    try:
        import matplotlib.figure  # noqa: F401
        import PIL.Image  # noqa: F401 (asked for before the work rather than after)
    except ImportError as error:
        raise ImportError("pictures need matplotlib and pillow: pip install 'vapo-fast[demo]'") from error


def new_figure(width: float, height: float, dpi: int = _DPI) -> Figure:
    """An empty figure of this size in inches. ImportError without matplotlib."""
    require()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi)
    FigureCanvasAgg(figure)
    return figure


def pillow_image(figure: Figure) -> Any:
    """The figure as a `PIL.Image` of at most 128 colours, for a GIF."""
    from PIL import Image

    canvas: Any = figure.canvas
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()).quantize(128)


def save(figure: Figure, path: PathLike) -> Path:
    """Write the figure in the format that the path's ending names. ValueError for another ending, or a folder."""
    target = target_path(path, _FIGURE_FORMATS)
    return write(target, lambda temporary: figure.savefig(temporary, format=target.suffix[1:].lower()))


def target_path(path: PathLike, formats: tuple[str, ...]) -> Path:
    """The path. ValueError if it does not end in one of the formats, or is a folder."""
    path = Path(path)
    if path.suffix.lower() not in formats:
        raise ValueError(f"path must end in {' or '.join(formats)}, got {str(path)!r}")
    if path.is_dir():
        raise ValueError(f"path must be a file, and {str(path)!r} is a folder")
    return path


def write(path: Path, write: Callable[[Path], object]) -> Path:
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
