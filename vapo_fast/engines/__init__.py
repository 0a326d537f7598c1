"""Engines that do the numerical jobs of a potential, and the choice among them."""

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
from vapo_fast.engines.graph.engine import GRAPH, GraphEngine
from vapo_fast.engines.native import NATIVE, NativeEngine
from vapo_fast.engines.reference import ReferenceEngine
from vapo_fast.engines.triton import TRITON, TritonEngine
from vapo_fast.loss import Batch

register(TRITON)
register(GRAPH)
register(NATIVE)
register(ReferenceEngine())

__all__ = [
    "ENVIRONMENT_VARIABLE",
    "ORDER",
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
