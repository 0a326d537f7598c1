"""FiLM of all blocks from the noise level: small tensors that do not depend on x, left to ordinary autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vapo_fast.engines.explicit.layer import Film
from vapo_fast.potentials.blocks import ResidualBlock
from vapo_fast.potentials.image import ImagePotential


class Modulation:
    """Gains and offsets (B, C) of every block, of ``(1 + scale) (c + bias) + shift`` with its first convolution's bias.

    Args:
        blocks: all residual blocks of the potential.
        position: (B,) noise-level positions.
        differentiable: whether `gradients` will be asked for.
    """

    def __init__(
        self, potential: ImagePotential, blocks: Sequence[ResidualBlock], position: Tensor, differentiable: bool
    ) -> None:
        # In an ordinary mode, whatever the caller's: a small graph is made here and used up by `gradients`.
        with torch.inference_mode(False), torch.set_grad_enabled(differentiable):
            embedding = potential.embed(position.clone()) if potential.time_dependent else None
            self._outputs = [_gain_and_offset(block, embedding, len(position)) for block in blocks]
        self.films = {
            block: Film(gain.detach().contiguous(), offset.detach().contiguous())
            for block, (gain, offset) in zip(blocks, self._outputs, strict=True)
        }

    def gradients(self, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        """Of each parameter, from those that the sweeps have left in the films; zero where there are none."""
        outputs, adjoints = [], []
        for film, pair in zip(self.films.values(), self._outputs, strict=True):
            assert film.gradients is not None
            for output, adjoint in zip(pair, film.gradients, strict=True):
                if output.requires_grad:
                    outputs.append(output)
                    adjoints.append(adjoint.to(output.dtype))
        if not outputs or not parameters:
            return [torch.zeros_like(parameter) for parameter in parameters]
        with torch.inference_mode(False):
            return list(torch.autograd.grad(outputs, parameters, adjoints, allow_unused=True, materialize_grads=True))


def _gain_and_offset(block: ResidualBlock, embedding: Tensor | None, n: int) -> tuple[Tensor, Tensor]:
    channels = block.first.out_channels
    bias = block.first.weight.new_zeros(channels) if block.first.bias is None else block.first.bias
    if embedding is None or block.film is None:
        return bias.new_ones(n, channels), bias.expand(n, channels)
    scale, shift = block.film(embedding).chunk(2, dim=1)
    gain = 1.0 + scale
    return gain, torch.addcmul(shift, gain, bias)
