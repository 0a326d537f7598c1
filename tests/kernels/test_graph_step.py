"""The graph engine's kernels against their PyTorch twins: every method, status and size of a row, and memory around."""

import math
from dataclasses import fields, replace

import pytest
import torch
from vapo_fast.kernels.finish_step import finish_step
from vapo_fast.kernels.stage import stage
from vapo_fast.kernels.tableau import slot_table

from tests.support.recorder import RepeatingRecorder
from vapo_fast.engines.graph.buckets import Buckets
from vapo_fast.engines.graph.solver import Solver
from vapo_fast.engines.graph.triton_ops import TritonOps
from vapo_fast.ode import TABLEAUS, SolveOptions, Status, integrate
from vapo_fast.ode.masked_state import ROWS_WITH_MORE_STEPS, RUNNING, RUNNING_ROWS, State
from vapo_fast.ode.masked_step import Plan, TorchOps
from vapo_fast.ode.settings import numbers, settings
from vapo_fast.ode.stages import expand

ROWS, CAPACITY = 8, 11
ARRIVES, GOES_ON, REJECTED, HOPELESS, BROKEN, EXHAUSTED, ENDED, TIGHT = range(ROWS)
POISON = torch.iinfo(torch.int64).min
TIMES = (0.0, 0.25, 0.5, 0.5625, 1.0)


def options_for(method, t_eval=TIMES, backward=False):
    times = tuple(1.0 - time for time in t_eval) if backward else t_eval
    if not TABLEAUS[method].adaptive:
        return SolveOptions(method, steps=4, t_eval=times or None)
    return SolveOptions(method, rtol=1e-3, atol=1e-4, max_steps=9, t_eval=times or None)


def made_up(device, method, shape, dtype, backward=False, t_eval=TIMES):
    """A state in the middle of a solve, of which each row is about to take another turn; NaN where nobody may look."""
    options = options_for(method, t_eval, backward)
    generator = torch.Generator().manual_seed(math.prod(shape))
    like = torch.randn(CAPACITY, *shape, generator=generator, dtype=torch.float64).to(device, dtype)
    whole = State.allocate(CAPACITY, like, options.tableau, len(t_eval), ())
    for tensor in tensors(whole).values():
        tensor.fill_(torch.nan if tensor.is_floating_point() else POISON)
    state = whole.first(ROWS)
    begin, end = (1.0, 0.0) if backward else (0.0, 1.0)
    for tensor in (state.x, *state.stages, state.point):
        tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
    middle = 0.5 + 0.03125 * torch.arange(ROWS)
    state.t.copy_(1.0 - middle if backward else middle)
    state.h.fill_(0.125)
    state.previous_ratio.copy_(torch.logspace(-3, 0, ROWS))
    state.after_rejection.copy_(torch.arange(ROWS) % 2)
    state.status.fill_(RUNNING)
    state.nfe.copy_(7 * torch.arange(ROWS))
    state.accepted.copy_(torch.arange(ROWS) % 4)
    state.rejected.copy_(torch.arange(ROWS) % 3)
    state.row.copy_(torch.arange(ROWS))
    state.flags.copy_(torch.tensor([100, 100]))
    if t_eval:
        state.times.copy_(torch.tensor(options.t_eval))
    # The error is the stages' combination: small, but where it is to be large.
    for tensor in state.stages:
        tensor.mul_(5e-4)
    state.stages[-1][REJECTED].mul_(1e5)
    state.stages[-1][HOPELESS].mul_(3e30)
    state.h[HOPELESS] = 1e-18
    state.h[ARRIVES] = 3.0
    for tensor in (state.point, state.x) if not options.tableau.fsal else (state.point,):
        tensor[BROKEN][(-1,) * (tensor.dim() - 1)] = math.inf
    state.rejected[EXHAUSTED], state.accepted[EXHAUSTED] = (6, 2) if options.tableau.adaptive else (0, 1)
    state.status[ENDED] = int(Status.STEP_TOO_SMALL)
    if not options.tableau.adaptive:
        state.accepted[ARRIVES] = 3
        state.t.copy_(begin + (end - begin) * state.accepted / 4.0)
    values = numbers(settings(options, begin, end), device)
    return whole, state, values, Plan.of(options)


