"""How much a reduced arithmetic of the field disturbs an adaptive solve, measured on the model at hand.

An embedded pair takes rounding noise in the field for truncation error: a step of size h reads noise d as an error of
``h d`` times the pair's error weights, which add up to a fraction of 1. So a precision is good enough for a tolerance
if ``h d`` itself stays below ``atol + rtol |x|`` for the longest steps that such a solve takes. d is the difference of
one field evaluation from the same in float32, at points spread along the path.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable
from itertools import chain

import torch
from torch import Tensor

from vapo_fast import noise
from vapo_fast.homotopy import expand_time
from vapo_fast.ode import SolveOptions
from vapo_fast.potentials.base import Potential

Gradient = Callable[[Potential, Tensor, Tensor, str], Tensor]


class RoundingNoise:
    """Remembers what was measured for each model, until its weights change.

    Args:
        gradient: (model, x (n, *event), t (n,), precision) to grad Phi, of x's shape; "ieee" is full float32.
        points: how many points along the path it is asked at.
    """

    POINTS = 256
    ALLOWED = 1.0
    """The largest share of the tolerance that noise may take."""
    REDUCED = ("bf16", "tf32")
    """Cheapest first."""
    # A solve of a usual path takes about this many steps at the loosest tolerances, and more at others.
    _STEPS = 8.0

    def __init__(self, gradient: Gradient, points: int = POINTS) -> None:
        self._gradient, self._points = gradient, points
        self._known: weakref.WeakKeyDictionary[Potential, dict[tuple[object, ...], tuple[Tensor, Tensor]]] = (
            weakref.WeakKeyDictionary()
        )

    def cheapest(self, model: Potential, t0: float, t1: float, options: SolveOptions) -> str:
        """The cheapest arithmetic whose noise the tolerances do not see. Reads one fingerprint from the device."""
        for precision in self.REDUCED:
            if self.share(model, precision, t0, t1, options) <= self.ALLOWED:
                return precision
        return "float32"

    def choose(self, model: Potential, wanted: str, t0: float, t1: float, options: SolveOptions) -> str:
        """``wanted``, with a warning if the tolerances see its noise; for "auto" the `cheapest`."""
        if wanted == "auto":
            return self.cheapest(model, t0, t1, options)
        share = self.share(model, wanted, t0, t1, options)
        if share > self.ALLOWED:
            rtol, atol = options.tolerances
            warnings.warn(
                f"precision={wanted!r} rounds this model's gradient by {share:.2g} times what rtol={rtol:g} and "
                f"atol={atol:g} allow in one step: steps shrink, and errors stay. precision='auto' chooses "
                f"{self.cheapest(model, t0, t1, options)!r}",
                stacklevel=4,
            )
        return wanted

    def share(self, model: Potential, precision: str, t0: float, t1: float, options: SolveOptions) -> float:
        """Noise in units of the tolerance: the root mean square of ``h d / (atol + rtol |x|)``; 0 for float32."""
        if precision not in self.REDUCED:
            return 0.0
        rtol, atol = options.tolerances
        x, difference = self._measured(model, precision)
        ratio = abs(t1 - t0) / self._STEPS * difference / (atol + rtol * x.abs()).clamp_min(1e-30)
        found = float(ratio.square().mean().sqrt())
        return found if math.isfinite(found) else math.inf

    def _measured(self, model: Potential, precision: str) -> tuple[Tensor, Tensor]:
        """Points (n, *event), and by how much the precision changes the gradient there; on the host."""
        state = _state(model)
        kept = self._known.setdefault(model, {})
        key = (precision, state)
        if key not in kept:
            for old in [other for other in kept if other[1] != state]:
                del kept[old]
            x, t = _points(model, self._points)
            exact = self._gradient(model, x, t, "ieee")
            kept[key] = (x.cpu(), (self._gradient(model, x, t, precision) - exact).cpu())
        return kept[key]


def _state(model: Potential) -> tuple[object, ...]:
    """What a measurement holds for: where the weights lie, how often they were written to, and each one's norm.

    A replayed CUDA graph and a write through ``.data`` change the weights behind the counter's back, which the norms
    show; the host reads them once.
    """
    weights = [p.detach() for p in chain(model.parameters(), model.buffers())]
    # Of inference tensors there is no counter.
    where = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in weights]
    real = [p for p in weights if p.is_floating_point()]
    norms = torch.stack([norm.double() for norm in torch._foreach_norm(real)]).tolist() if real else []
    return (*where, *norms)


def _points(model: Potential, n: int) -> tuple[Tensor, Tensor]:
    """Points of the size that samples have along the path, and their times."""
    path, like = model.homotopy, model.reference_tensor()
    t = torch.linspace(path.t0, path.t1, n, dtype=torch.float64)
    k = path.kernel(t)
    # Other potentials than the library's do not say how large their data are.
    data_scale = float(getattr(model, "data_scale", 1.0))
    size = ((k.alpha * data_scale).square() + k.beta.square()).sqrt()
    draws = noise.normal(0, range(n), model.event_shape, dtype=torch.float64)
    x = expand_time(size, draws) * draws
    like = torch.empty(0) if like is None else like
    return x.to(like.device, like.dtype), t.to(like.device, like.dtype)
