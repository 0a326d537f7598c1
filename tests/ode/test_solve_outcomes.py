"""The batch integrator: evaluations that are counted, output times, outcomes per sample, and bad inputs."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.ode.test_solve import ADAPTIVE, batch, cubic, growth
from vapo_fast.ode import SolveError, Status, solve
from vapo_fast.ode import solve as solve_function


def test_finished_samples_leave_the_batch_and_evaluations_are_counted():
    rows = []

    def counted(x, t):
        rows.append(x.shape[0])
        return cubic(x, t)

    solution = solve(counted, batch(), 0.0, 2.0, rtol=1e-6)
    assert sum(rows) == int(solution.nfe.sum())
    assert rows[0] == 37
    assert rows[-1] < 37
    assert torch.equal(solution.nfe, 2 + 6 * (solution.accepted + solution.rejected))


def test_args_follow_their_rows():
    rate = torch.linspace(-8.0, 1.0, 20, dtype=torch.float64)
    x0 = torch.ones(20, 2, dtype=torch.float64)
    solution = solve(lambda x, t, a: a[:, None] * x, x0, 0.0, 1.0, rtol=1e-9, args=(rate,))
    torch.testing.assert_close(solution.x, rate.exp()[:, None].expand(20, 2), rtol=1e-7, atol=1e-8)


class Syncs(TorchDispatchMode):
    """Counts operations that make the host wait for a device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if name in {
            "aten::_local_scalar_dense",
            "aten::nonzero",
            "aten::masked_select",
            "aten::equal",
            "aten::is_nonzero",
        }:
            self.found.append(name)
        if name in {"aten::index", "aten::index_put", "aten::index_put_"}:
            self.found += [name for index in args[1] if index is not None and index.dtype == torch.bool]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("t_eval", [None, [0.1, 0.5, 1.9]])
def test_at_most_one_host_read_a_step(monkeypatch, t_eval):
    reads = []
    original = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: reads.append(1) or original(self))
    with Syncs() as syncs:
        solution = solve(cubic, batch(), 0.0, 2.0, rtol=1e-6, t_eval=t_eval, throw=False)
    steps = int((solution.accepted + solution.rejected).max())
    assert syncs.found == []
    assert len(reads) <= steps + 2


def test_t_eval_does_not_change_the_solution_and_is_accurate():
    x0 = torch.tensor([[1.0], [-0.5]], dtype=torch.float64)
    times = torch.linspace(0.0, 3.0, 31, dtype=torch.float64)
    exact = x0 * times.sin().exp()[:, None, None]
    for method in ADAPTIVE:
        plain = solve(growth, x0, 0.0, 3.0, rtol=1e-8, method=method)
        dense = solve(growth, x0, 0.0, 3.0, rtol=1e-8, method=method, t_eval=times)
        assert torch.equal(plain.x, dense.x)
        assert torch.equal(plain.nfe, dense.nfe)
        assert torch.equal(dense.ys[-1], dense.x)
        assert torch.equal(dense.ys[0], x0)
        assert (dense.ys - exact).abs().max() < 2e-7
        backward = solve(growth, dense.x, 3.0, 0.0, rtol=1e-8, method=method, t_eval=times.flip(0))
        assert (backward.ys.flip(0) - exact).abs().max() < 1e-6


def test_repeated_output_times():
    solution = solve(growth, torch.ones(1, 1), 0.0, 1.0, t_eval=[0.0, 0.0, 0.5, 0.5, 1.0, 1.0])
    for i in (0, 2, 4):
        assert torch.equal(solution.ys[i], solution.ys[i + 1])
    assert not solution.ys.isnan().any()


def troubled(x, t, kind):
    """Row kinds: 0 fine, 1 blows up (x' = x^2), 2 NaN after t = 1, 3 infinite from the start."""
    good = -x
    blow = x * x
    late = torch.where(t[:, None] < 1.0, torch.ones_like(x), torch.nan)
    kinds = torch.stack((good, blow, late, torch.full_like(x, torch.inf)))
    return kinds.gather(0, kind[None, :, None].expand(1, *x.shape))[0]


