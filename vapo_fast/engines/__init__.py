"""Engines that do the numerical jobs of a potential, and the choice among them."""

from vapo_fast.engines.base import (
    ENVIRONMENT_VARIABLE,
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
from vapo_fast.engines.graph.engine import GRAPH, GraphEngine
from vapo_fast.engines.native import NATIVE, NativeEngine
from vapo_fast.engines.reference import REFERENCE, ReferenceEngine
from vapo_fast.engines.triton import TRITON, TritonEngine
from vapo_fast.loss import Batch

for _engine in (TRITON, GRAPH, NATIVE, REFERENCE):
    register(_engine)

__all__ = [
    "ENVIRONMENT_VARIABLE",
    "PRECISIONS",
    "Batch",
    "Engine",
    "GraphEngine",
    "Job",
    "LossAndGrads",
    "LossOptions",
    "NativeEngine",
    "ReferenceEngine",
    "TritonEngine",
    "UnsupportedJobError",
    "choose",
    "engines",
    "register",
]
