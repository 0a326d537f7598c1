"""The whole solve in one launch, against `vapo_fast.ode`."""

import math
from dataclasses import replace

import pytest
import torch
from vapo_fast.kernels.solve import solve
from vapo_fast.kernels.stepping import COUNTS

from tests.support.tolerances import TOLERANCES, assert_rows_close
from tests.support.zoo import Network, cliff, states
from vapo_fast.engines import Job, ReferenceEngine
from vapo_fast.ode import SolveOptions, Status
from vapo_fast.ode.tableaus import TABLEAUS

TOLERANCE = TOLERANCES[torch.float32]
REFERENCE = ReferenceEngine()
NETWORK = Network(3, (7,), "tanh", 0, True, "linear")


def run(device, loaded, x0, t0, t1, options, trace="none", probes=None):
    mlp, program = loaded
    solved = solve(mlp, x0.to(device), t0, t1, options, program, trace, None if probes is None else probes.to(device))
    return type(solved)(*(None if part is None else part.cpu() for part in solved))


def options_for(method, **others):
    if not TABLEAUS[method].adaptive:
        return SolveOptions(method, steps=3, **others)
    return SolveOptions(method, rtol=1e-2 if method == "bosh3" else 1e-3, **others)


def reference(model, x0, t0, t1, options):
    return REFERENCE.solve(model.cpu().to(x0.dtype), x0, t0, t1, Job("solve", solve=options))


def settled(model, x0, t0, t1, options):
    """Which samples take the same steps when the tolerances change a little: rounding does not decide theirs.

    Where a first step's error is no more than rounding, the next step's size is rounding's too.
    """
    tries = [reference(model, x0, t0, t1, options)]
    if options.tableau.adaptive:
        rtol, atol = options.tolerances
        tries += [
            reference(model, x0, t0, t1, replace(options, rtol=rtol * scale, atol=atol * scale))
            for scale in (0.97, 0.99, 0.999, 1.001, 1.01, 1.03)
        ]
    same = torch.stack([(other.nfe == tries[0].nfe) & (other.status == tries[0].status) for other in tries]).all(0)
    assert float(same.double().mean()) >= 0.5, "a test of decisions that hang on rounding says nothing"
    return same


