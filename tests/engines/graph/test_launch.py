"""When programs are recorded, replayed, dropped and refused: with a recorder that repeats the call, on the CPU."""

import gc
import weakref

import pytest
import torch

from tests.support.recorder import Repeated, RepeatingRecorder
from vapo_fast.engines.graph.buckets import Buckets
from vapo_fast.engines.graph.launch import Launcher
from vapo_fast.engines.graph.solver import Solver
from vapo_fast.ode import SolveOptions, integrate
from vapo_fast.ode.masked_step import Plan
from vapo_fast.ode.stages import expand


def cubic(x, t):
    return x * (1.0 + 0.25 * expand(t, x)) - x * x * x


def batch(rows=40):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 5, generator=generator, dtype=torch.float64)
    return x * torch.linspace(0.01, 6.0, rows, dtype=torch.float64)[:, None]


def solve_three_times(solver):
    expected = integrate(cubic, batch(), 0.0, 2.0, OPTIONS)
    for _ in range(3):
        assert_same_bits(solver.solve(cubic, batch(), 0.0, 2.0, OPTIONS), expected)


OPTIONS = SolveOptions("dopri5", rtol=1e-4, t_eval=(0.5, 2.0))
LADDER = Buckets(1000, step=8, ratio=0.75, smallest=8)


def assert_same_bits(actual, expected):
    for name in ("x", "t", "status", "nfe", "accepted", "rejected", "ys"):
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("every", [1, 3, 8])
@pytest.mark.parametrize("ladder", [LADDER, Buckets(16, step=8, ratio=0.5, smallest=8)], ids=["one", "chunks"])
def test_replays_change_nothing(every, ladder):
    """Rows that have ended stand still through replays that come too late, and through compaction."""
    expected = integrate(cubic, batch(), 0.0, 2.0, OPTIONS)
    recorder = RepeatingRecorder(every)
    solver = Solver(Plan.of(OPTIONS), ladder, recorder)
    for _ in range(4):
        assert_same_bits(solver.solve(cubic, batch(), 0.0, 2.0, OPTIONS), expected)
    assert recorder.replays > recorder.records > 2
    # Other numbers, the same recordings: tolerances, times and directions are read from memory.
    records = recorder.records
    other = SolveOptions("dopri5", rtol=1e-3, atol=1e-5, t_eval=(0.25, 0.125))
    x0 = 0.1 * batch()
    for _ in range(2):
        assert_same_bits(solver.solve(cubic, x0, 0.5, 0.0, other), integrate(cubic, x0, 0.5, 0.0, other))
    assert recorder.records - records <= 4  # smaller batches that the first solve never saw


def test_recorded_after_runs_that_count():
    recorder, calls = RepeatingRecorder(), []
    launcher, flags = Launcher(recorder), torch.tensor([9, 9])  # as if nine rows ran, whatever is done
    with recorder.context():
        for _ in range(5):
            launcher.until("step", lambda: calls.append(1), flags, 0, 1, None)
    assert len(calls) == 5
    assert (recorder.records, recorder.replays) == (1, 5 - Launcher.WARM_RUNS)
    launcher.forget()
    with recorder.context():
        launcher.once("step", lambda: calls.append(1))
    assert (recorder.records, recorder.replays, len(calls)) == (1, 5 - Launcher.WARM_RUNS, 6)


def test_recordings_are_bounded():
    recorder, kept = RepeatingRecorder(), []
    launcher = Launcher(recorder)
    with recorder.context():
        for key in range(40):
            for _ in range(Launcher.WARM_RUNS + 1):
                launcher.once(key, lambda: None)
            kept.append(weakref.ref(launcher._recordings[key]))
    gc.collect()
    assert sum(recording() is not None for recording in kept) == Launcher.MOST_RECORDINGS


def test_what_cannot_be_recorded_runs_from_python():
    recorder = RepeatingRecorder(error=RuntimeError("operation not permitted when stream is capturing"), errors=1)
    solver = Solver(Plan.of(OPTIONS), LADDER, recorder)
    with pytest.warns(UserWarning, match="cannot be a CUDA graph, so it is launched op by op: operation not") as warned:
        solve_three_times(solver)
    assert len(warned) == 1
    assert recorder.records == recorder.replays == 0


def test_memory_that_runs_out_while_recording_makes_batches_smaller():
    recorder = RepeatingRecorder(error=torch.OutOfMemoryError("CUDA out of memory"), errors=1)
    solver = Solver(Plan.of(OPTIONS), LADDER, recorder)
    with pytest.warns(RuntimeWarning, match="out of memory with 40 samples at a time: going on with 20") as warned:
        solve_three_times(solver)
    assert len(warned) == 1
    assert recorder.records > 0
    assert solver.buckets.limit == 20


def test_an_interrupted_solve_leaves_nothing_behind():
    recorder = RepeatingRecorder()
    solver = Solver(Plan.of(OPTIONS), LADDER, recorder)

    def interrupt(done):
        if done > 10:
            raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            solver.solve(cubic, batch(), 0.0, 2.0, OPTIONS, progress=interrupt)
        assert recorder.inside == 0
    assert_same_bits(solver.solve(cubic, batch(), 0.0, 2.0, OPTIONS), integrate(cubic, batch(), 0.0, 2.0, OPTIONS))


def test_more_samples_than_before_move_the_memory_and_drop_recordings():
    recorder = RepeatingRecorder()
    solver = Solver(Plan.of(OPTIONS), LADDER, recorder)
    for rows in (10, 10, 10, 40, 40, 40, 12):
        x0 = batch(40)[:rows]
        assert_same_bits(solver.solve(cubic, x0, 0.0, 2.0, OPTIONS), integrate(cubic, x0, 0.0, 2.0, OPTIONS))


def test_progress_goes_up_and_ends_at_all():
    told = []
    solver = Solver(Plan.of(OPTIONS), LADDER, RepeatingRecorder(every=2))
    for _ in range(2):
        told.clear()
        solver.solve(cubic, batch(), 0.0, 2.0, OPTIONS, progress=told.append)
        assert told == sorted(told)
        assert told[-1] == 40


def test_progress_does_not_go_back_where_nothing_is_known():
    """As from loops whose first look at a batch of another size takes long."""

    class Slow(Repeated):
        def until(self, stop_at, most, report):
            report(1 << 62)
            return super().until(stop_at, most, report)

    recorder, told = RepeatingRecorder(), []
    recorder.loop = lambda call, flags: Slow(recorder, call, flags)
    solver = Solver(Plan.of(OPTIONS), LADDER, recorder)
    for _ in range(3):
        told.clear()
        solver.solve(cubic, batch(), 0.0, 2.0, OPTIONS, progress=told.append)
        assert told == sorted(told)
        assert told[0] == 0
        assert told[-1] == 40


def test_a_solve_that_does_not_end_is_an_error():
    class Deaf(Repeated):
        def until(self, stop_at, most, report):
            return 40, most

    recorder = RepeatingRecorder()
    recorder.loop = lambda call, flags: Deaf(recorder, call, flags)
    solver = Solver(Plan.of(OPTIONS), LADDER, recorder)
    with pytest.raises(RuntimeError, match="40 samples did not end"):
        solver.solve(cubic, batch(), 0.0, 2.0, OPTIONS)
