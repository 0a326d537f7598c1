"""Precision, recall, density and coverage from nearest neighbours, in bounded memory.

The package ``prdc`` computes the same four numbers from three full distance matrices (2.4 GB at 10 000 samples). The
tests use it as the reference.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vapo_fast.core import checks
from vapo_fast.metrics._checks import two_sets

# Entries of one block of squared distances: 64 MB in float64.
_BLOCK = 2**23


def prdc(real: Tensor, fake: Tensor, k: int = 5) -> dict[str, float]:
    """Precision, recall, density and coverage of ``fake`` (m, F) against ``real`` (n, F).

    - precision: share of fake points inside the ball of some real point;
    - recall: share of real points inside the ball of some fake point;
    - density: mean number of real balls around a fake point, over k (may exceed 1);
    - coverage: share of real balls that hold a fake point.

    Each point has a ball whose radius is the distance to the k-th nearest other point of its set; inside means
    strictly inside. Events are flattened. (Kynkäänniemi et al. 2019, arXiv 1904.06991; Naeem et al. 2020, arXiv
    2002.09797.)

    Raises: TypeError/ValueError for sets of k or fewer points, different F, or NaN.
    """
    neighbours = checks.positive_int("k", k)
    x, y = two_sets("real", real, "fake", fake, at_least=neighbours + 1)
    # Centring keeps the expansion |x|^2 + |y|^2 - 2 x.y accurate; float64 because radii are compared, not only summed.
    centre = x.to(torch.float64).mean(dim=0)
    x, y = x.to(torch.float64) - centre, y.to(torch.float64) - centre
    real_radius, fake_radius = _radii(x, neighbours), _radii(y, neighbours)
    inside_real = torch.zeros(len(y), dtype=torch.int64)
    recalled = 0
    covered = 0
    for start, block in _blocks(x, y):
        rows = slice(start, start + len(block))
        inside_real += (block < real_radius[rows, None]).sum(dim=0)
        recalled += int((block < fake_radius).any(dim=1).sum())
        covered += int((block.amin(dim=1) < real_radius[rows]).sum())
    return {
        "precision": float((inside_real > 0).double().mean()),
        "recall": recalled / len(x),
        "density": float(inside_real.double().mean()) / neighbours,
        "coverage": covered / len(x),
    }


def _radii(x: Tensor, k: int) -> Tensor:
    """Squared distance of each row to its k-th nearest other row."""
    parts = []
    for start, block in _blocks(x, x):
        rows = torch.arange(len(block))
        block[rows, start + rows] = torch.inf
        parts.append(block.topk(k, dim=1, largest=False).values[:, -1])
    return torch.cat(parts)


def _blocks(x: Tensor, y: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Squared distances (rows, len(y)) from successive rows of x, with the number of the first row."""
    x_norm, y_norm = x.square().sum(dim=1), y.square().sum(dim=1)
    rows = max(1, _BLOCK // len(y))
    for start in range(0, len(x), rows):
        stop = min(start + rows, len(x))
        block = torch.addmm(y_norm, x[start:stop], y.T, alpha=-2)
        yield start, block.add_(x_norm[start:stop, None]).clamp_(min=0)