def tensors(state):
    found = {}
    for field in fields(State):
        value = getattr(state, field.name)
        found |= (
            {f"{field.name}{i}": v for i, v in enumerate(value)} if isinstance(value, tuple) else {field.name: value}
        )
    return found


def assert_same(ours, theirs, loose=()):
    for name, tensor in tensors(ours).items():
        tolerance = {torch.float32: 2e-6, torch.float64: 1e-14}[ours.x.dtype] if name in loose else 0.0
        torch.testing.assert_close(tensor, tensors(theirs)[name], rtol=tolerance, atol=0, equal_nan=True, msg=name)


def table(plan, device):
    return slot_table(plan.tableau, device)


every_method = pytest.mark.parametrize("method", TABLEAUS)
every_case = pytest.mark.parametrize(
    ("shape", "dtype", "backward"),
    [
        ((5,), torch.float64, False),
        ((2, 3, 3), torch.float32, True),
        ((1100,), torch.float32, False),
        ((1,), torch.float32, True),
    ],
    ids=["5-float64", "image-float32", "1100-float32", "1-float32"],
)


@every_case
@every_method
def test_stage_has_the_twins_bits(device, method, shape, dtype, backward):
    whole, state, values, plan = made_up(device, method, shape, dtype, backward)
    twin_whole, twin, *_ = made_up(device, method, shape, dtype, backward)
    for index in sorted({plan.first_stage, plan.tableau.stages - 1}):
        stage(state, values, table(plan, device), plan, index)
        TorchOps().stage(twin, values, plan, index)
        if index == plan.first_stage:
            assert state.flags.tolist() == [0, 0]
        twin.flags.copy_(state.flags)
        assert_same(whole, twin_whole)
        # What nobody wrote is still poison.
        assert bool(whole.point[ROWS:].isnan().all())
        assert bool(whole.time[ROWS:].isnan().all())


@every_case
@every_method
def test_finish_step_is_the_twins(device, method, shape, dtype, backward):
    """The same decisions and states; the norm's sum is in another order, and the controller's numbers with it."""
    whole, state, values, plan = made_up(device, method, shape, dtype, backward)
    twin_whole, twin, *_ = made_up(device, method, shape, dtype, backward)
    stage(state, values, table(plan, device), plan, plan.first_stage)
    state.point.copy_(twin.point)
    state.time.copy_(twin.time)
    before = {name: tensor.clone() for name, tensor in tensors(state).items()}
    finish_step(state, values, table(plan, device), plan)
    TorchOps().finish_step(twin, values, plan)
    twin.point.copy_(state.point)
    assert_same(whole, twin_whole, ("h", "previous_ratio"))
    status = state.status.tolist()
    adaptive = plan.tableau.adaptive
    expected = {
        ARRIVES: Status.SUCCESS,
        GOES_ON: RUNNING,
        REJECTED: RUNNING if adaptive else None,
        HOPELESS: Status.STEP_TOO_SMALL if adaptive else None,
        BROKEN: Status.NON_FINITE if not adaptive else RUNNING,
        EXHAUSTED: Status.MAX_STEPS if adaptive else RUNNING,
        ENDED: Status.STEP_TOO_SMALL,
    }
    for row, wanted in expected.items():
        assert wanted is None or status[row] == int(wanted), (row, status)
    running = [value == RUNNING for value in status]
    assert int(state.flags[RUNNING_ROWS]) == sum(running)
    assert 0 < int(state.flags[ROWS_WITH_MORE_STEPS]) <= sum(running)
    for name, tensor in tensors(state).items():
        if name not in ("flags", "times", "ys", "point") and tensor.shape[:1] == (ROWS,):
            torch.testing.assert_close(tensor[ENDED], before[name][ENDED], rtol=0, atol=0, equal_nan=True, msg=name)
    if adaptive:
        assert bool((state.x[REJECTED] == before["x"][REJECTED]).all())
        assert int(state.rejected[REJECTED]) == int(before["rejected"][REJECTED]) + 1
        assert bool((state.stages[0][GOES_ON] == before[f"stages{plan.tableau.stages - 1}"][GOES_ON]).all())
    assert bool((state.x[ARRIVES] == state.point[ARRIVES]).all())
    assert bool(torch.isfinite(state.ys[:, ARRIVES]).any())


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_without_output_times(device, method):
    whole, state, values, plan = made_up(device, method, (7,), torch.float32, t_eval=())
    twin_whole, twin, *_ = made_up(device, method, (7,), torch.float32, t_eval=())
    stage(state, values, table(plan, device), plan, plan.first_stage)
    state.point.copy_(twin.point)
    state.time.copy_(twin.time)
    finish_step(state, values, table(plan, device), plan)
    TorchOps().finish_step(twin, values, plan)
    twin.point.copy_(state.point)
    assert_same(whole, twin_whole, ("h", "previous_ratio"))


