"""Masked steps on the CPU have the bits of `vapo_fast.ode.integrate`, in batches and ladders of any size."""

import math
import warnings
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.recorder import RepeatingRecorder
from vapo_fast.engines.graph.buckets import Buckets
from vapo_fast.engines.graph.solver import Solver
from vapo_fast.ode import TABLEAUS, SolveOptions, Status, integrate
from vapo_fast.ode.masked_state import ROWS_WITH_MORE_STEPS, RUNNING, RUNNING_ROWS, State
from vapo_fast.ode.masked_step import Plan, TorchOps, attempt, begin
from vapo_fast.ode.settings import numbers, settings
from vapo_fast.ode.stages import expand

ADAPTIVE = ("dopri5", "tsit5", "bosh3")
LADDERS = {
    "whole": Buckets(1000, step=1, ratio=1.0, smallest=1),
    "chunks": Buckets(10, step=1, ratio=1.0, smallest=1),
    "coarse": Buckets(1000, step=8, ratio=0.75, smallest=16),
    "halves": Buckets(30, step=4, ratio=0.5, smallest=4),
}


def solver_for(options, ladder, **more):
    return Solver(Plan.of(options), ladder, RepeatingRecorder(), **more)


def cubic(x, t):
    """Basic arithmetic only, so that a row has the same bits in any batch; large rows need more steps than small."""
    return x * (1.0 + 0.25 * expand(t, x)) - x * x * x


def batch(rows=29, shape=(5,), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, *shape, generator=generator, dtype=torch.float64)
    return (x * expand(torch.linspace(0.01, 6.0, rows, dtype=torch.float64), x)).to(dtype)


def options_for(method, t0, t1, **others):
    t_eval = tuple(t0 + (t1 - t0) * share for share in (0.0, 0.0, 0.3125, 0.328125, 0.875, 1.0))
    if method not in ADAPTIVE:
        return SolveOptions(method, steps=13, t_eval=t_eval)
    return SolveOptions(method, rtol=1e-3 if method == "bosh3" else 1e-4, t_eval=t_eval, **others)


def assert_same_bits(actual, expected):
    for name in ("x", "t", "status", "nfe", "accepted", "rejected", "ys"):
        ours, theirs = getattr(actual, name), getattr(expected, name)
        if theirs is None:
            assert ours is None, name
        else:
            assert ours.shape == theirs.shape, name
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.parametrize(
    ("dtype", "ladder"), [*((torch.float32, name) for name in LADDERS), (torch.float64, "coarse")], ids=str
)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("method", TABLEAUS)
def test_bits_of_the_solver(method, backward, dtype, ladder):
    t0, t1 = (0.75, -0.25) if backward else (0.0, 2.0)
    options = options_for(method, t0, t1)
    # Backwards, what is larger than 1 soon meets a pole, at the cost of a hundred steps: few rows are.
    x0 = batch(dtype=dtype) * (0.1 if backward else 1.0)
    # A start that is no number, one that becomes none, one that is too large at once; the others do not notice.
    x0[3, 0], x0[7], x0[20, 4] = math.nan, 1e30, torch.finfo(dtype).max
    expected = integrate(cubic, x0, t0, t1, options)
    assert {int(Status.SUCCESS), int(Status.NON_FINITE)} <= set(expected.status.tolist())
    assert expected.nfe[3] == 0
    solver = solver_for(options, LADDERS[ladder])
    assert_same_bits(solver.solve(cubic, x0, t0, t1, options), expected)
    # Memory that held another solve, of other size, makes no difference.
    assert_same_bits(solver.solve(cubic, x0[5:19], t0, t1, options), integrate(cubic, x0[5:19], t0, t1, options))