def test_failing_samples_end_with_their_status_and_touch_nobody():
    kind = torch.tensor([0, 1, 0, 2, 3, 0, 0])
    x0 = torch.ones(7, 2, dtype=torch.float64) * torch.arange(1.0, 8.0, dtype=torch.float64)[:, None]
    x0[5, 1] = torch.nan
    solution = solve(troubled, x0, 0.0, 2.0, args=(kind,), throw=False, t_eval=[0.25, 2.0])
    names = [Status(s).name for s in solution.status.tolist()]
    assert names[:1] + names[2:] == ["SUCCESS", "SUCCESS", "NON_FINITE", "NON_FINITE", "NON_FINITE", "SUCCESS"]
    assert names[1] in {"STEP_TOO_SMALL", "NON_FINITE"}
    assert float(solution.t[1]) == pytest.approx(0.5, abs=1e-5)
    assert solution.x[1].isfinite().all()
    assert float(solution.t[3]) == pytest.approx(1.0, abs=1e-9)
    torch.testing.assert_close(solution.x[3], x0[3] + solution.t[3], rtol=1e-9, atol=1e-9)
    for row in (4, 5):
        assert solution.t[row] == 0.0
        assert torch.equal(solution.x[row].nan_to_num(), x0[row].nan_to_num())
    assert solution.ys[1].isnan().any(1).tolist() == [False, True, False, True, True, True, False]
    assert solution.ys[0, 3].isfinite().all()
    good = [0, 2, 6]
    alone = solve(troubled, x0[good], 0.0, 2.0, args=(kind[good],))
    for name in ("x", "t", "nfe", "accepted", "rejected"):
        assert torch.equal(getattr(alone, name), getattr(solution, name)[good])


def test_throw_raises_at_the_end_with_everything():
    x0 = torch.tensor([[0.1], [1.0]], dtype=torch.float64)
    with pytest.raises(SolveError, match="1 of 2 samples") as error:
        solve(lambda x, t: x * x, x0, 0.0, 2.0)
    assert float(error.value.solution.x[0]) == pytest.approx(0.125, rel=1e-4)


def test_fixed_step_freezes_a_row_that_stops_being_finite():
    x0 = torch.tensor([[0.1], [1.0]])
    solution = solve(lambda x, t: 1e3 * x * x, x0, 0.0, 1.0, method="euler", steps=50, throw=False)
    assert solution.status.tolist() == [Status.NON_FINITE] * 2
    assert solution.x.isfinite().all()
    assert (solution.t < 1.0).all()
    assert solution.rejected.tolist() == [1, 1]
    assert torch.equal(solution.nfe, solution.accepted + 1)


def test_max_steps_is_the_number_of_tries():
    x0 = torch.tensor([[1.0], [1e-3]], dtype=torch.float64)
    solution = solve(lambda x, t: -50.0 * x, x0, 0.0, 10.0, rtol=1e-9, max_steps=7, throw=False)
    assert solution.status.tolist() == [Status.MAX_STEPS] * 2
    assert (solution.accepted + solution.rejected).tolist() == [7, 7]
    assert ((solution.t > 0) & (solution.t < 10)).all()
    exact = x0 * torch.exp(-50 * solution.t)[:, None]
    torch.testing.assert_close(solution.x, exact, rtol=1e-7, atol=1e-9)


def test_a_discontinuity_whose_error_never_shrinks_is_a_step_too_small():
    """A step over a jump of x' has an error of h times the jump: at 1e30 it stays above 1 down to the smallest h."""
    x0 = torch.ones(1, 1, dtype=torch.float64)
    solution = solve(lambda x, t: torch.where(t[:, None] < 0.5, 0.0, 1e30) + 0 * x, x0, 0.0, 1.0, throw=False)
    assert solution.status.tolist() == [Status.STEP_TOO_SMALL]
    assert float(solution.t) == pytest.approx(0.5, abs=1e-9)


def test_equal_times_return_the_start():
    x0 = batch()
    solution = solve(cubic, x0, 1.5, 1.5, t_eval=[1.5])
    assert torch.equal(solution.x, x0)
    assert torch.equal(solution.ys[0], x0)
    assert solution.nfe.sum() == 0
    assert solution.success.all()


def test_zero_state_with_zero_atol():
    solution = solve(lambda x, t: -x, torch.tensor([[0.0, 1.0]], dtype=torch.float64), 0.0, 1.0, rtol=1e-8, atol=0.0)
    assert solution.x[0].tolist() == pytest.approx([0.0, math.exp(-1.0)], rel=1e-6)


def test_still_field():
    solution = solve(lambda x, t: torch.zeros_like(x), batch(), 0.0, 4.0)
    assert torch.equal(solution.x, batch())
    assert int(solution.accepted.max()) < 12


def test_events_of_any_shape_and_the_input_left_alone():
    x0 = batch(6, 12).reshape(6, 3, 2, 2)
    before = x0.clone()
    solution = solve(lambda x, t: -x, x0, 0.0, 1.0, rtol=1e-8)
    torch.testing.assert_close(solution.x, x0 * math.exp(-1), rtol=1e-6, atol=1e-7)
    assert torch.equal(x0, before)
    assert solve(lambda x, t: -x, torch.ones(3), 0.0, 1.0).x.shape == (3,)


