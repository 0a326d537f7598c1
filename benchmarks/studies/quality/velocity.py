"""The baseline's network: the U-Net of `UNetPotential` with a velocity for output instead of a scalar."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vapo_fast.homotopy import Homotopy, expand_time
from vapo_fast.potentials import UNetPotential
from vapo_fast.potentials.blocks import blocks_of


class VelocityUNet(nn.Module):
    r"""v(x, t) (B, C, H, W) from the very layers of a `UNetPotential`, so that both have the same parameters.

    The potential's head is ``f = <z, F(z)>``; here F itself is the output. With ``gauge``, F takes the place that
    ``grad f`` has there: ``v = a x + b (c_skip x + (s beta / sqrt(S)) F(x / sqrt(S)))``, the same input and output
    scales at every noise level (see `GaugedPotential`). Without, ``v = F(x)``, the plain network of flow matching. F
    starts at zero in both.

    Args: as for `UNetPotential`; ``gauge`` as above.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        homotopy: Homotopy,
        channels: int = 64,
        multipliers: Sequence[float] = (1, 2, 2),
        blocks: int = 2,
        *,
        patch_size: int = 1,
        data_scale: float = 1.0,
        gauge: bool = True,
    ) -> None:
        super().__init__()
        self.trunk = UNetPotential(
            event_shape, homotopy, channels, multipliers, blocks, patch_size=patch_size, data_scale=data_scale
        )
        self.gauge = gauge

    @property
    def homotopy(self) -> Homotopy:
        return self.trunk.homotopy

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.trunk.event_shape

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The velocity at x (B, C, H, W), t (B,)."""
        path, s = self.trunk.homotopy, self.trunk.data_scale
        position = path.noise_position(t)
        if not self.gauge:
            return self.image(x, position).to(x.dtype)
        k, gauge = path.kernel(t), path.gauge(t)
        variance = (k.alpha * s).square() + k.beta.square()
        scale = torch.rsqrt(variance)
        skip = gauge.quadratic + gauge.scale * k.alpha * s**2 / variance
        image = self.image(x * expand_time(scale, x), position).to(x.dtype)
        return expand_time(skip, x) * x + expand_time(gauge.scale * s * k.beta * scale, x) * image

    def image(self, z: Tensor, position: Tensor) -> Tensor:
        """F(z), the image whose inner product with z is the potential's network."""
        features = last_features(self.trunk, z, self.trunk.embed(position))
        return F.pixel_shuffle(self.trunk.output(F.silu(features)), self.trunk.patch_size)


def last_features(trunk: UNetPotential, z: Tensor, embedding: Tensor | None) -> Tensor:
    """What a U-Net's last activation and convolution are applied to, (B, channels, H, W) in units of patches."""
    h = trunk.stem(trunk.patches(z))
    skips = []
    for level, stage in enumerate(trunk.down):
        if level:
            h = F.avg_pool2d(h, 2)
        for block in blocks_of(stage):
            h = block(h, embedding)
            skips.append(h)
    h = trunk.middle(h, embedding)
    for level, stage in enumerate(trunk.up):
        if level:
            h = F.interpolate(h, scale_factor=2.0, mode="nearest")
        for block in blocks_of(stage):
            h = block(torch.cat([h, skips.pop()], dim=1), embedding)
    return h
