"""The integral of the Laplacian along a solve, exact and by probes, of every engine against the reference."""

import math

import pytest
import torch

import vapo_fast as vf
from tests.support.tolerances import TOLERANCES, assert_rows_close, assert_same, assert_same_rows, job_for
from tests.support.zoo import DTYPES, SMALL, ZOO, Network, states
from vapo_fast import noise
from vapo_fast.engines import Job, ReferenceEngine
from vapo_fast.ode import SolveOptions, Status

REFERENCE = ReferenceEngine()


def signs(n, m, dimension, dtype):
    return torch.where(noise.uniform(5, range(n), (m, dimension)) < 0.5, -1.0, 1.0).to(dtype)


def trace(engine, device, supported, model, x0, t0, t1, options, probes):
    job = job_for(engine, "solve_with_trace", solve=options)
    supported(model, job)
    probes = None if probes is None else probes.to(device)
    solution, integrals = engine.solve_with_trace(model.to(device), x0.to(device), t0, t1, job, probes)
    model.cpu()
    assert solution.x.shape == x0.shape
    assert integrals.shape == (x0.shape[0], 1 if probes is None else probes.shape[1])
    assert integrals.dtype == x0.dtype
    assert solution.engine == engine.name
    return solution, integrals.cpu()


def compare(engine, device, supported, network, dtype, options, rows, probes=None, share=-1.0):
    """``share`` of the path is integrated over, negative from its end backwards."""
    model = network.build(dtype)
    x0 = states(rows, network.dimension, dtype)
    path = model.homotopy
    first = path.t1 if share < 0 else path.t0
    ends = (first, first + share * (path.t1 - path.t0))
    solution, integrals = trace(engine, device, supported, model, x0, *ends, options, probes)
    job = Job("solve_with_trace", solve=options)
    exact, expected = REFERENCE.solve_with_trace(
        model.double(), x0.double(), *ends, job, None if probes is None else probes.double()
    )
    assert torch.equal(solution.status.cpu(), exact.status)
    tolerance = TOLERANCES[dtype]
    loose = tolerance.adaptive * max(options.tolerances) + tolerance.floor if options.tableau.adaptive else 0.0
    allowed = max(tolerance.fixed, loose), max(tolerance.trace, loose)
    scales = (1.0 + exact.x.abs().max()).expand(rows), (1.0 + expected.abs().max()).expand(rows)
    assert_rows_close(solution.x.cpu(), exact.x, scales[0], allowed[0], "x")
    assert_rows_close(integrals, expected, scales[1], allowed[1], "integral")
    if options.t_eval is not None:
        assert solution.ys.shape == (len(options.t_eval), *x0.shape)
        for ours, theirs in zip(solution.ys.cpu(), exact.ys, strict=True):
            assert_rows_close(ours, theirs, scales[0], allowed[0], "ys")
    return solution, exact


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("network", [each for each in (*ZOO[::2], *ZOO[1::4]) if each.dimension < 100], ids=str)
def test_zoo(engine, device, supported, network, dtype):
    """A few short, fixed steps, so that errors of the trace are not hidden by those of the steps."""
    options = SolveOptions("heun", steps=2)
    compare(engine, device, supported, network, dtype, options, rows=5, share=-0.05)
    compare(engine, device, supported, network, dtype, options, 5, signs(5, 3, network.dimension, dtype), share=0.05)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("probes", [0, 1, 4])
