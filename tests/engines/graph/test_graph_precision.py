"""Which arithmetic the graph engine's jobs are done in, and what it makes of their results."""

import pytest
import torch
from torch import nn

import vapo_fast as vf
from tests.engines.graph.conftest import JOB, PATH, Quadratic, unet
from vapo_fast.engines import Job
from vapo_fast.engines.graph.engine import GRAPH
from vapo_fast.engines.precision import RoundingNoise
from vapo_fast.loss import Batch
from vapo_fast.ode import SolveOptions

ERRORS = {"ieee": 0.0, "bf16": 1.2e-3, "tf32": 1.7e-4}


def emulated(model, x, t, precision):
    generator = torch.Generator().manual_seed(3)
    exact = torch.randn(x.shape, generator=generator)
    return exact * (1.0 + ERRORS[precision] * torch.randn(x.shape, generator=generator))


class OnCuda:
    """What `_precision` asks of the start."""

    dtype, is_cuda = torch.float32, True


@pytest.fixture
def noisy(engine):
    engine._noise = RoundingNoise(emulated, 32)
    return engine


@pytest.mark.parametrize(("rtol", "expected"), [(1e-3, "bf16"), (1e-4, "tf32"), (1e-5, "float32")])
def test_auto_chooses_by_tolerance_on_cuda(noisy, rtol, expected):
    for model in (unet(), vf.Potential.from_module(Quadratic(), (64,), PATH)):
        job = Job("solve", solve=SolveOptions(rtol=rtol))
        assert noisy._precision(model, OnCuda(), 0.0, PATH.t1, job) == expected


def test_a_noisy_choice_is_warned_of(noisy):
    model, job = unet(), Job("solve", "bf16", solve=SolveOptions(rtol=1e-6))
    with pytest.warns(UserWarning, match=r"precision='bf16' rounds .* chooses 'float32'"):
        chosen = noisy._precision(model, OnCuda(), 0.0, PATH.t1, job)
    assert chosen == "bf16"


def test_auto_on_the_cpu_and_without_a_measure_is_the_models_own(noisy):
    x0 = torch.randn(2, 1, 4, 4)
    assert noisy.solve(unet(), x0, 0.0, 1.0, JOB).precision == "float32"
    assert noisy.solve(unet().double(), x0.double(), 0.0, 1.0, JOB).precision == "float64"
    for job in (
        Job("solve", solve=SolveOptions("rk4", steps=2)),
        Job("solve_with_trace", solve=SolveOptions(rtol=1e-2)),
    ):
        assert noisy._precision(unet(), OnCuda(), 0.0, 1.0, job) == "float32"


def test_bf16_on_the_cpu_is_measured_used_and_told():
    model, x0 = unet(), torch.randn(4, 1, 4, 4)
    exact = GRAPH.solve(model, x0, 0.0, 1.0, JOB)
    tight = Job("solve", "bf16", solve=SolveOptions("dopri5", rtol=1e-6))
    with pytest.warns(UserWarning, match="precision='bf16' rounds this model's gradient by"):
        solution = GRAPH.solve(model, x0, 0.0, 1.0, tight)
    assert solution.precision == "bf16"
    assert not torch.equal(solution.x, exact.x)
    torch.testing.assert_close(solution.x, exact.x, rtol=0.05, atol=0.05)


def test_a_module_that_refuses_bf16_keeps_float32(engine):
    class Strict(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 1)

        def forward(self, x):
            y = self.layer(x)
            if y.dtype != torch.float32:
                raise RuntimeError("float32 only")
            return y[:, 0]

    model = vf.Potential.from_module(Strict(), (3,), PATH)
    assert bool(engine._gradient(model, torch.ones(2, 3), torch.ones(2), "bf16").isnan().all())
    assert bool(engine._gradient(model, torch.ones(2, 3), torch.ones(2), "ieee").isfinite().all())


@pytest.mark.parametrize("build", [unet, lambda: vf.MLPPotential((1, 4, 4), PATH, (8, 8))], ids=["passes", "autograd"])
def test_losses_in_bf16_are_near_and_keep_their_type(engine, build):
    model = build()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    batch = Batch(torch.randn(6, 1, 4, 4), torch.linspace(0.5, 3.0, 6), torch.randn(6, 1, 4, 4))
    exact = engine.loss_and_grads(model, batch, Job("loss_and_grads"))
    rounded = engine.loss_and_grads(model, batch, Job("loss_and_grads", "bf16"))
    assert rounded.loss.total != exact.loss.total
    torch.testing.assert_close(rounded.loss.total, exact.loss.total, rtol=0.1, atol=0.1)
    assert all(grad.dtype == torch.float32 for grad in rounded.grads.values())
