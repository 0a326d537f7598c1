"""Group normalisation in the residual blocks, for comparison: the library's have none (`ResidualBlock`)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vapo_fast.potentials.blocks import ResidualBlock

_MOST_GROUPS = 8


class NormalisedBlock(ResidualBlock):
    """``skip(x) + conv(silu(FiLM(norm(conv(silu(norm(x)))))))``, as in most networks for diffusion and flows."""

    norms: nn.ModuleList

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        h = self.norms[1](self.first(F.silu(self.norms[0](x))))
        if self.film is not None and embedding is not None:
            scale, shift = self.film(embedding)[:, :, None, None].chunk(2, dim=1)
            h = torch.addcmul(shift, h, 1.0 + scale)
        return self.skip(x) + self.second(F.silu(h))  # type: ignore[no-any-return]


def normalise(network: nn.Module) -> None:
    """Turn every residual block of a network into a `NormalisedBlock`, in place; other weights stay as they are."""
    for block in [module for module in network.modules() if isinstance(module, ResidualBlock)]:
        block.norms = nn.ModuleList(_norm(layer.in_channels) for layer in (block.first, block.second))
        block.__class__ = NormalisedBlock


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(channels, _MOST_GROUPS), channels)
