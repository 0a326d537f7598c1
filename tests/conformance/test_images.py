"""The graph engine's jobs for images and modules of a user's own: the suite of the MLP engines, with the same table.

Without CUDA, solves are by both steppers: the registered engine's, and recorded steps that Python repeats.
"""

import math
from dataclasses import replace

import pytest
import torch

import vapo_fast as vf
from tests.support.image_cases import ALL, FEW, IMAGES, events
from tests.support.recorder import RecordedOnCpu
from tests.support.tolerances import ROUNDING, TOLERANCES, assert_rows_close, assert_same_counts
from tests.support.zoo import DTYPES, times
from vapo_fast import ode
from vapo_fast.engines import Batch, GraphEngine, Job, LossOptions, ReferenceEngine
from vapo_fast.engines.graph.engine import GRAPH
from vapo_fast.engines.graph.recorded import Recorded
from vapo_fast.ode import SolveOptions, Status
from vapo_fast.sampling.batching import TO_NOISE_SHARE

REFERENCE = ReferenceEngine()
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
ADAPTIVE = ("dopri5", "tsit5", "bosh3")
FIXED = {"heun": 2, "rk4": 4, "euler": 1}
RECORDED = GRAPH if CUDA else RecordedOnCpu()
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def engine_for(network) -> GraphEngine:
    """The registered engine, which takes whatever has passes on any device; for others on the CPU, one for tests."""
    return GRAPH if network.passes else RECORDED


def pairs(*networks):
    """Each network with every engine that takes it."""
    found = dict.fromkeys((network, engine) for network in networks for engine in (engine_for(network), RECORDED))
    names = {RECORDED: "recorded"}
    return [pytest.param(*pair, id=f"{pair[0]}-{names.get(pair[1], 'integrate')}") for pair in found]


def solving(networks):
    return pytest.mark.parametrize(("network", "engine"), pairs(*networks))


def job_for(kind, dtype, **options) -> Job:
    """In the arithmetic of the tables, whatever "auto" would choose."""
    return Job(kind, str(dtype).removeprefix("torch."), **options)


def check_supported(engine, model, job):
    dtype = next(model.parameters()).dtype
    assert engine.supports(model, DEVICE, dtype, job) is None


def scales(model, x, t, phi, gradient):
    """(B,) sizes of the terms of Phi and grad Phi: a sum of large terms is known no better than they are."""
    norm, slope = x.flatten(1).norm(dim=1), gradient.flatten(1).norm(dim=1)
    quadratic = torch.full_like(norm, 0.5)
    if hasattr(model, "network"):
        gauge = model.homotopy.gauge(t if model.time_dependent else torch.full_like(t, model.homotopy.t0))
        quadratic = gauge.quadratic.abs() + gauge.scale
    return quadratic * norm.square() + phi.abs() + 1.0, quadratic * norm + slope + 1.0


@every_dtype
@pytest.mark.parametrize("network", ALL, ids=str)
def test_field(network, dtype):
    model = network.build(dtype).to(DEVICE)
    check_supported(engine_for(network), model, Job("field"))
    x, t = events(7, model, dtype), times(7, model.homotopy, dtype)
    phi, gradient = engine_for(network).field(model, x.to(DEVICE), t.to(DEVICE))
    assert phi.shape == (7,)
    assert gradient.shape == x.shape
    assert phi.dtype == gradient.dtype == dtype
    assert not phi.requires_grad
    assert not gradient.requires_grad
    exact = model.cpu().double()
    expected = REFERENCE.field(exact, x.double(), t.double())
    value_scale, gradient_scale = scales(exact, x.double(), t.double(), *expected)
    assert_rows_close(phi.cpu(), expected[0], value_scale, TOLERANCES[dtype].value, "Phi")
    assert_rows_close(gradient.cpu(), expected[1], gradient_scale, TOLERANCES[dtype].gradient, "grad Phi")


def solve(engine, model, x0, t0, t1, options):
    job = job_for("solve", x0.dtype, solve=options)
    check_supported(engine, model.to(DEVICE), job)
    solution = engine.solve(model, x0.to(DEVICE), t0, t1, job)
    model.cpu()
    assert (solution.engine, solution.precision) == ("graph", job.precision)
    assert (solution.ys is None) == (options.t_eval is None)
    assert solution.t.dtype == torch.float64
    for name in ("status", "nfe", "accepted", "rejected"):
        assert getattr(solution, name).dtype == torch.int64
        assert getattr(solution, name).shape == x0.shape[:1]
    return solution


