"""The graph engine around its solver: what it takes and why not, precision, memory, and solvers kept for a model."""

import gc
import threading
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import vapo_fast as vf
from vapo_fast.engines import GraphEngine, Job, LossOptions, ReferenceEngine, choose
from vapo_fast.engines.explicit import ExplicitPasses, explicit_passes
from vapo_fast.engines.graph import engine as graph_module
from vapo_fast.engines.graph.engine import GRAPH
from vapo_fast.engines.precision import Noise
from vapo_fast.loss import Batch
from vapo_fast.ode import SolveOptions
from vapo_fast.sampling import batching

PATH = vf.DataHomotopy(1.0, 0.1)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
JOB = Job("solve", solve=SolveOptions("bosh3", rtol=1e-3))


def unet(**more):
    torch.manual_seed(0)
    model = vf.UNetPotential((1, 4, 4), PATH, channels=4, multipliers=(1,), blocks=1, **more)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


LIMIT, CALLS = [10**9], []


class Quadratic(nn.Module):
    """Phi = -rate/2 |x|^2, with what the tests count and vary: counts are no attributes, which would be looked at."""

    def __init__(self, rate=1.0):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate))
        self.power = 2

    def forward(self, x):
        CALLS.append(len(x))
        if len(x) > LIMIT[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return -0.5 * self.rate * (x.abs() ** self.power).sum(1)


@pytest.fixture
def model():
    LIMIT[0] = 10**9
    CALLS.clear()
    return vf.Potential.from_module(Quadratic(), (3,), PATH)


@pytest.fixture
def engine():
    return GraphEngine("cpu")


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
    assert "this engine runs on CPU" in GraphEngine("cpu").supports(model, CUDA, torch.float32, JOB)
    assert "this engine runs on CUDA" in GRAPH.supports(model, torch.device("mps"), torch.float32, JOB)


def test_a_solver_is_kept_and_new_weights_are_read_in_place(engine, model):
    x0 = torch.ones(2, 3)
    first = engine.solve(model, x0, 0.0, 1.0, JOB)
    solvers = engine._solvers[model]
    (solver,) = [solver for solver, _ in solvers._known.values()]
    with torch.no_grad():
        model.module.rate.mul_(2.0)
    second = engine.solve(model, x0, 0.0, 1.0, JOB)
    assert [kept for kept, _ in solvers._known.values()] == [solver]
    torch.testing.assert_close(first.x, torch.full((2, 3), 1.0).mul(torch.e**-1), rtol=1e-2, atol=0)
    torch.testing.assert_close(second.x, torch.full((2, 3), 1.0).mul(torch.e**-2), rtol=2e-2, atol=0)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m.module, "rate", nn.Parameter(torch.tensor(3.0))),
        lambda m: setattr(m.module, "power", 3),
        lambda m: m.module.register_forward_hook(lambda module, given, out: 3.0 * out),
        lambda m: m.eval(),
    ],
    ids=["parameter", "attribute", "hook", "mode"],
)
def test_a_model_that_python_would_treat_otherwise_has_a_new_solver(engine, model, change):
    x0 = torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
    engine.solve(model, x0, 0.0, 1.0, JOB)
    (before,) = [weakref.ref(solver) for solver, _ in engine._solvers[model]._known.values()]
    change(model)
    after = engine.solve(model, x0, 0.0, 1.0, JOB)
    gc.collect()
    assert before() is None
    torch.testing.assert_close(after.x, ReferenceEngine().solve(model, x0, 0.0, 1.0, JOB).x, rtol=1e-5, atol=1e-6)


def test_solvers_are_few_and_die_with_their_model(engine):
    model = vf.Potential.from_module(Quadratic(), (3,), PATH)
    for method in ("dopri5", "tsit5", "bosh3", "dopri5"):
        engine.solve(model, torch.ones(2, 3), 0.0, 1.0, Job("solve", solve=SolveOptions(method)))
    assert len(engine._solvers[model]._known) == 3
    solvers, gone = weakref.ref(engine._solvers[model]), weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert solvers() is None


