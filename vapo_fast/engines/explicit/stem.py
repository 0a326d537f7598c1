"""The sweeps of the first convolution, which no activation precedes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vapo_fast.engines.explicit.layer import Layer, Record, Sweep, image


class Stem(Layer):
    """A convolution of the network's input, with bias.

    Nothing below it has parameters: where the second adjoint collects their gradients, it ends here.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        self.convolution = convolution

    def forward(self, x: Tensor, sweep: Sweep) -> tuple[Tensor, Record]:
        y = sweep.convolutions.forward(self.convolution, x).to(x.dtype)
        if self.convolution.bias is not None:
            y += self.convolution.bias.detach()[:, None, None]
        return y, _Stem(self.convolution, x)


class _Stem(Record):
    def __init__(self, convolution: nn.Conv2d, x: Tensor) -> None:
        self.convolution, self.x = convolution, x
        self.x_dot: Tensor | None = None

    def adjoint(self, a: Tensor, sweep: Sweep) -> Tensor:
        return sweep.convolutions.transposed(self.convolution, a).to(self.x.dtype)

    def tangent(self, x_dot: Tensor, sweep: Sweep) -> Tensor:
        self.x_dot = x_dot
        return sweep.convolutions.forward(self.convolution, x_dot).to(x_dot.dtype)

    def second_adjoint(self, pair: Tensor, sweep: Sweep) -> Tensor | None:
        if sweep.gradients is None:
            return self.adjoint(pair, sweep)
        assert self.x_dot is not None
        values = image(torch.cat([self.x, self.x_dot]))
        sweep.gradients.add_weight(sweep.convolutions, self.convolution, values, pair)
        sweep.gradients.add_bias((self.convolution.bias,), pair)
        return None