@pytest.mark.parametrize("ladder", ["whole", "chunks", "coarse"])
@pytest.mark.parametrize("first_step", [None, 0.2, 50.0])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_limits_and_first_steps(method, first_step, ladder):
    # Rows that end with a rejected step come first: the next ones in their memory do not notice.
    x0 = batch(dtype=torch.float32).flip(0)
    for most in (1, 3, 9):
        options = options_for(method, 0.0, 2.0, max_steps=most, first_step=first_step, proportional_share=0.1)
        expected = integrate(cubic, x0, 0.0, 2.0, options)
        assert int(Status.MAX_STEPS) in expected.status.tolist()
        solver = solver_for(options, LADDERS[ladder])
        assert_same_bits(solver.solve(cubic, x0, 0.0, 2.0, options), expected)


def test_every_status_at_once():
    """A jump that no step can follow, a pole, a start that is no number, a slow row, and one that arrives."""

    def field(x, t):
        jump = torch.where(x[:, :1] > 0, -1e13, 1e13).to(x.dtype)
        pole = x[:, :1] * x[:, :1] * x[:, :1]
        slow = 400.0 * (torch.where(t * 40.0 % 2.0 < 1.0, 1.0, -1.0).to(x.dtype)[:, None] - x[:, :1])
        kind = x[:, 1:]
        change = torch.where(kind == 1, jump, torch.where(kind == 2, pole, torch.where(kind == 3, slow, -x[:, :1])))
        return torch.cat((change, torch.zeros_like(kind)), dim=1)

    x0 = torch.tensor([[1e-3, 1], [3.0, 2], [math.nan, 0], [0.5, 3], [1.0, 0]], dtype=torch.float64)
    options = SolveOptions("dopri5", rtol=1e-6, max_steps=120)
    expected = integrate(field, x0, 0.0, 1.0, options)
    assert set(expected.status.tolist()) == set(map(int, Status))
    for ladder in LADDERS.values():
        assert_same_bits(solver_for(options, ladder).solve(field, x0, 0.0, 1.0, options), expected)


@pytest.mark.parametrize("shape", [(1,), (3, 4, 4), (2, 3)], ids=str)
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_shapes_and_layouts(method, shape):
    """Images lie channels-last inside; neither that nor the start's own layout is seen in the result."""
    x0 = batch(17, shape, torch.float32)
    strided = x0.to(memory_format=torch.channels_last) if x0.dim() == 4 else x0.flip(0).flip(0)
    options = options_for(method, 0.0, 1.0)
    seen = set()

    def field(x, t):
        seen.add(x.is_contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.is_contiguous())
        return cubic(x, t)

    solution = solver_for(options, LADDERS["coarse"]).solve(field, strided, 0.0, 1.0, options)
    assert_same_bits(solution, integrate(cubic, x0, 0.0, 1.0, options))
    assert seen == {True}
    assert solution.x.is_contiguous()


@pytest.mark.parametrize("ladder", LADDERS)
def test_constants_of_each_sample_stay_with_it(ladder):
    x0, rates = batch(23), torch.linspace(0.1, 5.0, 23, dtype=torch.float64)
    probes = torch.stack((rates, rates.flip(0)), dim=1)

    def field(x, t, rate, two):
        return -rate[:, None] * x * x.abs() + two[:, :1] * t[:, None] - two[:, 1:] * x

    options = options_for("dopri5", 0.0, 2.0)
    expected = integrate(field, x0, 0.0, 2.0, options, (rates, probes))
    assert len(set(expected.nfe.tolist())) > 3
    solver = solver_for(options, LADDERS[ladder])
    assert_same_bits(solver.solve(field, x0, 0.0, 2.0, options, (rates, probes)), expected)


def test_rows_do_not_see_their_batch():
    options = options_for("tsit5", 0.0, 2.0)
    x0 = batch(31, dtype=torch.float32)
    solver = solver_for(options, LADDERS["coarse"])
    whole = solver.solve(cubic, x0, 0.0, 2.0, options)
    order = torch.randperm(31, generator=torch.Generator().manual_seed(1))
    shuffled = solver.solve(cubic, x0[order], 0.0, 2.0, options)
    assert torch.equal(shuffled.x, whole.x[order])
    assert torch.equal(shuffled.nfe, whole.nfe[order])
    for rows in (1, 2, 9):
        few = solver.solve(cubic, x0[4 : 4 + rows], 0.0, 2.0, options)
        assert torch.equal(few.x, whole.x[4 : 4 + rows])
        assert torch.equal(few.ys, whole.ys[:, 4 : 4 + rows])
        assert torch.equal(few.rejected, whole.rejected[4 : 4 + rows])


