"""The engine's loss as a differentiable function: once, and for parameters only."""

from contextlib import nullcontext

import pytest
import torch

from tests.support.zoo import Network, states, times
from vapo_fast.engines import Batch, Job, LossOptions, ReferenceEngine
from vapo_fast.engines.energy_loss import energy_loss_of
from vapo_fast.engines.precision import RoundingNoise
from vapo_fast.engines.triton import TritonEngine
from vapo_fast.loss import energy_loss
from vapo_fast.ode import SolveOptions

NETWORK = Network(2, (7,))


@pytest.fixture
def engine(device):
    return TritonEngine(device.type)


@pytest.fixture
def case(device):
    model = NETWORK.build(torch.float32).to(device)
    t = times(9, model.homotopy, torch.float32)[2:].to(device)
    return model, states(7, 2, torch.float32, 1).to(device), t, states(7, 2, torch.float32, 2).to(device)


def test_backward_fills_the_gradients(engine, case):
    model, *batch = case
    loss = energy_loss_of(engine, model, *batch, "covariance", "uniform")
    (3.0 * loss.total).backward()
    expected = ReferenceEngine().loss_and_grads(
        model, Batch(*batch), Job("loss_and_grads", loss=LossOptions("covariance", "uniform"))
    )
    torch.testing.assert_close(loss.total.detach(), expected.loss.total, rtol=1e-4, atol=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, 3.0 * expected.grads[name], rtol=1e-4, atol=1e-4)


def test_a_second_derivative_raises(engine, case):
    model, *batch = case
    loss = energy_loss_of(engine, model, *batch)
    assert not loss.linear.requires_grad
    assert not loss.quadratic.requires_grad
    grads = torch.autograd.grad(loss.total, list(model.parameters()), create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(sum(grad.sum() for grad in grads), list(model.parameters()))


def test_points_are_no_parameters(engine, case):
    model, x_data, t, noise = case
    with pytest.raises(ValueError, match="noise requires grad"):
        energy_loss_of(engine, model, x_data, t, noise.requires_grad_())
    assert energy_loss(model, x_data, t, noise).total.requires_grad


def test_each_job_has_packed_weights_of_its_own(engine, case):
    """On another stream a job may still read them when the next one begins."""
    model = case[0]
    jobs = [engine._load(model, "float32")[0] for _ in range(3)]
    assert len({job.packed.data_ptr() for job in jobs}) == 3
    kept = jobs[0].packed.clone()
    with torch.no_grad():
        model.output.weight.add_(1.0)
    new = engine._load(model, "float32")[0]
    assert all(torch.equal(job.packed, kept) for job in jobs)
    assert not torch.equal(new.packed, kept)
    assert new.net is jobs[0].net


def test_new_weights_are_seen(engine, case):
    """Weights change between two calls in the ways that programs change them."""
    model, x_data, t, _noise = case
    other = NETWORK.build(torch.float32, gain=0.3).to(x_data.device)

    def in_place():
        with torch.no_grad():
            model.hidden[0].weight.mul_(1.5)

    def replaced():
        model.hidden[0].bias = torch.nn.Parameter(model.hidden[0].bias.detach() + 0.25)

    def through_data():
        model.output.weight.data[0, 3] += 1.0

    def loaded():
        model.load_state_dict(other.state_dict())

    def another_scale():
        model.data_scale = 0.5

    before = engine.field(model, x_data, t)[1]
    for change in (in_place, replaced, through_data, loaded, another_scale):
        change()
        found = engine.field(model, x_data, t)[1]
        torch.testing.assert_close(found, model.field(x_data, t)[1], rtol=1e-4, atol=1e-4)
        assert not torch.equal(found, before)
        before = found


@pytest.mark.parametrize("method", ["dopri5", "heun"])
def test_equal_times_return_the_start(engine, case, method):
    model, x0, *_ = case
    x0 = x0.clone()
    x0[2, 1] = torch.nan
    steps = 2 if method == "heun" else None
    job = Job("solve_with_trace", solve=SolveOptions(method, steps=steps, t_eval=(0.5, 0.5)))
    for probes in (None, torch.ones(7, 3, 2, device=x0.device)):
        solution, integrals = engine.solve_with_trace(model, x0, 0.5, 0.5, job, probes)
        assert solution.status.tolist() == [0, 0, 3, 0, 0, 0, 0]
        assert torch.equal(integrals, x0.new_zeros(7, 1 if probes is None else 3))
        torch.testing.assert_close(solution.x, x0, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(solution.ys, x0.expand(2, 7, 2), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("rtol", "expected"), [(1e-2, "bf16"), (2e-5, "tf32"), (1e-6, "float32")])
def test_a_solution_says_which_precision_the_policy_chose(device, monkeypatch, rtol, expected):
    """With made-up noise, through the engine as on CUDA: what is loaded for the solve is what the solution names."""
    engine, loaded = TritonEngine(device.type), []
    monkeypatch.setattr(engine, "_device_type", "cuda")
    sizes = {"ieee": 0.0, "bf16": 1.2e-3, "tf32": 1.7e-4}
    engine._noise = RoundingNoise(lambda model, x, t, precision: torch.ones_like(x) * (1.0 + sizes[precision]))
    load = engine._load
    monkeypatch.setattr(engine, "_load", lambda model, precision: (loaded.append(precision), load(model, precision))[1])
    model = Network(1, (3,), "tanh", 0, True, "linear").build(torch.float32).to(device)
    x0 = states(2, 1, torch.float32).to(device)
    job = Job("solve", solve=SolveOptions("bosh3", rtol=rtol, max_steps=1))
    solution = engine.solve(model, x0, 0.1, 0.5, job)
    assert solution.precision == expected
    assert loaded == [expected]
    traced, _ = engine.solve_with_trace(model, x0, 0.1, 0.5, Job("solve_with_trace", solve=job.solve), None)
    assert traced.precision == "float32"
    with pytest.warns(UserWarning, match="precision='bf16' rounds") if rtol < 1e-2 else nullcontext():
        forced = engine.solve(model, x0, 0.1, 0.5, Job("solve", "bf16", solve=job.solve))
    assert forced.precision == "bf16"
