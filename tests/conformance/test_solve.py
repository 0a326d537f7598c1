"""Solves of every engine against the reference: methods, directions, output times, step counts, failing rows."""

import math
from dataclasses import replace

import pytest
import torch

from tests.support.tolerances import TOLERANCES, assert_rows_close, assert_same_counts, assert_same_rows, job_for
from tests.support.zoo import DTYPES, SMALL, ZOO, Network, states
from vapo_fast import ode
from vapo_fast.engines import Job, ReferenceEngine
from vapo_fast.ode import SolveOptions, Status
from vapo_fast.potentials import MLPPotential

REFERENCE = ReferenceEngine()
ADAPTIVE = ("dopri5", "tsit5", "bosh3")
FIXED = {"heun": 2, "rk4": 4, "euler": 1}


def name(options):
    numbers = (options.rtol, options.atol, options.first_step, options.steps, options.proportional_share or None)
    return "-".join([options.method, *(f"{value:g}" for value in numbers if value is not None)])


def solve(engine, device, supported, model, x0, t0, t1, options):
    job = job_for(engine, "solve", solve=options)
    supported(model, job)
    solution = engine.solve(model.to(device), x0.to(device), t0, t1, job)
    model.cpu()
    assert solution.engine == engine.name
    assert solution.precision in ("float32", "float64")
    assert (solution.ys is None) == (options.t_eval is None)
    counts = {name: getattr(solution, name).cpu() for name in ("t", "status", "nfe", "accepted", "rejected")}
    assert counts.pop("t").dtype == torch.float64
    assert all(count.dtype == torch.int64 and count.shape == x0.shape[:1] for count in counts.values())
    return solution


def compare(solution, model, x0, t0, t1, options):
    """States against the reference in float64, counts against the reference in the same dtype."""
    dtype = x0.dtype
    tolerance = TOLERANCES[dtype]
    job = Job("solve", solve=options)
    exact = REFERENCE.solve(model.double(), x0.double(), t0, t1, job)
    twin = exact if dtype == torch.float64 else REFERENCE.solve(model.to(dtype), x0, t0, t1, job)
    assert torch.equal(solution.status.cpu(), twin.status)
    torch.testing.assert_close(solution.t.cpu(), twin.t, rtol=0, atol=0)
    allowed = tolerance.fixed
    if options.tableau.adaptive:
        allowed = tolerance.adaptive * max(options.tolerances) + tolerance.floor
    scale = (1.0 + exact.x.abs().max()).expand(x0.shape[0])
    assert_rows_close(solution.x.cpu(), exact.x, scale, allowed, "x")
    if options.t_eval is not None:
        assert solution.ys.shape == (len(options.t_eval), *x0.shape)
        for i, time in enumerate(options.t_eval):
            assert_rows_close(solution.ys[i].cpu(), exact.ys[i], scale, allowed, f"ys at {time:g}")
    if options.tableau.adaptive:
        assert_same_counts(solution, twin, max(options.tolerances))
    else:
        for name in ("nfe", "accepted", "rejected"):
            assert torch.equal(getattr(solution, name).cpu(), getattr(twin, name)), name
        assert torch.equal(solution.nfe, options.tableau.stages * solution.accepted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("method", [*ADAPTIVE, *FIXED])
@pytest.mark.parametrize("network", SMALL, ids=str)
def test_methods(engine, device, supported, network, method, backward, dtype):
    model = network.build(dtype)
    path = model.homotopy
    t0, t1 = (path.t1, path.t0) if backward else (path.t0, path.t1)
    x0 = states(21, network.dimension, dtype)
    t_eval = (t0, t0 + 0.3 * (t1 - t0), t0 + 0.31 * (t1 - t0), t0 + 0.9 * (t1 - t0), t1)
    if method in FIXED:
        options = SolveOptions(method, steps=9, t_eval=t_eval)
    else:
        options = SolveOptions(method, rtol=1e-4 if method == "bosh3" else 1e-5, t_eval=t_eval)
    solution = solve(engine, device, supported, model, x0, t0, t1, options)
    assert bool(solution.success.all())
    assert torch.equal(solution.ys[0].cpu(), x0)
    assert torch.equal(solution.ys[-1], solution.x)
    compare(solution, model, x0, t0, t1, options)
    # Output times do not change the steps.
    plain = solve(engine, device, supported, model, x0, t0, t1, replace(options, t_eval=None))
    assert torch.equal(plain.x, solution.x)
    assert torch.equal(plain.nfe, solution.nfe)


@pytest.mark.parametrize(
    ("network", "dtype"),
    [
        *((network, torch.float32) for network in (*ZOO[::5], Network(512, (64,)), Network(1, (1,)))),
        (Network(512, (64,)), torch.float64),
        (Network(512, (33, 16), "tanh", 5, path="linear"), torch.float64),
    ],
    ids=str,
)
def test_zoo(engine, device, supported, network, dtype):
    model = network.build(dtype)
    x0 = states(9, network.dimension, dtype)
    options = SolveOptions("dopri5", rtol=1e-3, atol=1e-4)
    end = model.homotopy.t1
    solution = solve(engine, device, supported, model, x0, 0.0, end, options)
    compare(solution, model, x0, 0.0, end, options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        SolveOptions("dopri5", rtol=1e-4, first_step=0.3),
        SolveOptions("tsit5", rtol=1e-4, first_step=50.0),
        SolveOptions("bosh3", rtol=1e-3, first_step=1e-6),
        SolveOptions("dopri5", rtol=1e-5, proportional_share=0.2),
        SolveOptions("dopri5", rtol=1e-6, atol=0.0),
        SolveOptions("dopri5", rtol=1e-12, atol=1e-4),
        SolveOptions("tsit5", rtol=1e-2, atol=1e-3),
    ],
    ids=name,
)
def test_options(engine, device, supported, options, dtype):
    model = Network(3, (16, 33), "silu", 0).build(dtype)
    x0 = states(30, 3, dtype)
    solution = solve(engine, device, supported, model, x0, 0.0, model.homotopy.t1, options)
    assert bool(solution.success.all())
    compare(solution, model, x0, 0.0, model.homotopy.t1, options)
    if options.first_step is not None:
        others = solution.nfe - (options.tableau.stages - 1) * (solution.accepted + solution.rejected)
        assert others.unique().tolist() == [1]  # without the evaluation that chooses the first step