def test_two_threads_and_solves_within_solves(engine, model):
    x0 = torch.rand(9, 3, generator=torch.Generator().manual_seed(0))
    expected = engine.solve(model, x0, 0.0, 1.0, JOB)
    inner = []

    def report(done):
        if len(inner) < 3:
            inner.append(engine.solve(model, x0, 0.0, 1.0, JOB))

    outer = engine.solve(model, x0, 0.0, 1.0, JOB, report)
    results = [None] * 4

    def work(i):
        results[i] = [engine.solve(model, x0, 0.0, 1.0, JOB) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(inner) == 3
    for solution in (outer, *inner, *(s for found in results for s in found)):
        assert torch.equal(solution.x, expected.x)
        assert torch.equal(solution.nfe, expected.nfe)


def test_out_of_memory_is_never_a_crash(model, engine):
    LIMIT[0] = 7
    x0 = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
    with pytest.warns(RuntimeWarning, match="out of memory with 50 samples at a time") as warned:
        solution = engine.solve(model, x0, 0.0, 1.0, JOB)
    assert len(warned) == 1
    assert bool(solution.success.all())
    torch.testing.assert_close(solution.x, x0 * torch.e**-1, rtol=1e-2, atol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.solve(model, x0, 0.0, 1.0, JOB)
    LIMIT[0] = 0
    with pytest.raises(MemoryError):
        engine.solve(model, x0, 0.0, 1.0, JOB)


def test_batches_follow_the_free_memory(model, engine, monkeypatch):
    monkeypatch.setattr(graph_module, "free_memory", lambda device: 20_000)
    engine.solve(model, torch.ones(50, 3), 0.0, 1.0, JOB)
    largest = max(CALLS)
    assert 2 <= largest < 50
    monkeypatch.setattr(graph_module, "free_memory", lambda device: None)
    GraphEngine("cpu").solve(model, torch.ones(50, 3), 0.0, 1.0, JOB)
    assert max(CALLS) == 50
    GraphEngine("cpu", most_rows=6).solve(model, torch.ones(50, 3), 0.0, 1.0, JOB)
    assert engine.bytes_per_sample(model, torch.float32, JOB) < 500


def test_batches_leave_room_for_outputs_and_second_derivatives(model, monkeypatch):
    monkeypatch.setattr(graph_module, "free_memory", lambda device: 40_000)
    times = tuple(i / 50 for i in range(51))
    largest = {}
    for name, job in (("solve", JOB), ("outputs", Job("solve", solve=SolveOptions("bosh3", rtol=1e-3, t_eval=times)))):
        CALLS.clear()
        GraphEngine("cpu").solve(model, torch.ones(200, 3), 0.0, 1.0, job)
        largest[name] = max(CALLS)
    CALLS.clear()
    GraphEngine("cpu").solve_with_trace(model, torch.ones(200, 3), 0.0, 1.0, Job("solve_with_trace"), None)
    largest["trace"] = max(CALLS)
    assert 4 < largest["outputs"] < largest["solve"] / 3
    assert 4 < largest["trace"] < largest["solve"] / 1.5


def test_where_a_trial_runs_out_of_memory_samples_come_one_by_one(model, engine):
    LIMIT[0] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solution = engine.solve(model, torch.ones(3, 3), 0.0, 1.0, JOB)
    assert bool(solution.success.all())
    CALLS.clear()
    engine.solve(model, torch.ones(3, 3), 0.0, 1.0, JOB)
    assert set(CALLS) == {1}


def rows_of_solves(monkeypatch, potential, free, n=40):
    """The largest batch that a field is evaluated for."""
    rows = [0]
    field = ExplicitPasses.field

    def counted(self, x, *others):
        rows[0] = max(rows[0], len(x))
        return field(self, x, *others)

    with monkeypatch.context() as patch:
        patch.setattr(ExplicitPasses, "field", counted)
        patch.setattr(graph_module, "free_memory", lambda device: free)
        GraphEngine().solve(potential, torch.randn(n, *potential.event_shape), 0.0, 0.1, JOB)
    return rows[0]


def test_copies_of_weights_are_part_of_the_memory(monkeypatch):
    potential = vf.UNetPotential((1, 4, 4), PATH, channels=16, multipliers=(1,), blocks=1)
    passes = explicit_passes(potential)
    sample, weights = passes.bytes_per_sample("field"), passes.bytes_of_weights()
    assert rows_of_solves(monkeypatch, potential, 25 * sample + weights) <= 10
    assert rows_of_solves(monkeypatch, potential, 25 * sample + weights) >= 5
    assert rows_of_solves(monkeypatch, potential, weights) == 1
    assert rows_of_solves(monkeypatch, potential, weights // 2) == 1


def test_fields_of_many_samples_are_batched_by_their_activations(monkeypatch, engine, model):
    """As in refinement, where nobody else finds a batch for them."""
    potential, job = unet(), Job("field")
    needed = GRAPH.bytes_per_sample(potential, torch.float32, job)
    assert explicit_passes(potential).bytes_per_sample("field") < needed
    assert needed < explicit_passes(potential).bytes_per_sample("field") + 2000
    assert engine.bytes_per_sample(model, torch.float32, job) > 0
    LIMIT[0] = 0
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


class Reads(TorchDispatchMode):
    """Counts reads of the device by the host."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function._schema.name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::item")
        return function(*args, **(kwargs or {}))


def test_the_host_reads_once_a_step(engine, model):
    x0 = torch.rand(9, 3, generator=torch.Generator().manual_seed(0))
    engine.solve(model, x0, 0.0, 1.0, JOB)
    with Reads() as reads:
        solution = engine.solve(model, x0, 0.0, 1.0, JOB)
    assert 0 < reads.count <= int((solution.accepted + solution.rejected).max()) + 1


def test_inside_somebodys_inference_mode(engine, model):
    x0 = torch.ones(2, 3)
    expected = engine.solve(model, x0, 0.0, 1.0, JOB)
    with torch.inference_mode():
        assert torch.equal(engine.solve(model, x0, 0.0, 1.0, JOB).x, expected.x)
    assert torch.equal(engine.solve(model, x0, 0.0, 1.0, JOB).x, expected.x)


def test_somebodys_autocast_changes_nothing():
    model = unet()
    x0 = torch.randn(3, 1, 4, 4)
    expected = GRAPH.solve(model, x0, 0.0, 1.0, JOB)
    with torch.autocast("cpu", torch.bfloat16):
        found = GRAPH.solve(model, x0, 0.0, 1.0, JOB)
    assert torch.equal(found.x, expected.x)


def test_bad_arguments(engine, model):
    with pytest.raises(ValueError, match="t1 must be finite"):
        engine.solve(model, torch.ones(2, 3), 0.0, float("nan"), JOB)
    with pytest.raises(ValueError, match="t_eval must be ordered"):
        engine.solve(model, torch.ones(2, 3), 0.0, 1.0, Job("solve", solve=SolveOptions(t_eval=(2.0,))))
    with pytest.raises(ValueError, match="below"):
        engine.solve(model, torch.ones(2, 3), 0.0, 1.0, Job("solve", solve=SolveOptions(rtol=1e-9)))
    with pytest.raises(ValueError, match="at least one sample"):
        engine.solve(model, torch.ones(0, 3), 0.0, 1.0, JOB)


# Precision ------------------------------------------------------------------------------------------------------------

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
    engine._noise = Noise(emulated, 32)
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


def test_bf16_on_the_cpu_is_measured_used_and_told(engine):
    model, x0 = unet(), torch.randn(4, 1, 4, 4)
    exact = engine.solve(model, x0, 0.0, 1.0, JOB)
    tight = Job("solve", "bf16", solve=SolveOptions("dopri5", rtol=1e-6))
    with pytest.warns(UserWarning, match="precision='bf16' rounds this model's gradient by"):
        solution = engine.solve(model, x0, 0.0, 1.0, tight)
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


def test_who_repeats_steps_is_an_option(monkeypatch):
    from vapo_fast.engines.graph import capture

    monkeypatch.setattr(capture, "CudaRecorder", lambda device: "replay")
    monkeypatch.setattr(capture, "WhileRecorder", lambda device: "while")
    monkeypatch.delenv(graph_module.LOOP_VARIABLE, raising=False)
    asked = []

    def recorder(self, device, loop):
        asked.append(loop)
        assert original(self, CUDA, loop) == loop
        return original(self, device, loop)

    original = GraphEngine._recorder
    monkeypatch.setattr(GraphEngine, "_recorder", recorder)
    model, x0 = vf.Potential.from_module(Quadratic(), (3,), PATH), torch.ones(2, 3)

    def solve(engine):
        engine.solve(model, x0, PATH.t0, PATH.t1, JOB)

    engine = GraphEngine("cpu")
    solve(engine)
    solve(engine)
    assert asked == ["replay"]
    # The environment is asked at each solve, and either loop has recordings of its own.
    monkeypatch.setenv(graph_module.LOOP_VARIABLE, "while")
    solve(engine)
    solve(engine)
    assert asked == ["replay", "while"]
    monkeypatch.setenv(graph_module.LOOP_VARIABLE, "replay")
    solve(engine)
    assert asked == ["replay", "while"]
    monkeypatch.setenv(graph_module.LOOP_VARIABLE, "while")
    solve(GraphEngine("cpu", loop="replay"))  # what the program says comes first
    assert asked == ["replay", "while", "replay"]
    monkeypatch.setenv(graph_module.LOOP_VARIABLE, "until")
    with pytest.raises(ValueError, match="VAPO_FAST_GRAPH_LOOP must be one of 'replay', 'while', got 'until'"):
        solve(engine)
    with pytest.raises(ValueError, match="loop must be one of 'replay', 'while', got 'until'"):
        GraphEngine("cpu", loop="until")
