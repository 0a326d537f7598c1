"""A weighted sum of potentials, which stands for a product of their densities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vapo_fast.core import checks
from vapo_fast.potentials.base import Potential


class SumPotential(Potential):
    r"""Compose potentials: ``Phi = sum_i w_i Phi_i + (1 - W) Phi_ref``, ``W = sum_i w_i``.

    Phi_ref is the exact potential of data N(0, s^2 I), a quadratic. With it the quadratic terms of all Phi_i count
    once, for any weights. Log-density read-outs then add exactly, at every time:

        ``ln rho(x, t) = sum_i w_i ln rho_i(x, t) + (1 - W) ln N(x; 0, (alpha^2 s^2 + beta^2) I) + const(t)``:

    a product of experts ``N prod_i (rho_i / N)^w_i``, their conjunction over the reference N. At t0 every rho_i and the
    reference are the prior, so the sum starts there too, for any weights. With W = 1 (a geometric mean; or
    ``rho_a rho_b / rho_all`` with weights 1, 1, -1, Bayes' rule for conditions that are independent given x) the
    reference is not used.

    The *flow* of the sum carries the prior to the product exactly if the product is itself a path of the homotopy: for
    Gaussians, if all their variances are s^2. Otherwise grad Phi is the velocity of no path through these densities.
    Samples then miss the product's spread and mode weights by an amount without a bound here, and
    `vapo_fast.log_likelihood`, the density of those samples, differs from the read-out. `vapo_fast.refine` (MALA) has
    the read-out's product as its invariant density in every case. (Du et al., Reduce, Reuse, Recycle, 2023, arXiv
    2302.11552, treat the same gap in diffusion models.) Negative weights or W > 1 may give a product that cannot be
    normalised, and samples that diverge.

    Args:
        potentials: one or more time-dependent potentials of one event shape, path, dtype and device.
        weights: w_i, finite; default 1 each.
        reference_scale: s > 0, the scale of the data; as the parts' ``data_scale`` if they have one.
    Raises: TypeError, ValueError for parts that do not fit together, which name the first that differs.
    """

    def __init__(
        self,
        potentials: Sequence[Potential],
        weights: Sequence[float] | None = None,
        *,
        reference_scale: float = 1.0,
    ) -> None:
        parts = _checked(potentials)
        super().__init__(parts[0].event_shape, parts[0].homotopy, time_dependent=True)
        given = [1.0] * len(parts) if weights is None else list(weights)
        if len(given) != len(parts):
            raise ValueError(f"weights must be {len(parts)} numbers, one for each potential, got {len(given)}")
        self.weights = tuple(checks.finite_float("each weight in weights", weight) for weight in given)
        self.reference_scale = checks.positive_float("reference_scale", reference_scale)
        self.potentials = nn.ModuleList(parts)

    def value(self, x: Tensor, t: Tensor) -> Tensor:
        k, gauge, s = self.homotopy.kernel(t), self.homotopy.gauge(t), self.reference_scale
        variance = (k.alpha * s).square() + k.beta.square()
        # S'/(2 S) in a form that stays accurate at both ends.
        curvature = gauge.quadratic + gauge.scale * k.alpha * s**2 / variance
        total = 0.5 * (1.0 - sum(self.weights)) * curvature * x.flatten(1).square().sum(1)
        for weight, potential in zip(self.weights, self.potentials, strict=True):
            total = total + weight * potential(x, t)
        return total

    def config(self) -> dict[str, Any]:
        parts = [part.config() for part in self.potentials if isinstance(part, Potential)]
        return {
            "class": type(self).__name__,
            "potentials": parts,
            "weights": list(self.weights),
            "reference_scale": self.reference_scale,
        }


def _checked(potentials: object) -> list[Potential]:
    if not isinstance(potentials, (Sequence, nn.ModuleList)) or isinstance(potentials, (str, bytes)):
        raise TypeError(f"potentials must be a sequence of Potentials, got {type(potentials).__name__}")
    parts = list(potentials)
    if not parts:
        raise ValueError("potentials must hold at least one Potential, got none")
    for i, part in enumerate(parts):
        if not isinstance(part, Potential):
            raise TypeError(f"potentials must hold Potentials, got {type(part).__name__} at position {i}")
        if not part.time_dependent:
            raise ValueError(
                f"potentials must be time-dependent, and the one at position {i} is not: it has no exact read-out, so "
                "that a sum with it stands for no product of densities"
            )
        for name in ("event_shape", "homotopy"):
            own, first = getattr(part, name), getattr(parts[0], name)
            if own != first:
                raise ValueError(f"potentials must have one {name}, got {first} and, at position {i}, {own}")
    kinds = [_kind(part) for part in parts]
    for i, kind in enumerate(kinds):
        if kind is not None and kind != (first_kind := next(k for k in kinds if k is not None)):
            raise ValueError(
                f"potentials must have one dtype on one device, got {first_kind[0]} on {first_kind[1]} and, at "
                f"position {i}, {kind[0]} on {kind[1]}; convert with .to(...)"
            )
    return parts


def _kind(part: Potential) -> tuple[torch.dtype, torch.device] | None:
    tensor = part.reference_tensor()
    return None if tensor is None else (tensor.dtype, tensor.device)
