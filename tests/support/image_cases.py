"""Potentials of images, and modules of a user's own, that the graph engine is tried on: built alike each time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tests.support.zoo import PATHS
from vapo_fast import noise
from vapo_fast.potentials import Potential, UNetPotential, WideResNetPotential


class Convolutional(nn.Module):
    """A user's network: group normalisation, strides, a head that is not linear, no gauge."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.second = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        y = nn.functional.gelu(self.norm(self.first(x)) * (1.0 + t[:, None, None, None]))
        y = torch.tanh(self.second(y)).mean((2, 3))
        return self.head(y)[:, 0] - 0.25 * x.square().flatten(1).sum(1)


class Attention(nn.Module):
    """A user's network of tokens: attention, layer normalisation, time ignored."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        y = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]), dim=-1) @ v
        return self.out(torch.nn.functional.silu(y)).sum((1, 2)) - 0.25 * x.square().sum((1, 2))


@dataclass(frozen=True)
class Image:
    """A member of this zoo."""

    name: str
    make: Callable[[], Potential] = field(compare=False)
    passes: bool = True

    def __str__(self) -> str:
        return self.name

    def build(self, dtype: torch.dtype = torch.float64) -> Potential:
        """The potential, every parameter drawn so that each layer matters and the flow is not stiff."""
        model = self.make()
        with torch.no_grad():
            for i, parameter in enumerate(model.parameters()):
                fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
                draw = noise.normal(100 + i, range(1), tuple(parameter.shape), dtype=torch.float32)[0]
                parameter.copy_(draw * (0.7 / math.sqrt(fan_in) if parameter.dim() > 1 else 0.2))
        return model.to(dtype)


def _resnet(path: str, time_dependent: bool, **more: object) -> Callable[[], Potential]:
    arguments = {"event_shape": (2, 4, 6), "channels": 3, "multipliers": (1, 1.5), "blocks": 1, **more}
    return lambda: WideResNetPotential(homotopy=PATHS[path], time_dependent=time_dependent, **arguments)


def _unet(path: str, time_dependent: bool, **more: object) -> Callable[[], Potential]:
    arguments = {"event_shape": (1, 4, 4), "channels": 4, "multipliers": (1, 2), "blocks": 1, **more}
    return lambda: UNetPotential(homotopy=PATHS[path], time_dependent=time_dependent, **arguments)


IMAGES = (
    Image("resnet", _resnet("data", True)),
    Image("resnet-still", _resnet("linear", False, data_scale=0.6)),
    Image("unet", _unet("data", True)),
    Image("unet-patches", _unet("linear", True, event_shape=(1, 8, 8), patch_size=2)),
)
MODULES = (
    Image(
        "convolutional",
        lambda: Potential.from_module(Convolutional(2), (2, 4, 4), PATHS["data"], time_dependent=True),
        passes=False,
    ),
    Image("attention", lambda: Potential.from_module(Attention(4), (3, 4), PATHS["linear"]), passes=False),
)
ALL = (*IMAGES, *MODULES)
FEW = (IMAGES[0], IMAGES[2], MODULES[0])
"""For jobs that take the reference its time."""


def events(n: int, model: Potential, dtype: torch.dtype, seed: int = 1) -> Tensor:
    """(n, *event) points about the size of the prior."""
    return noise.normal(seed, range(n), model.event_shape, dtype=torch.float32).to(dtype)
