"""Convolutional building blocks shared by the image potentials."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vapo_fast.core import checks


class NoiseLevelEmbedding(nn.Module):
    """Sinusoids of the noise-level position (B,) in [-1, 1], then two linear layers: (B, features)."""

    frequencies: Tensor

    def __init__(self, features: int, sinusoids: int = 16) -> None:
        super().__init__()
        # From half a turn to 2^4 turns over [-1, 1]: the position is uniform in ln(noise), so nothing finer is needed.
        self.register_buffer("frequencies", math.pi * 2.0 ** torch.linspace(-1.0, 4.0, sinusoids), persistent=False)
        self.first = nn.Linear(2 * sinusoids, features)
        self.second = nn.Linear(features, features)

    def forward(self, position: Tensor) -> Tensor:
        angle = position[:, None] * self.frequencies.to(position.dtype)
        y = torch.cat([torch.cos(angle), torch.sin(angle)], dim=1)
        return F.silu(self.second(F.silu(self.first(y))))


class ResidualBlock(nn.Module):
    """``skip(x) + conv(silu(FiLM(conv(silu(x)))))`` with 3x3 convolutions: (B, inputs, H, W) -> (B, outputs, H, W).

    FiLM multiplies by ``1 + scale`` and adds ``shift``, both linear in the noise-level embedding. There is no
    normalisation: inputs have unit scale by construction of the gauge, and the last convolution starts at zero, so
    that the block starts as its skip connection and depth costs no conditioning. (Batch normalisation would couple
    samples; group normalisation was measured to gain nothing, docs/quality_study.md.)
    """

    def __init__(self, inputs: int, outputs: int, embedding: int | None) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        self.film = nn.Linear(embedding, 2 * outputs) if embedding is not None else None
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        h = self.first(F.silu(x))
        if self.film is not None and embedding is not None:
            scale, shift = self.film(embedding)[:, :, None, None].chunk(2, dim=1)
            h = torch.addcmul(shift, h, 1.0 + scale)
        return self.skip(x) + self.second(F.silu(h))  # type: ignore[no-any-return]


def blocks_of(stage: nn.Module) -> Iterator[ResidualBlock]:
    """The residual blocks of a `torch.nn.ModuleList` of them, in order, with their type."""
    return iter(cast(Iterable[ResidualBlock], stage))


def channels_last(module: nn.Module) -> None:
    """Lay the convolution weights of ``module`` out in channels-last memory, in place."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            part.weight.data = part.weight.data.contiguous(memory_format=torch.channels_last)


def patched_shape(event_shape: tuple[int, ...], patch_size: int, halvings: int) -> tuple[int, int, int]:
    """The shape of (C, H, W) images once patches are channels; ValueError unless the sides can be halved as often."""
    if len(event_shape) != 3:
        raise ValueError(f"event_shape must be (channels, height, width) for an image potential, got {event_shape}")
    channels, height, width = event_shape
    multiple = patch_size * 2**halvings
    if height % multiple or width % multiple:
        raise ValueError(
            f"height and width must be multiples of {multiple} (patch_size {patch_size}, {halvings + 1} resolutions), "
            f"got {height} x {width}; use fewer multipliers, smaller patches or pad the images"
        )
    return channels * patch_size**2, height // patch_size, width // patch_size


def channel_sizes(channels: int, multipliers: Sequence[float]) -> tuple[int, ...]:
    """Channels at each resolution; ValueError unless each comes out as a positive integer."""
    base = checks.positive_int("channels", channels)
    if isinstance(multipliers, (str, bytes)) or not isinstance(multipliers, Sequence) or not multipliers:
        raise ValueError(
            f"multipliers must be a non-empty sequence of positive numbers such as (1, 2, 2), got {multipliers!r}"
        )
    return tuple(max(1, round(base * checks.positive_float("each multiplier", m))) for m in multipliers)
