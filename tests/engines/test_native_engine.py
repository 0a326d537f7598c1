"""The native engine: what it takes and refuses, its copy of the weights, and what users call.

That its numbers are right is for tests/conformance; here every instruction set is held to the chosen one's numbers.
"""

import copy
import gc
import math
import pickle
import weakref

import pytest
import torch
from torch import nn

import vapo_fast as vf
from tests.engines.native_models import PATH, REFERENCE, Own, batch, job, mlp
from vapo_fast.core import extension
from vapo_fast.engines import (
    ENVIRONMENT_VARIABLE,
    LossOptions,
    UnsupportedJobError,
    choose,
)
from vapo_fast.engines.native import NATIVE, NativeEngine
from vapo_fast.homotopy import DataHomotopy, LinearHomotopy
from vapo_fast.ode import SolveOptions

pytestmark = pytest.mark.skipif(extension.unavailable_reason() is not None, reason=str(extension.unavailable_reason()))

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.delenv("VAPO_FAST_INSTRUCTION_SET", raising=False)


def test_auto_takes_it_for_every_job_of_an_mlp():
    for kind in ("field", "solve", "solve_with_trace", "loss_and_grads"):
        assert choose("auto", mlp(), CPU, torch.float32, job(kind)).name == "native"
    assert vf.engines()["native"] == "usable"
    assert vf.sample(mlp(), 3, return_solution=True).engine == "native"
    assert vf.Trainer(mlp()).engine.name == "native"