def compare(solution, model, x0, t0, t1, options):
    """States against the reference in float64, counts against the reference in the same dtype."""
    dtype, tolerance = x0.dtype, TOLERANCES[x0.dtype]
    job = Job("solve", solve=options)
    exact = REFERENCE.solve(model.double(), x0.double(), t0, t1, job)
    twin = exact if dtype == torch.float64 else REFERENCE.solve(model.to(dtype), x0, t0, t1, job)
    assert torch.equal(solution.status.cpu(), twin.status)
    torch.testing.assert_close(solution.t.cpu(), twin.t, rtol=0, atol=0)
    allowed = tolerance.fixed
    if options.tableau.adaptive:
        allowed = tolerance.adaptive * max(options.tolerances) + tolerance.floor
    scale = (1.0 + exact.x.abs().max()).expand(len(x0))
    assert_rows_close(solution.x.cpu(), exact.x, scale, allowed, "x")
    if options.t_eval is not None:
        for i, time in enumerate(options.t_eval):
            assert_rows_close(solution.ys[i].cpu(), exact.ys[i], scale, allowed, f"ys at {time:g}")
    assert_same_counts(solution, twin)


@every_dtype
@pytest.mark.parametrize(
    ("method", "backward", "network", "engine"),
    [
        pytest.param(method, backward, *pair.values, id=f"{method}-{'backward' if backward else 'forward'}-{pair.id}")
        for method in (*ADAPTIVE, *FIXED)
        for backward in (False, True)
        for pair in pairs(FEW[(len(method) + backward) % 3])
    ],
)
def test_methods(network, engine, method, backward, dtype):
    model = network.build(dtype)
    path = model.homotopy
    t0, t1 = (path.t1, path.t0) if backward else (path.t0, path.t1)
    t_eval = (t0, t0 + 0.3 * (t1 - t0), t0 + 0.31 * (t1 - t0), t0 + 0.9 * (t1 - t0), t1)
    if method in FIXED:
        options = SolveOptions(method, steps=7, t_eval=t_eval)
    else:
        rtol = 1e-3 if method == "bosh3" else 1e-4
        # As `vapo_fast` solves to either end.
        share = TO_NOISE_SHARE if backward else 0.0
        options = SolveOptions(method, rtol=rtol, proportional_share=share, t_eval=t_eval)
    x0 = events(7, model, dtype)
    solution = solve(engine, model, x0, t0, t1, options)
    assert bool(solution.success.all())
    assert torch.equal(solution.ys[0].cpu(), x0)
    assert torch.equal(solution.ys[-1], solution.x)
    compare(solution, model, x0, t0, t1, options)


@solving(ALL)
def test_zoo(network, engine):
    model = network.build(torch.float32)
    x0, end = events(6, model, torch.float32), model.homotopy.t1
    options = SolveOptions("dopri5", rtol=1e-3, atol=1e-4)
    compare(solve(engine, model, x0, 0.0, end, options), model, x0, 0.0, end, options)


