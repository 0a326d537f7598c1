"""The engine for any network: explicit or autograd's derivatives; recorded steps on CUDA, PyTorch's solver on the CPU.

Derivatives are `vapo_fast.engines.explicit` where there are such for the potential, else autograd's. On the CPU this
engine takes potentials with explicit derivatives only: for others it would be the reference.
"""

from __future__ import annotations

import torch

from vapo_fast.core.extension import DTYPE_NAMES
from vapo_fast.engines.base import Job
from vapo_fast.engines.composed import ComposedEngine, unlike_a_loss_in_bf16
from vapo_fast.engines.derivatives import explicit_or_autograd
from vapo_fast.engines.explicit import unlike_a_plain_network
from vapo_fast.engines.graph.recorded import Recorded
from vapo_fast.engines.stepper import Stepper, integrate
from vapo_fast.potentials.base import Potential


class GraphEngine(ComposedEngine):
    """Any `Potential` on CUDA in float32 or float64, and on the CPU what has explicit derivatives.

    Args:
        recorded: the stepper on CUDA.
    """

    name = "graph"
    priority = 30
    capturable = True

    def __init__(self, recorded: Recorded | None = None) -> None:
        super().__init__(self.name, explicit_or_autograd, Recorded() if recorded is None else recorded)

    def stepper_on(self, device: torch.device) -> Stepper:
        return self._stepper if device.type == "cuda" else integrate

    def supports(self, potential: Potential, device: torch.device, dtype: torch.dtype, job: Job) -> str | None:
        if dtype not in DTYPE_NAMES:
            return f"the model's dtype is {dtype}; this engine computes in float32 or float64 (convert with .float())"
        if device.type not in ("cuda", "cpu"):
            return f"the model is on {device}; this engine runs on CUDA"
        if device.type == "cpu" and (missing := unlike_a_plain_network(potential)) is not None:
            return f"on the CPU this engine takes potentials with explicit passes: {missing}"
        if job.kind == "loss_and_grads":
            if job.loss.baseline is not None and unlike_a_plain_network(potential) is None:
                return "a baseline is a function of the user's own, which explicit passes have no derivatives of"
            if job.precision == "bf16" and (reason := unlike_a_loss_in_bf16(job)) is not None:
                return reason
        reduced = ("tf32", "bf16") if device.type == "cuda" else ("bf16",)
        allowed = ("auto", DTYPE_NAMES[dtype], *(reduced if dtype == torch.float32 else ()))
        if job.precision not in allowed:
            return f"precision={job.precision!r} is none of this model's on {device.type}: {', '.join(allowed)}"
        return None


GRAPH = GraphEngine()
"""The registered engine."""
