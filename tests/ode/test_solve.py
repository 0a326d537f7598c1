"""The batch integrator: orders, accuracy, independence of batch-mates."""

import math

import numpy as np
import pytest
import scipy.integrate
import torch

from vapo_fast.ode import solve
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
