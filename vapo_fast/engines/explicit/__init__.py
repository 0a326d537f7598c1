"""Explicit passes of image potentials: field, trace, loss and gradients without double backward."""

from __future__ import annotations

from vapo_fast.engines.explicit.explicit import (
    PRECISIONS,
    ExplicitPasses,
    UnlikePlainNetworkError,
    explicit_passes,
)
from vapo_fast.engines.explicit.plain_network import unlike_a_plain_network

__all__ = ["PRECISIONS", "ExplicitPasses", "UnlikePlainNetworkError", "explicit_passes", "unlike_a_plain_network"]
