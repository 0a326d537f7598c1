"""The recorded stepper around its solver: memory, solvers kept for a model, the host's reads; recordings by Python."""

import gc
import threading
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import vapo_fast as vf
from tests.engines.graph.conftest import JOB, PATH, Quadratic
from tests.support.recorder import RecordedOnCpu
from vapo_fast.engines import Job, ReferenceEngine
from vapo_fast.engines.explicit import ExplicitPasses, explicit_passes
from vapo_fast.engines.graph import recorded
from vapo_fast.ode import SolveOptions


def test_a_solver_is_kept_and_new_weights_are_read_in_place(engine, model):
    x0 = torch.ones(2, 3)
    first = engine.solve(model, x0, 0.0, 1.0, JOB)
    solvers = engine.recorded._solvers[model]
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
    (before,) = [weakref.ref(solver) for solver, _ in engine.recorded._solvers[model]._known.values()]
    change(model)
    after = engine.solve(model, x0, 0.0, 1.0, JOB)
    gc.collect()
    assert before() is None
    torch.testing.assert_close(after.x, ReferenceEngine().solve(model, x0, 0.0, 1.0, JOB).x, rtol=1e-5, atol=1e-6)


def test_solvers_are_few_and_die_with_their_model(engine):
    model = vf.Potential.from_module(Quadratic(), (3,), PATH)
    for method in ("euler", "heun", "rk4", "euler"):
        # One step is not recorded: a recording by Python would hold the model, as a CUDA graph does not.
        engine.solve(model, torch.ones(2, 3), 0.0, 1.0, Job("solve", solve=SolveOptions(method, steps=1)))
    assert len(engine.recorded._solvers[model]._known) == 3
    solvers, gone = weakref.ref(engine.recorded._solvers[model]), weakref.ref(model)
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


def test_out_of_memory_is_never_a_crash(model, engine, calls):
    calls.limit = 7
    x0 = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
    with pytest.warns(RuntimeWarning, match="out of memory with 50 samples at a time") as warned:
        solution = engine.solve(model, x0, 0.0, 1.0, JOB)
    assert len(warned) == 1
    assert bool(solution.success.all())
    torch.testing.assert_close(solution.x, x0 * torch.e**-1, rtol=1e-2, atol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.solve(model, x0, 0.0, 1.0, JOB)
    calls.limit = 0
    with pytest.raises(MemoryError):
        engine.solve(model, x0, 0.0, 1.0, JOB)


def test_batches_follow_the_free_memory(model, engine, calls, monkeypatch):
    monkeypatch.setattr(recorded, "free_memory", lambda device: 20_000)
    engine.solve(model, torch.ones(50, 3), 0.0, 1.0, JOB)
    largest = max(calls.rows)
    assert 2 <= largest < 50
    monkeypatch.setattr(recorded, "free_memory", lambda device: None)
    RecordedOnCpu().solve(model, torch.ones(50, 3), 0.0, 1.0, JOB)
    assert max(calls.rows) == 56  # the ladder's size for 50
    RecordedOnCpu(6).solve(model, torch.ones(50, 3), 0.0, 1.0, JOB)
    assert engine.bytes_per_sample(model, torch.float32, JOB) < 500


def test_batches_leave_room_for_outputs_and_second_derivatives(model, calls, monkeypatch):
    monkeypatch.setattr(recorded, "free_memory", lambda device: 40_000)
    times = tuple(i / 50 for i in range(51))
    largest = {}
    for name, job in (("solve", JOB), ("outputs", Job("solve", solve=SolveOptions("bosh3", rtol=1e-3, t_eval=times)))):
        calls.rows.clear()
        RecordedOnCpu().solve(model, torch.ones(200, 3), 0.0, 1.0, job)
        largest[name] = max(calls.rows)
    calls.rows.clear()
    RecordedOnCpu().solve_with_trace(model, torch.ones(200, 3), 0.0, 1.0, Job("solve_with_trace"), None)
    largest["trace"] = max(calls.rows)
    assert 4 < largest["outputs"] < largest["solve"] / 3
    assert 4 < largest["trace"] < largest["solve"] / 1.5


def test_where_a_trial_runs_out_of_memory_samples_come_one_by_one(model, engine, calls):
    calls.limit = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solution = engine.solve(model, torch.ones(3, 3), 0.0, 1.0, JOB)
    assert bool(solution.success.all())
    calls.rows.clear()
    engine.solve(model, torch.ones(3, 3), 0.0, 1.0, JOB)
    assert set(calls.rows) == {1}


def rows_of_solves(monkeypatch, potential, free, n=12):
    """The largest batch that a field is evaluated for."""
    rows = [0]
    field = ExplicitPasses.field

    def counted(self, x, *others):
        rows[0] = max(rows[0], len(x))
        return field(self, x, *others)

    with monkeypatch.context() as patch:
        patch.setattr(ExplicitPasses, "field", counted)
        patch.setattr(recorded, "free_memory", lambda device: free)
        RecordedOnCpu().solve(potential, torch.randn(n, *potential.event_shape), 0.0, 0.1, JOB)
    return rows[0]


def test_copies_of_weights_are_part_of_the_memory(monkeypatch):
    potential = vf.UNetPotential((1, 4, 4), PATH, channels=16, multipliers=(1,), blocks=1)
    passes = explicit_passes(potential)
    sample, weights = passes.bytes_per_sample("field"), passes.bytes_of_weights()
    assert rows_of_solves(monkeypatch, potential, 25 * sample + weights) <= 10
    assert rows_of_solves(monkeypatch, potential, 25 * sample + weights) >= 5
    assert rows_of_solves(monkeypatch, potential, weights) == 1
    assert rows_of_solves(monkeypatch, potential, weights // 2) == 1


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


def test_inside_an_outer_inference_mode(engine, model):
    x0 = torch.ones(2, 3)
    expected = engine.solve(model, x0, 0.0, 1.0, JOB)
    with torch.inference_mode():
        assert torch.equal(engine.solve(model, x0, 0.0, 1.0, JOB).x, expected.x)
    assert torch.equal(engine.solve(model, x0, 0.0, 1.0, JOB).x, expected.x)


def test_bad_arguments(engine, model):
    with pytest.raises(ValueError, match="t1 must be finite"):
        engine.solve(model, torch.ones(2, 3), 0.0, float("nan"), JOB)
    with pytest.raises(ValueError, match="t_eval must be ordered"):
        engine.solve(model, torch.ones(2, 3), 0.0, 1.0, Job("solve", solve=SolveOptions(t_eval=(2.0,))))
    with pytest.raises(ValueError, match="below"):
        engine.solve(model, torch.ones(2, 3), 0.0, 1.0, Job("solve", solve=SolveOptions(rtol=1e-9)))
    with pytest.raises(ValueError, match="at least one sample"):
        engine.solve(model, torch.ones(0, 3), 0.0, 1.0, JOB)
