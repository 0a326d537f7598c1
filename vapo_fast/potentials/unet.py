"""U-Net potential for images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vapo_fast import _checks
from vapo_fast.homotopy import Homotopy
from vapo_fast.potentials.blocks import (
    NoiseLevelEmbedding,
    ResidualBlock,
    blocks_of,
    channel_sizes,
    channels_last,
    patched_shape,
)
from vapo_fast.potentials.gauge import GaugedPotential


class UNetPotential(GaugedPotential):
    """A U-Net F of the image with the scalar head ``f = <z, F(z)>``.

    The inner product takes either sign, so the potential can contract (negative curvature) as well as expand; a head
    such as ``|z - F(z)|^2 / 2`` is bounded below and, ascended, can only push apart. Its gradient is
    ``F + (dF/dz)^T z``: the network at its own resolution plus its transpose, which is what lets a scalar carry fine
    detail. Blocks and activations as in `WideResNetPotential`; skip connections are concatenated; the image is halved
    by average pooling and doubled by nearest-neighbour repetition.

    Args:
        event_shape: (C, H, W), H and W divisible by ``patch_size * 2 ** (len(multipliers) - 1)``.
        homotopy, time_dependent, data_scale: as for `GaugedPotential`.
        channels, multipliers, blocks, patch_size: as for `WideResNetPotential`; ``blocks`` counts each side of the U.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        homotopy: Homotopy,
        channels: int = 64,
        multipliers: Sequence[float] = (1, 2, 2),
        blocks: int = 2,
        time_dependent: bool = True,
        *,
        patch_size: int = 1,
        data_scale: float = 1.0,
    ) -> None:
        super().__init__(event_shape, homotopy, time_dependent, data_scale)
        sizes = channel_sizes(channels, multipliers)
        self.channels, self.multipliers = channels, tuple(multipliers)
        self.blocks = _checks.positive_int("blocks", blocks)
        self.patch_size = _checks.positive_int("patch_size", patch_size)
        image_channels, _, _ = patched_shape(self.event_shape, self.patch_size, len(sizes) - 1)
        features = 2 * sizes[0] if time_dependent else None
        self.embedding = NoiseLevelEmbedding(features) if features is not None else None
        self.stem = nn.Conv2d(image_channels, sizes[0], 3, padding=1)
        self.down = nn.ModuleList()
        skips = []
        width = sizes[0]
        for size in sizes:
            stage = nn.ModuleList()
            for _ in range(self.blocks):
                stage.append(ResidualBlock(width, size, features))
                width = size
                skips.append(width)
            self.down.append(stage)
        self.middle = ResidualBlock(width, width, features)
        self.up = nn.ModuleList()
        for size in reversed(sizes):
            stage = nn.ModuleList()
            for _ in range(self.blocks):
                stage.append(ResidualBlock(width + skips.pop(), size, features))
                width = size
            self.up.append(stage)
        self.output = nn.Conv2d(width, image_channels, 3, padding=1)
        # Start from f = 0: the potential is then the exact one of data N(0, data_scale^2 I).
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)  # type: ignore[arg-type]
        channels_last(self)

    def network(self, z: Tensor, position: Tensor | None) -> Tensor:
        embedding = None if self.embedding is None or position is None else self.embedding(position)
        z = F.pixel_unshuffle(z, self.patch_size).contiguous(memory_format=torch.channels_last)
        h = self.stem(z)
        skips = []
        for level, stage in enumerate(self.down):
            if level:
                h = F.avg_pool2d(h, 2)
            for block in blocks_of(stage):
                h = block(h, embedding)
                skips.append(h)
        h = self.middle(h, embedding)
        for level, stage in enumerate(self.up):
            if level:
                h = F.interpolate(h, scale_factor=2.0, mode="nearest")
            for block in blocks_of(stage):
                h = block(torch.cat([h, skips.pop()], dim=1), embedding)
        output: Tensor = self.output(F.silu(h))
        return (z * output).flatten(1).sum(1)

    def config(self) -> dict[str, Any]:
        return {
            **super().config(),
            "channels": self.channels,
            "multipliers": list(self.multipliers),
            "blocks": self.blocks,
            "patch_size": self.patch_size,
        }
