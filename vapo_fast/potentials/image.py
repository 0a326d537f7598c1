"""What the image potentials share: patches, stem, noise-level embedding and their settings."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vapo_fast.core import checks
from vapo_fast.homotopy import Homotopy
from vapo_fast.potentials.blocks import NoiseLevelEmbedding, channel_sizes, channels_last, patched_shape
from vapo_fast.potentials.gauge import GaugedPotential


class ImagePotential(GaugedPotential):
    """A convolutional potential of (C, H, W) images, in channels-last memory; subclasses add what follows the stem.

    Args:
        event_shape: (C, H, W), H and W divisible by ``patch_size * 2 ** (len(multipliers) - 1)``.
        homotopy, time_dependent, data_scale: as for `GaugedPotential`.
        channels: width of the first resolution.
        multipliers: width of each resolution as a multiple of ``channels``.
        blocks: residual blocks at each resolution.
        patch_size: side of the square patches that become channels before the stem. With 2 every layer is four times
            cheaper, at a small loss of sharpness.
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
        self.sizes = channel_sizes(channels, multipliers)
        self.channels, self.multipliers = channels, tuple(multipliers)
        self.blocks = checks.positive_int("blocks", blocks)
        self.patch_size = checks.positive_int("patch_size", patch_size)
        self.image_channels, _, _ = patched_shape(self.event_shape, self.patch_size, len(self.sizes) - 1)
        self.features = 2 * self.sizes[0] if time_dependent else None
        self.embedding = NoiseLevelEmbedding(self.features) if self.features is not None else None
        self.stem = nn.Conv2d(self.image_channels, self.sizes[0], 3, padding=1)
        self.build()
        channels_last(self)

    @abstractmethod
    def build(self) -> None:
        """Make the layers that follow the stem."""

    def patches(self, z: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C patch_size^2, H / patch_size, W / patch_size), channels-last."""
        return F.pixel_unshuffle(z, self.patch_size).contiguous(memory_format=torch.channels_last)

    def embed(self, position: Tensor | None) -> Tensor | None:
        """The embedding (B, features) of the noise-level position, None for a time-independent potential."""
        return None if self.embedding is None or position is None else self.embedding(position)

    def config(self) -> dict[str, Any]:
        return {
            **super().config(),
            "channels": self.channels,
            "multipliers": list(self.multipliers),
            "blocks": self.blocks,
            "patch_size": self.patch_size,
        }
