"""The sweeps of what makes one number of the last feature maps.

Both networks end in ``W silu(x)``; its sum over the image is a `WideResNetPotential`'s value, its inner product with
the network's input a `UNetPotential`'s. From here the sweeps that run backward start, with a = 1 and b = q for each
sample, (B,).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vapo_fast.engines.explicit.layer import Layer, Record, Sweep, image


class ActivatedConvolution(Layer):
    """``W silu(x) + bias``."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        self.convolution = convolution

    def forward(self, x: Tensor, sweep: Sweep) -> tuple[Tensor, Record]:
        s = sweep.pointwise.silu(x, sweep.convolutions.dtype(self.convolution))
        y = sweep.convolutions.forward(self.convolution, s).to(x.dtype)
        if self.convolution.bias is not None:
            y += self.convolution.bias.detach()[:, None, None]
        return y, _ActivatedConvolution(self.convolution, x)


class _ActivatedConvolution(Record):
    def __init__(self, convolution: nn.Conv2d, x: Tensor) -> None:
        self.convolution, self.x = convolution, x
        self.x_dot: Tensor | None = None
        self.a_s: Tensor | None = None

    def adjoint(self, a: Tensor, sweep: Sweep) -> Tensor:
        a_s = sweep.convolutions.transposed(self.convolution, a)
        if not sweep.recompute:
            self.a_s = a_s
        return sweep.pointwise.silu_derivative(self.x, a_s, None, self.x.dtype)

    def tangent(self, x_dot: Tensor, sweep: Sweep) -> Tensor:
        self.x_dot = x_dot
        s_dot = sweep.pointwise.silu_derivative(self.x, x_dot, None, sweep.convolutions.dtype(self.convolution))
        return sweep.convolutions.forward(self.convolution, s_dot).to(x_dot.dtype)

    def second_adjoint(self, pair: Tensor, sweep: Sweep) -> Tensor:
        assert self.x_dot is not None
        convolutions, dtype = sweep.convolutions, sweep.convolutions.dtype(self.convolution)
        b_s, a_s = convolutions.transposed_halves(self.convolution, pair, self.a_s)
        both = sweep.pointwise.silu_second(self.x, self.x_dot, a_s, b_s, None, dtype)
        if sweep.gradients is not None:
            sweep.gradients.add_weight(convolutions, self.convolution, both.values, pair)
            sweep.gradients.add_bias((self.convolution.bias,), pair)
        return both.adjoints


class SumOverImage(Layer):
    """``f = sum x`` over channels and positions: (B, C, H, W) to (B,)."""

    def forward(self, x: Tensor, sweep: Sweep) -> tuple[Tensor, Record]:
        return x.flatten(1).sum(1), _SumOverImage(x.shape)


class _SumOverImage(Record):
    def __init__(self, shape: torch.Size) -> None:
        self.shape = shape

    def adjoint(self, a: Tensor, sweep: Sweep) -> Tensor:
        return image(a[:, None, None, None].expand(len(a), *self.shape[1:]))

    def tangent(self, x_dot: Tensor, sweep: Sweep) -> Tensor:
        return x_dot.flatten(1).sum(1)

    def second_adjoint(self, pair: Tensor, sweep: Sweep) -> Tensor:
        return self.adjoint(pair, sweep)


class InnerProduct(Layer):
    """``f = <x, z>`` with the value z pushed last: (B, C, H, W) to (B,)."""

    def forward(self, x: Tensor, sweep: Sweep) -> tuple[Tensor, Record]:
        z = sweep.skips.pop()
        return (x * z).flatten(1).sum(1), _InnerProduct(x, z)


class _InnerProduct(Record):
    def __init__(self, x: Tensor, z: Tensor) -> None:
        self.x, self.z = x, z
        self.x_dot: Tensor | None = None
        self.z_dot: Tensor | None = None

    def adjoint(self, a: Tensor, sweep: Sweep) -> Tensor:
        a = a[:, None, None, None]
        sweep.skips.append(a * self.x)
        return a * self.z

    def tangent(self, x_dot: Tensor, sweep: Sweep) -> Tensor:
        z_dot = sweep.skips.pop()
        self.x_dot, self.z_dot = x_dot, z_dot
        return (x_dot * self.z + self.x * z_dot).flatten(1).sum(1)

    def second_adjoint(self, pair: Tensor, sweep: Sweep) -> Tensor:
        assert self.x_dot is not None and self.z_dot is not None  # noqa: PT018
        b, a = (half[:, None, None, None] for half in pair.chunk(2))
        if sweep.gradients is None:
            sweep.skips.append(image(torch.cat([b * self.x + a * self.x_dot, a * self.x])))
        return image(torch.cat([b * self.z + a * self.z_dot, a * self.z]))
