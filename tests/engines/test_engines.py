"""The engine contract: which engines there are, who is chosen, what is refused and why; and the reference's jobs."""

import math
import pickle

import pytest
import torch

from vapo_fast import noise
from vapo_fast.engines import (
    ENVIRONMENT_VARIABLE,
    Batch,
    Engine,
    Job,
    LossOptions,
    ReferenceEngine,
    UnsupportedJobError,
    base,
    choose,
    engines,
    register,
)
from vapo_fast.engines.composed import ComposedEngine
from vapo_fast.engines.derivatives import AutogradDerivatives, gradient_and_trace
from vapo_fast.engines.stepper import integrate
from vapo_fast.homotopy import DataHomotopy
from vapo_fast.loss import energy_loss
from vapo_fast.ode import SolveOptions
from vapo_fast.potentials import MLPPotential, Potential
from vapo_fast.sampling.sample import sample

PATH = DataHomotopy(1.0, 0.1)
CPU = torch.device("cpu")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MLPPotential((3,), PATH, widths=(16, 16)).double()


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)


def test_engines_tell_what_is_usable():
    told = engines()
    assert list(told) == ["triton", "graph", "native", "reference"]
    assert told["reference"] == "usable"
    for name, text in told.items():
        assert text == "usable" or len(text) > 10, name
        assert "\n" not in text


def test_auto_falls_back_to_the_reference_for_any_module():
    class Quadratic(torch.nn.Module):
        def forward(self, x):
            return -0.5 * x.flatten(1).square().sum(1)

    model = Potential.from_module(Quadratic(), (2, 2), PATH)
    assert choose("auto", model, CPU, torch.float64, Job("loss_and_grads")).name == "reference"


class Elsewhere(ReferenceEngine):
    """An engine that this machine has not got."""

    name = "elsewhere"
    priority = 50

    def available(self):
        return "no such device"


class FieldsOnly(ReferenceEngine):
    name = "fields"
    priority = 20

    def supports(self, potential, device, dtype, job):
        return None if job.kind == "field" else "fields only"


@pytest.fixture
def registry(monkeypatch):
    """A registry with the reference alone."""
    monkeypatch.setattr(base, "_REGISTRY", {"reference": ReferenceEngine()})


def test_a_named_engine_is_never_replaced(model, registry):
    register(Elsewhere())
    with pytest.raises(UnsupportedJobError, match=r"engine='elsewhere' cannot do this 'solve' job: no such device"):
        choose("elsewhere", model, CPU, torch.float64, Job("solve"))
    assert choose("auto", model, CPU, torch.float64, Job("solve")).name == "reference"


def test_environment_takes_the_place_of_auto(model, registry, monkeypatch):
    register(Elsewhere())
    monkeypatch.setenv("VAPO_FAST_ENGINE", "elsewhere")
    with pytest.raises(UnsupportedJobError, match=r"VAPO_FAST_ENGINE=elsewhere cannot do this 'field' job"):
        choose("auto", model, CPU, torch.float64, Job("field"))
    assert choose("reference", model, CPU, torch.float64, Job("field")).name == "reference"
    monkeypatch.setenv("VAPO_FAST_ENGINE", "fastest")
    with pytest.raises(ValueError, match="VAPO_FAST_ENGINE must be one of"):
        choose("auto", model, CPU, torch.float64, Job("field"))


def test_auto_takes_the_first_that_supports_the_job(model, registry):
    register(FieldsOnly())
    assert choose("auto", model, CPU, torch.float64, Job("field")).name == "fields"
    assert choose("auto", model, CPU, torch.float64, Job("solve")).name == "reference"
    with pytest.raises(UnsupportedJobError, match="engine='fields' cannot do this 'solve' job: fields only"):
        choose("fields", model, CPU, torch.float64, Job("solve"))


def test_a_program_registers_an_engine_of_its_own(model, registry):
    """Anything with the contract's methods, by its name and priority; here a pair of parts of the library."""
    mine = ComposedEngine("mine", AutogradDerivatives, integrate)
    register(mine)
    register(Elsewhere())
    register(FieldsOnly())
    assert engines() == {
        "elsewhere": "no such device", "fields": "usable", "reference": "usable", "mine": "usable",
    }  # fmt: skip
    assert choose("mine", model, CPU, torch.float64, Job("solve")) is mine
    # Below the reference, which can do all that it can.
    assert choose("auto", model, CPU, torch.float64, Job("solve")).name == "reference"
    mine.priority = 30
    assert choose("auto", model, CPU, torch.float64, Job("solve")) is mine
    samples = [sample(model, 3, rtol=1e-3, return_solution=True, engine=name) for name in ("mine", "reference")]
    assert [solution.engine for solution in samples] == ["mine", "reference"]
    assert torch.equal(samples[0].x, samples[1].x)
    assert pickle.loads(pickle.dumps(mine)) is mine


def test_an_engine_takes_the_place_of_one_of_its_name(model, registry):
    class Other(ReferenceEngine):
        pass

    register(Other())
    assert isinstance(choose("auto", model, CPU, torch.float64, Job("field")), Other)
    with pytest.raises(ValueError, match="must not be called 'auto'"):
        register(ComposedEngine("auto", AutogradDerivatives, integrate))


@pytest.mark.parametrize(
    ("name", "dtype", "precision", "message"),
    [
        (
            "auto",
            torch.float64,
            "float32",
            r"no engine can do this 'solve' job: .*reference: precision='float32' is not",
        ),
        ("reference", torch.float32, "bf16", "precision='bf16' is not the model's own, float32"),
        ("reference", torch.float32, "tf32", "precision='tf32'"),
        ("reference", torch.bfloat16, "auto", "the model's dtype is torch.bfloat16"),
    ],
)
def test_refusals_give_the_reason(model, name, dtype, precision, message):
    with pytest.raises(UnsupportedJobError, match=message):
        choose(name, model, CPU, dtype, Job("solve", precision))


