"""The batch integrator: orders, accuracy, outcomes per sample, independence of batch-mates, and bad inputs."""

import math

import numpy as np
import pytest
import scipy.integrate
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vapo_fast.ode import SolveError, Status, solve
from vapo_fast.ode import solve as solve_function
from vapo_fast.ode.solve import row_rms

ADAPTIVE = {"dopri5": 5, "tsit5": 5, "bosh3": 3}
FIXED = {"euler": 1, "heun": 2, "rk4": 4}


def growth(x, t):
    """x' = x cos t: x = x0 exp(sin t)."""
    return x * torch.cos(t)[:, None]


def cubic(x, t):
    """Basic arithmetic only, so that a row has the same bits in any batch; large rows need more steps than small."""
    return x * (1.0 + 0.25 * t[:, None]) - x * x * x


def batch(rows=37, size=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, size, generator=generator, dtype=torch.float64)
    return (x * torch.linspace(0.01, 6.0, rows, dtype=torch.float64)[:, None]).to(dtype)


def slope(sizes, errors):
    return np.polyfit(np.log(sizes), np.log(errors), 1)[0]


@pytest.mark.parametrize(("method", "order"), FIXED.items())
def test_order_of_fixed_step_methods(method, order):
    x0 = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    exact, middle = x0 * math.exp(math.sin(2.0)), x0 * math.exp(math.sin(0.777))
    steps = [16, 32, 64, 128]
    solutions = [solve(growth, x0, 0.0, 2.0, method=method, steps=n, t_eval=[0.777]) for n in steps]
    assert slope(1 / np.array(steps), [float((s.x - exact).abs().max()) for s in solutions]) == pytest.approx(
        order, abs=0.15
    )
    inner = slope(1 / np.array(steps), [float((s.ys[0] - middle).abs().max()) for s in solutions])
    assert inner > order - 0.5
    assert solutions[0].nfe.tolist() == [16 * {1: 1, 2: 2, 4: 4}[order]] * 2
    assert solutions[0].accepted.tolist() == [16, 16]


@pytest.mark.parametrize(("method", "order"), ADAPTIVE.items())
@pytest.mark.parametrize("inside", [1.0, 0.4])
def test_order_of_adaptive_methods_at_forced_step_sizes(method, order, inside):
    """A loose tolerance lets each call take exactly one step, which is read at its end and at a fraction of it."""
    largest, sizes = [], []
    for steps in (32, 64, 128):
        h, x, errors = 2.0 / steps, torch.tensor([[1.0]], dtype=torch.float64), []
        for i in range(steps):
            t, t_next = i * h, (i + 1) * h
            t_out = min(t + inside * h, t_next)
            solution = solve(growth, x, t, t_next, method=method, rtol=1e6, first_step=h, t_eval=[t_out])
            assert solution.accepted.tolist() == [1]
            x = solution.x
            errors.append(abs(float(solution.ys[0]) - math.exp(math.sin(t_out))))
        largest.append(max(errors))
        sizes.append(h)
    assert slope(sizes, largest) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_error_follows_the_tolerance(method):
    x0 = torch.tensor([[1.0]], dtype=torch.float64)
    exact = math.exp(math.sin(3.0))
    tolerances = [1e-5, 1e-7, 1e-9]
    errors = [abs(float(solve(growth, x0, 0.0, 3.0, rtol=tol, method=method).x) - exact) for tol in tolerances]
    for error, tol in zip(errors, tolerances, strict=True):
        assert error < 20 * tol
    assert slope(tolerances, errors) > 0.7