@pytest.mark.parametrize("path", [PATH, LinearHomotopy(0.7, 0.9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("time_dependent", [True, False])
def test_it_takes(path, dtype, time_dependent):
    model = mlp(dtype, path, time_dependent=time_dependent)
    for options in (
        {},
        {"precision": extension.DTYPE_NAMES[dtype]},
        {"loss": LossOptions("covariance", torch.ones_like)},
    ):
        assert NATIVE.supports(model, CPU, dtype, job("loss_and_grads", **options)) is None


class OwnPath(DataHomotopy):
    pass


def changed(change):
    model = mlp()
    change(model)
    return model


def frozen_in(dtype):
    def change(model):
        model.hidden[1].to(dtype)

    return change


def set_attribute(name, value):
    return lambda model: setattr(model, name, value)


REFUSALS = [
    (Own((2,), PATH, (16,)), "the model is a Own; .* not those of subclasses"),
    (mlp(path=OwnPath(1.0, 0.1)), "the path is a OwnPath"),
    (
        vf.WideResNetPotential((1, 4, 4), PATH, channels=4, multipliers=(1,), blocks=1),
        "the model is a WideResNetPotential",
    ),
    (
        vf.Potential.from_module(nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)), (2,), PATH),
        "the model is a ModulePotential",
    ),
    (changed(lambda m: nn.utils.parametrizations.weight_norm(m.hidden[0])), "hidden.0 is a ParametrizedLinear"),
    (changed(lambda m: m.register_forward_hook(lambda *a: None)), "the model has hooks or methods of its own"),
    (changed(lambda m: m.hidden[1].register_forward_pre_hook(lambda *a: None)), "in hidden.1, has hooks"),
    (changed(lambda m: m.output.register_full_backward_hook(lambda *a: None)), "in output, has hooks"),
    (changed(set_attribute("value", lambda x, t: x.sum(1))), "the model has hooks or methods of its own"),
    (changed(set_attribute("field", lambda x, t: None)), "the model has hooks or methods of its own"),
    (changed(set_attribute("output", nn.Sequential(nn.Linear(24, 1)))), "output is a Sequential"),
    (changed(lambda m: m.hidden.append(nn.Linear(24, 24))), "has 3 hidden layers, its widths say 2"),
    (changed(lambda m: m.hidden.__setitem__(0, nn.Linear(3, 16, bias=False))), "hidden.0.bias changed"),
    (changed(lambda m: m.hidden.__setitem__(0, nn.Linear(4, 16))), r"hidden.0.weight has shape \(16, 4\)"),
    (changed(set_attribute("widths", (16,) * 65)), "the model has 65 hidden layers; this engine takes 64"),
    (changed(set_attribute("widths", (1 << 21,))), "a layer of 2097152 units; this engine takes 1048576"),
    (
        changed(set_attribute("activation", "relu")),
        "the model's activation is 'relu'; this engine knows silu, softplus",
    ),
    (changed(frozen_in(torch.float64)), "hidden.1.weight is torch.float64 on cpu, not torch.float32"),
]


@pytest.mark.parametrize(("model", "reason"), REFUSALS, ids=[reason for _, reason in REFUSALS])
def test_it_refuses_what_its_formulas_do_not_cover(model, reason):
    with pytest.raises(UnsupportedJobError, match=f"engine='native' cannot do this 'field' job: .*{reason}"):
        choose("native", model, CPU, torch.float32, job("field"))
    expected = "graph" if isinstance(model, vf.WideResNetPotential) else "reference"
    assert choose("auto", model, CPU, torch.float32, job("field")).name == expected


@pytest.mark.parametrize(
    ("device", "dtype", "asked", "reason"),
    [
        ("cuda", torch.float32, job(), "the model is on cuda; this engine runs on the CPU"),
        ("meta", torch.float32, job(), "the model is on meta"),
        ("cpu", torch.bfloat16, job(), "dtype is torch.bfloat16"),
        ("cpu", torch.float32, job(precision="tf32"), "precision='tf32' is not the model's own, float32"),
        ("cpu", torch.float64, job(precision="float32"), "precision='float32' is not the model's own, float64"),
        (
            "cpu",
            torch.float32,
            job("loss_and_grads", loss=LossOptions("covariance", baseline=lambda x, t: t)),
            "a baseline is a function of the user's own",
        ),
    ],
)
def test_it_refuses_devices_dtypes_and_options(device, dtype, asked, reason):
    assert reason in NATIVE.supports(mlp().to(dtype), torch.device(device), dtype, asked)


def test_a_hook_on_a_gradient_is_for_the_reference():
    model = mlp()
    model.hidden[0].bias.register_hook(lambda grad: 0 * grad)
    assert "hidden.0.bias has a hook" in NATIVE.supports(model, CPU, torch.float32, job("loss_and_grads"))
    assert NATIVE.supports(model, CPU, torch.float32, job("solve")) is None


@pytest.mark.parametrize("shared", ["weight", "layer"])
def test_shared_parameters_are_trained_by_the_reference(shared):
    """The gradient of a parameter that stands in two places is the sum over both."""
    model = vf.MLPPotential((2,), PATH, widths=(16, 16, 16))
    if shared == "weight":
        model.hidden[2].weight = model.hidden[1].weight
    else:
        model.hidden[2] = model.hidden[1]
    reason = NATIVE.supports(model, CPU, torch.float32, job("loss_and_grads"))
    assert "hidden.2.weight is also its hidden.1.weight" in reason
    assert NATIVE.supports(model, CPU, torch.float32, job("solve")) is None
    assert vf.Trainer(model).engine.name == "reference"


def test_a_fit_asks_anew_whether_the_engine_will_do():
    data = torch.zeros(8, 2)
    for asked in ("auto", "native"):
        model = mlp()
        trainer = vf.Trainer(model, batch_size=8, engine=asked)
        trainer.fit(data, 1)
        assert trainer.engine is NATIVE
        called = []
        model.hidden[0].bias.register_hook(called.append)
        if asked == "auto":
            trainer.fit(data, 1)
            assert trainer.engine.name == "reference"
            assert len(called) == 1
        else:
            with pytest.raises(UnsupportedJobError, match=r"hidden.0.bias has a hook"):
                trainer.fit(data, 1)
            assert trainer.step == 1


def test_no_rows():
    model, none = mlp(), torch.empty(0, 2)
    phi, gradient = NATIVE.field(model, none, torch.empty(0))
    assert phi.shape == (0,)
    assert gradient.shape == (0, 2)
    assert NATIVE.solve(model, none, 0.0, 1.0, job()).x.shape == (0, 2)
    solution, integrals = NATIVE.solve_with_trace(model, none, 1.0, 0.0, job("solve_with_trace"), None)
    assert solution.x.shape == (0, 2)
    assert integrals.shape == (0, 1)


def test_global_hooks_are_for_the_reference():
    handle = nn.modules.module.register_module_forward_hook(lambda *a: None)
    try:
        assert "global module hooks" in NATIVE.supports(mlp(), CPU, torch.float32, job())
    finally:
        handle.remove()
    assert NATIVE.supports(mlp(), CPU, torch.float32, job()) is None


def numbers(engine, model):
    dtype = model.output.weight.dtype
    part = batch(dtype, 50)
    found = list(engine.field(model, part.x_data, part.t))
    solution = engine.solve(model, part.x_data, 0.0, 1.0, job(solve=SolveOptions("tsit5", rtol=1e-6, t_eval=(0.5,))))
    found += [solution.x, solution.ys]
    for probes in (None, part.noise.repeat(1, 3).reshape(50, 3, 2)):
        traced = engine.solve_with_trace(model, part.x_data, 0.5, 0.3, job(solve=SolveOptions("heun", steps=2)), probes)
        found += [traced[0].x, traced[1]]
    for estimator in ("velocity", "covariance"):
        result = engine.loss_and_grads(model, part, job("loss_and_grads", loss=LossOptions(estimator)))
        found += [*result.loss, *result.grads.values()]
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", ["silu", "softplus", "tanh"])
def test_instruction_sets_agree(activation, dtype, monkeypatch):
    model = mlp(dtype, activation=activation, fourier_features=3)
    expected = numbers(REFERENCE, mlp(torch.float64, activation=activation, fourier_features=3))
    tolerance = {torch.float32: 2e-4, torch.float64: 1e-10}[dtype]
    for name in extension.instruction_sets():
        monkeypatch.setenv("VAPO_FAST_INSTRUCTION_SET", name)
        engine = NativeEngine()
        assert engine._mlp(model).instruction_set == name
        for i, (ours, theirs) in enumerate(zip(numbers(engine, model), expected, strict=True)):
            scale = 1.0 + float(theirs.abs().max())
            assert float((ours.double() - theirs.double()).abs().max()) < tolerance * scale, (name, i)


def test_an_instruction_set_that_is_not_here_is_an_error(monkeypatch):
    monkeypatch.setenv("VAPO_FAST_INSTRUCTION_SET", "avx1024")
    with pytest.raises(ValueError, match="VAPO_FAST_INSTRUCTION_SET names none: 'avx1024'; usable here: baseline"):
        vf.sample(mlp(), 2)


def test_tensors_with_gaps_are_read_right():
    model = mlp()
    model.hidden[1].weight.data = torch.randn(16, 48)[:, ::2].T
    model.output.weight.data = torch.randn(1, 48)[:, ::2]
    assert not model.hidden[1].weight.is_contiguous()
    x, t = torch.randn(2, 9).T, torch.linspace(0.0, 4.0, 18)[::2]
    for ours, theirs in zip(NATIVE.field(model, x, t), REFERENCE.field(model, x, t), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    start = torch.randn(9, 2)
    one_time = torch.tensor(1.5).expand(9)
    assert torch.equal(NATIVE.field(model, start, one_time)[0], NATIVE.field(model, start, one_time.clone())[0])


def test_a_changed_potential_gets_a_new_twin():
    model = mlp()
    x, t = torch.randn(5, 2), torch.full((5,), 0.5)
    for change in (
        lambda: setattr(model, "data_scale", 2.0),
        lambda: setattr(model, "homotopy", LinearHomotopy(1.0, 0.9)),
        lambda: setattr(model, "activation", "tanh"),
        lambda: model.double(),
    ):
        NATIVE.field(model, x.to(model.output.weight.dtype), t.to(model.output.weight.dtype))
        change()
        dtype = model.output.weight.dtype
        ours, theirs = (engine.field(model, x.to(dtype), t.to(dtype))[1] for engine in (NATIVE, REFERENCE))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_copy_has_a_twin_of_its_own():
    model = mlp()
    x, t = torch.randn(5, 2), torch.full((5,), 0.5)
    before = NATIVE.field(model, x, t)[0]
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.output.weight.mul_(3.0)
    assert not torch.equal(NATIVE.field(twin, x, t)[0], before)
    assert torch.equal(NATIVE.field(model, x, t)[0], before)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda trainer: pickle.loads(pickle.dumps(trainer))])
