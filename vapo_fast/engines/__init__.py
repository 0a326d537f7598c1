"""Engines that do the numerical jobs of a potential, and the choice among them."""

from vapo_fast.batches import Batch
from vapo_fast.engines.base import (
    ENVIRONMENT_VARIABLE,
    ORDER,
    PRECISIONS,
    Engine,
    Job,
    LossAndGrads,
    LossOptions,
    UnsupportedJobError,
    choose,
    engines,
    register,
)
from vapo_fast.engines.reference import ReferenceEngine

register(ReferenceEngine())

__all__ = [
    "ENVIRONMENT_VARIABLE",
    "ORDER",
    "PRECISIONS",
    "Batch",
    "Engine",
    "Job",
    "LossAndGrads",
    "LossOptions",
    "ReferenceEngine",
    "UnsupportedJobError",
    "choose",
    "engines",
    "register",
]