@pytest.mark.parametrize("method", ["dopri5", "tsit5"])
def test_agrees_with_scipy(method):
    """The Arenstorf orbit: steps must change by orders of magnitude along the way."""
    mu, period = 0.012277471, 17.0652165601579625588917206249

    def right(y):
        x, z, vx, vz = y
        d1, d2 = ((x + mu) ** 2 + z**2) ** 1.5, ((x - 1 + mu) ** 2 + z**2) ** 1.5
        ax = x + 2 * vz - (1 - mu) * (x + mu) / d1 - mu * (x - 1 + mu) / d2
        return [vx, vz, ax, z - 2 * vx - (1 - mu) * z / d1 - mu * z / d2]

    start = [0.994, 0.0, 0.0, -2.00158510637908252240537862224]
    end = 0.6 * period
    reference = scipy.integrate.solve_ivp(lambda t, y: right(y), (0, end), start, "DOP853", rtol=1e-13, atol=1e-13).y[
        :, -1
    ]
    x0 = torch.tensor([start], dtype=torch.float64)
    solution = solve(lambda x, t: torch.stack(right(x.unbind(1)), 1), x0, 0.0, end, rtol=1e-12, method=method)
    assert np.abs(solution.x[0].numpy() - reference).max() < 2e-7
    oscillator = solve(
        lambda x, t: torch.stack((x[:, 1], -x[:, 0]), 1), torch.tensor([[1.0, 0.0]]).double(), 0.0, 10.0, rtol=1e-10
    )
    assert oscillator.x[0].tolist() == pytest.approx([math.cos(10.0), -math.sin(10.0)], abs=1e-9)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_forward_then_backward_returns(method):
    x0 = batch(8)
    there = solve(cubic, x0 * 0.2, 0.0, 2.0, rtol=1e-9, method=method)
    back = solve(cubic, there.x, 2.0, 0.0, rtol=1e-9, method=method)
    torch.testing.assert_close(back.x, x0 * 0.2, rtol=1e-6, atol=1e-6)
    assert back.t.tolist() == [0.0] * 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{"method": m, "rtol": 1e-5} for m in ADAPTIVE] + [{"method": "rk4", "steps": 40}])
def test_a_row_has_the_same_bits_in_any_batch(options, dtype):
    x0 = batch(dtype=dtype)
    times = [0.0, 0.3, 1.1, 2.0]
    whole = solve(cubic, x0, 0.0, 2.0, t_eval=times, throw=False, **options)
    if "rtol" in options:
        assert len(set(whole.accepted.tolist())) > 3
    for rows in ([0], [36], [3, 30], list(range(36, -1, -1))):
        part = solve(cubic, x0[rows], 0.0, 2.0, t_eval=times, throw=False, **options)
        for name in ("x", "t", "status", "nfe", "accepted", "rejected"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[rows]), name
        assert torch.equal(part.ys.nan_to_num(9.0), whole.ys[:, rows].nan_to_num(9.0))


def test_a_row_agrees_to_rounding_for_a_network():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 32), torch.nn.Tanh(), torch.nn.Linear(32, 5)).double()
    whole = solve(lambda x, t: net(x), batch(), 0.0, 2.0, rtol=1e-7)
    alone = solve(lambda x, t: net(x), batch()[5:6], 0.0, 2.0, rtol=1e-7)
    torch.testing.assert_close(alone.x[0], whole.x[5], rtol=1e-12, atol=1e-12)
    assert alone.accepted[0] == whole.accepted[5]


@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_error_norm(direction):
    """The ratio is c / tol if rtol = atol = tol; a step by hand gives c, hence the tol at which it is accepted."""
    x0, h = np.array([0.5, -2.0, 3.0]), 0.25

    def f(x, t):
        return np.cos(3.0 * t) * x + x**2

    k1 = f(x0, 1.0)
    k2 = f(x0 + direction * h / 2 * k1, 1.0 + direction * h / 2)
    k3 = f(x0 + direction * 3 * h / 4 * k2, 1.0 + direction * 3 * h / 4)
    x1 = x0 + direction * h * (2 / 9 * k1 + 1 / 3 * k2 + 4 / 9 * k3)
    k4 = f(x1, 1.0 + direction * h)
    error = h * (-5 / 72 * k1 + k2 / 12 + k3 / 9 - k4 / 8)
    c = float(np.sqrt(np.mean((error / (1.0 + np.maximum(abs(x0), abs(x1)))) ** 2)))

    def field(x, t):
        return torch.cos(3.0 * t)[:, None] * x + x * x

    for factor, rejected in ((1.0 + 1e-9, 0), (1.0 - 1e-9, 1)):
        solution = solve(
            field,
            torch.tensor(x0)[None],
            1.0,
            1.0 + 2 * direction,
            method="bosh3",
            rtol=c * factor,
            first_step=h,
            max_steps=1,
            throw=False,
        )
        assert solution.rejected.tolist() == [rejected]
        if not rejected:
            assert solution.x[0].tolist() == pytest.approx(x1.tolist(), rel=1e-14)
            assert solution.t.tolist() == [1.0 + direction * h]