def test_unknown_names(model):
    with pytest.raises(ValueError, match=r"engine must be one of 'auto', 'triton'.*got 'cuda'"):
        choose("cuda", model, CPU, torch.float64, Job("solve"))
    with pytest.raises(ValueError, match=r"precision must be one of .*got 'fp8'"):
        Job("solve", "fp8")


def test_an_engine_without_second_derivatives_says_so(model):
    class First(ReferenceEngine):
        name = "native"
        solve_with_trace = Engine.solve_with_trace

    with pytest.raises(UnsupportedJobError, match="'native' has no second derivatives"):
        First().solve_with_trace(model, torch.ones(1, 3), 0.0, 1.0, Job("solve_with_trace"), None)


def test_reference_field_and_solve(model):
    engine = choose("reference", model, CPU, torch.float64, Job("solve"))
    x, t = noise.normal(0, range(5), (3,), dtype=torch.float64), torch.full((5,), 1.0, dtype=torch.float64)
    phi, gradient = engine.field(model, x, t)
    assert torch.equal(phi, model(x, t).detach())
    step = 1e-6
    for axis in range(3):
        shift = step * torch.eye(3, dtype=torch.float64)[axis]
        torch.testing.assert_close(
            gradient[:, axis], (model(x + shift, t) - model(x - shift, t)).detach() / (2 * step), rtol=1e-6, atol=1e-7
        )
    solution = engine.solve(model, x, 0.0, PATH.t1, Job("solve", solve=SolveOptions("rk4", steps=7)))
    assert (solution.engine, solution.precision) == ("reference", "float64")
    assert solution.nfe.tolist() == [28] * 5


def test_reference_loss_and_grads_are_autograds(model):
    batch = Batch(
        noise.normal(1, range(6), (3,), dtype=torch.float64),
        torch.linspace(0.1, 4.0, 6, dtype=torch.float64),
        noise.normal(2, range(6), (3,), dtype=torch.float64),
    )
    job = Job("loss_and_grads", loss=LossOptions(weight="uniform"))
    result = choose("reference", model, CPU, torch.float64, job).loss_and_grads(model, batch, job)
    expected = energy_loss(model, *batch, weight="uniform")
    expected.total.backward()
    assert torch.equal(result.loss.total, expected.total.detach())
    assert not result.loss.total.requires_grad
    assert set(result.grads) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(result.grads[name], wanted, rtol=1e-12, atol=1e-12)


def test_reference_leaves_frozen_parameters_out(model):
    next(model.parameters()).requires_grad_(False)
    x = torch.ones(2, 3, dtype=torch.float64)
    job = Job("loss_and_grads")
    grads = ReferenceEngine().loss_and_grads(model, Batch(x, torch.ones(2).double(), x), job).grads
    assert set(grads) == {name for name, p in model.named_parameters() if p.requires_grad}


def test_traces_match_the_hessian(model):
    x, t = noise.normal(3, range(4), (3,), dtype=torch.float64), torch.linspace(0.0, 4.0, 4, dtype=torch.float64)
    hessians = torch.stack(
        [torch.autograd.functional.hessian(lambda y, i=i: model(y[None], t[i : i + 1])[0], x[i]) for i in range(4)]
    )
    gradient, trace = gradient_and_trace(model, x, t, None)
    torch.testing.assert_close(trace[:, 0], hessians.diagonal(dim1=1, dim2=2).sum(1), rtol=1e-10, atol=1e-12)
    assert torch.equal(gradient, model.field(x, t)[1])
    probes = noise.normal(4, range(4), (5, 3), dtype=torch.float64)
    _, estimates = gradient_and_trace(model, x, t, probes)
    torch.testing.assert_close(
        estimates, torch.einsum("bmi,bij,bmj->bm", probes, hessians, probes), rtol=1e-10, atol=1e-12
    )


def test_trace_of_a_linear_potential_is_zero():
    class Linear(torch.nn.Module):
        def forward(self, x):
            return x @ torch.ones(2, dtype=x.dtype)

    model = Potential.from_module(Linear(), (2,), PATH)
    for probes in (None, torch.ones(3, 4, 2)):
        _, trace = gradient_and_trace(model, torch.ones(3, 2), torch.ones(3), probes)
        assert torch.equal(trace, torch.zeros(3, 1 if probes is None else 4))


def test_solve_with_trace_integrates_both():
    """Phi = -|x|^2/2 has Laplacian -D, so the integral over a time of 2 is -2 D."""

    class Quadratic(torch.nn.Module):
        def forward(self, x):
            return -0.5 * x.flatten(1).square().sum(1)

    model = Potential.from_module(Quadratic(), (2, 2), PATH)
    x0 = noise.normal(0, range(3), (2, 2), dtype=torch.float64)
    job = Job("solve_with_trace", solve=SolveOptions(rtol=1e-9, t_eval=(1.0, 2.0)))
    solution, integrals = ReferenceEngine().solve_with_trace(model, x0, 0.0, 2.0, job, None)
    torch.testing.assert_close(solution.x, x0 * math.exp(-2.0), rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(integrals, torch.full((3, 1), -8.0, dtype=torch.float64), rtol=1e-9, atol=0)
    torch.testing.assert_close(solution.ys[0], x0 * math.exp(-1.0), rtol=1e-6, atol=1e-7)