def test_new_memory_is_fully_written():
    options = options_for("dopri5", 0.0, 2.0)
    x0 = batch(21)
    clean = solver_for(options, LADDERS["coarse"]).solve(cubic, x0, 0.0, 2.0, options)
    torch.use_deterministic_algorithms(True)
    try:
        assert bool(torch.empty(3).isnan().all())
        poisoned = solver_for(options, LADDERS["coarse"]).solve(cubic, x0, 0.0, 2.0, options)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same_bits(poisoned, clean)
    assert bool(torch.isfinite(clean.ys).all())


class Watch(TorchDispatchMode):
    """Counts what makes the host wait for a device, or a shape depend on values."""

    WAITING = ("_local_scalar_dense", "nonzero", "item", "unique", "masked_select", "is_nonzero", "equal")

    def __init__(self):
        super().__init__()
        self.waits, self.shapes = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function._schema.name.split("::")[-1]
        index = name in ("index", "index_put", "index_put_") and any(
            part is not None and part.dtype == torch.bool for part in args[1]
        )
        if index or name in self.WAITING or (name == "copy_" and args[0].device != args[1].device):
            self.waits.append(name)
        if isinstance(result, torch.Tensor):
            self.shapes.append((name, tuple(result.shape)))
        return result


def loaded(method, rows=12, outputs=2):
    options = options_for(method, 0.0, 2.0)
    x0 = batch(rows, dtype=torch.float32)
    state = State.allocate(rows + 4, x0, options.tableau, len(options.t_eval), ())
    state.load(x0, 0.0, options.t_eval, (), rows)
    return state, numbers(settings(options, 0.0, 2.0), x0.device), Plan.of(options)


@pytest.mark.parametrize("method", TABLEAUS)
def test_a_step_neither_waits_nor_moves_nor_changes_a_shape(method):
    """What a CUDA graph needs: the same operations on the same memory, whatever is in it."""
    state, values, plan = loaded(method)
    where = [tensor.data_ptr() for tensor in _tensors(state)]
    seen = []
    for program in (partial(begin, cubic), *[partial(attempt, cubic)] * 9):
        with Watch() as watch:
            program(state, values, plan, *([] if program.func is begin else [TorchOps()]))
        assert watch.waits == []
        if program.func is attempt:
            seen.append(watch.shapes)
    assert all(shapes == seen[0] for shapes in seen)
    assert [tensor.data_ptr() for tensor in _tensors(state)] == where
    assert bool((state.status[:12] != RUNNING).any())  # some ended while being watched


def test_watching_sees_a_wait():
    with Watch() as watch:
        x = torch.ones(3)
        x[x > 0].sum().item()
    assert watch.waits == ["index", "_local_scalar_dense"]


def _tensors(state):
    return [t for value in vars(state).values() for t in (value if isinstance(value, tuple) else (value,))]


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_flags_say_how_many_run_and_how_many_will_go_on(method):
    state, values, plan = loaded(method)
    state.x.mul_(0.1)
    begin(cubic, state, values, plan)
    while int(state.flags[RUNNING_ROWS]):
        assert int(state.flags[RUNNING_ROWS]) == int((state.status == RUNNING).sum())
        far, before = int(state.flags[ROWS_WITH_MORE_STEPS]), int(state.flags[RUNNING_ROWS])
        attempt(cubic, state, values, plan, TorchOps())
        # Those that are far cannot end by arriving; nothing here ends otherwise.
        assert int(state.flags[RUNNING_ROWS]) >= far
        assert int(state.flags[RUNNING_ROWS]) <= before
    assert int(state.flags[ROWS_WITH_MORE_STEPS]) == 0
    ended = [tensor.clone() for tensor in (state.x, state.t, state.status, state.nfe, state.ys, state.accepted)]
    attempt(cubic, state, values, plan, TorchOps())
    for now, then in zip((state.x, state.t, state.status, state.nfe, state.ys, state.accepted), ended, strict=True):
        torch.testing.assert_close(now, then, rtol=0, atol=0, equal_nan=True)


