"""How much a reduced arithmetic of the field disturbs an adaptive solve, measured on the model at hand.

An embedded pair takes rounding noise in the field for truncation error: a step of size h reads noise d as an error of
``h d`` times the pair's error weights, which add up to a fraction of 1. So a precision is good enough for a tolerance
if ``h d`` itself stays below ``atol + rtol |x|`` for the longest steps that such a solve takes. d is the difference of
one field evaluation from the same in float32, at points spread along the path.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable

import torch
from torch import Tensor

from vapo_fast import noise
from vapo_fast.ode import SolveOptions
from vapo_fast.potentials.mlp import MLPPotential

Gradient = Callable[[MLPPotential, Tensor, Tensor, str], Tensor]


class Noise:
    """Remembers what was measured for each model, until its weights change.

    Args:
        gradient: (model, x (n, D), t (n,), precision) to grad Phi (n, D).
    """

    ALLOWED = 1.0
    """The largest share of the tolerance that noise may take."""
    REDUCED = ("bf16", "tf32")
    """Cheapest first."""
    POINTS = 256
    # A solve of a usual path takes about this many steps at the loosest tolerances, and more at others.
    _STEPS = 8.0

    def __init__(self, gradient: Gradient) -> None:
        self._gradient = gradient
        self._known: weakref.WeakKeyDictionary[MLPPotential, dict[tuple[object, ...], tuple[Tensor, Tensor]]] = (
            weakref.WeakKeyDictionary()
        )

    def cheapest(self, model: MLPPotential, t0: float, t1: float, options: SolveOptions) -> str:
        """The cheapest arithmetic whose noise the tolerances do not see. Reads one fingerprint from the device."""
        for precision in self.REDUCED:
            if self.share(model, precision, t0, t1, options) <= self.ALLOWED:
                return precision
        return "float32"

    def share(self, model: MLPPotential, precision: str, t0: float, t1: float, options: SolveOptions) -> float:
        """Noise in units of the tolerance: the root mean square of ``h d / (atol + rtol |x|)``; 0 for float32."""
        if precision not in self.REDUCED:
            return 0.0
        rtol, atol = options.tolerances
        x, difference = self._measured(model, precision)
        ratio = abs(t1 - t0) / self._STEPS * difference / (atol + rtol * x.abs()).clamp_min(1e-30)
        found = float(ratio.square().mean().sqrt())
        return found if math.isfinite(found) else math.inf

    def _measured(self, model: MLPPotential, precision: str) -> tuple[Tensor, Tensor]:
        """Points (n, D), and by how much the precision changes the gradient there; on the host."""
        state = _state(model)
        kept = self._known.setdefault(model, {})
        key = (precision, state)
        if key not in kept:
            for old in [other for other in kept if other[1] != state]:
                del kept[old]
            x, t = _points(model, self.POINTS)
            exact = self._gradient(model, x, t, "ieee")
            kept[key] = (x.cpu(), (self._gradient(model, x, t, precision) - exact).cpu())
        return kept[key]


def _state(model: MLPPotential) -> tuple[object, ...]:
    """What a measurement holds for: where the weights lie, how often they were written to, and each one's norm.

    A replayed CUDA graph and a write through ``.data`` change the weights behind the counter's back, which the norms
    show; the host reads them once.
    """
    weights = [p.detach() for p in (*model.parameters(), *model.buffers())]
    norms = torch.stack([norm.double() for norm in torch._foreach_norm(weights)]).tolist()
    return (*((p.data_ptr(), p._version) for p in weights), *norms)


def _points(model: MLPPotential, n: int) -> tuple[Tensor, Tensor]:
    """Points of the size that samples have along the path, and their times."""
    path, weight = model.homotopy, model.output.weight
    t = torch.linspace(path.t0, path.t1, n, dtype=torch.float64)
    k = path.kernel(t)
    size = ((k.alpha * model.data_scale).square() + k.beta.square()).sqrt()
    draws = noise.normal(0, range(n), (math.prod(model.event_shape),), dtype=torch.float64)
    return (size[:, None] * draws).to(weight), t.to(weight)