@pytest.mark.parametrize("method", ADAPTIVE)
def test_tight_tolerance(engine, device, supported, method):
    """Against a far tighter solve: the error is what was asked for, not only what the reference also gets."""
    model = Network(2, (33, 16), "softplus").build()
    x0, end = states(25, 2, torch.float64), model.homotopy.t1
    truth = REFERENCE.solve(model, x0, 0.0, end, Job("solve", solve=SolveOptions("dopri5", rtol=1e-12)))
    for rtol in (1e-3, 1e-6, 1e-8):
        solution = solve(engine, device, supported, model, x0, 0.0, end, SolveOptions(method, rtol=rtol))
        error = (solution.x.cpu() - truth.x).abs().max().item()
        assert error < 100.0 * rtol


@pytest.mark.parametrize("method", ["dopri5", "bosh3"])
def test_many_samples(engine, device, supported, method):
    """More samples than any tile holds, which end after very different numbers of steps."""
    model = Network(2, (16, 16)).build(torch.float32, gain=3.0)
    x0 = states(3001, 2, torch.float32) * torch.logspace(-3, 1, 3001)[:, None]
    options = SolveOptions(method, rtol=1e-3)
    solution = solve(engine, device, supported, model, x0, 0.0, model.homotopy.t1, options)
    compare(solution, model, x0, 0.0, model.homotopy.t1, options)
    assert solution.accepted.max() > 1.5 * solution.accepted.min()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_largest_batch(engine, device, supported, dtype):
    model = Network(2, (16, 16), path="linear").build(dtype)
    x0, end = states(10_007, 2, dtype), model.homotopy.t1
    options = SolveOptions("dopri5", rtol=1e-3)
    compare(solve(engine, device, supported, model, x0, 0.0, end, options), model, x0, 0.0, end, options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [SolveOptions("dopri5", rtol=1e-4), SolveOptions("rk4", steps=6)], ids=name)
