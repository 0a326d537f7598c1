"""Single steps, whose loop on the host has the bits of the solve on the device, and that leave alone what is masked."""

import math
from dataclasses import replace

import pytest
import torch
from vapo_fast.kernels.solve import solve
from vapo_fast.kernels.step import begin, step

from tests.support.zoo import Network, cliff, states
from vapo_fast.ode import SolveOptions, Status
from vapo_fast.ode.tableaus import TABLEAUS

NETWORK = Network(3, (7,), "tanh", 0, True, "linear")


def options_for(method, **others):
    if not TABLEAUS[method].adaptive:
        return SolveOptions(method, steps=3, **others)
    return SolveOptions(method, rtol=1e-2 if method == "bosh3" else 1e-3, **others)


def one_by_one(loaded, x0, t0, t1, options):
    """Samples after as many steps as it takes, and how many that were."""
    samples, steps = begin(x0, t0), 0
    while bool((samples.status == -1).any()):
        step(loaded[0], samples, t0, t1, options, loaded[1])
        steps += 1
        tried = samples.counts[4] + samples.counts[5]
        assert bool((tried[samples.status == -1] == steps).all())
    return samples, steps


def check(loaded, x0, t0, t1, options):
    whole = solve(loaded[0], x0, t0, t1, options, loaded[1])
    samples, steps = one_by_one(loaded, x0, t0, t1, options)
    assert steps == int((whole.accepted + whole.rejected).max())
    for ours, theirs in ((samples.x, whole.x), (samples.t, whole.t), (samples.status, whole.status)):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    for row, name in ((3, "nfe"), (4, "accepted"), (5, "rejected")):
        assert torch.equal(samples.counts[row], getattr(whole, name)), name
    return whole


@pytest.mark.parametrize("method", TABLEAUS)
def test_steps_one_by_one_have_the_bits_of_the_solve(device, packed, method):
    x0 = states(20, 3, torch.float32) * torch.logspace(-2, 1, 20)[:, None]
    x0[4, 1] = math.nan
    whole = check(packed(NETWORK.build(torch.float32), rows=64), x0.to(device), 0.1, 0.5, options_for(method))
    assert whole.status.unique().tolist() == [int(Status.SUCCESS), int(Status.NON_FINITE)]


def test_steps_that_run_out(device, packed):
    x0 = states(20, 3, torch.float32) * torch.logspace(-2, 1, 20)[:, None]
    x0, loaded, options = x0.to(device), packed(NETWORK.build(torch.float32), rows=64), SolveOptions("bosh3", rtol=1e-2)
    free = solve(loaded[0], x0, 0.0, 0.5, options, loaded[1])
    most = int((free.accepted + free.rejected).max()) - 1
    whole = check(loaded, x0, 0.0, 0.5, replace(options, max_steps=most))
    assert {int(Status.SUCCESS), int(Status.MAX_STEPS)} <= set(whole.status.tolist())


def test_steps_that_become_too_small(device, packed):
    x0 = torch.tensor([[1e-3], [-0.5], [2.0]])
    whole = check(packed(cliff()), x0.to(device), 0.0, 1.0, SolveOptions("bosh3", rtol=1e-5))
    assert whole.status.tolist() == [int(Status.STEP_TOO_SMALL)] * 3


def test_what_memory_held_does_not_matter(device, packed, poisoned):
    loaded = packed(Network(1, (7,), "softplus", 5, True, "linear").build(torch.float32))
    x0 = states(5, 1, torch.float32).to(device)
    options = SolveOptions("bosh3", rtol=1e-1)
    poisonous, _ = one_by_one(loaded, x0, 0.1, 0.3, options)
    torch.use_deterministic_algorithms(False)
    plain, _ = one_by_one(loaded, x0, 0.1, 0.3, options)
    for ours, theirs in zip(poisonous, plain, strict=True):
        assert torch.equal(ours, theirs)
        assert bool(torch.isfinite(ours).all())


@pytest.mark.parametrize(("method", "rows"), [("heun", 16), ("bosh3", 64)])
def test_a_step_leaves_masked_samples_alone(device, packed, method, rows):
    """From the start, and, with the next first stage carried over, after a step of all."""
    x0 = states(20, 3, torch.float32).to(device)
    loaded, options = packed(NETWORK.build(torch.float32), rows), options_for(method)
    samples, masked = begin(x0, 0.1), begin(x0, 0.1)
    step(loaded[0], samples, 0.1, 0.8, options, loaded[1])
    step(loaded[0], masked, 0.1, 0.8, options, loaded[1])
    before = [part.clone() for part in masked]
    masked.counts[0, 5:18] = -1
    for _ in range(2):
        for each in (samples, masked):
            step(loaded[0], each, 0.1, 0.8, options, loaded[1])
    rest = [*range(5), 18, 19]
    for after, then in zip(masked[:2], before[:2], strict=True):
        assert torch.equal(after[5:18], then[5:18])
    assert torch.equal(masked.clock[:, 5:18], before[2][:, 5:18])
    assert torch.equal(masked.counts[1:, 5:18], before[3][1:, 5:18])
    assert torch.equal(masked.x[rest], samples.x[rest])
    assert torch.equal(masked.clock[:, rest], samples.clock[:, rest])
    assert torch.equal(masked.counts[:, rest], samples.counts[:, rest])
    assert not bool((samples.x[5:18] == before[0][5:18]).all(1).any())
    # Taken up again, they go on as if nothing had been.
    masked.counts[0, 5:18] = torch.arange(5, 18, device=device)
    again = begin(x0, 0.1)
    for _ in range(2):
        step(loaded[0], again, 0.1, 0.8, options, loaded[1])
    step(loaded[0], masked, 0.1, 0.8, options, loaded[1])
    assert torch.equal(masked.x[5:18], again.x[5:18])
    assert torch.equal(masked.counts[1:, 5:18], again.counts[1:, 5:18])


def test_steps_from_a_start_in_another_memory_order(device, packed):
    """A transposed start: x and f are rows in one piece whatever x0 is."""
    x0 = states(3, 5, torch.float32).to(device).T
    loaded = packed(NETWORK.build(torch.float32))
    ours, theirs = (begin(start, 0.1) for start in (x0, x0.contiguous()))
    for _ in range(2):
        for samples in (ours, theirs):
            step(loaded[0], samples, 0.1, 0.8, SolveOptions("bosh3", rtol=1e-2), loaded[1])
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
        assert a.is_contiguous()