def test_a_trainer_is_copied_with_the_registered_engine(again):
    """What the engine keeps of a potential, after a fit, cannot be copied and need not be."""
    data = torch.randn(50, 2)
    trainer = vf.Trainer(mlp(), batch_size=16, engine="native")
    trainer.fit(data, 2)
    twin = again(trainer)
    assert twin.engine is NATIVE
    for each in (trainer, twin):
        each.fit(data, 3)
    for ours, theirs in zip(twin.model.parameters(), trainer.model.parameters(), strict=True):
        assert ours is not theirs
        assert torch.equal(ours, theirs)


def test_a_potential_that_is_gone_is_forgotten():
    engine, model = NativeEngine(), mlp()
    engine.field(model, torch.ones(1, 2), torch.ones(1))
    assert len(engine._packed) == 1
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert len(engine._packed) == 0


def test_weights_are_packed_once():
    model = mlp()
    twin = NATIVE._mlp(model)
    layers = [layer.weight.detach().numpy() for layer in model.hidden], [x.bias.detach().numpy() for x in model.hidden]
    rest = model.output.weight.detach().numpy()[0], model.frequencies.numpy()
    assert twin.load(*layers, *rest) is False
    model.hidden[0].bias.data[3] += 1e-6
    assert twin.load(*layers, *rest) is True


