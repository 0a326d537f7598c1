"""A network as a sequence of layers, and its sweeps."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vapo_fast.engines.explicit.heads import ActivatedConvolution, InnerProduct, SumOverImage
from vapo_fast.engines.explicit.layer import Layer, Record, Sweep
from vapo_fast.engines.explicit.resampling import Double, Halve
from vapo_fast.engines.explicit.residual_block import Residual
from vapo_fast.engines.explicit.skip_connection import PopSkip, PushSkip
from vapo_fast.engines.explicit.stem import Stem
from vapo_fast.potentials.blocks import blocks_of
from vapo_fast.potentials.unet import UNetPotential
from vapo_fast.potentials.wide_resnet import WideResNetPotential


def wide_resnet_layers(potential: WideResNetPotential) -> list[Layer]:
    """`WideResNetPotential.network`, after its patches."""
    layers: list[Layer] = [Stem(potential.stem)]
    for level, stage in enumerate(potential.stages):
        if level:
            layers.append(Halve())
        layers += [Residual(block) for block in blocks_of(stage)]
    return [*layers, ActivatedConvolution(potential.output), SumOverImage()]


def u_net_layers(potential: UNetPotential) -> list[Layer]:
    """`UNetPotential.network`, after its patches."""
    layers: list[Layer] = [PushSkip(), Stem(potential.stem)]
    for level, stage in enumerate(potential.down):
        if level:
            layers.append(Halve())
        for block in blocks_of(stage):
            layers += [Residual(block), PushSkip()]
    layers.append(Residual(potential.middle))
    for level, stage in enumerate(potential.up):
        if level:
            layers.append(Double())
        for block in blocks_of(stage):
            layers += [PopSkip(), Residual(block)]
    return [*layers, ActivatedConvolution(potential.output), InnerProduct()]


class Evaluation:
    """The sweeps over a sequence of layers at one batch of inputs.

    Args:
        layers: from the input to the value.
        z: (B, C, H, W) in channels-last memory, the network's input.
        sweep: new, for this evaluation alone.
    """

    def __init__(self, layers: Sequence[Layer], z: Tensor, sweep: Sweep) -> None:
        self._sweep = sweep
        self._records: list[Record] = []
        y = z
        for layer in layers:
            y, record = layer.forward(y, sweep)
            self._records.append(record)
        self.value = y
        """f (B,)."""

    def last_adjoint(self) -> Tensor:
        """df/dz (B, C, H, W), of which no further sweep is made: records are let go of on the way."""
        a = self.value.new_ones(self.value.shape)
        while self._records:
            a = self._records.pop().adjoint(a, self._sweep)
        return a

    def adjoint(self) -> Tensor:
        """df/dz (B, C, H, W)."""
        a = self.value.new_ones(self.value.shape)
        for record in reversed(self._records):
            a = record.adjoint(a, self._sweep)
        return a

    def curvature(self, z_dot: Tensor) -> Tensor:
        """The Hessian of f by z times a direction (B, C, H, W); after `adjoint`, as often as wanted."""
        y = self._tangent(z_dot)
        pair: Tensor | None = y.new_zeros(2 * len(y))
        assert pair is not None
        pair[len(y) :] = 1.0
        for record in reversed(self._records):
            assert pair is not None
            pair = record.second_adjoint(pair, self._sweep)
        assert pair is not None
        return pair[: len(z_dot)]

    def collect_gradients(self, z_dot: Tensor, q: Tensor) -> None:
        """Puts the gradients of ``sum f_dot + q f`` into the sweep's collection and films; ends the evaluation.

        Args:
            z_dot: (B, C, H, W), the direction of f_dot. q: (B,).
        """
        y = self._tangent(z_dot)
        pair: Tensor | None = y.new_ones(2 * len(y))
        assert pair is not None
        pair[: len(y)] = q
        while pair is not None:
            pair = self._records.pop().second_adjoint(pair, self._sweep)
        self._records.clear()

    def _tangent(self, z_dot: Tensor) -> Tensor:
        y = z_dot
        for record in self._records:
            y = record.tangent(y, self._sweep)
        return y
