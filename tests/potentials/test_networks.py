"""The library's networks: derivatives, gauge, time, memory format, configuration, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from vapo_fast.homotopy import DataHomotopy, LinearHomotopy
from vapo_fast.potentials import (
    GaussianMixturePotential,
    MLPPotential,
    Potential,
    UNetPotential,
    WideResNetPotential,
    potential_from_config,
)

PATH = DataHomotopy(1.0, 0.1)
SMALL: list[tuple[type[Potential], dict[str, Any]]] = [
    (MLPPotential, {"event_shape": (3,), "widths": (7, 5), "fourier_features": 3}),
    (MLPPotential, {"event_shape": (2, 2), "widths": (6,), "activation": "softplus", "fourier_features": 0}),
    (MLPPotential, {"event_shape": (1,), "widths": (4, 4), "activation": "tanh", "data_scale": 0.5}),
    (WideResNetPotential, {"event_shape": (2, 4, 4), "channels": 3, "multipliers": (1, 1.5), "blocks": 1}),
    (UNetPotential, {"event_shape": (1, 4, 4), "channels": 3, "multipliers": (1, 2), "blocks": 1}),
    (UNetPotential, {"event_shape": (1, 4, 4), "channels": 3, "multipliers": (1, 1), "blocks": 1, "patch_size": 2}),
    (WideResNetPotential, {"event_shape": (1, 6, 6), "channels": 3, "multipliers": (1,), "blocks": 1, "patch_size": 3}),
]
networks = pytest.mark.parametrize(
    ("cls", "arguments"), SMALL, ids=[f"{c.__name__}{i}" for i, (c, _) in enumerate(SMALL)]
)
dependence = pytest.mark.parametrize("time_dependent", [True, False])


def build(cls: type[Potential], arguments: dict[str, Any], seed: int = 0, **more: Any) -> Potential:
    """A network with every parameter drawn afresh: layers that start at zero would hide their derivatives."""
    torch.manual_seed(seed)
    model = cls(**{"homotopy": PATH, **arguments, **more})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def events(model: Potential, n: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, *model.event_shape, dtype=dtype)


@networks
@dependence
def test_first_and_second_derivatives(cls: type[Potential], arguments: dict[str, Any], time_dependent: bool) -> None:
    model = build(cls, arguments, time_dependent=time_dependent).double()
    x = events(model, 2).requires_grad_()
    t = torch.tensor([0.2, 3.9], dtype=torch.float64, requires_grad=True)
    inputs = (x, t) if time_dependent else (x,)
    value = (lambda x, t: model(x, t)) if time_dependent else (lambda x: model(x))
    assert torch.autograd.gradcheck(value, inputs)
    assert torch.autograd.gradgradcheck(value, inputs)


@networks
def test_training_gradient_matches_finite_differences(cls: type[Potential], arguments: dict[str, Any]) -> None:
    """d/dtheta of a function of grad_x Phi: the double backward that training rests on."""
    model = build(cls, arguments).double()
    x, t = events(model, 3), torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64)

    def objective() -> torch.Tensor:
        return model.field(x.clone().requires_grad_(), t, create_graph=True)[1].square().sum()

    objective().backward()
    direction = [torch.randn_like(p) for p in model.parameters()]
    slope = sum(
        float((p.grad * d).sum()) for p, d in zip(model.parameters(), direction, strict=True) if p.grad is not None
    )
    values, step = [], 1e-5
    for sign in (1, -2):  # +step, then back past the origin to -step
        with torch.no_grad():
            for p, d in zip(model.parameters(), direction, strict=True):
                p.add_(sign * step * d)
        values.append(float(objective().detach()))
    assert slope == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-6)


@networks
def test_untrained_potential_is_exact_for_centred_gaussian_data(
    cls: type[Potential], arguments: dict[str, Any]
) -> None:
    """The gauge starts every network at the optimum of N(0, data_scale^2 I): its field, at every noise level."""
    for path in (PATH, LinearHomotopy(1.0, 0.95)):
        model = cls(**{"homotopy": path, **arguments}).double()
        x = events(model, 5)
        t = torch.linspace(path.t0, path.t1, 5, dtype=torch.float64)
        dimension = x[0].numel()
        scale = arguments.get("data_scale", 1.0)
        exact = GaussianMixturePotential(
            torch.ones(1), torch.zeros(1, dimension), scale**2 * torch.eye(dimension, dtype=torch.float64)[None], path
        )
        torch.testing.assert_close(model.field(x, t)[1].flatten(1), exact.field(x.flatten(1), t)[1])


@networks
def test_potential_can_contract(cls: type[Potential], arguments: dict[str, Any]) -> None:
    """Ascent contracts where the Laplacian of Phi is negative: the network's own part must reach both signs."""
    signs = set()
    for seed in range(6):
        model = build(cls, arguments, seed).double()
        reference = cls(**{"homotopy": PATH, **arguments}).double()
        x = events(model, 1)

        def laplacian(potential: Potential, x: torch.Tensor = x) -> float:
            hessian = torch.autograd.functional.hessian(lambda y: potential(y.view_as(x), 1.0).sum(), x.flatten())
            return float(torch.as_tensor(hessian).trace())

        signs.add(laplacian(model) > laplacian(reference))
    assert signs == {True, False}


