"""Potentials: the base class, the library's own networks, and exact potentials to test against."""

from __future__ import annotations

from typing import Any

from vapo_fast.core import checks
from vapo_fast.homotopy import homotopy_from_config
from vapo_fast.potentials.base import ModulePotential, Potential
from vapo_fast.potentials.gauge import GaugedPotential
from vapo_fast.potentials.gaussian_mixture import GaussianMixturePotential
from vapo_fast.potentials.mlp import MLPPotential
from vapo_fast.potentials.sum import SumPotential
from vapo_fast.potentials.unet import UNetPotential
from vapo_fast.potentials.wide_resnet import WideResNetPotential

__all__ = [
    "POTENTIALS",
    "GaugedPotential",
    "GaussianMixturePotential",
    "MLPPotential",
    "ModulePotential",
    "Potential",
    "SumPotential",
    "UNetPotential",
    "WideResNetPotential",
    "potential_from_config",
]

POTENTIALS: dict[str, type[Potential]] = {
    c.__name__: c for c in (MLPPotential, WideResNetPotential, UNetPotential, GaussianMixturePotential, SumPotential)
}


def potential_from_config(config: dict[str, Any]) -> Potential:
    """Build an untrained potential from its `Potential.config`; ValueError if that does not describe one."""
    arguments = dict(config)
    name = checks.one_of("potential class", arguments.pop("class", None), POTENTIALS)
    try:
        if "potentials" in arguments:
            arguments["potentials"] = [potential_from_config(part) for part in arguments["potentials"]]
        else:
            arguments["homotopy"] = homotopy_from_config(arguments["homotopy"])
        return POTENTIALS[name](**arguments)
    except (TypeError, KeyError) as error:
        raise ValueError(f"{name} cannot be built from {config!r}: {error}") from error
