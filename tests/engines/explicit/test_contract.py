"""No graph, no side effects, weights read anew, memory, and bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.peak_memory import peak_bytes
from tests.support.image_zoo import PATHS, autograd, batch_for, build, largest_error, points
from vapo_fast.core import extension
from vapo_fast.engines.explicit import ExplicitPasses, UnlikePlainNetworkError, explicit_passes, unlike_a_plain_network
from vapo_fast.engines.explicit.convolutions import Convolutions
from vapo_fast.homotopy import DataHomotopy
from vapo_fast.loss import Batch
from vapo_fast.potentials import MLPPotential, Potential, UNetPotential, WideResNetPotential
from vapo_fast.potentials.image import ImagePotential

both = pytest.mark.parametrize("name", ["resnet", "unet"])


@both
def test_no_graph_and_no_side_effects(name: str) -> None:
    model = build(name)
    passes, batch = explicit_passes(model), batch_for(model, 3)
    kept = [part.clone() for part in batch]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = batch.x_data.clone().requires_grad_()
    results = [*passes.field(x, batch.t), *passes.field_and_trace(x, batch.t, torch.randn(3, 1, x[0].numel()).double())]
    loss, grads = passes.loss_and_grads(batch)
    for result in [*results, *loss, *grads.values()]:
        assert not result.requires_grad
        assert result.grad_fn is None
    assert x.grad is None
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(part, old) for part, old in zip(batch, kept, strict=True))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@both
def test_any_autograd_mode(name: str) -> None:
    model = build(name)
    passes, batch = explicit_passes(model), batch_for(model, 2)
    expected = passes.loss_and_grads(batch, "covariance")[1]
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            inside = batch_for(model, 2)
            assert largest_error(passes.loss_and_grads(inside, "covariance")[1], expected) == 0.0
            torch.testing.assert_close(passes.field(*inside[:2])[1], passes.field(*batch[:2])[1])
    with torch.autocast("cpu", torch.bfloat16):
        low = build(name, dtype=torch.float32)
        inside = batch_for(low, 2)
        reduced = explicit_passes(low).field(*inside[:2])[1]
    assert torch.equal(reduced, explicit_passes(low).field(*inside[:2])[1])


@both
def test_weights_are_read_anew(name: str) -> None:
    model, other = build(name), build(name, seed=5)
    passes = explicit_passes(model)
    x, t = points(model, 2)
    old = passes.field(x, t)[1]
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(passes.field(x, t)[1], other.field(x, t)[1])
    assert not torch.allclose(old, passes.field(x, t)[1])
    for parameter in model.parameters():
        parameter.data = parameter.data * 0.5
    torch.testing.assert_close(passes.field(x, t)[1], model.field(x, t)[1])
    model.float()
    torch.testing.assert_close(passes.field(x.float(), t.float())[1], model.field(x.float(), t.float())[1])


@both
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_no_rows_at_all(name: str, dtype: torch.dtype) -> None:
    model = build(name, dtype=dtype)
    passes, (x, t) = explicit_passes(model), points(model, 0)
    for found, expected in zip(passes.field(x, t), model.field(x, t), strict=True):
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
    dimension = model.event_shape[0] * model.event_shape[1] * model.event_shape[2]
    assert passes.field_and_trace(x, t)[2].shape == (0, 1)
    assert passes.field_and_trace(x, t, x.new_zeros(0, 3, dimension))[2].shape == (0, 3)
    with pytest.raises(ValueError, match="precision must be one of"):
        passes.field(x, t, "float16")


@both
def test_gradients_of_frozen_weights_are_not_computed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(name)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.stem.weight.requires_grad_(True)
    asked = []
    compute = Convolutions.weight_gradient
    monkeypatch.setattr(
        Convolutions,
        "weight_gradient",
        lambda self, layer, *maps: (asked.append(layer), compute(self, layer, *maps))[1],
    )
    assert list(explicit_passes(model).loss_and_grads(batch_for(model, 2))[1]) == ["stem.weight"]
    assert asked == [model.stem]


def test_the_same_twice() -> None:
    model = build("unet", dtype=torch.float32)
    passes, batch = explicit_passes(model), batch_for(model, 3)
    first, second = passes.loss_and_grads(batch)[1], passes.loss_and_grads(batch)[1]
    assert all(torch.equal(first[key], second[key]) for key in first)


SIZES: dict[str, tuple[type[ImagePotential], dict[str, Any]]] = {
    "resnet": (WideResNetPotential, {"channels": 16, "multipliers": (1, 2, 2), "blocks": 2}),
    "unet": (UNetPotential, {"channels": 16, "multipliers": (1, 2), "blocks": 1}),
}


@pytest.mark.parametrize("name", SIZES)
def test_memory_of_training(name: str) -> None:
    """Against double backward; without the blocks' insides less again; and as much as `bytes_per_sample` says."""
    cls, arguments = SIZES[name]
    model = cls((1, 16, 16), PATHS["data"], **arguments)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    passes, n = explicit_passes(model), 16
    batch = batch_for(model, n)
    eager = peak_bytes(lambda: autograd(model, batch))
    usual = peak_bytes(lambda: passes.loss_and_grads(batch))
    least = peak_bytes(lambda: passes.loss_and_grads(batch, recompute=True))
    assert usual <= 0.7 * eager
    # Of what lies in a block nothing is kept: found .71 and .77, and .76 and .82 with one map too many.
    assert least <= {"resnet": 0.735, "unet": 0.795}[name] * usual
    for recompute, peak in ((False, usual), (True, least)):
        assert 0.9 * peak <= n * passes.bytes_per_sample("loss_and_grads", recompute=recompute) <= 1.1 * peak
    # Maps are let go of inside a block as soon as they have been used: found 1.014 and .934, else 1.027 and .98.
    assert usual <= {"resnet": 1.02, "unet": 0.95}[name] * n * passes.bytes_per_sample("loss_and_grads")
    peak = peak_bytes(lambda: passes.field(*batch[:2]))
    assert peak <= peak_bytes(lambda: model.field(*batch[:2]))
    assert 0.9 * peak <= n * passes.bytes_per_sample("field") <= 1.1 * peak


