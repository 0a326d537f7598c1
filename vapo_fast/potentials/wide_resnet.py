"""Wide residual network potential for images: the family of the VAPO paper."""

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


class WideResNetPotential(GaugedPotential):
    """A convolutional encoder whose last features are summed over the image to one number.

    A 3x3 stem, then at each resolution ``blocks`` residual blocks (halving the image by average pooling in between),
    SiLU, and a learned linear functional summed over positions. The functional is linear and unsigned, so the
    potential can have
    curvature of either sign: sampling ascends Phi and contracts where its curvature is negative, which a head that is
    bounded below could not give. Activations are smooth (SiLU); there is no batch normalisation; time enters by FiLM.
    Works in channels-last memory.

    Args:
        event_shape: (C, H, W), H and W divisible by ``patch_size * 2 ** (len(multipliers) - 1)``.
        homotopy, time_dependent, data_scale: as for `GaugedPotential`.
        channels: width of the first resolution.
        multipliers: width of each resolution as a multiple of ``channels``.
        blocks: residual blocks at each resolution.
        patch_size: side of the square patches that become channels before the stem; 2 makes every layer four times
            cheaper for a small loss of sharpness.
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
        inputs = (sizes[0], *sizes[:-1])
        self.stages = nn.ModuleList(
            nn.ModuleList(ResidualBlock(size_in if i == 0 else size, size, features) for i in range(self.blocks))
            for size_in, size in zip(inputs, sizes, strict=True)
        )
        self.output = nn.Conv2d(sizes[-1], 1, 1, bias=False)
        # Start from f = 0: the potential is then the exact one of data N(0, data_scale^2 I).
        nn.init.zeros_(self.output.weight)
        channels_last(self)

    def network(self, z: Tensor, position: Tensor | None) -> Tensor:
        embedding = None if self.embedding is None or position is None else self.embedding(position)
        z = F.pixel_unshuffle(z, self.patch_size).contiguous(memory_format=torch.channels_last)
        h = self.stem(z)
        for level, stage in enumerate(self.stages):
            if level:
                h = F.avg_pool2d(h, 2)
            for block in blocks_of(stage):
                h = block(h, embedding)
        return self.output(F.silu(h)).flatten(1).sum(1)  # type: ignore[no-any-return]

    def config(self) -> dict[str, Any]:
        return {
            **super().config(),
            "channels": self.channels,
            "multipliers": list(self.multipliers),
            "blocks": self.blocks,
            "patch_size": self.patch_size,
        }