def test_weights_that_are_not_finite():
    model = mlp()
    model.hidden[1].weight.data[2, 3] = math.nan
    with pytest.raises(ValueError, match=r"weights\[1\] has NaN or infinite values"):
        NATIVE.field(model, torch.ones(1, 2), torch.ones(1))
    result = NATIVE.loss_and_grads(model, batch(), job("loss_and_grads"))
    assert math.isnan(result.loss.total)
    assert result.grads.keys() == dict(model.named_parameters()).keys()
    model.hidden[1].weight.data[2, 3] = 0.0
    assert math.isfinite(NATIVE.loss_and_grads(model, batch(), job("loss_and_grads")).loss.total)


def test_log_density_and_field_are_left_alone():
    model = mlp()
    x = torch.randn(4, 2, requires_grad=True)
    vf.sample(model, 3)
    vf.log_density(model, x).sum().backward()
    assert x.grad is not None
    phi, gradient = model.field(x.detach().requires_grad_(), 1.0, create_graph=True)
    assert gradient.requires_grad
    assert phi.requires_grad


def test_progress_bar_of_sample(capsys):
    vf.sample(mlp(), 10, batch_size=4, progress=True, engine="native")
    assert "10/10" in capsys.readouterr().out


def test_progress_bar_of_log_likelihood(capsys):
    vf.log_likelihood(mlp(), torch.randn(10, 2), batch_size=4, progress=True, engine="native")
    out = capsys.readouterr().out
    assert "log-likelihood" in out
    assert "10/10" in out


def test_inference_mode():
    with torch.inference_mode():
        model = mlp()
        x = vf.sample(model, 5)
    assert x.shape == (5, 2)
    assert bool(torch.isfinite(x).all())


def test_tolerances_and_times_are_checked():
    with pytest.raises(ValueError, match="both below"):
        vf.sample(mlp(), 2, rtol=1e-9, engine="native")
    with pytest.raises(ValueError, match="t_eval must be ordered"):
        NATIVE.solve(mlp(), torch.ones(1, 2), 0.0, 1.0, job(solve=SolveOptions(t_eval=(0.5, 0.2))))


def test_memory_is_told_not_tried(monkeypatch):
    from vapo_fast.sampling import batching

    monkeypatch.setattr(batching, "saved_bytes_per_sample", None)  # would fail if called
    model = mlp()
    solve = NATIVE.bytes_per_sample(model, torch.float32, job())
    assert 2 * 2 * 4 <= solve < 1000
    with_times = NATIVE.bytes_per_sample(model, torch.float32, job(solve=SolveOptions(t_eval=(1.0,) * 100)))
    assert with_times >= solve + 100 * 2 * 4
    assert NATIVE.bytes_per_sample(model, torch.float32, job("solve_with_trace"), 16) > 16 * 2 * 8
    vf.sample(model, 3)
    vf.log_likelihood(model, torch.randn(3, 2), trace="hutchinson")
