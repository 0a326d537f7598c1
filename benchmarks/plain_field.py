"""The field of an `MLPPotential` written plainly, with its weights as arrays: what the peers integrate.

The formula is the library's (``Phi = q/2 |x|^2 + c f(r x, p)``, `vapo_fast.potentials.gauge`), without its checks, and
as lean as PyTorch's autograd allows, so that no peer is slowed by code that is ours: the quadratic part is
differentiated by hand, and where a solver has one time for the batch, the time's numbers are Python's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vapo_fast as vf

Coefficients = tuple[Any, Any, Any, Any]


@dataclass(frozen=True)
class Weights:
    """A potential as numbers: ``scalars`` fit in JSON and ``arrays`` in an npz file."""

    scalars: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @staticmethod
    def of(potential: vf.MLPPotential) -> Weights:
        """Taken from a potential."""
        path = potential.homotopy
        arrays = {"output": potential.output.weight[0], "frequencies": potential.frequencies}
        for i, layer in enumerate(potential.hidden):
            arrays |= {f"weight{i}": layer.weight, f"bias{i}": layer.bias}
        first, last = (math.log(float(path.kernel(end).beta)) for end in (path.t0, path.t1))
        scalars = {
            "homotopy": type(path).__name__,
            "omega": path.omega,
            "t0": path.t0,
            "t1": path.t1,
            "log_beta_first": first,
            "log_beta_last": last,
            "data_scale": potential.data_scale,
            "time_dependent": potential.time_dependent,
            "activation": potential.activation,
            "layers": len(potential.hidden),
        }
        return Weights(scalars, {name: value.detach().cpu().numpy().copy() for name, value in arrays.items()})


class PlainField:
    """Phi and grad Phi of `Weights` in PyTorch; the weights are float32 leaves in ``parameters``.

    ``reads_time``: whether a time that a solver has as a 0-dim tensor is read by the host. On the CPU that costs
    nothing and saves arithmetic on tiny tensors. On CUDA the host then waits for the device; which is faster, is for a
    trial to say (`benchmarks.peers.torch_solvers`). A CUDA graph allows no reading.
    """

    reads_time = True

    def __init__(self, weights: Weights, device: torch.device | str = "cpu") -> None:
        self.scalars = weights.scalars
        self.layers = int(weights.scalars["layers"])
        self.parameters = {name: torch.from_numpy(value.copy()).to(device) for name, value in weights.arrays.items()}
        self.frequencies = self.parameters.pop("frequencies")
        self.activation = getattr(torch.nn.functional, weights.scalars["activation"])

    def __call__(self, x: Tensor, t: Tensor | float) -> Tensor:
        """grad Phi (n, d) of x (n, d), detached; one time for all rows (a float or 0-dim), or one each (n,)."""
        if isinstance(t, Tensor) and t.dim() == 0 and self.reads_time:
            t = float(t)
        quadratic, scale, inverse_radius, position = self.coefficients(t)
        if isinstance(position, Tensor) and position.dim():
            quadratic, inverse_radius, scale = quadratic[:, None], inverse_radius[:, None], scale[:, None]
        with torch.enable_grad():
            z = (x.detach() * inverse_radius).requires_grad_()
            (gradient,) = torch.autograd.grad(self.network(self.parameters, z, position).sum(), z)
        return quadratic * x + (scale * inverse_radius) * gradient

    def coefficients(self, t: Tensor | float) -> Coefficients:
        """q, c, r and p at a time: floats for a float, else tensors."""
        m: Any = torch if isinstance(t, Tensor) else math
        s, omega = self.scalars["data_scale"], self.scalars["omega"]
        if self.scalars["homotopy"] == "DataHomotopy":
            start = -0.5
        else:
            start = -1.0
        if not self.scalars["time_dependent"]:
            radius = math.sqrt(s * s + omega * omega)
            return start, s * radius, 1.0 / radius, None
        if self.scalars["homotopy"] == "DataHomotopy":
            alpha, beta = -m.expm1(-t), omega * m.exp(-0.5 * t)
            quadratic, scale = -0.5, 0.5 * (1.0 + m.exp(-t))
        else:
            alpha, beta = t, omega * (1.0 - t)
            scale = 1.0 / (1.0 - t)
            quadratic = -scale
        variance = (alpha * s) ** 2 + beta**2
        first, last = self.scalars["log_beta_first"], self.scalars["log_beta_last"]
        position = (m.log(beta) - first) * (2.0 / (last - first)) - 1.0
        return quadratic + scale * alpha * s**2 / variance, scale * s * beta, 1.0 / m.sqrt(variance), position

    def network(self, parameters: dict[str, Tensor], z: Tensor, position: Tensor | float | None) -> Tensor:
        """f (n,) of z (n, d)."""
        activation, functional = self.activation, torch.nn.functional
        weight, bias = parameters["weight0"], parameters["bias0"]
        alone = isinstance(position, Tensor) and not position.dim()
        if (alone or isinstance(position, float)) and not len(self.frequencies):
            # One time for the batch: its column of the first layer is one more bias.
            column = weight[:, -1]
            bias = torch.addcmul(bias, column, position) if alone else torch.add(bias, column, alpha=position)
            y = functional.linear(z, weight[:, :-1], bias)
        else:
            y = z
            if position is not None:
                rows = position.expand(len(z)) if isinstance(position, Tensor) else z.new_full((len(z),), position)
                y = torch.cat((z, rows[:, None]), dim=1)
            if len(self.frequencies):
                angle = (2.0 * math.pi) * (y @ self.frequencies.T)
                y = torch.cat((y, torch.cos(angle), torch.sin(angle)), dim=1)
            y = functional.linear(y, weight, bias)
        y = activation(y)
        for i in range(1, self.layers):
            y = activation(functional.linear(y, parameters[f"weight{i}"], parameters[f"bias{i}"]))
        return y @ parameters["output"]

    def loss(self, parameters: dict[str, Tensor], x_data: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The energy loss of a time-dependent potential, velocity estimator, weight 1/beta^2: what autodiff of a
        whole function (`torch.func.grad`, `torch.compile`) can be given."""
        path = getattr(vf, self.scalars["homotopy"])
        if path is not vf.DataHomotopy:
            raise ValueError(f"the benchmark's loss is written for DataHomotopy, got {path.__name__}")
        beta = self.scalars["omega"] * torch.exp(-0.5 * t)[:, None]
        alpha, decay = -torch.expm1(-t)[:, None], torch.exp(-t)[:, None]
        x = alpha * x_data + beta * noise
        velocity = decay * x_data - 0.5 * beta * noise
        quadratic, scale, inverse_radius, position = self.coefficients(t)

        def value(z: Tensor) -> Tensor:
            return self.network(parameters, z, position).sum()

        gradient = torch.func.grad(value)(x * inverse_radius[:, None])
        field = quadratic[:, None] * x + (scale * inverse_radius)[:, None] * gradient
        return ((0.5 * field.square().sum(1) - (field * velocity).sum(1)) / beta[:, 0].square()).mean()
