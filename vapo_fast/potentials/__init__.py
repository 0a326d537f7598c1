"""Potentials: the base class, the library's own networks, and exact potentials to test against."""

from __future__ import annotations

from typing import Any

from vapo_fast import _checks
from vapo_fast.homotopy import homotopy_from_config
from vapo_fast.potentials.base import ModulePotential, Potential
from vapo_fast.potentials.gauge import GaugedPotential
from vapo_fast.potentials.gaussian_mixture import GaussianMixturePotential
from vapo_fast.potentials.mlp import MLPPotential

__all__ = [
    "GaugedPotential",
    "GaussianMixturePotential",
    "MLPPotential",
    "ModulePotential",
    "Potential",
    "potential_from_config",
]

_CLASSES: dict[str, type[Potential]] = {c.__name__: c for c in (MLPPotential, GaussianMixturePotential)}


def potential_from_config(config: dict[str, Any]) -> Potential:
    """Build an untrained potential from `Potential.config`. ValueError if its class is unknown or arguments do not fit."""
    arguments = dict(config)
    name = _checks.one_of("potential class", arguments.pop("class", None), _CLASSES)
    try:
        arguments["homotopy"] = homotopy_from_config(arguments["homotopy"])
        return _CLASSES[name](**arguments)
    except (TypeError, KeyError) as error:
        raise ValueError(f"{name} cannot be built from {config!r}: {error}") from error