def assert_same_counts(solved, twin, rows=slice(None)):
    """The decisions of the library's solve in the same dtype, whose steps differ by the rounding of error estimates."""
    for name in ("status", "nfe", "accepted", "rejected"):
        assert torch.equal(getattr(solved, name)[rows], getattr(twin, name)[rows]), name
    assert torch.equal(solved.t[twin.success], twin.t[twin.success])
    torch.testing.assert_close(solved.t, twin.t, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("method", TABLEAUS)
def test_methods(device, packed, method, backward):
    model = NETWORK.build(torch.float32)
    t0, t1 = (0.9, 0.1) if backward else (0.1, 0.9)
    span = t1 - t0
    # The start, twice the same, several within one step, and the end.
    t_eval = (t0, t0, t0 + 0.4 * span, t0 + 0.41 * span, t0 + 0.41 * span, t0 + 0.98 * span, t1)
    options = options_for(method, t_eval=t_eval)
    x0 = states(19, 3, torch.float32)
    solved = run(device, packed(model, rows=64), x0, t0, t1, options)
    assert_same_counts(solved, reference(model, x0, t0, t1, options), settled(model, x0, t0, t1, options))
    exact = reference(model, x0.double(), t0, t1, options)
    allowed = TOLERANCE.fixed
    if options.tableau.adaptive:
        allowed = TOLERANCE.adaptive * max(options.tolerances) + TOLERANCE.floor
    scale = (1.0 + exact.x.abs().max()).expand(19)
    assert_rows_close(solved.x, exact.x, scale, allowed, "x")
    for ours, theirs, time in zip(solved.ys, exact.ys, t_eval, strict=True):
        assert_rows_close(ours, theirs, scale, allowed, f"ys at {time:g}")
    assert torch.equal(solved.ys[0], x0)
    assert torch.equal(solved.ys[1], x0)
    assert torch.equal(solved.ys[3], solved.ys[4])
    assert torch.equal(solved.ys[-1], solved.x)
    assert solved.integrals.shape == (19, 0)


def test_a_larger_network(device, packed):
    """A deeper network with features, at a tighter tolerance."""
    model = Network(3, (33, 16), "silu", 5).build(torch.float32)
    x0 = states(5, 3, torch.float32)
    options = SolveOptions("dopri5", rtol=1e-4)
    solved = run(device, packed(model, rows=64), x0, 0.0, 0.4, options)
    assert_same_counts(solved, reference(model, x0, 0.0, 0.4, options), settled(model, x0, 0.0, 0.4, options))
    exact = reference(model, x0.double(), 0.0, 0.4, options)
    assert_rows_close(solved.x, exact.x, (1.0 + exact.x.abs().max()).expand(5), 1e-3 + TOLERANCE.floor, "x")


@pytest.mark.parametrize("first_step", [0.05, 1e-4, 50.0])
def test_a_first_step_that_is_given(device, packed, first_step):
    model = NETWORK.build(torch.float32)
    x0 = states(5, 3, torch.float32)
    options = SolveOptions("bosh3", rtol=1e-2, atol=1e-3, first_step=first_step)
    solved = run(device, packed(model), x0, 0.0, 0.5, options)
    assert_same_counts(solved, reference(model, x0, 0.0, 0.5, options), settled(model, x0, 0.0, 0.5, options))
    assert ((solved.nfe - 3 * (solved.accepted + solved.rejected)) == 1).all()


BAD = ((math.nan, 0.0, 1.0), (0.0, math.inf, 0.0), (-math.inf, math.nan, 0.0))
FAR = (3.4e38, 3.4e38, -3.4e38)


@pytest.mark.parametrize(
    "options",
    [
        SolveOptions("bosh3", rtol=1e-2, t_eval=(0.0, 0.1, 0.2)),
        SolveOptions("bosh3", rtol=1e-2, first_step=0.1, t_eval=(0.0, 0.1, 0.2)),
        SolveOptions("heun", steps=2, t_eval=(0.0, 0.1, 0.2)),
        SolveOptions("euler", steps=2, t_eval=(0.0, 0.1, 0.2)),
    ],
    ids=["bosh3", "bosh3-first_step", "heun", "euler"],
)
def test_rows_that_are_not_finite_fail_alone(device, packed, options):
    """States that are no numbers cost no evaluation; a field that is none costs those that find it out."""
    model = NETWORK.build(torch.float32)
    clean = states(20, 3, torch.float32)
    spoilt = clean.clone()
    bad = [0, 7, 15, 16]
    spoilt[bad] = torch.tensor((*BAD, FAR))
    good = [i for i in range(20) if i not in bad]
    loaded = packed(model)
    solved, alone = (run(device, loaded, x0, 0.0, 0.2, options) for x0 in (spoilt, clean))
    for ours, theirs in zip(solved, alone, strict=True):
        ours, theirs = (part[:, good] if part.dim() == 3 else part[good] for part in (ours, theirs))
        assert torch.equal(ours, theirs)
    twin = reference(model, spoilt, 0.0, 0.2, options)
    assert_same_counts(solved, twin)
    assert solved.status[bad].tolist() == [int(Status.NON_FINITE)] * 4
    assert solved.nfe[bad[:3]].tolist() == [0] * 3
    torch.testing.assert_close(solved.x[bad], spoilt[bad], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(solved.ys.isnan(), twin.ys.isnan())


def test_max_steps(device, packed):
    model = NETWORK.build(torch.float32)
    x0 = states(20, 3, torch.float32) * torch.logspace(-2, 1, 20)[:, None]
    free = reference(model, x0, 0.0, 0.9, SolveOptions("bosh3", rtol=1e-2))
    limit = int((free.accepted + free.rejected).max()) - 1
    for most in (1, limit):
        options = SolveOptions("bosh3", rtol=1e-2, max_steps=most)
        solved = run(device, packed(model, rows=64), x0, 0.0, 0.9, options)
        assert int(Status.MAX_STEPS) in solved.status.tolist()
        assert_same_counts(solved, reference(model, x0, 0.0, 0.9, options), settled(model, x0, 0.0, 0.9, options))


@pytest.mark.parametrize("tries", [1, 2, 3])
def test_a_solve_that_is_cut_short(device, packed, tries):
    """After so many attempted steps the samples are where the reference, stopped there, has them."""
    model, x0 = NETWORK.build(torch.float32), states(4, 3, torch.float32)
    x0[1, 2] = math.nan
    options = SolveOptions("bosh3", rtol=1e-2, max_steps=tries)
    solved, twin = run(device, packed(model), x0, 0.1, 0.6, options), reference(model, x0, 0.1, 0.6, options)
    assert_same_counts(solved, twin)
    torch.testing.assert_close(solved.x, twin.x, rtol=1e-3, atol=1e-3, equal_nan=True)


def test_a_step_too_small(device, packed):
    model, x0 = cliff(), torch.tensor([[1e-3], [-0.5], [2.0]])
    options = SolveOptions("bosh3", rtol=1e-5)
    solved = run(device, packed(model), x0, 0.0, 1.0, options)
    assert solved.status.tolist() == [int(Status.STEP_TOO_SMALL)] * 3
    assert_same_counts(solved, reference(model, x0, 0.0, 1.0, options))


def test_a_path_that_ends_on_the_way(device, packed):
    """Beyond the linear path's time 1 there is no field."""
    model = NETWORK.build(torch.float32)
    x0 = states(3, 3, torch.float32)
    options = SolveOptions("heun", steps=4)
    solved = run(device, packed(model), x0, 0.7, 1.5, options)
    twin = reference(model, x0, 0.7, 1.5, options)
    assert twin.status.tolist() == [int(Status.NON_FINITE)] * 3
    assert_same_counts(solved, twin)


def test_nothing_is_written_outside_the_scratch_memory(device, packed, monkeypatch):
    """Lanes without a sample go on computing, and must not go on to stages that there are none of."""
    guard, kept = 1 << 16, []

    def scratch_for(programs, size, device):
        kept.append(torch.full((programs * size + 2 * guard,), 7.0, device=device))
        return kept[-1][guard:-guard]

    monkeypatch.setattr("vapo_fast.kernels.solve.scratch_for", scratch_for)
    x0, loaded = states(3, 3, torch.float32), packed(NETWORK.build(torch.float32))
    run(device, loaded, x0, 0.1, 0.5, SolveOptions("bosh3", rtol=1e-2))
    run(device, loaded, x0, 0.1, 0.5, SolveOptions("heun", steps=9))
    run(device, loaded, x0, 0.1, 0.5, SolveOptions("dopri5", max_steps=1))
    assert len(kept) == 3
    for memory in kept:
        assert bool((memory[:guard] == 7.0).all())
        assert bool((memory[-guard:] == 7.0).all())


def test_barriers_stand_around_the_count_of_outputs(device, packed, monkeypatch):
    """The interpreter has no threads to race, but what is read and written between two barriers can be listed."""
    if device.type == "cuda":
        pytest.skip("barriers are compiled in")
    from triton.runtime.interpreter import InterpreterBuilder
    from vapo_fast.kernels import solve as module

    events, inside = [], []

    def log(name, kind):
        original = getattr(InterpreterBuilder, name)

        def logged(self, *arguments):
            if inside:
                events.append((kind, arguments[0].data.flat[0] if arguments else 0))
            return original(self, *arguments)

        monkeypatch.setattr(InterpreterBuilder, name, logged)

    def outputs(*arguments):
        inside.append(True)
        original(*arguments)
        inside.pop()
        counts, rows = arguments[0].counts.handle.data.item(), loaded[1].tile.rows
        written = counts + 8 * COUNTS.index("output") * rows
        (place,) = [i for i, event in enumerate(events) if event == ("store", written)]
        assert events[place - 1][0] == "barrier", "others may still read what is written"
        assert events[place + 1 :] == [("barrier", 0)], "what follows overwrites what others may still read"
        calls.append(len(events))
        events.clear()

    for name, kind in (("create_load", "load"), ("create_masked_load", "load"), ("create_barrier", "barrier")):
        log(name, kind)
    log("create_store", "store")
    original, calls = module._outputs, []
    monkeypatch.setattr(module, "_outputs", outputs)
    loaded = packed(NETWORK.build(torch.float32))
    run(device, loaded, states(3, 3, torch.float32), 0.1, 0.3, SolveOptions("euler", steps=2, t_eval=(0.2,)))
    assert len(calls) == 2


def test_tiles_programs_and_batches_change_nothing(device, packed):
    """Samples that end early make room for the next: results do not depend on who shares a tile with whom."""
    model = NETWORK.build(torch.float32)
    x0 = states(23, 3, torch.float32) * torch.logspace(-2, 1, 23)[:, None]
    options = SolveOptions("bosh3", rtol=1e-2, t_eval=(0.2, 0.3))
    whole = run(device, packed(model, rows=16, programs=1), x0, 0.1, 0.4, options)
    assert whole.nfe.unique().numel() > 1
    for rows, programs, part in ((16, 2, slice(0, 23)), (64, 5, slice(0, 23)), (16, 5, slice(4, 22))):
        other = run(device, packed(model, rows, programs), x0[part], 0.1, 0.4, options)
        for ours, theirs in zip(other, whole, strict=True):
            assert torch.equal(ours, theirs[:, part] if theirs.dim() == 3 else theirs[part])


def test_no_rows(device, packed):
    loaded = packed(NETWORK.build(torch.float32))
    solved = run(device, loaded, states(0, 3, torch.float32), 0.0, 0.5, SolveOptions(t_eval=(0.2,)))
    assert solved.x.shape == (0, 3)
    assert solved.ys.shape == (1, 0, 3)


def test_what_memory_held_does_not_matter(device, packed, poisoned):
    model = Network(1, (7,), "softplus", 0, True, "linear").build(torch.float32)
    x0 = states(5, 1, torch.float32)
    options = SolveOptions("bosh3", rtol=1e-1, t_eval=(0.2, 0.3))
    solved = run(device, packed(model), x0, 0.1, 0.3, options, "exact")
    torch.use_deterministic_algorithms(False)
    plain = run(device, packed(model), x0, 0.1, 0.3, options, "exact")
    for ours, theirs in zip(solved, plain, strict=True):
        assert torch.equal(ours, theirs)
        assert bool(torch.isfinite(ours).all())


TRACED = (
    Network(1, (1,), "silu"),
    Network(2, (7, 65), "tanh", 0, True, "linear"),
    Network(3, (16, 7, 3), "softplus", 5),
    Network(3, (5, 3), "silu", 70, False),
)


def signs(n, m, dimension):
    return torch.where(states(n, m * dimension, torch.float32, 5).reshape(n, m, dimension) < 0, -1.0, 1.0)


def check_trace(device, packed, network, options, probes=None, n=5, t0=0.1, t1=0.3):
    model = network.build(torch.float32)
    x0 = states(n, network.dimension, torch.float32)
    directions = None if probes is None else signs(n, probes, network.dimension)
    solved = run(device, packed(model), x0, t0, t1, options, "exact" if probes is None else "probes", directions)
    exact, integrals = REFERENCE.solve_with_trace(
        model.cpu().double(),
        x0.double(),
        t0,
        t1,
        Job("solve_with_trace", solve=options),
        None if directions is None else directions.double(),
    )
    assert solved.integrals.shape == integrals.shape
    assert torch.equal(solved.status, exact.status)
    loose = TOLERANCE.adaptive * max(options.tolerances) + TOLERANCE.floor if options.tableau.adaptive else 0.0
    scales = (1.0 + exact.x.abs().max()).expand(n), (1.0 + integrals.abs().max()).expand(n)
    assert_rows_close(solved.x, exact.x, scales[0], max(TOLERANCE.fixed, loose), "x")
    assert_rows_close(solved.integrals, integrals, scales[1], max(TOLERANCE.trace, loose), "integrals")
    return solved


@pytest.mark.parametrize("probes", [None, 2], ids=["exact", "probes"])
@pytest.mark.parametrize("network", TRACED, ids=str)
def test_second_derivatives(device, packed, network, probes):
    """One step of Euler's method: the trace at the start itself."""
    check_trace(device, packed, network, SolveOptions("euler", steps=1), probes)


def test_second_derivatives_in_many_dimensions(device, packed):
    check_trace(device, packed, Network(70, (16,), "tanh", 5), SolveOptions("euler", steps=1), 2)


@pytest.mark.parametrize("probes", [None, 5], ids=["exact", "probes"])
def test_the_integral_is_part_of_the_state(device, packed, probes):
    """In stages, in the error's norm, and in what the first step is chosen from."""
    options = SolveOptions("bosh3", rtol=1e-3, t_eval=(0.2,))
    solved = check_trace(device, packed, NETWORK, options, probes, t0=0.5, t1=0.1)
    model = NETWORK.build(torch.float32)
    x0 = states(5, 3, torch.float32)
    job = Job("solve_with_trace", solve=options)
    twin, _ = REFERENCE.solve_with_trace(model, x0, 0.5, 0.1, job, None if probes is None else signs(5, probes, 3))
    assert_same_counts(solved, twin)
