r"""What a layer is to the sweeps, and what they share while they run.

A network f is a sequence of layers. With ``a_y = df/dy`` and, for a direction z_dot of the network's input held fixed,
``b_y = d(f_dot + q f)/dy``, each layer ``y = g(x)`` says how to go on

- forward,        ``x -> g(x)``
- backward,       ``a_y -> a_x = g'(x)^T a_y``  (the adjoint sweep)
- forward,        ``x_dot -> g'(x) x_dot``  (the tangent sweep)
- and backward,   ``(b_y, a_y) -> (b_x, a_x)``, ``b_x = g'(x)^T b_y + (d/dx)(a_y . g'(x) x_dot)``  (the second adjoint)

and adds its parameters' gradients, those of ``sum f_dot + q f``, to a collection in the last. A layer keeps what later
sweeps need in a record, which is new with each forward sweep; so layers themselves can be shared and reused.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vapo_fast.engines.explicit.convolutions import Convolutions
from vapo_fast.engines.explicit.pointwise import Pointwise
from vapo_fast.potentials.blocks import ResidualBlock


@dataclass
class Film:
    """Gain and offset (B, C) of ``h = gain c + offset``, and, after the last sweep, the gradients of both."""

    gain: Tensor
    offset: Tensor
    gradients: tuple[Tensor, Tensor] | None = None


@dataclass
class Gradients:
    """The gradients of convolutions' weights and biases, summed over what is added for each parameter.

    Args:
        wanted: the trainable parameters; others' gradients are not computed.
    """

    wanted: Collection[Tensor]
    found: dict[Tensor, Tensor] = field(default_factory=dict)

    def add_weight(self, convolutions: Convolutions, layer: nn.Conv2d, values: Tensor, adjoints: Tensor) -> None:
        """For ``values`` = [y; y_dot] and ``adjoints`` = [b; a], each (2B, ...)."""
        if layer.weight in self.wanted:
            self.found[layer.weight] = convolutions.weight_gradient(layer, values, adjoints)

    def add_bias(self, biases: Sequence[Tensor | None], adjoints: Tensor) -> None:
        """For biases that are added where ``adjoints`` = [b; a] are those of the sum."""
        wanted = [bias for bias in biases if bias is not None and bias in self.wanted]
        if wanted:
            total = adjoints[: len(adjoints) // 2].sum((0, 2, 3))
            for bias in wanted:
                self.found[bias] = total.to(bias.dtype)


@dataclass
class Sweep:
    """What all layers share during one evaluation.

    Attributes:
        films: of each residual block.
        recompute: keep only the blocks' inputs and their tangents, and compute the rest anew for the second adjoint.
        gradients: where the second adjoint adds the parameters'; None if only the input's adjoint is asked for.
        skips: values of skip connections, last in first out.
    """

    pointwise: Pointwise
    convolutions: Convolutions
    films: Mapping[ResidualBlock, Film]
    recompute: bool = False
    gradients: Gradients | None = None
    skips: list[Tensor] = field(default_factory=list)


class Record(ABC):
    """One layer in one evaluation: the sweeps after the first, on what the first has kept. See the module's docstring.

    `adjoint` comes once; then `tangent` and `second_adjoint` in turn, once for each direction. Where gradients are
    collected there is one direction only.
    """

    @abstractmethod
    def adjoint(self, a: Tensor, sweep: Sweep) -> Tensor:
        """a_x from a_y."""

    @abstractmethod
    def tangent(self, y_dot: Tensor, sweep: Sweep) -> Tensor:
        """y_dot from x_dot."""

    @abstractmethod
    def second_adjoint(self, pair: Tensor, sweep: Sweep) -> Tensor | None:
        """[b_x; a_x] from [b_y; a_y], each (2B, ...); None where nothing that comes before matters any more."""


class Layer(ABC):
    """A layer of the sequence."""

    @abstractmethod
    def forward(self, x: Tensor, sweep: Sweep) -> tuple[Tensor, Record]:
        """y, and what the other sweeps need."""


def image(x: Tensor) -> Tensor:
    """The same in channels-last memory."""
    return x.contiguous(memory_format=torch.channels_last)
