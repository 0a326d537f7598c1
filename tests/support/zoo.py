"""The potentials that every engine is tried on, and the inputs they are tried with.

Weights are drawn so that every layer matters: with PyTorch's own initialisation five layers would damp the input to
nothing, and the exact quadratic part of the potential would hide what the network does.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vapo_fast import noise
from vapo_fast.homotopy import DataHomotopy, Homotopy, LinearHomotopy
from vapo_fast.potentials import MLPPotential

DTYPES = (torch.float32, torch.float64)
PATHS: dict[str, Homotopy] = {"data": DataHomotopy(1.3, 0.05), "linear": LinearHomotopy(0.8, 0.97)}
ACTIVATIONS = ("silu", "softplus", "tanh")
FEATURES = (0, 5, 64)
DIMENSIONS = (1, 2, 3, 17, 64, 512)
SINGLE_WIDTHS = (1, 3, 7, 16, 33, 100, 128, 256, 512)
STACKS: tuple[tuple[int, ...], ...] = (
    (33, 33),
    (16, 16, 16),
    (7, 7, 7, 7),
    (16, 16, 16, 16, 16),
    (3, 128, 7),
    (256, 1, 33),
    (100, 16, 33, 7, 3),
    (128, 128, 128),
    (1, 1),
    (65, 31),
)


@dataclass(frozen=True)
class Network:
    """A member of the zoo; ``build`` gives the same numbers, rounded to ``dtype``, each time."""

    dimension: int
    widths: tuple[int, ...]
    activation: str = "silu"
    features: int = 0
    time_dependent: bool = True
    path: str = "data"

    def __str__(self) -> str:
        widths = "x".join(map(str, self.widths))
        time = "t" if self.time_dependent else "still"
        return f"d{self.dimension}-{widths}-{self.activation}-f{self.features}-{time}-{self.path}"

    def build(self, dtype: torch.dtype = torch.float64, gain: float = 1.0) -> MLPPotential:
        """The potential; ``gain`` scales the network's last layer, hence how stiff the flow is."""
        model = MLPPotential(
            (self.dimension,),
            PATHS[self.path],
            self.widths,
            self.time_dependent,
            activation=self.activation,
            fourier_features=self.features,
            fourier_scale=0.7,
            data_scale=0.8,
        )
        seed = 1000 * self.dimension + sum(self.widths)
        with torch.no_grad():
            for i, layer in enumerate([*model.hidden, model.output]):
                draw = noise.normal(seed + i, range(layer.out_features), (layer.in_features,), dtype=torch.float64)
                layer.weight.copy_(draw * (1.5 / math.sqrt(layer.in_features)))
                if layer.bias is not None:
                    layer.bias.copy_(0.5 * noise.normal(seed + i, range(layer.out_features), (1,), stream=9)[:, 0])
            model.output.weight.mul_(gain)
            rows, columns = model.frequencies.shape
            # Rounded to float32, as the model itself draws them, so that both dtypes hold the same potential.
            drawn = 0.4 * noise.normal(seed, range(rows), (columns,), stream=8)
            model.frequencies.copy_(drawn / math.sqrt(self.dimension))
        return model.to(dtype)


def cliff() -> MLPPotential:
    """One coordinate whose slope jumps at 0: it pulls from both sides faster than any step can follow."""
    steep, force = 1e14, 1e13
    model = MLPPotential((1,), PATHS["linear"], (2,), False, activation="softplus", fourier_features=0)
    with torch.no_grad():
        model.hidden[0].weight.copy_(torch.tensor([[steep], [-steep]]))
        model.hidden[0].bias.zero_()
        model.output.weight.fill_(-force / steep)
    return model


def _zoo() -> list[Network]:
    networks = []
    combinations = itertools.product(ACTIVATIONS, FEATURES, (True, False), PATHS)
    # Dimensions and stacks turn at rates without a common factor, so that all pairs come together somewhere.
    for i, (activation, features, time_dependent, path) in enumerate(combinations):
        stack = STACKS[i % len(STACKS)]
        networks.append(Network((1, 2, 3, 17, 64)[i % 7 % 5], stack, activation, features, time_dependent, path))
    for i, width in enumerate(SINGLE_WIDTHS):
        depth = 1 + i % 3
        networks.append(Network(2 + i % 2, (width,) * depth, ACTIVATIONS[i % 3], FEATURES[i % 2], i % 4 != 3))
    for i, dimension in enumerate(DIMENSIONS):
        networks.append(Network(dimension, (33, 16), ACTIVATIONS[i % 3], 5 * (i % 2), path=("data", "linear")[i % 2]))
    return list(dict.fromkeys(networks))


ZOO = _zoo()
SMALL = (
    Network(2, (16, 16)),
    Network(3, (7, 33), "tanh", 5, True, "linear"),
    Network(17, (33,), "softplus", 0, False),
)
"""For the jobs that solve, where the reference takes its time."""


def states(n: int, dimension: int, dtype: torch.dtype, seed: int = 1) -> Tensor:
    """(n, dimension) points about the size of the prior."""
    return noise.normal(seed, range(n), (dimension,), dtype=torch.float32).to(dtype)


def times(n: int, path: Homotopy, dtype: torch.dtype) -> Tensor:
    """(n,) times of the path: its ends first, the others anywhere between."""
    inner = path.t0 + (path.t1 - path.t0) * noise.uniform(2, range(n), (1,), dtype=torch.float64)[:, 0]
    ends = torch.tensor([path.t0, path.t1], dtype=torch.float64)
    return torch.cat([ends, inner])[:n].to(torch.float32).clamp(path.t0, path.t1).to(dtype)
