"""What kernels are compiled for: the network's shape, the tile of samples, and where a tile keeps its arrays.

All are constants of a compilation: frozen, hashable, built from the potential by `mlp.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

import triton.language as tl
from triton import knobs

PRECISIONS = ("ieee", "tf32x3", "tf32", "bf16")
"""Arithmetic of the products. ``ieee``: float32 multiplies and adds. ``tf32x3``: three tensor-core products of split
operands, about float32's accuracy. ``tf32``, ``bf16``: one product of rounded operands. Sums are float32 in all."""


class InKernel:
    """A shape as device functions see it. Equal if the shapes are.

    The compiler takes a plain number for a function's argument only as a `triton.language.constexpr`; the interpreter,
    whose loops count in plain integers, takes only the number.
    """

    def __init__(self, shape: Any) -> None:
        self.shape = shape

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.shape, name)
        if isinstance(value, Role | Parts):
            value = InKernel(value)
        return value if knobs.runtime.interpret else tl.constexpr(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, InKernel) and self.shape == other.shape

    def __hash__(self) -> int:
        return hash(self.shape)

    def __repr__(self) -> str:
        return repr(self.shape)


def padded(size: int, multiple: int) -> int:
    """The smallest multiple that is not below size."""
    return -(-size // multiple) * multiple


@dataclass(frozen=True)
class Net:
    """An MLP potential's shape; sizes of arrays are padded so that no inner loop has a mask.

    Attributes:
        dimension: D.
        inputs: columns kept for z = x / sqrt(S), a multiple of the tile's block_k.
        features: columns kept for the cosines, and again for the sines; 0 without Fourier features.
        layers: hidden layers. width: columns kept for each.
        activation: "silu", "softplus" or "tanh".
        path: "data" or "linear". time_dependent: whether there is a time.
    """

    dimension: int
    inputs: int
    features: int
    layers: int
    width: int
    activation: str
    path: str
    time_dependent: bool

    @property
    def columns(self) -> int:
        """Columns of the first layer's input: z, cosines, sines."""
        return self.inputs + 2 * self.features

    @cached_property
    def parts(self) -> Parts:
        """Where the parts of the packed weights begin."""
        first, hidden = self.width * self.columns, (self.layers - 1) * self.width**2
        vectors = (self.layers * self.width, self.width, self.width)
        frequencies = self.features * self.inputs
        sizes = (first, first, hidden, hidden, *vectors, frequencies, frequencies, self.features)
        return Parts(*accumulate(sizes, initial=0))


class Parts(NamedTuple):
    """Offsets in the packed weights, and the size of all.

    Each matrix is there twice, once for either sweep, rows contiguous in the index that the sweep sums over.
    """

    first_forward: int  # [width][columns]
    first_backward: int  # [columns][width]
    hidden_forward: int  # [layers - 1][width out][width in]
    hidden_backward: int  # [layers - 1][width in][width out]
    bias: int  # [layers][width]
    time: int  # [width]: the first layer's column for the noise position
    output: int  # [width]
    frequencies: int  # [features][inputs]
    frequencies_transposed: int  # [inputs][features]
    frequencies_time: int  # [features]
    size: int


@dataclass(frozen=True)
class Tile:
    """How one program works: its samples, the blocks of its products, its warps, its arithmetic.

    Attributes:
        rows: samples of a tile, a power of two, at least 16.
        block_n, block_k: columns that a product makes at a time, and terms that it adds at a time; powers of two, at
            least 16; block_k divides block_n.
        block_d: coordinates of a sample handled at a time, a power of two.
        precision: one of `PRECISIONS`.
        warps, stages: as Triton has them.
    """

    rows: int
    block_n: int
    block_k: int
    block_d: int
    precision: str
    warps: int
    stages: int


class Role(NamedTuple):
    """Where the arrays of one kind lie, one for each layer: array ``first + (layer mod count) * step``."""

    first: int
    count: int  # type: ignore[assignment]  # a tuple's own count is of no use here
    step: int = 1


@dataclass(frozen=True)
class Arrays:
    """A tile's arrays of the network's width, [rows][width] each, by what they hold.

    Attributes:
        h: activations. d: their first derivatives.
        a: derivatives of the output by pre-activations; may be the place of d, which each needs last.
        c: second derivatives of the activations, times the output's derivative by the activation once that is known.
        t: tangents of the activations. b: second adjoints.
        count: how many arrays there are.
    """

    h: Role
    d: Role
    a: Role
    c: Role
    t: Role
    b: Role
    count: int


NONE = Role(0, 1, 0)


def field_arrays(layers: int) -> Arrays:
    """For Phi and its gradient: activations live until the next layer, each adjoint replaces a derivative."""
    d = Role(2, layers)
    return Arrays(Role(0, 2), d, d, NONE, NONE, NONE, 2 + layers)


def trace_arrays(layers: int) -> Arrays:
    """For second derivatives along directions: first and second derivatives are kept, the rest alternates."""
    # The adjoint of a layer goes where its activation is not.
    return Arrays(
        Role(0, 2), Role(2, layers), Role(1, 2, -1), Role(2 + layers, layers), Role(0, 2), NONE, 2 + 2 * layers
    )


def training_arrays(layers: int) -> Arrays:
    """For parameter gradients: pairs (activation, tangent) and (second adjoint, adjoint) of every layer, side by side.

    The gradient of a layer's weights is one product of the pairs, so these lie first and one behind the other.
    """
    return Arrays(
        Role(0, layers, 2),
        Role(4 * layers, layers),
        Role(2 * layers + 1, layers, 2),
        Role(5 * layers, layers),
        Role(1, layers, 2),
        Role(2 * layers, layers, 2),
        6 * layers,
    )


@dataclass(frozen=True)
class Method:
    """What of a method is compiled in, and where its numbers lie in `tableau.slot_table`.

    Attributes:
        stages: s. adaptive: whether there is an error estimate.
        degree: of the continuous extension's polynomials.
    """

    stages: int
    adaptive: bool
    degree: int

    @property
    def nodes(self) -> int:
        """Where the slots' nodes begin."""
        return (self.stages + 1) * self.stages

    @property
    def weights(self) -> int:
        """Where the step's weights begin."""
        return self.nodes + self.stages + 1

    @property
    def errors(self) -> int:
        """Where the error's weights begin."""
        return self.weights + self.stages

    @property
    def dense(self) -> int:
        """Where the continuous extension begins."""
        return self.errors + self.stages


@dataclass(frozen=True)
class FusedMethod(Method):
    """What of a fused solve is compiled in.

    Attributes:
        outputs: whether states at given times are asked for.
        trace: "none", "exact" or "probes"; "exact" integrates the Laplacian, "probes" one estimate for each probe.
        traces: integrals beside the D coordinates.
        columns: columns kept for a state, a multiple of the tile's block_d.
    """

    outputs: bool
    trace: str
    traces: int
    columns: int

    @property
    def last_slot(self) -> int:
        """The stage slot that completes a step, see `tableau`."""
        return self.stages if self.stages > 1 else 0

    @property
    def arrays(self) -> int:
        """Arrays of a state's size: the state, the point of evaluation, and the stages."""
        return 2 + self.stages


@dataclass(frozen=True)
class MaskedMethod(Method):
    """What of a step of the graph engine is compiled in. Masks have a bit for each weight that is not 0.

    Attributes:
        first_stage: the first stage that a step evaluates.
        weight_mask, error_mask: of the step's weights, and of the error's.
        fsal: whether the last stage's point is the new state.
    """

    first_stage: int
    weight_mask: int
    error_mask: int
    fsal: bool
