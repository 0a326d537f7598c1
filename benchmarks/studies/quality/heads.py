"""Other heads of the U-Net potential, for comparison; trained by double backward, which `explicit_passes` replaces."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.studies.quality.velocity import last_features
from vapo_fast.homotopy import expand_time
from vapo_fast.potentials import UNetPotential


class _Head(UNetPotential):
    """A scalar of the network's input z and of ``maps`` images of its size; the ``random``-th does not start at zero.

    Where two images are multiplied, one must differ from zero for the other to learn.
    """

    maps = 2
    random: int | None = 1

    def build(self) -> None:
        super().build()
        width = self.output.in_channels
        self.others = nn.ModuleList(nn.Conv2d(width, self.image_channels, 3, padding=1) for _ in range(1, self.maps))
        for i, other in enumerate(self.others, start=1):
            if i != self.random:
                nn.init.zeros_(other.weight)
                nn.init.zeros_(other.bias)

    def network(self, z: Tensor, position: Tensor | None) -> Tensor:
        assert position is not None
        h = F.silu(last_features(self, z, self.embed(position)))
        images = (self.output(h), *(other(h) for other in self.others))
        # The path's noise in units of the network's input: 1 at the start, small at the end.
        beta = torch.exp(self.homotopy._log_noise_level(position))
        alpha = self.homotopy.kernel(self.homotopy.time_at_noise_position(position)).alpha
        noise = beta * torch.rsqrt((alpha * self.data_scale).square() + beta.square())
        return self.scalar(self.patches(z), images, expand_time(noise, z)).flatten(1).sum(1)

    @abstractmethod
    def scalar(self, z: Tensor, images: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        """Its terms, to be summed over the image."""


class InnerPlusSum(_Head):
    """``<z, F> + sum G``: with G = -c F it is ``<z - c, F>`` for any constant c."""

    random = None

    def scalar(self, z: Tensor, images: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        return z * images[0] + images[1]


class ShiftedInner(_Head):
    """``<z + M, F>``: what of z is no noise can be taken off before the product."""

    def scalar(self, z: Tensor, images: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        return (z + images[1]) * images[0]


class InnerPlusProduct(_Head):
    """``<z, F> + r <M, N>`` with the noise r of z: for M = -N = the noise, its exact log-density late in the path."""

    maps = 3

    def scalar(self, z: Tensor, images: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        return z * images[0] + noise * images[1] * images[2]


class InnerMinusSquare(_Head):
    """``<z, F> - r |N|^2 / 2``."""

    def scalar(self, z: Tensor, images: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        return z * images[0] - 0.5 * noise * images[1].square()


class HalfInner(_Head):
    """``<z, F> / 2``: where F is the gradient of a homogeneous potential, its own gradient."""

    def build(self) -> None:
        UNetPotential.build(self)

    def network(self, z: Tensor, position: Tensor | None) -> Tensor:
        return 0.5 * UNetPotential.network(self, z, position)

    def scalar(self, z: Tensor, images: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        raise NotImplementedError


HEADS: dict[str, type[UNetPotential]] = {
    "<z, F>": UNetPotential,
    "<z, F> / 2": HalfInner,
    "<z, F> + sum G": InnerPlusSum,
    "<z + M, F>": ShiftedInner,
    "<z, F> + r <M, N>": InnerPlusProduct,
    "<z, F> - r |N|^2 / 2": InnerMinusSquare,
}
"""By name; the first is the library's."""