def plain_bosh3(f, x, t, t1, tol, h, share):
    """The whole adaptive loop on Python floats: accepted step ends, and the number of rejections."""
    ends, rejected, previous, after_rejection, k1 = [], 0, 1.0, False, f(x, t)
    while t != t1:
        last = 1.01 * h >= t1 - t
        h = t1 - t if last else h
        k2 = f(x + h / 2 * k1, t + h / 2)
        k3 = f(x + 3 * h / 4 * k2, t + 3 * h / 4)
        x_new = x + h * (2 / 9 * k1 + 1 / 3 * k2 + 4 / 9 * k3)
        k4 = f(x_new, t + h)
        ratio = abs(h * (-5 / 72 * k1 + k2 / 12 + k3 / 9 - k4 / 8)) / (tol + tol * max(abs(x), abs(x_new)))
        if ratio <= 1.0:
            factor = 0.9 * ratio ** ((0.75 * share - 1.0) / 3) * previous ** (share / 3)
            factor = min(max(factor, 0.2), 1.0 if after_rejection else 10.0)
            t, x, k1, previous, after_rejection = t1 if last else t + h, x_new, k4, max(ratio, 1e-4), False
            ends.append((t, x))
        else:
            factor, rejected, after_rejection = min(max(0.9 * ratio ** (-1 / 3), 0.2), 1.0), rejected + 1, True
        h *= factor
    return ends, rejected


@pytest.mark.parametrize("share", [0.0, 0.2])
@pytest.mark.parametrize(("tol", "first_step", "end"), [(1e-6, 1.0, 6.0), (1e-4, 0.01, 3.0), (1e-5, 0.3, 4.7)])
def test_the_loop_is_the_plain_one(tol, first_step, end, share):
    """A bump in the field forces rejections; steps and states agree to rounding with the loop on Python floats."""

    def bump(x, t, exp):
        return -x + 5.0 * exp(-200.0 * (t - 1.3) * (t - 1.3))

    ends, rejected = plain_bosh3(lambda x, t: bump(x, t, math.exp), 1.0, 0.0, end, tol, first_step, share)
    assert rejected > 0
    solution = solve(
        lambda x, t: bump(x, t[:, None], torch.exp),
        torch.ones(1, 1, dtype=torch.float64),
        0.0,
        end,
        method="bosh3",
        rtol=tol,
        first_step=first_step,
        proportional_share=share,
        t_eval=[t for t, _ in ends],
    )
    assert solution.accepted.tolist() == [len(ends)]
    assert solution.rejected.tolist() == [rejected]
    assert solution.t.tolist() == [end]
    assert solution.ys.flatten().tolist() == pytest.approx([x for _, x in ends], rel=1e-10)


def test_an_infinite_state_is_rejected_though_the_field_is_finite_there():
    """An infinite scale would divide any error to 0, and the row would count as a success."""
    x0 = torch.full((1, 2), 2e38)
    options = {"method": "bosh3", "max_steps": 100, "throw": False}
    solution = solve(lambda x, t: torch.full_like(x, 3e38), x0, 0.0, 1.0, **options)
    assert not solution.success.any()
    assert solution.x.isfinite().all()
    assert solution.rejected > 0
    assert solution.t < 0.5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu():
    times = [0.3, 1.1, 2.0]
    for options in ({"rtol": 1e-8}, {"method": "rk4", "steps": 40}):
        host = solve(cubic, batch() * 0.2, 0.0, 2.0, t_eval=times, **options)
        device = solve(cubic, batch().cuda() * 0.2, 0.0, 2.0, t_eval=times, **options)
        for name in ("x", "t", "status", "nfe", "accepted", "rejected", "ys"):
            assert torch.equal(getattr(device, name).cpu(), getattr(host, name)), name


def test_row_rms():
    x = torch.randn(6, 3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(row_rms(x), x.flatten(1).square().mean(1).sqrt(), rtol=1e-14, atol=0.0)
    assert row_rms(torch.tensor([3.0, -4.0])).tolist() == [3.0, 4.0]
    assert row_rms(torch.tensor([[1.0, math.nan]])).isnan().all()


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
