"""Small image potentials of every shape that the passes must cover, and what autograd says of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vapo_fast.homotopy import DataHomotopy, Homotopy, LinearHomotopy
from vapo_fast.loss import Batch, EnergyLoss, Weight, energy_loss
from vapo_fast.potentials import UNetPotential, WideResNetPotential
from vapo_fast.potentials.image import ImagePotential

PATHS: dict[str, Homotopy] = {"data": DataHomotopy(1.0, 0.1), "linear": LinearHomotopy(1.3, 0.95)}
MODELS: dict[str, tuple[type[ImagePotential], dict[str, Any]]] = {
    "resnet": (WideResNetPotential, {"event_shape": (2, 4, 4), "channels": 3, "multipliers": (1, 1.5), "blocks": 1}),
    "resnet_oblong": (WideResNetPotential, {"event_shape": (3, 3, 5), "channels": 5, "multipliers": (1,), "blocks": 3}),
    "resnet_to_one_pixel": (
        WideResNetPotential,
        {"event_shape": (1, 8, 8), "channels": 4, "multipliers": (1, 2, 2), "blocks": 2, "patch_size": 2},
    ),
    "unet": (UNetPotential, {"event_shape": (1, 4, 4), "channels": 3, "multipliers": (1, 2), "blocks": 1}),
    "unet_patches": (
        UNetPotential,
        {"event_shape": (1, 8, 12), "channels": 3, "multipliers": (1, 1), "blocks": 2, "patch_size": 2},
    ),
    "unet_deep": (
        UNetPotential,
        {"event_shape": (3, 8, 8), "channels": 4, "multipliers": (1, 1.25, 2), "blocks": 3, "data_scale": 0.6},
    ),
}
models = pytest.mark.parametrize("name", MODELS)
dependence = pytest.mark.parametrize("time_dependent", [True, False], ids=["time", "static"])


def build(
    name: str,
    path: str = "data",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    untrained: bool = False,
    **more: Any,
) -> ImagePotential:
    """A network with every parameter drawn afresh (layers that start at zero would hide their derivatives)."""
    cls, arguments = MODELS[name]
    torch.manual_seed(seed)
    model = cls(homotopy=PATHS[path], **{**arguments, **more})
    if not untrained:
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
            nn.init.normal_(parameter, std=0.8 / fan_in**0.5 if parameter.dim() > 1 else 0.2)
    return model.to(dtype)


def points(model: ImagePotential, n: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Events, and times from one end of the path to the other."""
    generator = torch.Generator().manual_seed(seed)
    dtype, path = model.stem.weight.dtype, model.homotopy
    x = torch.randn(n, *model.event_shape, generator=generator, dtype=torch.float64)
    t = path.t0 + (path.t1 - path.t0) * torch.rand(n, generator=generator, dtype=torch.float64)
    return x.to(dtype), t.to(dtype)


def batch_for(model: ImagePotential, n: int, seed: int = 1) -> Batch:
    x, t = points(model, n, seed)
    return Batch(x, t, points(model, n, seed + 1)[0])


def autograd(
    model: ImagePotential, batch: Batch, estimator: str = "velocity", weight: Weight = "inverse_variance"
) -> tuple[EnergyLoss, dict[str, Tensor]]:
    """The loss and its gradients by double backward."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    loss = energy_loss(model, *batch, estimator, weight)
    grads = torch.autograd.grad(loss.total, list(parameters.values()), materialize_grads=True)
    return EnergyLoss(*(term.detach() for term in loss)), dict(zip(parameters, grads, strict=True))


def largest_error(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """The largest difference of a gradient, relative to the norm of the parameter's exact one (or to 1e-8 of all)."""
    assert list(found) == list(exact)
    least = 1e-8 * float(torch.stack([g.double().norm() for g in exact.values()]).norm())
    return max(
        float((found[name].double() - g.double()).norm() / g.double().norm().clamp_min(least or 1.0))
        for name, g in exact.items()
    )
