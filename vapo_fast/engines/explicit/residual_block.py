"""The sweeps of `potentials.blocks.ResidualBlock`: ``y = skip(x) + W_2 silu(gain W_1 silu(x) + offset) + bias``.

The first convolution's bias is part of FiLM's offset, and the second's is added with the residual. Of each block are
kept, until its second adjoint: the input x, the first convolution's output c, their tangents, and the adjoints a_s0 and
a_s1 of both activations; or, to save memory, x and its tangent alone. Activations and their derivatives are computed
anew wherever they are needed, in the same pass over memory as what they are multiplied with.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vapo_fast.engines.explicit.layer import Film, Layer, Record, Sweep, image
from vapo_fast.potentials.blocks import ResidualBlock


class Residual(Layer):
    """A residual block."""

    def __init__(self, block: ResidualBlock) -> None:
        self.block = block

    def forward(self, x: Tensor, sweep: Sweep) -> tuple[Tensor, Record]:
        block = self.block
        film = sweep.films[block]
        convolutions, pointwise = sweep.convolutions, sweep.pointwise
        c = convolutions.forward(block.first, pointwise.silu(x, convolutions.dtype(block.first)))
        y = convolutions.forward(
            block.second, pointwise.film_silu(c, film.gain, film.offset, convolutions.dtype(block.second))
        )
        skip = x if not isinstance(block.skip, nn.Conv2d) else convolutions.forward(block.skip, x)
        return pointwise.residual(y, skip.to(x.dtype), _sum(_output_biases(block))), _Residual(block, film, x, c)


def _output_biases(block: ResidualBlock) -> Sequence[Tensor | None]:
    skip = block.skip.bias if isinstance(block.skip, nn.Conv2d) else None
    return block.second.bias, skip


def _sum(biases: Sequence[Tensor | None]) -> Tensor | None:
    there = [bias.detach() for bias in biases if bias is not None]
    return None if not there else there[0] if len(there) == 1 else there[0] + there[1]


class _Residual(Record):
    def __init__(self, block: ResidualBlock, film: Film, x: Tensor, c: Tensor) -> None:
        self.block, self.film = block, film
        self.x = x
        self.c: Tensor | None = c
        self.x_dot: Tensor | None = None
        self.c_dot: Tensor | None = None
        self.a_s0: Tensor | None = None
        self.a_s1: Tensor | None = None

    def adjoint(self, a: Tensor, sweep: Sweep) -> Tensor:
        block, film, pointwise, convolutions = self.block, self.film, sweep.pointwise, sweep.convolutions
        assert self.c is not None
        a_s1 = convolutions.transposed(block.second, a)
        a_c = pointwise.film_silu_derivative(self.c, a_s1, film.gain, film.offset, convolutions.dtype(block.first))
        if not sweep.recompute:
            self.a_s1 = a_s1
        del a_s1
        a_s0 = convolutions.transposed(block.first, a_c)
        del a_c
        if not sweep.recompute:
            self.a_s0 = a_s0
        return pointwise.silu_derivative(self.x, a_s0, self._skip_adjoint(a, sweep), self.x.dtype)

    def tangent(self, x_dot: Tensor, sweep: Sweep) -> Tensor:
        block, film, pointwise, convolutions = self.block, self.film, sweep.pointwise, sweep.convolutions
        assert self.c is not None
        self.x_dot = x_dot
        s_dot = pointwise.silu_derivative(self.x, x_dot, None, convolutions.dtype(block.first))
        c_dot = convolutions.forward(block.first, s_dot)
        s_dot = pointwise.film_silu_derivative(self.c, c_dot, film.gain, film.offset, convolutions.dtype(block.second))
        if sweep.recompute:
            self.c = None
        else:
            self.c_dot = c_dot
        skip = x_dot if not isinstance(block.skip, nn.Conv2d) else convolutions.forward(block.skip, x_dot)
        return pointwise.residual(convolutions.forward(block.second, s_dot), skip.to(x_dot.dtype), None)

    def second_adjoint(self, pair: Tensor, sweep: Sweep) -> Tensor:
        block, film, pointwise, convolutions = self.block, self.film, sweep.pointwise, sweep.convolutions
        x, x_dot = self.x, self.x_dot
        assert x_dot is not None
        c, c_dot = self._first_outputs(x_dot, sweep)
        b_s1, a_s1 = convolutions.transposed_halves(block.second, pair, self.a_s1)
        if sweep.gradients is not None:
            self.c = self.c_dot = self.a_s1 = None
        upper = pointwise.film_silu_second(
            c, c_dot, a_s1, b_s1, film.gain, film.offset, convolutions.dtype(block.first)
        )
        del c, c_dot, b_s1, a_s1
        film.gradients = upper.gain, upper.offset
        if sweep.gradients is not None:
            sweep.gradients.add_weight(convolutions, block.second, upper.values, pair)
            sweep.gradients.add_bias(_output_biases(block), pair)
            if isinstance(block.skip, nn.Conv2d):
                sweep.gradients.add_weight(convolutions, block.skip, image(torch.cat([x, x_dot])), pair)
        adjoints = upper.adjoints
        del upper
        b_s0, a_s0 = convolutions.transposed_halves(block.first, adjoints, self.a_s0)
        skip = self._skip_adjoint(pair, sweep)
        lower = pointwise.silu_second(x, x_dot, a_s0, b_s0, skip, convolutions.dtype(block.first))
        if sweep.gradients is not None:
            sweep.gradients.add_weight(convolutions, block.first, lower.values, adjoints)
        return lower.adjoints

    def _first_outputs(self, x_dot: Tensor, sweep: Sweep) -> tuple[Tensor, Tensor]:
        """c and c_dot, as kept or anew."""
        if self.c is not None and self.c_dot is not None:
            return self.c, self.c_dot
        dtype, first, n = sweep.convolutions.dtype(self.block.first), self.block.first, len(x_dot)
        s, s_dot = sweep.pointwise.silu(self.x, dtype), sweep.pointwise.silu_derivative(self.x, x_dot, None, dtype)
        inputs = image(torch.cat([s, s_dot]))
        del s, s_dot
        both = sweep.convolutions.forward(first, inputs)
        return both[:n], both[n:]

    def _skip_adjoint(self, a: Tensor, sweep: Sweep) -> Tensor:
        skip = self.block.skip
        return a if not isinstance(skip, nn.Conv2d) else sweep.convolutions.transposed(skip, a)