def test_float32_times_stay_exact_to_the_end():
    solution = solve(lambda x, t: torch.cos(40 * t)[:, None] + 0 * x, torch.zeros(2, 1), 0.0, 9.21, rtol=1e-5)
    assert solution.t.dtype == torch.float64
    assert solution.t.tolist() == [9.21, 9.21]
    assert solution.x.dtype == torch.float32
    assert float(solution.x[0]) == pytest.approx(math.sin(40 * 9.21) / 40, abs=1e-4)


def test_no_gradient_is_pretended():
    x0 = torch.ones(1, 1, requires_grad=True)
    with pytest.raises(ValueError, match="not differentiable"):
        solve(cubic, x0, 0.0, 1.0)
    with torch.no_grad():
        assert not solve(cubic, x0, 0.0, 1.0).x.requires_grad


ONES = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rtol": 0.0}, ValueError, "rtol must be a finite number > 0, got 0.0"),
        ({"rtol": -1e-3}, ValueError, "rtol must be"),
        ({"rtol": math.nan}, ValueError, "rtol must be finite"),
        ({"rtol": "1e-3"}, TypeError, "rtol must be a number"),
        ({"atol": -1e-9}, ValueError, "atol must be a finite number >= 0"),
        ({"rtol": 1e-9}, ValueError, r"rtol=1e-09 and atol=1e-09 are both below 4.8e-07.*float32.*use float64"),
        ({"method": "rk45"}, ValueError, "method must be one of 'dopri5'.*got 'rk45'"),
        ({"steps": 5}, ValueError, "steps=5 does not go with method='dopri5'"),
        ({"method": "rk4"}, ValueError, "steps is required by the fixed-step method 'rk4'"),
        ({"method": "rk4", "steps": 0}, ValueError, "steps must be a positive integer"),
        ({"method": "rk4", "steps": 5, "rtol": 1e-3}, ValueError, "rtol=0.001 does not go with the fixed-step method"),
        ({"max_steps": 0}, ValueError, "max_steps must be a positive integer, got 0"),
        ({"max_steps": math.inf}, TypeError, "max_steps must be a positive integer"),
        ({"first_step": 0.0}, ValueError, "first_step must be"),
        ({"proportional_share": 1.0}, ValueError, "proportional_share must be at least 0 and below 1, got 1"),
        ({"proportional_share": -0.2}, ValueError, "proportional_share must be"),
        ({"proportional_share": "0.2"}, TypeError, "proportional_share must be"),
        ({"proportional_share": 0.2, "method": "rk4", "steps": 3}, ValueError, "proportional_share=0.2 does not go"),
        ({"t1": math.inf}, ValueError, "t1 must be finite"),
        ({"t0": "now"}, TypeError, "t0 must be a number"),
        ({"x0": [[1.0]]}, TypeError, "x0 must be a torch.Tensor"),
        ({"x0": torch.ones(2, 3, dtype=torch.int64)}, TypeError, "x0 must be float32 or float64, got torch.int64"),
        ({"x0": torch.ones(2, 3).half()}, TypeError, "x0 must be float32 or float64, got torch.float16"),
        ({"x0": torch.ones(0, 3)}, ValueError, "at least one sample"),
        ({"x0": torch.tensor(1.0)}, ValueError, "shape"),
        ({"t_eval": []}, ValueError, "at least one time"),
        ({"t_eval": [0.5, 0.2]}, ValueError, "ordered from t0=0 to t1=1.*0.5 is followed by 0.2"),
        ({"t_eval": [0.5, 1.5]}, ValueError, "1.5 is followed by 1 at"),
        ({"t_eval": [-0.5]}, ValueError, "0 is followed by -0.5"),
        ({"t_eval": torch.zeros(2, 2)}, ValueError, "one dimension"),
        ({"t_eval": 0.5}, TypeError, "t_eval must be a 1-D tensor"),
        ({"t_eval": [math.nan]}, ValueError, "t_eval must be finite"),
        ({"args": (torch.ones(3),)}, ValueError, r"args\[0\] must be a tensor with one row for each of the 2 samples"),
        ({"field": lambda x, t: x[:, :2]}, ValueError, r"field must return the shape of x, \(2, 3\), got \(2, 2\)"),
        ({"field": lambda x, t: x.sum(1)}, ValueError, "field must return the shape"),
        (
            {"field": lambda x, t: x.double()},
            TypeError,
            "field must return the dtype of x, torch.float32, got torch.float64",
        ),
        ({"field": lambda x, t: (x, x)}, TypeError, "field must return a tensor"),
        ({"field": lambda x, t: x.to("meta")}, ValueError, "on the device of x, cpu, got meta"),
    ],
)
def test_bad_inputs_are_named(changes, error, message):
    arguments = {"field": lambda x, t: -x, "x0": ONES, "t0": 0.0, "t1": 1.0} | changes
    with pytest.raises(error, match=message):
        solve_function(**arguments)
