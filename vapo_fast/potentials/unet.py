"""U-Net potential for images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vapo_fast.potentials.blocks import ResidualBlock, blocks_of
from vapo_fast.potentials.image import ImagePotential


class UNetPotential(ImagePotential):
    """A U-Net F of the image with the scalar head ``f = <z, F(z)>``.

    The inner product takes either sign, so the potential can contract (negative curvature) as well as expand. A head
    such as ``|z - F(z)|^2 / 2`` is bounded below, and ascent on it can only expand. The gradient of f is
    ``F + (dF/dz)^T z``: the network at full resolution plus its transpose, so that a scalar can carry fine detail.
    Blocks and activations are those of `WideResNetPotential`. Skip connections are concatenated. The image is halved by
    average pooling and doubled by nearest-neighbour repetition.

    Arguments as for `ImagePotential`; ``blocks`` counts each side of the U.
    """

    def build(self) -> None:
        self.down = nn.ModuleList()
        skips = []
        width = self.sizes[0]
        for size in self.sizes:
            stage = nn.ModuleList()
            for _ in range(self.blocks):
                stage.append(ResidualBlock(width, size, self.features))
                width = size
                skips.append(width)
            self.down.append(stage)
        self.middle = ResidualBlock(width, width, self.features)
        self.up = nn.ModuleList()
        for size in reversed(self.sizes):
            stage = nn.ModuleList()
            for _ in range(self.blocks):
                stage.append(ResidualBlock(width + skips.pop(), size, self.features))
                width = size
            self.up.append(stage)
        self.output = nn.Conv2d(width, self.image_channels, 3, padding=1)
        # Start from f = 0: the potential is then the exact one of data N(0, data_scale^2 I).
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)  # type: ignore[arg-type]

    def network(self, z: Tensor, position: Tensor | None) -> Tensor:
        embedding = self.embed(position)
        z = self.patches(z)
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
