"""Pictures: image grids, two-dimensional flows, training curves. They need the extra ``vapo-fast[demo]`` (matplotlib).

Every function writes one file, atomically, and returns its path; none touches pyplot or any other global state of
matplotlib. The ending of the file name chooses the format: .png, .pdf or .svg, and .gif for `animation_2d`.
"""

from vapo_fast.plots.curves import score_histograms, training_curve
from vapo_fast.plots.files import require
from vapo_fast.plots.images import image_rows, interpolation_strip, sample_grid
from vapo_fast.plots.plane import animation_2d, point_sets, samples_2d

__all__ = [
    "animation_2d",
    "image_rows",
    "interpolation_strip",
    "point_sets",
    "require",
    "sample_grid",
    "samples_2d",
    "score_histograms",
    "training_curve",
]
