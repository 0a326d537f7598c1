"""How far samples are from real data. Start with `sliced_wasserstein`, or `evaluate` for a whole report."""

from vapo_fast.metrics.wasserstein import sliced_wasserstein, sliced_wasserstein_floor

__all__ = ["sliced_wasserstein", "sliced_wasserstein_floor"]
