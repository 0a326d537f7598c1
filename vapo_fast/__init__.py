"""vapo_fast: train and sample energy-based potential-flow models. The public API; everything here is re-exported."""

from vapo_fast import data, distributed, metrics, ode, reference
from vapo_fast.checkpoint import CheckpointError, load, save
from vapo_fast.engines import engines
from vapo_fast.engines.triton import tune
from vapo_fast.homotopy import DataHomotopy, Homotopy, LinearHomotopy
from vapo_fast.loss import EnergyLoss, energy_loss
from vapo_fast.ode import Solution, SolveError, Status
from vapo_fast.potentials import (
    GaussianMixturePotential,
    MLPPotential,
    Potential,
    SumPotential,
    UNetPotential,
    WideResNetPotential,
)
from vapo_fast.sampling.bits_per_dim import BitsPerDim, bits_per_dim, dequantise
from vapo_fast.sampling.density import log_density, log_likelihood
from vapo_fast.sampling.end_time import validate_t_end
from vapo_fast.sampling.langevin import Refined, refine
from vapo_fast.sampling.ood import auroc, ood_scores, typicality
from vapo_fast.sampling.sample import interpolate, sample
from vapo_fast.training.trainer import Trainer, train

__version__ = "0.1.0"

__all__ = [
    "BitsPerDim",
    "CheckpointError",
    "DataHomotopy",
    "EnergyLoss",
    "GaussianMixturePotential",
    "Homotopy",
    "LinearHomotopy",
    "MLPPotential",
    "Potential",
    "Refined",
    "Solution",
    "SolveError",
    "Status",
    "SumPotential",
    "Trainer",
    "UNetPotential",
    "WideResNetPotential",
    "auroc",
    "bits_per_dim",
    "data",
    "dequantise",
    "distributed",
    "energy_loss",
    "engines",
    "interpolate",
    "load",
    "log_density",
    "log_likelihood",
    "metrics",
    "ode",
    "ood_scores",
    "reference",
    "refine",
    "sample",
    "save",
    "train",
    "tune",
    "typicality",
    "validate_t_end",
]
