"""The definition of correct: autograd's derivatives and the PyTorch solver, for any potential on any device."""

from __future__ import annotations

from vapo_fast.engines.composed import ComposedEngine
from vapo_fast.engines.derivatives import AutogradDerivatives
from vapo_fast.engines.stepper import integrate


class ReferenceEngine(ComposedEngine):
    """Pure PyTorch; see the module's docstring."""

    name = "reference"
    priority = 10

    def __init__(self) -> None:
        super().__init__(self.name, AutogradDerivatives, integrate)


REFERENCE = ReferenceEngine()
"""The registered engine."""
