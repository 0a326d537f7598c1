"""Explicit passes are what double backward is: in float64 to rounding, whatever the network, path and loss."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from tests.support.image_zoo import MODELS, PATHS, autograd, batch_for, build, dependence, largest_error, models, points
from vapo_fast.core import extension, triton_support
from vapo_fast.engines.derivatives import gradient_and_trace
from vapo_fast.engines.explicit import ExplicitPasses, explicit_passes
from vapo_fast.engines.explicit.pointwise import Pointwise, TorchPointwise
from vapo_fast.loss import Batch, energy_loss

# Of the largest number, or of each parameter's gradient in the norm; rounding of float64, with room for sums in another
# order. float32: what is stated for gradients, against 1.5e-6 to 6e-6 found.
EXACT, FLOAT32 = 1e-12, 2e-5


def _weight(t: Tensor) -> Tensor:
    return 0.3 + t.square()


LOSSES = list(itertools.product(("velocity", "covariance"), ("inverse_variance", "uniform", _weight)))


@models
@dependence
@pytest.mark.parametrize("path", PATHS)
def test_field(name: str, time_dependent: bool, path: str) -> None:
    model = build(name, path, time_dependent=time_dependent)
    passes = explicit_passes(model)
    for n in (1, 4):
        x, t = points(model, n)
        phi, gradient = model.field(x, t)
        found_phi, found = passes.field(x, t)
        torch.testing.assert_close(found_phi, phi, rtol=EXACT, atol=EXACT * float(phi.abs().max()))
        torch.testing.assert_close(found, gradient, rtol=EXACT, atol=EXACT * float(gradient.abs().max()))
    torch.testing.assert_close(passes.field(x, 0.5)[1], model.field(x, 0.5)[1])
    if not time_dependent:
        torch.testing.assert_close(passes.field(x)[1], model.field(x)[1])


@models
@dependence
@pytest.mark.parametrize("path", PATHS)
def test_loss_and_every_gradient(name: str, time_dependent: bool, path: str) -> None:
    model = build(name, path, time_dependent=time_dependent)
    passes = explicit_passes(model)
    for k, (estimator, weight) in enumerate(LOSSES):
        batch = batch_for(model, 1 + k, seed=k)
        exact_loss, exact = autograd(model, batch, estimator, weight)
        for recompute in (False, True):
            loss, grads = passes.loss_and_grads(batch, estimator, weight, recompute=recompute)
            torch.testing.assert_close(loss, exact_loss, rtol=EXACT, atol=EXACT * float(exact_loss.quadratic))
            assert largest_error(grads, exact) < EXACT
            for parameter, g in grads.items():
                assert g.shape == model.get_parameter(parameter).shape


def test_a_weight_that_works_in_place_moves_no_point_in_time() -> None:
    model = build("unet")
    batch = batch_for(model, 3)
    exact_loss, exact = autograd(model, batch, weight=lambda t: 1.0 + t)
    loss, grads = explicit_passes(model).loss_and_grads(batch, weight=lambda t: t.add_(1.0))
    torch.testing.assert_close(loss, exact_loss, rtol=EXACT, atol=EXACT * float(exact_loss.quadratic))
    assert largest_error(grads, exact) < EXACT


@models
def test_untrained(name: str) -> None:
    """Output layers that are zero leave many gradients zero, and some not."""
    model = build(name, untrained=True)
    batch = batch_for(model, 3)
    for estimator in ("velocity", "covariance"):
        exact_loss, exact = autograd(model, batch, estimator)
        loss, grads = explicit_passes(model).loss_and_grads(batch, estimator)
        torch.testing.assert_close(loss, exact_loss)
        assert largest_error(grads, exact) < EXACT
        assert 0 < sum(bool(g.abs().max() > 0) for g in grads.values()) < len(grads)


@models
def test_frozen_parameters_have_no_gradient_and_change_no_other(name: str) -> None:
    model = build(name)
    batch = batch_for(model, 2)
    passes = explicit_passes(model)
    everything = passes.loss_and_grads(batch)[1]
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 3 == 0)
    some = passes.loss_and_grads(batch)[1]
    assert list(some) == [key for key, p in model.named_parameters() if p.requires_grad]
    for key, gradient in some.items():
        torch.testing.assert_close(gradient, everything[key])
    model.requires_grad_(False)
    loss, none = passes.loss_and_grads(batch)
    assert none == {}
    torch.testing.assert_close(loss, energy_loss(model, *batch))


@models
def test_float32(name: str) -> None:
    """Of each parameter's gradient, in the norm; the loss and the field with it."""
    exact_model, model = build(name), build(name, dtype=torch.float32)
    for mine, theirs in zip(model.parameters(), exact_model.parameters(), strict=True):
        theirs.data = mine.detach().double()
    batch = batch_for(model, 5)
    exact_batch = Batch(*(part.double() for part in batch))
    exact_loss, exact = autograd(exact_model, exact_batch)
    for recompute in (False, True):
        loss, grads = explicit_passes(model).loss_and_grads(batch, recompute=recompute)
        assert {g.dtype for g in grads.values()} == {torch.float32}
        assert largest_error(grads, exact) < FLOAT32
        assert abs(float(loss.total) - float(exact_loss.total)) < FLOAT32 * float(exact_loss.quadratic)
    gradient, exact_gradient = explicit_passes(model).field(*batch[:2])[1], exact_model.field(*exact_batch[:2])[1]
    assert float((gradient - exact_gradient).norm() / exact_gradient.norm()) < FLOAT32