@pytest.mark.parametrize("options", [SolveOptions("dopri5", rtol=1e-3), SolveOptions("rk4", steps=4)], ids=repr)
@solving(FEW[1:])
def test_failing_rows_do_not_touch_the_others(network, engine, options):
    model = network.build(torch.float32)
    x0, end = events(9, model, torch.float32), model.homotopy.t1
    clean = solve(engine, model, x0, 0.0, end, options)
    spoilt, good = x0.clone(), torch.ones(9, dtype=torch.bool)
    for row, value in ((0, math.nan), (4, math.inf), (8, torch.finfo(torch.float32).max)):
        spoilt[row].flatten()[:2] = value
        good[row] = False
    options = replace(options, t_eval=(0.0, 0.5 * end, end))
    solution = solve(engine, model, spoilt, 0.0, end, options)
    expected = REFERENCE.solve(model, spoilt, 0.0, end, Job("solve", solve=options))
    assert bool((solution.status.cpu()[~good] == int(Status.NON_FINITE)).all())
    for name in ("t", "status", "nfe", "accepted", "rejected"):
        assert torch.equal(getattr(solution, name).cpu()[~good], getattr(expected, name)[~good]), name
        if name != "nfe":
            assert torch.equal(getattr(solution, name)[good], getattr(clean, name)[good]), name
    torch.testing.assert_close(solution.x.cpu()[~good], spoilt[~good], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(solution.x[good], clean.x[good], rtol=1e-5, atol=1e-5)
    assert bool(solution.ys[1:, 0].isnan().all())
    torch.testing.assert_close(solution.ys.cpu()[0], spoilt, rtol=0, atol=0, equal_nan=True)


@solving(FEW[:1])
def test_max_steps(network, engine):
    model = network.build()
    x0, end = events(8, model, torch.float64) * torch.logspace(-2, 1, 8)[:, None, None, None], model.homotopy.t1
    full = REFERENCE.solve(model, x0, 0.0, end, Job("solve", solve=SolveOptions(rtol=1e-5)))
    tries = full.accepted + full.rejected
    limit = int(tries.max()) - 1
    options = SolveOptions(rtol=1e-5, max_steps=limit)
    solution = solve(engine, model, x0, 0.0, end, options)
    assert {int(Status.SUCCESS), int(Status.MAX_STEPS)} == set(solution.status.tolist())
    assert torch.equal((solution.accepted + solution.rejected).cpu(), tries.clamp_max(limit))


@pytest.mark.parametrize("options", [SolveOptions("dopri5"), SolveOptions("euler", steps=3)], ids=repr)
@solving(FEW[:1])
def test_equal_times_return_the_start(network, engine, options):
    model = network.build(torch.float32)
    x0 = events(3, model, torch.float32)
    x0[1, 0] = math.nan
    solution = solve(engine, model, x0, 0.7, 0.7, options)
    torch.testing.assert_close(solution.x.cpu(), x0, rtol=0, atol=0, equal_nan=True)
    assert solution.status.tolist() == [0, 3, 0]
    assert solution.nfe.tolist() == [0] * 3


@pytest.mark.parametrize("method", FIXED)
@solving(FEW[:1])
def test_order_of_fixed_steps(network, engine, method):
    model = network.build()
    x0, t0, t1 = events(3, model, torch.float64), 0.5, 1.5
    truth = ode.solve(lambda x, t: model.field(x, t)[1], x0, t0, t1, rtol=1e-12, atol=1e-12).x
    counts = (32, 64, 128) if method == "euler" else (16, 32, 64)
    errors = [(solve(engine, model, x0, t0, t1, SolveOptions(method, steps=n)).x.cpu() - truth).norm() for n in counts]
    assert FIXED[method] - 0.25 < math.log2(float(errors[0] / errors[-1])) / 2 < FIXED[method] + 0.4


@pytest.mark.parametrize("method", ADAPTIVE)
@solving(FEW[:1])
def test_order_of_one_step(network, engine, method):
    model = network.build()
    x0, t0 = events(3, model, torch.float64), 0.5
    errors = []
    for h in (0.1, 0.05, 0.025) if method == "bosh3" else (0.2, 0.1, 0.05):
        truth = ode.solve(lambda x, t: model.field(x, t)[1], x0, t0, t0 + h, rtol=1e-13, atol=1e-13).x
        solution = solve(engine, model, x0, t0, t0 + h, SolveOptions(method, rtol=1e9, first_step=h))
        assert solution.accepted.tolist() == [1] * 3
        errors.append((solution.x.cpu() - truth).norm())
    order = SolveOptions(method).tableau.order
    assert math.log2(float(errors[0] / errors[-1])) / 2 > order + 0.6


@every_dtype
@pytest.mark.parametrize("probes", [0, 2])
@solving(FEW)
def test_traces(network, engine, probes, dtype):
    model = network.build(dtype)
    dimension = math.prod(model.event_shape)
    x0 = events(3, model, dtype)
    directions = None
    if probes:
        directions = torch.where(vf.noise.uniform(5, range(3), (probes, dimension)) < 0.5, -1.0, 1.0).to(dtype)
    path = model.homotopy
    ends = (path.t1, path.t1 - 0.1 * (path.t1 - path.t0))
    options = SolveOptions("heun", steps=2, t_eval=(ends[1],))
    job = job_for("solve_with_trace", dtype, solve=options)
    check_supported(engine, model.to(DEVICE), job)
    on_device = None if directions is None else directions.to(DEVICE)
    solution, integrals = engine.solve_with_trace(model, x0.to(DEVICE), *ends, job, on_device)
    exact, expected = REFERENCE.solve_with_trace(
        model.cpu().double(), x0.double(), *ends, Job("solve_with_trace", solve=options),
        None if directions is None else directions.double(),
    )  # fmt: skip
    assert integrals.shape == (3, max(1, probes))
    assert solution.ys.shape == (1, *x0.shape)
    tolerance = TOLERANCES[dtype]
    assert_rows_close(solution.x.cpu(), exact.x, (1.0 + exact.x.abs().max()).expand(3), tolerance.fixed, "x")
    assert_rows_close(integrals.cpu(), expected, (1.0 + expected.abs().max()).expand(3), tolerance.trace, "integral")


@pytest.mark.parametrize("probes", [0, 1])
@solving(FEW[1:2])
def test_adaptive_traces(network, engine, probes):
    """The integral is part of the state: of the error's norm, and of what the first step looks at."""
    model = network.build()
    x0 = events(4, model, torch.float64)
    directions = torch.ones(4, 1, 16, dtype=torch.float64) if probes else None
    options = SolveOptions("bosh3", rtol=1e-3)
    job = job_for("solve_with_trace", torch.float64, solve=options)
    on_device = None if directions is None else directions.to(DEVICE)
    solution, integrals = engine.solve_with_trace(model.to(DEVICE), x0.to(DEVICE), 2.0, 1.0, job, on_device)
    exact, expected = REFERENCE.solve_with_trace(model.cpu(), x0, 2.0, 1.0, job, directions)
    assert_same_counts(solution, exact)
    torch.testing.assert_close(integrals.cpu(), expected, rtol=1e-9, atol=1e-9)


@every_dtype
@pytest.mark.parametrize("estimator", ["velocity", "covariance"])
@pytest.mark.parametrize("network", ALL, ids=str)
def test_loss_and_gradients(network, estimator, dtype):
    model = network.build(dtype).to(DEVICE)
    weight = "uniform" if estimator == "covariance" else (lambda t: 0.5 + t.square())
    options = LossOptions(estimator, weight)
    job = job_for("loss_and_grads", dtype, loss=options)
    check_supported(engine_for(network), model, job)
    batch = Batch(events(5, model, dtype, 11), times(7, model.homotopy, dtype)[2:], events(5, model, dtype, 12))
    result = engine_for(network).loss_and_grads(model, Batch(*(part.to(DEVICE) for part in batch)), job)
    exact = REFERENCE.loss_and_grads(
        model.cpu().double(), Batch(*(part.double() for part in batch)), Job("loss_and_grads", loss=options)
    )
    tolerance = TOLERANCES[dtype]
    scale = float(exact.loss.linear.abs() + exact.loss.quadratic) * math.sqrt(5)
    for ours, theirs, name in zip(result.loss, exact.loss, exact.loss._fields, strict=True):
        assert not ours.requires_grad
        assert abs(float(ours) - float(theirs)) <= tolerance.loss * scale, name
    assert set(result.grads) == set(exact.grads)
    overall = max(float(grad.abs().max()) for grad in exact.grads.values())
    for name, expected in exact.grads.items():
        assert result.grads[name].dtype == dtype
        error = (result.grads[name].cpu().double() - expected).abs().max()
        assert float(error) <= tolerance.weights * (float(expected.abs().max()) + 1e-3 * overall), name


@solving(FEW)
def test_rows_see_neither_batch_nor_split(network, engine):
    """To rounding: the libraries choose kernels by shape."""
    model = network.build(torch.float32)
    x0, end = events(21, model, torch.float32), model.homotopy.t1
    options = SolveOptions("dopri5", rtol=1e-3)
    whole = solve(engine, model, x0, 0.0, end, options)
    split = GraphEngine(Recorded(most_rows=5)) if CUDA else RecordedOnCpu(most_rows=5)
    for rows, by in ((slice(6, 7), engine), (slice(3, 12), engine), (slice(0, 21), split)):
        part = solve(by, model, x0[rows], 0.0, end, options)
        assert torch.equal(part.status, whole.status[rows])
        assert torch.equal(part.t, whole.t[rows])
        torch.testing.assert_close(part.x, whole.x[rows], rtol=1e-3, atol=1e-3)
        assert_same_counts(part, _part(whole, rows))
    phi, gradient = engine.field(model.to(DEVICE), x0.to(DEVICE), torch.ones(21, device=DEVICE))
    for rows in (slice(0, 1), slice(2, 10)):
        ours = engine.field(model, x0[rows].to(DEVICE), torch.ones(21, device=DEVICE)[rows])
        size = 1.0 + float(gradient.abs().max())
        torch.testing.assert_close(ours[1], gradient[rows], rtol=0, atol=size * ROUNDING[torch.float32])
        torch.testing.assert_close(ours[0], phi[rows], rtol=ROUNDING[torch.float32], atol=ROUNDING[torch.float32])


def _part(solution, rows):
    return vf.Solution(*(value[rows] for value in list(vars(solution).values())[:6]))


def test_samples_do_not_depend_on_the_batch_size():
    model = IMAGES[0].build(torch.float32).to(DEVICE)
    options = {"rtol": 1e-3, "engine": "graph", "precision": "float32", "return_solution": True}
    draws = [vf.sample(model, 12, batch_size=size, **options) for size in (12, 5, 1)]
    for other in draws[1:]:
        torch.testing.assert_close(other.x, draws[0].x, rtol=1e-3, atol=1e-3)
        assert_same_counts(other, draws[0])


def everything(network, engine):
    """Numbers of every job, in one list."""
    model, dtype = network.build(torch.float32).to(DEVICE), torch.float32
    x, t = events(6, model, dtype).to(DEVICE), times(6, model.homotopy, dtype).to(DEVICE)
    numbers = list(engine.field(model, x, t))
    for options in (SolveOptions("dopri5", rtol=1e-2, t_eval=(0.3, 0.5)), SolveOptions("heun", steps=2)):
        solution = engine.solve(model, x, 0.0, 0.5, job_for("solve", dtype, solve=options))
        numbers += [value for value in vars(solution).values() if isinstance(value, torch.Tensor)]
    for probes in (None, torch.ones(6, 2, x[0].numel(), device=DEVICE)):
        job = job_for("solve_with_trace", dtype, solve=SolveOptions("heun", steps=1))
        solution, integrals = engine.solve_with_trace(model, x, 0.5, 0.0, job, probes)
        numbers += [solution.x, solution.nfe, integrals]
    result = engine.loss_and_grads(model, Batch(x, t.clamp_max(0.5), x.flip(0)), job_for("loss_and_grads", dtype))
    return [number.cpu() for number in (*numbers, *result.loss, *result.grads.values())]


@solving(FEW)
def test_repetition_and_fully_written_outputs(network, engine):
    """The same bits again; and with new memory filled with NaN and the largest integers."""
    clean = everything(network, engine)
    again = everything(network, engine)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert bool(torch.empty(3, device=DEVICE).isnan().all())
        poisoned = everything(network, engine)
    finally:
        torch.use_deterministic_algorithms(False)
    for i, (a, b, c) in enumerate(zip(clean, again, poisoned, strict=True)):
        assert torch.equal(a, b), i
        assert torch.equal(a, c), i
        assert bool(torch.isfinite(a).all()), i


@solving(FEW[1:])
def test_new_weights_are_seen(network, engine):
    """Weights change between two jobs in every way that programs change them: no recording is stale."""
    model = network.build().to(DEVICE)
    other = network.build().to(DEVICE)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.7)
    name = "stem" if network.passes else "module.first"
    layer = model.get_submodule(name)

    def in_place():
        with torch.no_grad():
            layer.weight.mul_(1.5)

    def replaced():
        layer.bias = torch.nn.Parameter(layer.bias.detach() + 0.25)

    def through_data():
        layer.weight.data[0, 0, 0, 0] += 1.0

    def loaded():
        model.load_state_dict(other.state_dict())

    x0 = events(4, model, torch.float64).to(DEVICE)
    options = SolveOptions("bosh3", rtol=1e-3)
    # Often enough for programs to be recorded before the first change.
    last = [solve_on_device(engine, model, x0, options) for _ in range(3)][-1]
    for change in (in_place, replaced, through_data, loaded):
        change()
        solution = solve_on_device(engine, model, x0, options)
        assert not torch.equal(solution, last)
        expected = REFERENCE.solve(model, x0, 0.0, 0.5, Job("solve", solve=options))
        torch.testing.assert_close(solution, expected.x, rtol=1e-9, atol=1e-9)
        last = solution


def solve_on_device(engine, model, x0, options):
    return engine.solve(model, x0, 0.0, 0.5, job_for("solve", torch.float64, solve=options)).x