def test_ratios_that_are_no_numbers_reject(device):
    """NaN in the error alone, infinite scaled errors, and a state that overflows: all are rejected, none accepted."""
    _, state, values, plan = made_up(device, "dopri5", (5,), torch.float32)
    x = state.x.clone()
    state.stages[3][0, 2] = math.nan
    state.stages[3][1, 2] = 3e38
    state.point[2, 0] = -math.inf
    stage(state, values, table(plan, device), plan, plan.first_stage)
    state.point[:3].copy_(state.x[:3] + 0.5)
    state.point[2, 0] = -math.inf
    finish_step(state, values, table(plan, device), plan)
    assert torch.equal(state.x[:3], x[:3])
    assert bool((state.h[:3] < 0.51).all())
    assert state.after_rejection[:3].tolist() == [1, 1, 1]


@pytest.mark.parametrize("rows", [1, 3])
def test_a_row_has_the_same_bits_in_any_batch(device, rows):
    _, state, values, plan = made_up(device, "tsit5", (1100,), torch.float32)
    _, other, *_ = made_up(device, "tsit5", (1100,), torch.float32)
    for one in (state, other.first(rows)):
        stage(one, values, table(plan, device), plan, 1)
        one.point.copy_(one.x + 0.001)
        finish_step(one, values, table(plan, device), plan)
    for name in ("x", "t", "h", "previous_ratio", "status", "ys"):
        ours, theirs = getattr(state, name), getattr(other, name)
        part = (slice(None), slice(rows)) if name == "ys" else slice(rows)
        torch.testing.assert_close(theirs[part], ours[part], rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.parametrize(("method", "dtype"), [("bosh3", torch.float32), ("heun", torch.float64)])
def test_whole_solves(device, method, dtype):
    """The kernels in the engine's loop, with batches that shrink."""

    def cubic(x, t):
        return x * (1.0 + 0.25 * expand(t, x)) - x * x * x

    options = replace(options_for(method), max_steps=100)
    if options.tableau.adaptive:
        options = replace(options, rtol=1e-2)
    x0 = torch.linspace(-2.0, 2.0, 15, dtype=dtype).reshape(5, 3).to(device)
    x0[3, 1] = math.nan
    solution = Solver(Plan.of(options), Buckets(4), RepeatingRecorder(), TritonOps()).solve(
        cubic, x0, 0.0, 1.0, options
    )
    expected = integrate(cubic, x0, 0.0, 1.0, options)
    for name in ("t", "status", "nfe", "accepted", "rejected"):
        assert torch.equal(getattr(solution, name), getattr(expected, name)), name
    torch.testing.assert_close(solution.x, expected.x, rtol=1e-5, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(solution.ys, expected.ys, rtol=1e-5, atol=1e-6, equal_nan=True)