@networks
@dependence
def test_time_and_rows(cls: type[Potential], arguments: dict[str, Any], time_dependent: bool) -> None:
    model = build(cls, arguments, time_dependent=time_dependent)
    x = events(model, 4, torch.float32)
    t = torch.tensor([0.0, 1.0, 2.0, 4.0])
    phi, gradient = model.field(x, t)
    assert phi.shape == (4,)
    assert gradient.shape == x.shape
    assert not phi.requires_grad
    assert not gradient.requires_grad
    torch.testing.assert_close(model(x, 1.0), model(x, torch.full((4,), 1.0)))
    moved = not torch.allclose(model(x, 0.0), model(x, 2.0))
    assert moved == time_dependent
    for row in range(4):  # a row of the batch is what the row alone gives, to rounding
        alone = model.field(x[row : row + 1], t[row : row + 1])
        torch.testing.assert_close(alone[1][0], gradient[row], rtol=1e-4, atol=1e-5)
    if time_dependent:
        with pytest.raises(ValueError, match="t is required"):
            model(x)
    else:
        torch.testing.assert_close(model(x), phi)


@networks
@dependence
def test_config_round_trip(cls: type[Potential], arguments: dict[str, Any], time_dependent: bool) -> None:
    model = build(cls, arguments, time_dependent=time_dependent)
    again = potential_from_config(model.config())
    assert type(again) is cls
    assert again.config() == model.config()
    again.load_state_dict(model.state_dict())
    x = events(model, 3, torch.float32)
    assert torch.equal(again(x, 0.7), model(x, 0.7))


def test_image_networks_accept_any_memory_format() -> None:
    for cls, arguments in SMALL:
        if len(arguments["event_shape"]) != 3:
            continue
        model = build(cls, arguments)
        x = events(model, 3, torch.float32)
        strided = model.field(x, 1.0)[1]
        last = model.field(x.contiguous(memory_format=torch.channels_last), 1.0)[1]
        torch.testing.assert_close(strided, last)
        convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        assert all(c.weight.is_contiguous(memory_format=torch.channels_last) for c in convolutions)


@pytest.mark.parametrize(
    ("build_model", "error", "message"),
    [
        (
            lambda: MLPPotential((2,), PATH, fourier_features=-1),
            ValueError,
            "fourier_features must be a non-negative integer",
        ),
        (lambda: MLPPotential((2,), PATH, data_scale=0.0), ValueError, "data_scale must be a finite number > 0"),
        (lambda: UNetPotential((1, 8, 8), PATH, patch_size=3), ValueError, "multiples of 12"),
        (lambda: WideResNetPotential((1, 8, 8), PATH, multipliers=()), ValueError, "multipliers must be a non-empty"),
        (lambda: WideResNetPotential((1, 8, 8), PATH, blocks=0), ValueError, "blocks must be a positive integer"),
        (lambda: potential_from_config({"class": "Nothing"}), ValueError, "potential class must be one of"),
        (lambda: potential_from_config({"class": "MLPPotential"}), ValueError, "cannot be built"),
    ],
)
def test_bad_arguments(build_model, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        build_model()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m(torch.ones(2), 0.1), ValueError, "x must have shape"),
        (lambda m: m(torch.ones(4, 2).long(), 0.1), TypeError, "x must be a floating-point tensor"),
        (lambda m: m([[1.0, 2.0]], 0.1), TypeError, "x must be a torch.Tensor"),
    ],
)
def test_bad_calls(call, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        call(MLPPotential((2,), PATH, widths=(4,)))
