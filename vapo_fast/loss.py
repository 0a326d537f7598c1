r"""The variational energy loss: its minimiser over potentials is the flow of the marginal path.

At one time, with (x, u, innovation) a point of the path, both estimators have the expectation
``E[1/2 |grad Phi|^2 - grad Phi . u]``, whose minimum is ``-1/2 E|u_bar|^2`` at ``grad Phi = u_bar``, the marginal
velocity:

- ``velocity``:   ``1/2 |grad Phi|^2 - grad Phi . u``
- ``covariance``: ``1/2 |grad Phi|^2 + Phi innovation``, the paper's. It is equal in expectation by Stein's identity,
  and of far higher variance in high dimension. The innovation is centred for each data point in closed form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vapo_fast.core import checks
from vapo_fast.homotopy import Homotopy, Time, as_time
from vapo_fast.potentials.base import Potential, require_potential

ESTIMATORS = ("velocity", "covariance")
WEIGHTS = ("inverse_variance", "uniform")

Weight = str | Callable[[Tensor], Tensor]
Baseline = Callable[[Tensor, Tensor], Tensor]


class EnergyLoss(NamedTuple):
    """Scalars, means over the batch: ``total = linear + quadratic``."""

    total: Tensor
    linear: Tensor
    quadratic: Tensor


def energy_loss(
    model: Potential,
    x_data: Tensor,
    t: Time,
    noise: Tensor,
    estimator: str = "velocity",
    weight: Weight = "inverse_variance",
    baseline: Baseline | None = None,
) -> EnergyLoss:
    """The energy loss of a batch, differentiable with respect to the model's parameters (double backward).

    Args:
        model: the potential; its ``homotopy`` is the path.
        x_data: (B, *event) data points.
        t: (B,) times, or one float for all.
        noise: (B, *event) standard normal draws.
        estimator: "velocity" or "covariance".
        weight: w(t) > 0 on both terms. Every weight keeps the optimum of a time-dependent potential.
            "inverse_variance" is ``1/beta^2``, so that each noise level counts alike; "uniform" is 1; or a callable
            from times (B,) to weights (B,).
        baseline: for "covariance" only, a callable (x_data, t) -> (B,) subtracted from Phi in the linear term. The
            innovation has mean zero given x_data, so a baseline changes the variance only. Example:
            ``lambda x_data, t: model(path.kernel(t).alpha[:, None] * x_data, t)``.
    Returns: `EnergyLoss`.
    Raises:
        ValueError, TypeError: model, shapes, names or the weight's result do not fit.
    """
    require_potential(model)
    checks.one_of("estimator", estimator, ESTIMATORS)
    if baseline is not None and estimator != "covariance":
        raise ValueError(
            "baseline applies to estimator='covariance' only; the velocity estimator has no term to centre"
        )
    check_points(model, x_data, t)
    path = model.homotopy
    t = as_time(t).to(device=x_data.device, dtype=x_data.dtype).expand(x_data.shape[0])
    point = path.perturb(x_data, t, noise)
    phi, gradient = model.field(point.x.detach().requires_grad_(), t, create_graph=True)
    gradient = gradient.flatten(1)
    w = loss_weight(path, weight, t)
    quadratic = 0.5 * gradient.square().sum(1)
    if estimator == "velocity":
        linear = -(gradient * point.velocity.flatten(1)).sum(1)
    else:
        linear = (phi if baseline is None else phi - baseline(x_data, t.clone())) * point.innovation
    linear, quadratic = (w * linear).mean(), (w * quadratic).mean()
    return EnergyLoss(linear + quadratic, linear, quadratic)


def check_points(model: Potential, x_data: Tensor, t: Time) -> None:
    """TypeError/ValueError unless x_data is a batch of at least one of the model's events, and t fits it."""
    checks.batch_of_events("x_data", x_data, model.event_shape)
    if x_data.shape[0] == 0:
        raise ValueError("x_data is an empty batch; the loss is a mean over at least one sample")
    checks.time_or_times("t", t, x_data.shape[0])


def loss_weight(path: Homotopy, weight: Weight, t: Tensor) -> Tensor:
    """w(t) for times (B,); see `energy_loss`."""
    if callable(weight):
        w = weight(t.clone())  # a weight that works in place must not change the times of the points
        if not isinstance(w, Tensor) or w.shape != t.shape:
            raise ValueError(
                f"weight(t) must return a tensor of shape {tuple(t.shape)}, got {getattr(w, 'shape', w)!r}"
            )
        return w
    if checks.one_of("weight", weight, WEIGHTS) == "uniform":
        return torch.ones_like(t)
    return path.kernel(t).beta.pow(-2)


class Batch(NamedTuple):
    """What one training step sees: data points (B, *event), times (B,), standard normal noise (B, *event)."""

    x_data: Tensor
    t: Tensor
    noise: Tensor

    def split(self, parts: int) -> list[Batch]:
        """Consecutive micro-batches, ``parts`` of them, whose sizes differ by at most one."""
        pieces = (torch.tensor_split(value, parts) for value in self)
        return [Batch(*piece) for piece in zip(*pieces, strict=True)]
