"""Multi-layer perceptron potential for vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from vapo_fast.core import checks
from vapo_fast.homotopy import Homotopy
from vapo_fast.potentials.base import TrainingDefaults
from vapo_fast.potentials.gauge import GaugedPotential

ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "softplus": nn.Softplus, "tanh": nn.Tanh}


class MLPPotential(GaugedPotential):
    r"""A potential whose network is an MLP on the sample, the noise level and random Fourier features of both.

    With ``z = x / sqrt(S)`` (see `GaugedPotential` for S, the gauge and why they keep training well conditioned at
    every noise level) and ``p`` the position of ln beta in [-1, 1]: input ``y = (z, p)``, features
    ``(y, cos 2 pi F y, sin 2 pi F y)``, hidden layers ``activation(W y + b)``, output ``w . h``. The rows of F are
    fixed normal draws, scaled by ``fourier_scale / sqrt(D)`` on z and by ``fourier_scale`` on p. Activations are
    smooth, because sampling differentiates the network once and training twice.

    A time-independent Phi(x) must represent structure much finer than the scale of its input, which an MLP alone
    learns very slowly: it has features by default. A time-dependent one gets each noise level at its own scale and
    needs none. Features fit faster there too, but oscillate where training points are rare. A few samples, which start
    in the prior's tail, then stay far from the data.

    Args:
        event_shape: shape of one sample; it is flattened.
        homotopy, time_dependent, data_scale: as for `GaugedPotential`.
        widths: sizes of the hidden layers, at least one.
        activation: "silu", "softplus" or "tanh".
        fourier_features: number of rows of F (each gives a cosine and a sine); None for 64 if time-independent, else 0.
        fourier_scale: standard deviation of the frequencies, > 0, in turns per unit of y.
    """

    frequencies: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        homotopy: Homotopy,
        widths: Sequence[int] = (128, 128, 128),
        time_dependent: bool = True,
        *,
        activation: str = "silu",
        fourier_features: int | None = None,
        fourier_scale: float = 1.0,
        data_scale: float = 1.0,
    ) -> None:
        super().__init__(event_shape, homotopy, time_dependent, data_scale)
        if isinstance(widths, (str, bytes)) or not isinstance(widths, Sequence) or not widths:
            raise ValueError(
                f"widths must be a non-empty sequence of positive integers such as (128, 128), got {widths!r}"
            )
        self.widths = tuple(checks.positive_int("each width in widths", width) for width in widths)
        self.activation = checks.one_of("activation", activation, ACTIVATIONS)
        if fourier_features is None:
            fourier_features = 0 if self.time_dependent else 64
        self.fourier_features = checks.non_negative_int("fourier_features", fourier_features)
        self.fourier_scale = checks.positive_float("fourier_scale", fourier_scale)
        dimension = math.prod(self.event_shape)
        inputs = dimension + int(self.time_dependent)
        frequencies = torch.randn(self.fourier_features, inputs) * self.fourier_scale
        frequencies[:, :dimension] /= math.sqrt(dimension)
        self.register_buffer("frequencies", frequencies)
        sizes = (inputs + 2 * self.fourier_features, *self.widths)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        # A constant does not change the gradient, so the output layer has no bias.
        self.output = nn.Linear(sizes[-1], 1, bias=False)
        # Start from f = 0: the potential is then the exact one of data N(0, data_scale^2 I).
        nn.init.zeros_(self.output.weight)

    @property
    def training_defaults(self) -> TrainingDefaults:
        """Adam's rate falls with the width; 1e-2 up to 128 units served the two-dimensional sets best.

        A time-independent potential gets a fifth of it: at 1e-2 some became too stiff to integrate.
        """
        rate = 1e-2 if self.time_dependent else 2e-3
        return TrainingDefaults(lr=rate * min(1.0, 128.0 / max(self.widths)), batch_size=1024)

    def network(self, z: Tensor, position: Tensor | None) -> Tensor:
        y = z.flatten(1) if position is None else torch.cat([z.flatten(1), position[:, None]], dim=1)
        if self.fourier_features:
            angle = (2.0 * math.pi) * (y @ self.frequencies.T)
            y = torch.cat([y, torch.cos(angle), torch.sin(angle)], dim=1)
        activation = getattr(nn.functional, self.activation)
        for layer in self.hidden:
            y = activation(layer(y))
        return self.output(y).squeeze(1)  # type: ignore[no-any-return]

    def config(self) -> dict[str, Any]:
        return {
            **super().config(),
            "widths": list(self.widths),
            "activation": self.activation,
            "fourier_features": self.fourier_features,
            "fourier_scale": self.fourier_scale,
        }
