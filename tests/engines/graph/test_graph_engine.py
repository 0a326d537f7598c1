"""The graph engine: what it takes and why not, and its jobs on the CPU."""

import pytest
import torch

import vapo_fast as vf
from tests.engines.graph.conftest import JOB, PATH, Quadratic, unet
from vapo_fast import ode
from vapo_fast.engines import Job, LossOptions, choose
from vapo_fast.engines.explicit import ExplicitPasses, explicit_passes
from vapo_fast.engines.graph.engine import GRAPH
from vapo_fast.ode import SolveOptions
from vapo_fast.sampling import batching

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_auto_takes_it_for_images_on_the_cpu():
    model = unet()
    for kind in ("field", "solve", "solve_with_trace", "loss_and_grads"):
        assert choose("auto", model, CPU, torch.float32, Job(kind)).name == "graph"
    assert vf.engines()["graph"] == "usable"
    assert vf.sample(model, 3, rtol=1e-2, return_solution=True).engine == "graph"


@pytest.mark.parametrize(
    ("build", "dtype", "job", "message"),
    [
        (unet, torch.bfloat16, JOB, "the model's dtype is torch.bfloat16; this engine computes in float32 or float64"),
        (
            lambda: vf.MLPPotential((2,), PATH),
            torch.float32,
            JOB,
            "on the CPU this engine takes potentials with explicit",
        ),
        (lambda: vf.Potential.from_module(Quadratic(), (2,), PATH), torch.float32, JOB, "on the CPU this engine takes"),
        (
            unet,
            torch.float32,
            Job("solve", "float64"),
            "precision='float64' is none of this model's on cpu: auto, float32",
        ),
        (unet, torch.float32, Job("solve", "tf32"), "precision='tf32' is none of this model's on cpu"),
        (
            unet,
            torch.float32,
            Job("loss_and_grads", loss=LossOptions("covariance", baseline=lambda x, t: x[:, 0, 0, 0])),
            "a baseline is a function of the user's own",
        ),
        (
            unet,
            torch.float32,
            Job("loss_and_grads", "bf16", loss=LossOptions("covariance")),
            "precision='bf16' goes with estimator='velocity'",
        ),
    ],
)
def test_refusals(build, dtype, job, message):
    assert GRAPH.supports(build(), CPU, dtype, job).startswith(message)


@pytest.mark.parametrize("precision", ["auto", "float32", "tf32", "bf16"])
def test_what_it_takes_on_cuda(precision, model):
    for potential in (model, unet(), vf.MLPPotential((2,), PATH)):
        for kind in ("field", "solve", "solve_with_trace", "loss_and_grads"):
            assert GRAPH.supports(potential, CUDA, torch.float32, Job(kind, precision)) is None
    assert "tf32" in GRAPH.supports(model, CUDA, torch.float64, Job("solve", "tf32"))
    assert "this engine runs on CUDA" in GRAPH.supports(model, torch.device("mps"), torch.float32, JOB)


@pytest.mark.parametrize(
    "options", [SolveOptions("dopri5", rtol=1e-4, t_eval=(0.5, 1.0)), SolveOptions("rk4", steps=4)]
)
def test_on_the_cpu_the_solver_is_odes_and_the_field_explicit(options):
    model, x0, told = unet(), torch.randn(5, 1, 4, 4), []
    passes = explicit_passes(model)
    expected = ode.integrate(lambda x, t: passes.field(x, t)[1], x0, 0.0, 1.0, options)
    solution = GRAPH.solve(model, x0, 0.0, 1.0, Job("solve", solve=options), told.append)
    assert (solution.engine, solution.precision) == ("graph", "float32")
    torch.testing.assert_close(solution.x, expected.x, rtol=1e-5, atol=1e-5)
    assert torch.equal(solution.nfe, expected.nfe)
    assert told == sorted(told)
    assert told[-1] == 5


def test_on_the_cpu_samples_are_batched_by_their_activations(monkeypatch):
    model, rows = unet(), []
    field = ExplicitPasses.field

    def counted(self, x, *others):
        rows.append(len(x))
        return field(self, x, *others)

    monkeypatch.setattr(ExplicitPasses, "field", counted)
    needed = GRAPH.bytes_per_sample(model, torch.float32, JOB)
    assert explicit_passes(model).bytes_per_sample("field") < needed
    assert needed < explicit_passes(model).bytes_per_sample("field") + 4000
    times = tuple(i / 50 for i in range(51))
    with_outputs = Job("solve", solve=SolveOptions("bosh3", rtol=1e-3, t_eval=times))
    assert GRAPH.bytes_per_sample(model, torch.float32, with_outputs) > needed + 51 * 16 * 4
    trace = Job("solve_with_trace", solve=JOB.solve)
    assert GRAPH.bytes_per_sample(model, torch.float32, trace, probes=2) > 1.5 * needed
    monkeypatch.setattr(batching, "free_memory", lambda device: 20 * needed)
    vf.sample(model, 30, method="bosh3", rtol=1e-1)
    assert max(rows) == 8


def test_fields_of_many_samples_are_batched_by_their_activations(monkeypatch, engine, model, calls):
    """As in refinement, where nobody else finds a batch for them."""
    potential, job = unet(), Job("field")
    needed = GRAPH.bytes_per_sample(potential, torch.float32, job)
    assert explicit_passes(potential).bytes_per_sample("field") < needed
    assert needed < explicit_passes(potential).bytes_per_sample("field") + 2000
    assert engine.bytes_per_sample(model, torch.float32, job) > 0
    calls.limit = 0
    assert engine.bytes_per_sample(model, torch.float32, job) is None
    rows = []
    field = ExplicitPasses.field

    def counted(self, x, *others):
        rows.append(len(x))
        return field(self, x, *others)

    monkeypatch.setattr(ExplicitPasses, "field", counted)
    monkeypatch.setattr(batching, "free_memory", lambda device: 20 * needed)
    vf.refine(potential, torch.randn(30, 1, 4, 4), 1)
    assert max(rows) == 8


def test_refinement_looks_at_the_model_once_a_batch(monkeypatch):
    """Weights are transformed for the first step, not for each."""
    made = []
    make = ExplicitPasses.__init__
    monkeypatch.setattr(ExplicitPasses, "__init__", lambda self, *a, **k: (made.append(1), make(self, *a, **k))[1])
    vf.refine(unet(), torch.randn(6, 1, 4, 4), 5, batch_size=3)
    assert len(made) == 2


def test_an_outer_autocast_changes_nothing():
    model = unet()
    x0 = torch.randn(3, 1, 4, 4)
    expected = GRAPH.solve(model, x0, 0.0, 1.0, JOB)
    with torch.autocast("cpu", torch.bfloat16):
        found = GRAPH.solve(model, x0, 0.0, 1.0, JOB)
    assert torch.equal(found.x, expected.x)