@models
@pytest.mark.parametrize("estimator", ["velocity", "covariance"])
def test_finite_differences_of_the_loss(name: str, estimator: str) -> None:
    model = build(name)
    batch, passes = batch_for(model, 3), explicit_passes(model)
    grads = passes.loss_and_grads(batch, estimator)[1]
    torch.manual_seed(3)
    directions = {key: torch.randn_like(p) * p.norm() / p.numel() ** 0.5 for key, p in model.named_parameters()}
    slope, values, step = sum(float((grads[key] * d).sum().detach()) for key, d in directions.items()), [], 1e-5
    for times in (1, -2):  # a step forward, then back past the origin
        with torch.no_grad():
            for key, p in model.named_parameters():
                p.add_(times * step * directions[key])
        values.append(float(passes.loss_and_grads(batch, estimator)[0].total))
    assert slope == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-6)


@models
@dependence
def test_trace(name: str, time_dependent: bool) -> None:
    model = build(name, time_dependent=time_dependent)
    x, t = points(model, 2)
    passes = explicit_passes(model)
    probes = torch.randn(2, 3, x[0].numel(), dtype=x.dtype)
    phi, gradient, estimates = passes.field_and_trace(x, t, probes)
    exact_gradient, exact = gradient_and_trace(model, x, t, probes)
    torch.testing.assert_close(phi, model.field(x, t)[0])
    torch.testing.assert_close(gradient, exact_gradient)
    torch.testing.assert_close(estimates, exact)
    if x[0].numel() <= 64:
        torch.testing.assert_close(
            passes.field_and_trace(x, t)[2], gradient_and_trace(model, x, t, None)[1], rtol=1e-9, atol=1e-9
        )


@models
def test_rows_do_not_meet(name: str) -> None:
    """A row of a batch is what the row alone gives, to rounding; with other rows that are not numbers, too."""
    model = build(name)
    x, t = points(model, 4)
    passes = explicit_passes(model)
    gradient = passes.field(x, t)[1]
    for row in range(4):
        torch.testing.assert_close(passes.field(x[row : row + 1], t[row : row + 1])[1][0], gradient[row])
    x[1] = torch.nan
    torch.testing.assert_close(passes.field(x, t)[1][[0, 2, 3]], gradient[[0, 2, 3]])
    assert bool(passes.field(x, t)[1][1].isnan().all())


@pytest.mark.parametrize("name", ["resnet", "unet"])
def test_any_layout_of_the_batch(name: str) -> None:
    model = build(name)
    x, t = points(model, 3)
    passes = explicit_passes(model)
    expected = passes.field(x, t)[1]
    last = x.contiguous(memory_format=torch.channels_last)
    strided = torch.stack([x, x], dim=-1)[..., 0]
    for other in (last, strided, x[:1].expand_as(x)):
        torch.testing.assert_close(passes.field(other, t)[1], model.field(other, t)[1])
    torch.testing.assert_close(passes.field(strided, t)[1], expected)
    assert MODELS[name][1]["event_shape"] == tuple(expected.shape[1:])


@pytest.mark.parametrize("name", ["resnet", "unet_patches"])
@pytest.mark.parametrize("way", ["torch", "native", "triton"])
def test_every_way_between_convolutions(name: str, way: str) -> None:
    """The jobs as a whole, in whatever types the way has; the operations one by one are in test_pointwise.py."""
    device = "cuda" if way == "triton" and torch.cuda.is_available() else "cpu"
    reason = {
        "torch": None,
        "native": extension.unavailable_reason(),
        "triton": triton_support.unavailable_reason(device),
    }[way]
    if reason is not None:
        pytest.skip(reason)
    pointwise = _pointwise(way)
    for dtype in (torch.float32,) if way == "triton" else (torch.float32, torch.float64):
        model = build(name, dtype=dtype).to(device)
        batch = Batch(*(part.to(device) for part in batch_for(model, 3)))
        exact_model = build(name, dtype=torch.float64)
        exact_model.load_state_dict({key: value.cpu().double() for key, value in model.state_dict().items()})
        exact_batch = Batch(*(part.cpu().double() for part in batch))
        passes, bound = ExplicitPasses(model, pointwise), FLOAT32 if dtype == torch.float32 else EXACT
        for recompute in (False, True):
            _, exact = autograd(exact_model, exact_batch, "covariance")
            grads = passes.loss_and_grads(batch, "covariance", recompute=recompute)[1]
            assert largest_error({key: g.cpu() for key, g in grads.items()}, exact) < 2 * bound
        if dtype == torch.float32:
            reduced = passes.loss_and_grads(batch, precision="bf16")[1]
            usual = passes.loss_and_grads(batch)[1]
            flat, found = (torch.cat([g.flatten() for g in each.values()]) for each in (usual, reduced))
            assert 1e-4 < float((found - flat).norm() / flat.norm()) < 3e-2


def _pointwise(way: str) -> Pointwise:
    if way == "native":
        from vapo_fast.engines.explicit.pointwise_native import NativePointwise

        return NativePointwise()
    if way == "triton":
        from vapo_fast.engines.explicit.pointwise_triton import TritonPointwise

        return TritonPointwise()
    return TorchPointwise()