@pytest.mark.parametrize("method", ["dopri5", "tsit5", "bosh3", "rk4"])
def test_methods(engine, device, supported, method, probes, dtype):
    """The integral is part of the state: of the error's norm, and of what the initial step looks at."""
    network = SMALL[1]
    options = SolveOptions(method, steps=8) if method == "rk4" else SolveOptions(method, rtol=1e-4, t_eval=(0.5, 0.1))
    directions = signs(9, probes, network.dimension, dtype) if probes else None
    solution, exact = compare(engine, device, supported, network, dtype, options, 9, directions)
    if dtype == torch.float64:
        assert torch.equal(solution.nfe.cpu(), exact.nfe)
        assert torch.equal(solution.accepted.cpu(), exact.accepted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_largest_batch(engine, device, supported, dtype):
    network = Network(2, (16, 16), path="linear")
    options = SolveOptions("heun", steps=2)
    compare(engine, device, supported, network, dtype, options, 10_007, signs(10_007, 2, 2, dtype))


@pytest.mark.parametrize(
    ("network", "dtype"),
    [
        pytest.param(Network(512, (16,)), torch.float32),
        *(pytest.param(Network(512, (128, 128), features=5), dtype, marks=pytest.mark.slow) for dtype in DTYPES),
    ],
    ids=str,
)
def test_large(engine, device, supported, network, dtype):
    options = SolveOptions("euler", steps=1)
    compare(engine, device, supported, network, dtype, options, rows=3, share=-0.1)
    compare(engine, device, supported, network, dtype, options, 3, signs(3, 2, 512, dtype), share=0.1)


@pytest.mark.parametrize("probes", [0, 3])
def test_batch_and_failures(engine, device, supported, probes):
    """Rows do not see their batch; a bad row fails alone."""
    model = SMALL[0].build(torch.float32)
    x0, end = states(70, 2, torch.float32), model.homotopy.t1
    directions = signs(70, probes, 2, torch.float32) if probes else None
    options = SolveOptions("dopri5", rtol=1e-3)
    whole, integrals = trace(engine, device, supported, model, x0, end, 0.0, options, directions)
    part = slice(40, 43)
    few, few_integrals = trace(
        engine, device, supported, model, x0[part], end, 0.0, options, None if directions is None else directions[part]
    )
    assert_same(engine, few.x.cpu(), whole.x[part].cpu(), "x", 1e-3)
    assert_same(engine, few_integrals, integrals[part], "integrals", 1e-3)
    x0[41, 0] = math.nan
    x0[5] = math.inf
    spoilt, spoilt_integrals = trace(engine, device, supported, model, x0, end, 0.0, options, directions)
    good = torch.ones(70, dtype=torch.bool)
    good[[5, 41]] = False
    assert spoilt.status.cpu()[~good].tolist() == [int(Status.NON_FINITE)] * 2
    assert_same_rows(engine, spoilt, whole, good.to(device))
    assert_same(engine, spoilt_integrals[good], integrals[good], "integrals", 1e-3)


def test_probes_of_one_coordinate_add_up_to_the_trace(engine, device, supported):
    """The D unit vectors as probes: their estimates sum to the exact Laplacian (no use of the reference)."""
    model = Network(3, (33, 16), "softplus", 5).build()
    x0 = states(6, 3, torch.float64)
    options = SolveOptions("rk4", steps=5)
    units = torch.eye(3, dtype=torch.float64).expand(6, 3, 3).contiguous()
    _, exact = trace(engine, device, supported, model, x0, 1.0, 0.0, options, None)
    _, parts = trace(engine, device, supported, model, x0, 1.0, 0.0, options, units)
    torch.testing.assert_close(parts.sum(1, keepdim=True), exact, rtol=1e-11, atol=1e-11)


def test_log_likelihood_of_a_gaussian(engine, device, supported):
    """An untrained potential is the exact one of N(0, data_scale^2 I): the likelihood has a closed form."""
    if device.type != "cpu":
        pytest.skip("covered by the CPU engines")
    path = vf.DataHomotopy(1.0, 0.2)
    model = vf.MLPPotential((3,), path, (16,), data_scale=0.6).double()
    supported(model, Job("solve_with_trace"))
    x = 0.6 * states(40, 3, torch.float64)
    kernel = path.kernel(path.t1)
    variance = float(kernel.alpha * 0.6) ** 2 + float(kernel.beta) ** 2
    expected = -0.5 * x.square().sum(1) / variance - 1.5 * math.log(2 * math.pi * variance)
    for how in ("exact", "hutchinson"):
        values = vf.log_likelihood(model, x, rtol=1e-9, engine=engine.name, trace=how, probes=2)
        torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-6)
