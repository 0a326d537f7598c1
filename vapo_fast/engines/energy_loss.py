"""An engine's loss and gradients as a differentiable function, for training loops of the user's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vapo_fast.core import checks
from vapo_fast.engines.base import Engine, Job, LossOptions, UnsupportedJobError
from vapo_fast.homotopy import Time, as_time
from vapo_fast.loss import ESTIMATORS, WEIGHTS, Batch, EnergyLoss, Weight, check_points, loss_weight
from vapo_fast.potentials.base import Potential


def energy_loss_of(
    engine: Engine,
    model: Potential,
    x_data: Tensor,
    t: Time,
    noise: Tensor,
    estimator: str = "velocity",
    weight: Weight = "inverse_variance",
) -> EnergyLoss:
    """`vapo_fast.energy_loss` by an engine: loss and parameter gradients in one call, without double backward.

    ``energy_loss_of(engine, model, x_data, t, noise).total.backward()`` fills the parameters' ``.grad`` for any
    optimiser. The gradients are computed with the loss; ``backward`` only scales them. ``total`` alone is
    differentiable, once, and with respect to the model's parameters only.

    Args:
        engine: does the job "loss_and_grads".
        model: a potential that the engine supports.
        x_data, t, noise, estimator, weight: as for `vapo_fast.energy_loss`; none may require gradients.
    Returns: `EnergyLoss`.
    Raises:
        UnsupportedJobError: the engine cannot do this, with the reason.
        ValueError, TypeError: as `vapo_fast.energy_loss`, or an argument requires gradients.
        RuntimeError: at a second derivative.
    """
    if not isinstance(model, Potential):
        raise TypeError(f"model must be a Potential, got {type(model).__name__}")
    checks.one_of("estimator", estimator, ESTIMATORS)
    if not callable(weight):
        checks.one_of("weight", weight, WEIGHTS)
    check_points(model, x_data, t)
    if not isinstance(noise, Tensor) or noise.shape != x_data.shape:
        found = tuple(noise.shape) if isinstance(noise, Tensor) else type(noise).__name__
        raise ValueError(f"noise must have the shape of x_data, {tuple(x_data.shape)}, got {found}")
    reference = model.reference_tensor()
    for name, value in (("x_data", x_data), ("noise", noise)):
        if reference is not None and (value.dtype != reference.dtype or value.device != reference.device):
            raise TypeError(
                f"{name} is {value.dtype} on {value.device} but the model is {reference.dtype} on {reference.device}; "
                "convert one with .to(...)"
            )
    for name, argument in (("x_data", x_data), ("t", t), ("noise", noise)):
        if isinstance(argument, Tensor) and argument.requires_grad:
            raise ValueError(f"{name} requires grad, but this loss has gradients for the model's parameters only")
    times = as_time(t).to(device=x_data.device, dtype=x_data.dtype).expand(x_data.shape[0])
    if callable(weight):
        weights = loss_weight(model.homotopy, weight, times)
        if weights.requires_grad:
            raise ValueError("weight(t) requires grad, but this loss has gradients for the model's parameters only")

        def weight(_: Tensor) -> Tensor:  # the user's function is called once a loss
            return weights

    job = Job("loss_and_grads", loss=LossOptions(estimator, weight))
    reason = engine.available() or engine.supports(model, x_data.device, x_data.dtype, job)
    if reason is not None:
        raise UnsupportedJobError(f"the {engine.name} engine cannot do this 'loss_and_grads' job: {reason}")
    parameters = [p for p in model.parameters() if p.requires_grad]
    terms = _Loss.apply(engine, model, Batch(x_data, times, noise), job, *parameters)  # type: ignore[no-untyped-call]
    return EnergyLoss(*terms)


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, engine: Engine, model: Potential, batch: Batch, job: Job, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        loss, grads = engine.loss_and_grads(model, batch, job)
        ctx.save_for_backward(*grads.values(), *parameters)
        ctx.mark_non_differentiable(loss.linear, loss.quadratic)
        return tuple(loss)

    @staticmethod
    def backward(ctx: Any, of_total: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        count = len(saved) // 2
        grads = tuple(of_total * grad for grad in saved[:count])
        if torch.is_grad_enabled():
            # With create_graph they would pass for constants in whatever is made of them.
            grads = _Final.apply(*grads, *saved[count:])  # type: ignore[no-untyped-call]
        return None, None, None, None, *grads


class _Final(torch.autograd.Function):
    """The first half of the arguments; the derivative with respect to the others is not known and raises."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.clone() for tensor in tensors[: len(tensors) // 2])

    @staticmethod
    def backward(ctx: Any, *of_gradients: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError(
            "this energy_loss, of an engine, has gradients and no second derivatives; use vapo_fast.energy_loss"
        )