def test_failing_rows_do_not_touch_the_others(engine, device, supported, options, dtype):
    model = Network(2, (16, 16)).build(dtype)
    end = model.homotopy.t1
    x0 = states(50, 2, dtype)
    clean = solve(engine, device, supported, model, x0, 0.0, end, options)
    largest = torch.finfo(dtype).max
    spoilt = x0.clone()
    bad = {0: (math.nan, 0.0), 5: (0.0, math.inf), 6: (-math.inf, math.nan), 31: (largest, largest), 49: (largest, 1.0)}
    for row, values in bad.items():
        spoilt[row] = torch.tensor(values, dtype=dtype)
    options = replace(options, t_eval=(0.0, 0.5 * end, end))
    solution = solve(engine, device, supported, model, spoilt, 0.0, end, options)
    good = torch.ones(50, dtype=torch.bool)
    good[list(bad)] = False
    expected = REFERENCE.solve(model, spoilt, 0.0, end, Job("solve", solve=options))
    assert torch.equal(solution.status.cpu(), expected.status)
    assert bool((solution.status.cpu()[list(bad)] == int(Status.NON_FINITE)).all())
    assert_same_rows(engine, solution, clean, good)
    for name in ("t", "status", "nfe", "accepted", "rejected"):
        assert torch.equal(getattr(solution, name).cpu()[~good], getattr(expected, name)[~good]), name
    # A row keeps its last good state, and its outputs are NaN from where it stopped.
    torch.testing.assert_close(solution.x.cpu()[~good], expected.x[~good], rtol=1e-5, atol=0, equal_nan=True)
    assert torch.equal(solution.ys.cpu()[1:].isnan().any(-1), expected.ys[1:].isnan().any(-1))
    assert bool(solution.ys[1:, 0].isnan().all())
    torch.testing.assert_close(solution.ys.cpu()[0], spoilt, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_max_steps(engine, device, supported, method):
    model = Network(2, (16, 16)).build()
    x0, end = states(40, 2, torch.float64) * torch.logspace(-2, 1, 40)[:, None], model.homotopy.t1
    full = REFERENCE.solve(model, x0, 0.0, end, Job("solve", solve=SolveOptions(method, rtol=1e-5)))
    tries = full.accepted + full.rejected
    limit = int(tries.max()) - 1
    options = SolveOptions(method, rtol=1e-5, max_steps=limit)
    solution = solve(engine, device, supported, model, x0, 0.0, end, options)
    expected = REFERENCE.solve(model, x0, 0.0, end, Job("solve", solve=options))
    assert {int(Status.SUCCESS), int(Status.MAX_STEPS)} == set(solution.status.tolist())
    assert torch.equal(solution.status.cpu(), expected.status)
    assert torch.equal((solution.accepted + solution.rejected).cpu(), tries.clamp_max(limit))
    torch.testing.assert_close(solution.t.cpu(), expected.t, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(solution.x.cpu(), expected.x, rtol=1e-5, atol=1e-5)
    one = solve(engine, device, supported, model, x0, 0.0, end, SolveOptions(method, rtol=1e-5, max_steps=1))
    assert (one.accepted + one.rejected).tolist() == [1] * 40


def wall() -> MLPPotential:
    """One unit whose slope jumps at 0: samples are pushed to 0 from both sides faster than any step can follow."""
    steep, force = 1e14, 1e13
    model = MLPPotential(
        (1,), Network(1, (1,)).build().homotopy, (2,), False, activation="softplus", fourier_features=0
    )
    model = model.double()
    with torch.no_grad():
        model.hidden[0].weight.copy_(torch.tensor([[steep], [-steep]]))
        model.hidden[0].bias.zero_()
        model.output.weight.fill_(-force / steep)
    return model


def test_a_step_too_small_is_told(engine, device, supported):
    model = wall()
    x0 = torch.tensor([[1e-3], [-0.5], [2.0]], dtype=torch.float64)
    options = SolveOptions("dopri5", rtol=1e-5)
    solution = solve(engine, device, supported, model, x0, 0.0, 1.0, options)
    expected = REFERENCE.solve(model, x0, 0.0, 1.0, Job("solve", solve=options))
    assert int(Status.STEP_TOO_SMALL) in expected.status.tolist()
    assert torch.equal(solution.status.cpu(), expected.status)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [SolveOptions("dopri5"), SolveOptions("euler", steps=3)], ids=name)
def test_equal_times_return_the_start(engine, device, supported, options, dtype):
    model = Network(2, (16,)).build(dtype)
    x0 = states(5, 2, dtype)
    x0[1, 0] = math.nan
    solution = solve(engine, device, supported, model, x0, 0.7, 0.7, options)
    torch.testing.assert_close(solution.x.cpu(), x0, rtol=0, atol=0, equal_nan=True)
    assert solution.status.tolist() == [0, 3, 0, 0, 0]
    assert solution.nfe.tolist() == [0] * 5
    assert solution.t.tolist() == [0.7] * 5


def test_event_shapes(engine, device, supported):
    """An event of several axes is the same flow as its flattened twin."""
    flat = Network(6, (16, 7)).build(torch.float32)
    model = MLPPotential((2, 1, 3), flat.homotopy, (16, 7), data_scale=0.8)
    model.load_state_dict(flat.state_dict())
    x0 = states(11, 6, torch.float32)
    end = flat.homotopy.t1
    options = SolveOptions("dopri5", rtol=1e-4, t_eval=(0.5, end))
    shaped = solve(engine, device, supported, model, x0.reshape(11, 2, 1, 3), 0.0, end, options)
    plain = solve(engine, device, supported, flat, x0, 0.0, end, options)
    assert shaped.x.shape == (11, 2, 1, 3)
    assert shaped.ys.shape == (2, 11, 2, 1, 3)
    assert torch.equal(shaped.x.flatten(1), plain.x)
    assert torch.equal(shaped.ys.flatten(2), plain.ys)


@pytest.mark.parametrize("method", FIXED)
def test_order_of_fixed_steps(engine, device, supported, method):
    """Halving the step divides the error by 2^order: the slope of log error against log step."""
    model = Network(2, (16, 16), "tanh").build()
    x0, t0, t1 = states(10, 2, torch.float64), 0.5, 1.5
    truth = ode.solve(lambda x, t: model.field(x, t)[1], x0, t0, t1, rtol=1e-13, atol=1e-13).x
    counts = (64, 128, 256) if method == "euler" else (16, 32, 64)
    errors = [
        (solve(engine, device, supported, model, x0, t0, t1, SolveOptions(method, steps=n)).x.cpu() - truth).norm()
        for n in counts
    ]
    slope = math.log2(float(errors[0] / errors[-1])) / 2
    assert FIXED[method] - 0.25 < slope < FIXED[method] + 0.4


@pytest.mark.parametrize("method", ADAPTIVE)
def test_order_of_one_step(engine, device, supported, method):
    """A tolerance that accepts anything leaves one step of the length asked for, whose error is O(h^(order + 1))."""
    model = Network(2, (16, 16), "tanh").build()
    x0, t0 = states(10, 2, torch.float64), 0.5
    errors = []
    for h in (0.1, 0.05, 0.025) if method == "bosh3" else (0.4, 0.2, 0.1):
        truth = ode.solve(lambda x, t: model.field(x, t)[1], x0, t0, t0 + h, rtol=1e-14, atol=1e-14).x
        options = SolveOptions(method, rtol=1e9, first_step=h)
        solution = solve(engine, device, supported, model, x0, t0, t0 + h, options)
        assert solution.accepted.tolist() == [1] * 10
        errors.append((solution.x.cpu() - truth).norm())
    # Methods tuned for small errors reach the slope from above; a wrong coefficient falls short of it.
    assert math.log2(float(errors[0] / errors[-1])) / 2 > options.tableau.order + 0.6
