"""The sweeps of a U-Net's skip connections: a value is laid aside, and joined with another one further on.

In the sweeps that run backward the two change roles: the join lays the skipped part's adjoint aside, and the place
where the value was laid aside adds it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vapo_fast.engines.explicit.layer import Layer, Record, Sweep, image


class LayAside(Layer):
    """The identity, which also puts its input on the sweep's pile."""

    def forward(self, x: Tensor, sweep: Sweep) -> tuple[Tensor, Record]:
        sweep.side.append(x)
        return x, _LayAside()


class _LayAside(Record):
    def adjoint(self, a: Tensor, sweep: Sweep) -> Tensor:
        return a + sweep.side.pop()

    def tangent(self, x_dot: Tensor, sweep: Sweep) -> Tensor:
        sweep.side.append(x_dot)
        return x_dot

    def second_adjoint(self, pair: Tensor, sweep: Sweep) -> Tensor:
        return pair + sweep.side.pop()


class Concatenate(Layer):
    """Its input's channels, then those of the value last laid aside."""

    def forward(self, x: Tensor, sweep: Sweep) -> tuple[Tensor, Record]:
        return image(torch.cat([x, sweep.side.pop()], dim=1)), _Concatenate(x.shape[1])


class _Concatenate(Record):
    def __init__(self, channels: int) -> None:
        self.channels = channels

    def adjoint(self, a: Tensor, sweep: Sweep) -> Tensor:
        # Copies: a view would keep both parts, and what follows wants whole feature maps.
        sweep.side.append(image(a[:, self.channels :]))
        return image(a[:, : self.channels])

    def tangent(self, x_dot: Tensor, sweep: Sweep) -> Tensor:
        return image(torch.cat([x_dot, sweep.side.pop()], dim=1))

    def second_adjoint(self, pair: Tensor, sweep: Sweep) -> Tensor:
        return self.adjoint(pair, sweep)