def test_memory_of_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turned copy of each convolution; a rounded one too in bfloat16; transformed ones where the CPU filters."""
    model = UNetPotential((1, 16, 16), PATHS["data"], channels=16, multipliers=(1, 2), blocks=1)
    convolutions = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]
    numbers = sum(weight.numel() for weight in convolutions)
    filtered = [w for w in convolutions if w.shape[2] == 3 and min(w.shape[:2]) >= 16]
    passes = explicit_passes(model)
    ends = sum(weight.numel() for weight in (model.stem.weight, model.output.weight))
    # Both copies of 2 bytes each, but for the ends, which are turned in float32.
    assert passes.bytes_of_weights("bf16") == 4 * numbers
    assert ends < numbers
    if extension.unavailable_reason() is None:
        share = sum(weight.numel() for weight in filtered)
        assert passes.bytes_of_weights() == 4 * (numbers - share) + 10 * 4 * share
        wide = UNetPotential((1, 8, 8), PATHS["data"], channels=288, multipliers=(1,), blocks=1)
        assert explicit_passes(wide).bytes_of_weights() < 6 * 4 * sum(p.numel() for p in wide.parameters())
    monkeypatch.setattr(extension, "unavailable_reason", lambda: "gone")
    assert passes.bytes_of_weights() == 4 * numbers
    assert explicit_passes(model.double()).bytes_of_weights() == 8 * numbers


class _Subclass(UNetPotential):
    pass


class _OwnConv(nn.Conv2d):
    pass


def _replaced(model: ImagePotential) -> None:
    model.stem = _OwnConv(1, 3, 3, padding=1).double()


def _dilated(model: ImagePotential) -> None:
    model.stem.padding_mode = "circular"


def _shared(model: Any) -> None:
    model.down[0][0].second.weight = model.down[0][0].first.weight


def _same_module(model: Any) -> None:
    model.middle.second = model.down[1][0].second


def _without_bias(model: Any) -> None:
    model.middle.first.bias = None


def _half(model: Any) -> None:
    model.middle.first.half()


def _all_half(model: Any) -> None:
    model.half()


def _own_method(model: Any) -> None:
    model.embed = lambda position: None


def _parameter_hook(model: Any) -> None:
    model.stem.weight.register_hook(lambda g: 2 * g)


class _OwnParameter(nn.Parameter):
    pass


def _own_parameter(model: Any) -> None:
    model.stem.weight = _OwnParameter(model.stem.weight.detach())


def _parametrized(model: Any) -> None:
    nn.utils.parametrizations.weight_norm(model.stem)


def _another_block(model: Any) -> None:
    model.up[0].append(model.up[0][0])


CHANGES: list[tuple[Callable[[Any], Any], str]] = [
    (lambda m: m.middle.register_forward_hook(lambda *a: None), "middle, has hooks"),
    (lambda m: m.stem.register_forward_pre_hook(lambda *a: None), "stem, has hooks"),
    (lambda m: m.register_full_backward_hook(lambda *a: None), "has hooks"),
    (_replaced, "stem is a _OwnConv"),
    (_dilated, "stem has settings"),
    (_shared, "is also its"),
    (_same_module, "middle.second.* is also its down.1.0.second|is also its"),
    (_without_bias, "middle.first.bias changed"),
    (_half, "middle.first.weight is torch.float16|middle.first.* is torch.float16"),
    (_all_half, "the model is torch.float16"),
    (_own_method, "methods of its own"),
    (lambda m: setattr(m, "field", lambda x, t: None), "methods of its own"),
    (lambda m: setattr(m, "forward", lambda x, t: None), "methods of its own"),
    (lambda m: setattr(m, "network", lambda z, position: None), "methods of its own"),
    (lambda m: setattr(m, "patches", lambda z: z), "methods of its own"),
    (lambda m: setattr(m, "value", lambda x, t: x.sum()), "methods of its own"),
    (lambda m: setattr(m.middle, "forward", lambda x, e: x), "middle, has hooks or methods of its own"),
    (_own_parameter, "stem.weight is a _OwnParameter, whose arithmetic may be its own"),
    (_parameter_hook, "stem.weight has a hook on its gradient"),
    (_parametrized, "changed from what it was built with|stem is a Parametrized"),
    (_another_block, "changed from what it was built with"),
]


@pytest.mark.parametrize("change", CHANGES, ids=[c.__name__ + str(i) for i, (c, _) in enumerate(CHANGES)])
def test_what_is_not_plain_is_refused(change: tuple[Callable[[Any], Any], str]) -> None:
    model = build("unet")
    assert unlike_a_plain_network(model) is None
    change[0](model)
    reason = unlike_a_plain_network(model)
    assert reason is not None
    with pytest.raises(UnlikePlainNetworkError, match=change[1]):
        ExplicitPasses(model)


def test_other_potentials_are_refused() -> None:
    with pytest.raises(UnlikePlainNetworkError, match="the model is a MLPPotential"):
        explicit_passes(MLPPotential((2,), PATHS["data"]))
    with pytest.raises(UnlikePlainNetworkError, match="the model is a _Subclass"):
        explicit_passes(_Subclass((1, 4, 4), PATHS["data"], channels=2))
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 1), nn.Flatten(0))
    wrapped = Potential.from_module(module, (1, 4, 4), PATHS["data"])
    with pytest.raises(UnlikePlainNetworkError, match="the model is a ModulePotential"):
        explicit_passes(wrapped)


def test_a_global_hook_is_refused() -> None:
    model = build("unet")
    handle = nn.modules.module.register_module_forward_hook(lambda *a: None)
    try:
        assert "global module hooks" in str(unlike_a_plain_network(model))
    finally:
        handle.remove()
    assert unlike_a_plain_network(model) is None


def _x(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.float64)


BAD: list[tuple[Callable[[ExplicitPasses], Any], type[Exception], str]] = [
    (lambda e: e.field(_x(2, 1, 4), 0.1), ValueError, "x must have shape"),
    (lambda e: e.field([1.0], 0.1), TypeError, "x must be a torch.Tensor"),  # type: ignore[arg-type]
    (lambda e: e.field(_x(2, 1, 4, 4).float(), 0.1), TypeError, "x has dtype torch.float32 but the model"),
    (lambda e: e.field(_x(2, 1, 4, 4).to("meta"), 0.1), ValueError, "x is on meta"),
    (lambda e: e.field(_x(2, 1, 4, 4)), ValueError, "t is required"),
    (lambda e: e.field(_x(2, 1, 4, 4), _x(3)), ValueError, "t must be a number or have shape"),
    (lambda e: e.field(_x(2, 1, 4, 4), 0.1, "float16"), ValueError, "precision must be one of"),
    (lambda e: e.field(_x(2, 1, 4, 4), 0.1, "bf16"), ValueError, "does not go with a model in float64"),
    (lambda e: e.field(_x(2, 1, 4, 4), 0.1, "float32"), ValueError, "does not go with a model in float64"),
    (lambda e: e.field_and_trace(_x(2, 1, 4, 4), 0.1, _x(2, 16)), ValueError, "probes must have shape"),
    (lambda e: e.field_and_trace(_x(2, 1, 4, 4), 0.1, _x(2, 1, 16).float()), TypeError, "probes has dtype"),
    (lambda e: e.loss_and_grads(Batch(_x(0, 1, 4, 4), _x(0), _x(0, 1, 4, 4))), ValueError, "empty batch"),
    (lambda e: e.loss_and_grads(Batch(_x(2, 1, 4, 4), _x(2), _x(1, 1, 4, 4))), ValueError, "noise must have the shape"),
    (lambda e: e.loss_and_grads(Batch(_x(2, 1, 4, 4), _x(2), _x(2, 1, 4, 4).float())), TypeError, "noise has dtype"),
    (lambda e: e.loss_and_grads(batch_for(e.potential, 2), "both"), ValueError, "estimator must be one of"),
    (lambda e: e.loss_and_grads(batch_for(e.potential, 2), weight="none"), ValueError, "weight must be one of"),
    (
        lambda e: e.loss_and_grads(batch_for(e.potential, 2), weight=lambda t: 1.0),
        ValueError,
        "weight\\(t\\) must return",
    ),  # type: ignore[arg-type,return-value]
    (lambda e: e.bytes_per_sample("solve"), ValueError, "job must be one of"),
]


@pytest.mark.parametrize("case", BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_calls(case: tuple[Callable[[ExplicitPasses], Any], type[Exception], str]) -> None:
    call, error, message = case
    with pytest.raises(error, match=message):
        call(explicit_passes(build("unet")))


def test_tf32_is_for_cuda() -> None:
    model = build("unet", dtype=torch.float32)
    if model.stem.weight.device.type == "cpu":
        with pytest.raises(ValueError, match="precision='tf32' is CUDA's"):
            explicit_passes(model).field(*points(model, 2), "tf32")
    with pytest.raises(ValueError, match="does not go with a model in float32"):
        explicit_passes(model).field(*points(model, 2), "float64")


class _AllRounded(ExplicitPasses):
    """Without the exception for the first and the last layer."""

    def _convolutions(self, precision: str) -> Convolutions:
        return Convolutions(self._dtype(precision), (), self._winograd)


@both
def test_bf16_keeps_the_ends_of_the_network_exact(name: str) -> None:
    """Where it matters most, late in the path: docs/explicit_passes.md has what that is worth in trained networks."""
    shares = []
    for seed in range(3):
        model = build(name, seed=seed, dtype=torch.float32)
        model.homotopy = DataHomotopy(1.0, 0.02)
        x, t = points(model, 16, seed)[0], model.homotopy.t1
        exact = build(name, seed=seed)
        exact.homotopy = model.homotopy
        expected = exact.field(x.double(), t)[1]
        ours, rounded = (
            (kind(model).field(x, t, "bf16")[1] - expected).norm() for kind in (ExplicitPasses, _AllRounded)
        )
        shares.append(float(ours / rounded))
    assert max(shares) < 1.0
    assert sum(shares) / 3 < 0.93
    passes = explicit_passes(model)
    kept = {passes._convolutions("bf16").dtype(layer) for layer in (model.stem, model.output)}  # type: ignore[arg-type]
    assert kept == {torch.float32}


@both
def test_bf16(name: str) -> None:
    """Convolutions of 8 bits: results in float32, and as near as 8 bits are, for each of the jobs."""
    model = build(name, dtype=torch.float32)
    passes, batch = explicit_passes(model), batch_for(model, 6)
    gradient, reduced = passes.field(*batch[:2])[1], passes.field(*batch[:2], "bf16")[1]
    assert reduced.dtype == torch.float32
    error = float((reduced - gradient).norm() / gradient.norm())
    assert 1e-5 < error < 2e-2
    exact = passes.loss_and_grads(batch)[1]
    for recompute in (False, True):
        grads = passes.loss_and_grads(batch, precision="bf16", recompute=recompute)[1]
        assert {g.dtype for g in grads.values()} == {torch.float32}
        flat, found = (torch.cat([g.flatten() for g in each.values()]) for each in (exact, grads))
        assert 1e-4 < float((found - flat).norm() / flat.norm()) < 3e-2
