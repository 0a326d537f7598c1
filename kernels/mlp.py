"""An MLP potential as the kernels read it: padded, packed, with the constants of its path."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vapo_fast.core.transfer import to_device
from vapo_fast.homotopy import DataHomotopy, Homotopy, LinearHomotopy
from vapo_fast.potentials.mlp import MLPPotential

from .shapes import Net, Tile, padded

PATHS: dict[type[Homotopy], str] = {DataHomotopy: "data", LinearHomotopy: "linear"}
"""Names of the paths that the kernels have the formulas of (`gauge.path_at`)."""


class Network(NamedTuple):
    """A potential as a kernel reads it: `PackedMlp`'s arrays of these names."""

    packed: Any
    sizes: Any
    constants: Any


class PackedMlp:
    """Weights in the kernels' layout (`shapes.Net`) on the potential's device.

    Attributes:
        net: the shape. widths, features: the potential's own sizes, without padding.
        packed: float32, `Net.parts.size` numbers.
        sizes: (layers,) int32, the layers' widths rounded up to the tile's block_n.
        constants: float64, in the order of `gauge.CONSTANTS`.

    Raises: ValueError for a path that is not among `PATHS`.
    """

    def __init__(self, potential: MLPPotential, tile: Tile) -> None:
        weight = potential.output.weight
        self.net = net_for(potential, tile)
        self.widths, self.features = tuple(potential.widths), potential.fourier_features
        self._shape = _shape(potential)
        self.sizes = _upload([padded(width, tile.block_n) for width in potential.widths], torch.int32, weight)
        self.constants = _upload(_constants(potential), torch.float64, weight)
        self._places = _places(potential, self.net).to(weight.device)
        self.packed = torch.empty(self.net.parts.size, dtype=torch.float32, device=weight.device)
        self._zero = torch.zeros(1, dtype=torch.float32, device=weight.device)
        self.load(potential)

    @property
    def network(self) -> Network:
        """The arrays, for a launch."""
        return Network(self.packed, self.sizes, self.constants)

    def fits(self, potential: MLPPotential) -> bool:
        """Whether this is still the potential's shape: settings may be changed by hand."""
        return self._shape == _shape(potential)

    @torch.no_grad()
    def load(self, potential: MLPPotential) -> None:
        """Take in the potential's weights of this moment: two launches, nothing waits."""
        parts = [self._zero, *(p.detach().reshape(-1) for p in _parameters(potential))]
        torch.index_select(torch.cat(parts), 0, self._places, out=self.packed)


def _shape(potential: MLPPotential) -> tuple[object, ...]:
    kinds = potential.activation, potential.time_dependent, type(potential.homotopy)
    return *kinds, potential.widths, potential.fourier_features, *_constants(potential)


def net_for(potential: MLPPotential, tile: Tile) -> Net:
    """The padded shape of a potential for a tile."""
    dimension = math.prod(potential.event_shape)
    path = PATHS.get(type(potential.homotopy))
    if path is None:
        known, found = ", ".join(kind.__name__ for kind in PATHS), type(potential.homotopy).__name__
        raise ValueError(f"the potential's homotopy must be one of {known} for the kernels, got {found}")
    return Net(
        dimension=dimension,
        inputs=padded(dimension, tile.block_k),
        features=padded(potential.fourier_features, tile.block_k),
        layers=len(potential.widths),
        width=padded(max(potential.widths), tile.block_n),
        activation=potential.activation,
        path=path,
        time_dependent=potential.time_dependent,
    )


def _parameters(potential: MLPPotential) -> list[Tensor]:
    layers: list[nn.Linear] = list(potential.hidden)  # type: ignore[arg-type]
    tensors = [tensor for layer in layers for tensor in (layer.weight, layer.bias)]
    return [*tensors, potential.output.weight, potential.frequencies]


def _places(potential: MLPPotential, net: Net) -> Tensor:
    """For each packed number, where it stands in the parameters laid end to end after one zero; 0 for padding."""
    start = 1
    numbered = []
    for tensor in _parameters(potential):
        count = tensor.numel()
        numbered.append(torch.arange(start, start + count).reshape(tensor.shape))
        start += count
    *layers, output, frequencies = numbered
    places = torch.zeros(net.parts.size, dtype=torch.int64)

    def put(offset: int, shape: tuple[int, ...], values: Tensor, rows: int = 0, columns: int = 0) -> None:
        size = math.prod(shape)
        part = places[offset : offset + size].view(shape)
        if values.dim() == 1:
            part[columns : columns + len(values)] = values
        else:
            part[rows : rows + values.shape[0], columns : columns + values.shape[1]] = values

    d, f = net.dimension, potential.fourier_features
    timed = int(potential.time_dependent)
    first = layers[0]
    blocks = (
        (0, first[:, :d]),
        (net.inputs, first[:, d + timed : d + timed + f]),
        (net.inputs + net.features, first[:, d + timed + f :]),
    )
    for column, block in blocks:
        if block.shape[1]:
            put(net.parts.first_forward, (net.width, net.columns), block, columns=column)
            put(net.parts.first_backward, (net.columns, net.width), block.T, rows=column)
    if timed:
        put(net.parts.time, (net.width,), first[:, d])
    for i, (weight, bias) in enumerate(zip(layers[0::2], layers[1::2], strict=True)):
        put(net.parts.bias + i * net.width, (net.width,), bias)
        if i:
            step = (i - 1) * net.width**2
            put(net.parts.hidden_forward + step, (net.width, net.width), weight)
            put(net.parts.hidden_backward + step, (net.width, net.width), weight.T)
    put(net.parts.output, (net.width,), output[0])
    if f:
        put(net.parts.frequencies, (net.features, net.inputs), frequencies[:, :d])
        put(net.parts.frequencies_transposed, (net.inputs, net.features), frequencies[:, :d].T)
        if timed:
            put(net.parts.frequencies_time, (net.features,), frequencies[:, d])
    return places


def _constants(potential: MLPPotential) -> list[float]:
    path, s = potential.homotopy, potential.data_scale
    first, last = path._log_noise_ends
    radius = (s**2 + path.omega**2) ** 0.5
    static = (float(path.gauge(path.t0).quadratic), s * radius, 1.0 / radius)
    return [path.omega, math.log(path.omega), s, first, 2.0 / (last - first), *static]


def _upload(values: list[int] | list[float], dtype: torch.dtype, like: Tensor) -> Tensor:
    """Numbers on a tensor's device, without the host's waiting for it."""
    return to_device(torch.tensor(values, dtype=dtype, device="cpu"), like.device)
