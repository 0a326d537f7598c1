r"""Two-dimensional sets, each a formula of counter-based noise: point ``i`` depends on ``(seed, i)`` only.

Below, z1, z2 ~ N(0, 1) and u1, u2 ~ U(0, 1) are independent draws for the point. Every set has a root mean square of
0.4 to 0.9 per coordinate and lies, except for rare tails, inside [-1.6, 1.6]^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vapo_fast import noise
from vapo_fast.core import checks
from vapo_fast.data.base import Dataset, IndexArray

EIGHT_GAUSSIANS_SD = 0.05
"""Standard deviation of each mode of ``8gaussians``, in each coordinate."""

# Normals and uniforms of one point must not share counter words, so the uniforms use indices beyond any data set.
_UNIFORM_OFFSET = 2**48
_TEST_OFFSET = 2**40
# Up to this many points (8 MB) a set is generated once and kept; beyond, each batch is generated on demand.
_KEEP_AT_MOST = 2**20

Points = tuple[Tensor, Tensor | None]


class Mixture(NamedTuple):
    """Parameters of a Gaussian mixture, float64: weights (K,), means (K, D), covariances (K, D, D)."""

    weights: Tensor
    means: Tensor
    covariances: Tensor


def eight_gaussians_mixture() -> Mixture:
    """The exact density of ``8gaussians``: weights 1/8, means (cos k pi/4, sin k pi/4), covariances 0.05^2 I."""
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    means = torch.stack((angle.cos(), angle.sin()), dim=1)
    covariances = (EIGHT_GAUSSIANS_SD**2 * torch.eye(2, dtype=torch.float64)).repeat(8, 1, 1)
    return Mixture(torch.full((8,), 0.125, dtype=torch.float64), means, covariances)


def eight_gaussians(z: Tensor, u: Tensor) -> Points:
    """Eight equal modes on the unit circle, with label k.

    ``(cos k pi/4, sin k pi/4) + 0.05 (z1, z2)``, ``k = floor(8 u1)``.
    """
    mode = (8 * u[:, 0]).long()
    return eight_gaussians_mixture().means[mode] + EIGHT_GAUSSIANS_SD * z, mode


def two_moons(z: Tensor, u: Tensor) -> Points:
    """Two half circles of radius 1, plus ``0.05 (z1, z2)``.

    With ``a = pi u2``: ``(cos a - 1/2, sin a - 1/4)`` if u1 < 1/2 (label 0), else its point reflection
    ``(1/2 - cos a, 1/4 - sin a)`` (label 1).
    """
    angle = math.pi * u[:, 1]
    moon = (u[:, 0] >= 0.5).long()
    upper = torch.stack((angle.cos() - 0.5, angle.sin() - 0.25), dim=1)
    return (1 - 2 * moon[:, None]) * upper + 0.05 * z, moon


def checkerboard(z: Tensor, u: Tensor) -> Points:
    """Uniform on the eight dark squares of a 4 x 4 board on [-1, 1]^2: side 1/2, dark where column + row is even.

    ``x = 2 u1 - 1`` in column ``c = floor(4 u1)``; ``y = (r + frac(2 u2)) / 2 - 1`` in row
    ``r = 2 floor(2 u2) + (c mod 2)``; label 4 r + c.
    """
    column = (4 * u[:, 0]).long()
    half = (2 * u[:, 1]).floor()
    row = 2 * half.long() + column % 2
    return torch.stack((2 * u[:, 0] - 1, (row + 2 * u[:, 1] - half) / 2 - 1), dim=1), 4 * row + column


def pinwheel(z: Tensor, u: Tensor) -> Points:
    """Five curved arms: ``(r, s) = (1 + 0.3 z1, 0.1 z2)`` turned by ``2 pi k / 5 + exp(r) / 4`` and scaled by 0.7,
    ``k = floor(5 u1)``; label k."""
    arm = (5 * u[:, 0]).long()
    r, s = 1 + 0.3 * z[:, 0], 0.1 * z[:, 1]
    angle = (2 * math.pi / 5) * arm + 0.25 * r.exp()
    cos, sin = angle.cos(), angle.sin()
    return 0.7 * torch.stack((r * cos - s * sin, r * sin + s * cos), dim=1), arm


def swissroll(z: Tensor, u: Tensor) -> Points:
    """A spiral: with ``a = 1.5 pi (1 + 2 u1)``, ``(a cos a, a sin a) / 10 + 0.05 (z1, z2)``; no labels."""
    angle = 1.5 * math.pi * (1 + 2 * u[:, 0])
    return (angle / 10)[:, None] * torch.stack((angle.cos(), angle.sin()), dim=1) + 0.05 * z, None


TOYS: dict[str, Callable[[Tensor, Tensor], Points]] = {
    "8gaussians": eight_gaussians,
    "2moons": two_moons,
    "checkerboard": checkerboard,
    "pinwheel": pinwheel,
    "swissroll": swissroll,
}


class Toy(Dataset):
    """``n`` points (2,) of a named two-dimensional set; see the module's functions for the formulas.

    Points are computed in float64 and rounded to float32. The "test" split continues the same stream at index 2^40:
    it shares no point with "train". Raises ValueError for an unknown name or split, TypeError/ValueError for a bad
    ``n`` or ``seed``.
    """

    def __init__(self, name: str, *, n: int = 100_000, seed: int = 0, split: str = "train") -> None:
        self._formula = TOYS[checks.one_of("name", name, TOYS)]
        self._seed = checks.non_negative_int("seed", seed)
        self._offset = _TEST_OFFSET if checks.one_of("split", split, ("train", "test")) == "test" else 0
        count = checks.positive_int("n", n)
        if count >= _TEST_OFFSET:
            raise ValueError(f"n must be below 2**40, got {n}")
        super().__init__(name, count, (2,))
        self._kept: Tensor | None = None

    @property
    def labels(self) -> Tensor | None:
        return self._generate(torch.arange(len(self)))[1]

    def _read(self, indices: IndexArray) -> Tensor:
        wanted = torch.from_numpy(indices)
        if len(self) > _KEEP_AT_MOST:
            return self._generate(wanted)[0]
        if self._kept is None:
            self._kept = self._generate(torch.arange(len(self)))[0]
        return self._kept[wanted]

    def _generate(self, indices: Tensor) -> Points:
        index = indices + self._offset
        z = noise.normal(self._seed, index, (2,), stream=noise.Stream.DATA, dtype=torch.float64)
        u = noise.uniform(self._seed, index + _UNIFORM_OFFSET, (2,), stream=noise.Stream.DATA, dtype=torch.float64)
        points, labels = self._formula(z, u)
        return points.to(torch.float32), labels
