"""The sweeps of average pooling to half the size, and of nearest-neighbour repetition to twice the size."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from vapo_fast.engines.explicit.layer import Layer, Record, Sweep


class Halve(Layer):
    """Means over 2x2 pixels. Linear, so that all sweeps are itself or its transpose."""

    def forward(self, x: Tensor, sweep: Sweep) -> tuple[Tensor, Record]:
        return F.avg_pool2d(x, 2), _Halve()


class _Halve(Record):
    def adjoint(self, a: Tensor, sweep: Sweep) -> Tensor:
        return _repeated(a).mul_(0.25)

    def tangent(self, x_dot: Tensor, sweep: Sweep) -> Tensor:
        return F.avg_pool2d(x_dot, 2)

    def second_adjoint(self, pair: Tensor, sweep: Sweep) -> Tensor:
        return _repeated(pair).mul_(0.25)


class Double(Layer):
    """Each pixel twice in each direction."""

    def forward(self, x: Tensor, sweep: Sweep) -> tuple[Tensor, Record]:
        return _repeated(x), _Double()


class _Double(Record):
    def adjoint(self, a: Tensor, sweep: Sweep) -> Tensor:
        return F.avg_pool2d(a, 2, divisor_override=1)

    def tangent(self, x_dot: Tensor, sweep: Sweep) -> Tensor:
        return _repeated(x_dot)

    def second_adjoint(self, pair: Tensor, sweep: Sweep) -> Tensor:
        return F.avg_pool2d(pair, 2, divisor_override=1)


def _repeated(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
