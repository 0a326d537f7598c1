"""The sweeps of a U-Net's skip connections: a value is pushed on the sweep's skips, and popped further on.

In the sweeps that run backward the two change roles: `PopSkip` pushes the skipped part's adjoint, `PushSkip` adds it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vapo_fast.engines.explicit.layer import Layer, Record, Sweep, image


class PushSkip(Layer):
    """The identity, which also pushes its input on the sweep's skips."""

    def forward(self, x: Tensor, sweep: Sweep) -> tuple[Tensor, Record]:
        sweep.skips.append(x)
        return x, _PushSkip()


class _PushSkip(Record):
    def adjoint(self, a: Tensor, sweep: Sweep) -> Tensor:
        return a + sweep.skips.pop()

    def tangent(self, x_dot: Tensor, sweep: Sweep) -> Tensor:
        sweep.skips.append(x_dot)
        return x_dot

    def second_adjoint(self, pair: Tensor, sweep: Sweep) -> Tensor:
        return pair + sweep.skips.pop()


class PopSkip(Layer):
    """Its input's channels, then those of the skip that was pushed last."""

    def forward(self, x: Tensor, sweep: Sweep) -> tuple[Tensor, Record]:
        return image(torch.cat([x, sweep.skips.pop()], dim=1)), _PopSkip(x.shape[1])


class _PopSkip(Record):
    def __init__(self, channels: int) -> None:
        self.channels = channels

    def adjoint(self, a: Tensor, sweep: Sweep) -> Tensor:
        # Copies: a view would keep both parts, and what follows wants whole feature maps.
        sweep.skips.append(image(a[:, self.channels :]))
        return image(a[:, : self.channels])

    def tangent(self, x_dot: Tensor, sweep: Sweep) -> Tensor:
        return image(torch.cat([x_dot, sweep.skips.pop()], dim=1))

    def second_adjoint(self, pair: Tensor, sweep: Sweep) -> Tensor:
        return self.adjoint(pair, sweep)