def crowded(limit, error, calls):
    """A field for which memory ends at more than so many rows."""

    def field(x, t):
        calls.append(len(x))
        if len(x) > limit:
            raise error
        return cubic(x, t)

    return field


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("can't allocate memory: 1 byte"),
        RuntimeError("could not create a primitive"),
    ],
    ids=["pytorch", "python", "allocator", "onednn"],
)
def test_out_of_memory_goes_on_with_smaller_batches(error):
    options = options_for("dopri5", 0.0, 2.0)
    x0, calls = batch(29), []
    solver = solver_for(options, Buckets(1000, step=8, ratio=0.75, smallest=16))
    with pytest.warns(RuntimeWarning, match="out of memory with 29 samples at a time: going on with 14") as warned:
        solution = solver.solve(crowded(7, error, calls), x0, 0.0, 2.0, options)
    assert len(warned) == 1
    assert_same_bits(solution, integrate(cubic, x0, 0.0, 2.0, options))
    # The next solve knows.
    calls.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_bits(solver.solve(crowded(7, error, calls), x0, 0.0, 2.0, options), solution)
    assert max(calls) <= 7


def test_not_even_one_sample_fits():
    options = options_for("bosh3", 0.0, 2.0)
    solver = solver_for(options, Buckets(4))
    with pytest.warns(RuntimeWarning), pytest.raises(MemoryError, match="one sample at a time"):
        solver.solve(crowded(0, MemoryError(), []), batch(5), 0.0, 2.0, options)


def test_errors_of_the_field_are_its_own_and_leave_the_solver_usable():
    options = options_for("bosh3", 0.0, 2.0)
    solver = solver_for(options, Buckets(10))
    with pytest.raises(RuntimeError, match="no such thing"):
        solver.solve(crowded(3, RuntimeError("no such thing"), []), batch(5), 0.0, 2.0, options)
    assert_same_bits(solver.solve(cubic, batch(5), 0.0, 2.0, options), integrate(cubic, batch(5), 0.0, 2.0, options))


def test_progress_counts_up_to_all():
    options = options_for("dopri5", 0.0, 2.0)
    told = []
    solver_for(options, Buckets(10)).solve(cubic, batch(29), 0.0, 2.0, options, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 29
    assert len(set(told)) > 5


def test_the_context_surrounds_each_program():
    depth, seen = [0], []

    class Around(nullcontext):
        def __enter__(self):
            depth[0] += 1

        def __exit__(self, *error):
            depth[0] -= 1

    def field(x, t):
        seen.append(depth[0])
        return cubic(x, t)

    options = options_for("bosh3", 0.0, 2.0)
    solver_for(options, Buckets(40), around=Around).solve(field, batch(5), 0.0, 2.0, options)
    assert set(seen) == {1}


@pytest.mark.parametrize(
    "ladder", [Buckets(512, 8, 0.75, 16), Buckets(100, 8, 0.5, 16), Buckets(7), Buckets(9, 8, 0.75, 16)]
)
def test_ladders(ladder):
    for rows in (1, 5, 17, 100, 512, 1000, 4001):
        chunk = ladder.chunk(rows)
        assert 1 <= chunk <= min(rows, ladder.limit)
        assert math.ceil(rows / chunk) == math.ceil(rows / ladder.limit)
        size = ladder.first(chunk)
        assert chunk <= size <= ladder.limit
        steps = 0
        while lower := ladder.below(size):
            assert lower < size
            for running in range(lower + 1, size + 1, 3):
                assert ladder.fit(running, size) == size
            assert ladder.fit(lower, size) <= lower
            size, steps = lower, steps + 1
        assert steps <= 16
        assert ladder.fit(0, size) == size or ladder.ratio == 1.0
    assert ladder.halved(64).limit == 32
    assert ladder.halved(1).limit == 1
