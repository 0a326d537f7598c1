"""The C++ tableaus, controller and solver against `vapo_fast.ode`, bit for bit."""

import importlib
import math
import os
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vapo_fast import ode
from vapo_fast.core import elementary, extension
from vapo_fast.ode import TABLEAUS, Status
from vapo_fast.ode.controller import PIController, initial_step, trial_step

if extension.unavailable_reason() is not None:
    pytest.skip(str(extension.unavailable_reason()), allow_module_level=True)
testing = importlib.import_module("vapo_fast._native_testing")

SHARES = st.sampled_from([0.0, 0.05, 0.2, 0.9])
ADAPTIVE = [name for name, tableau in TABLEAUS.items() if tableau.adaptive]
RESULTS = ("x", "t", "status", "nfe", "accepted", "rejected")

ratios = st.one_of(
    st.floats(min_value=0.0),
    st.floats(0.0, 3.0),
    st.sampled_from([0.0, 5e-324, 1e-300, 1e-4, 1.0, math.nextafter(1.0, 2.0), 1e300, math.inf, math.nan]),
)
norms = st.one_of(ratios, st.floats(1e-12, 1e12))


def bits(*values):
    """Numbers as integers, so that NaN equals itself and -0.0 is not 0.0; every NaN counts as one."""
    array = np.array(values, dtype=np.float64)
    array[np.isnan(array)] = np.nan
    return array.view(np.int64).tolist()


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def nested_lists(value):
    return [nested_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def test_tableaus_are_the_same_numbers():
    described = testing.tableaus()
    assert [fields["name"] for fields in described] == list(TABLEAUS)
    for fields in described:
        reference = TABLEAUS[fields["name"]]
        for name, value in fields.items():
            assert nested_lists(value) == nested_lists(getattr(reference, name)), (fields["name"], name)
        assert set(fields) == set(vars(reference))


def test_log_and_exp_are_the_same_bits():
    generator = torch.Generator().manual_seed(0)
    exponent = torch.rand(20_000, dtype=torch.float64, generator=generator) * 2000 - 1000
    positive = torch.cat([2.0**exponent, numbers(1.0, 0.5, 2.0, math.sqrt(0.5), 1e-300, 1e300, 1.0 - 2.0**-53)])
    assert testing.log(positive.tolist()) == elementary.log(positive).tolist()
    arguments = torch.cat([exponent, exponent * 1e-3, numbers(0.0, -0.0, 700.0, -700.0, 1e9, -1e9)])
    assert testing.exp(arguments.tolist()) == elementary.exp(arguments).tolist()


@given(ratios, st.floats(1e-4, 1.0), st.booleans(), st.sampled_from([3, 5]), SHARES)
@settings(max_examples=600, deadline=None)
def test_one_try_has_the_same_factor_memory_and_decision(ratio, previous, after_rejection, order, share):
    r, p, controller = numbers(ratio), numbers(previous), PIController(share)
    factor, remembered, accepted = testing.step_factor(ratio, previous, after_rejection, order, share)
    assert accepted == controller.accepts(r).item()
    chosen = controller.factor(r, p, torch.tensor([after_rejection]), controller.exponents(order))
    expected = (chosen, controller.remember(r, p))
    assert bits(factor, remembered) == bits(*(value.item() for value in expected))


@given(norms, norms, norms, st.floats(1e-9, 1e3), st.sampled_from([3, 5]))
@example(math.inf, math.inf, math.nan, 1.0, 5)
@example(1.0, 0.0, 0.0, 1.0, 5)
@settings(max_examples=600, deadline=None)
def test_first_steps_are_the_same_bits(state_norm, field_norm, change_norm, span, order):
    trial = trial_step(numbers(state_norm), numbers(field_norm), span)
    native_trial = testing.trial_step(state_norm, field_norm, span)
    assert bits(native_trial) == bits(trial.item())
    expected = initial_step(numbers(field_norm), numbers(change_norm), trial, span, order)
    found = testing.initial_step(field_norm, change_norm, native_trial, span, order)
    assert bits(found) == bits(expected.item())


def scripted_solve(monkeypatch, script, t0, t1, first_step, share, method, max_steps):
    """`vapo_fast.ode` with the error ratio of each try taken from a list: the tries' sizes and the solution."""
    sizes = []

    def scripted(tableau, stages, x, x_new, h, options):
        sizes.append(h.item())
        return numbers(script[len(sizes) - 1])

    # The package's function `solve` hides its module of the same name.
    monkeypatch.setattr(importlib.import_module("vapo_fast.ode.solve"), "error_ratio", scripted)
    x0 = torch.zeros(1, 1, dtype=torch.float64)
    options = {"method": method, "first_step": first_step, "proportional_share": share}
    options |= {"max_steps": max_steps, "throw": False}
    return sizes, ode.solve(lambda x, t: torch.zeros_like(x), x0, t0, t1, **options)


@given(
    st.lists(ratios, min_size=1, max_size=60),
    st.floats(-3.0, 3.0),
    st.floats(-3.0, 3.0),
    st.floats(1e-6, 5.0),
    SHARES,
    st.sampled_from(ADAPTIVE),
)
@example([0.5] * 3 + [math.nan] * 57, 0.0, 1.0, 0.1, 0.0, "dopri5")
@example([0.5] * 3 + [7.0] * 57, 1.0, 0.0, 0.1, 0.2, "tsit5")
@example([1e-9] * 60, 0.0, 3.0, 1e-3, 0.0, "bosh3")
@settings(max_examples=150, deadline=None)
def test_a_scripted_sequence_of_tries_is_the_same(script, t0, t1, first_step, share, method):
    if t0 == t1:
        return
    with pytest.MonkeyPatch.context() as patched:
        sizes, solution = scripted_solve(patched, script, t0, t1, first_step, share, method, len(script))
    tries = testing.control(script, t0, t1, first_step, TABLEAUS[method].error_order, share, len(script))
    assert bits(*(size for size, *_ in tries)) == bits(*sizes)
    _, t, _, accepted, rejected, status = tries[-1]
    assert bits(t) == bits(solution.t.item())
    assert (accepted, rejected, status) == (
        solution.accepted.item(),
        solution.rejected.item(),
        solution.status.item(),
    )
    assert [row[-1] for row in tries[:-1]] == [-1] * (len(tries) - 1)


def cubic(x, t, sample):
    return x * (1.0 + 0.25 * t[:, None]) - x * x * x


def rotation(x, t, sample):
    return torch.roll(x, -1, 1) * t[:, None] - 0.5 * x


def decay(x, t, sample):
    return -50.0 * x


def still(x, t, sample):
    return torch.zeros_like(x)


def troubled(x, t, sample):
    late = torch.where(t < 1.0, 1.0, torch.nan)[:, None].to(x.dtype).expand_as(x)
    jump = torch.where(t < 0.5, 0.0, 2.0**100)[:, None].to(x.dtype).expand_as(x)
    kinds = torch.stack((cubic(x, t, sample), x * x, late, torch.full_like(x, torch.inf), jump))
    return kinds.gather(0, (sample % 5)[None, :, None].expand(1, *x.shape))[0]


FIELDS = {"cubic": cubic, "rotation": rotation, "decay": decay, "still": still, "troubled": troubled}


def batch(rows, width, dtype):
    generator = torch.Generator().manual_seed(rows * 1000 + width)
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return (x * torch.linspace(0.01, 6.0, rows, dtype=torch.float64)[:, None]).to(dtype)


def reference(name, x0, t0, t1, **options):
    sample = torch.arange(x0.shape[0])
    return ode.solve(FIELDS[name], x0, t0, t1, args=(sample,), throw=False, **options)


def assert_same(found, expected):
    for name in (*RESULTS, *(("ys",) if expected.ys is not None else ())):
        value = getattr(expected, name).numpy()
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value, err_msg=name)
        if value.dtype.kind == "f":  # 0.0 and -0.0 compare equal above
            np.testing.assert_array_equal(np.signbit(found[name]), np.signbit(value), err_msg=name)


def options_for(method):
    if method not in ADAPTIVE:
        return {"method": method, "steps": 40}
    tolerance = 1e-5 if TABLEAUS[method].order > 3 else 1e-3
    return {"method": method, "rtol": tolerance, "atol": 0.1 * tolerance}


@pytest.mark.parametrize("method", TABLEAUS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("field", ["cubic", "rotation"])
def test_solves_are_the_same_bits(field, dtype, method):
    steps = set()
    for width in (1, 2, 3, 5, 8, 13, 64):
        x0 = batch(37, width, dtype)
        for t0, t1 in ((0.0, 2.0), (2.0, -0.5)):
            times = [t0, t0, t0 + 0.3 * (t1 - t0), t0 + 0.3001 * (t1 - t0), t1, t1]
            expected = reference(field, x0, t0, t1, t_eval=times, **options_for(method))
            found = testing.solve(field, x0.numpy(), t0, t1, t_eval=times, tile=5, threads=2, **options_for(method))
            assert found["finished"]
            assert_same(found, expected)
            steps |= set((expected.accepted + expected.rejected).tolist())
    assert len(steps) > 3 or method not in ADAPTIVE


@pytest.mark.parametrize("method", TABLEAUS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_outcome_is_the_same(dtype, method):
    x0 = batch(40, 3, dtype)
    x0[7, 1], x0[20, 0] = torch.nan, torch.inf
    limits = {"max_steps": 150} if method in ADAPTIVE else {}
    expected = reference("troubled", x0, 0.0, 2.0, t_eval=[0.0, 0.4, 1.7], **options_for(method), **limits)
    found = testing.solve(
        "troubled", x0.numpy(), 0.0, 2.0, t_eval=[0.0, 0.4, 1.7], tile=7, **options_for(method), **limits
    )
    assert_same(found, expected)
    seen = {Status.SUCCESS, Status.NON_FINITE} | ({Status.STEP_TOO_SMALL} if method in ADAPTIVE else set())
    assert set(expected.status.tolist()) >= seen


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("decay", {"rtol": 1e-6, "max_steps": 7}),
        ("decay", {"rtol": 1e-3, "atol": 1e-9}),
        ("still", {"rtol": 1e-5}),
        ("cubic", {"rtol": 1e-6, "atol": 0.0}),
        ("cubic", {"rtol": 1e-6, "first_step": 0.01}),
        ("cubic", {"rtol": 1e-6, "proportional_share": 0.2}),
        ("cubic", {"rtol": 1e-6, "first_step": 100.0}),
        ("cubic", {"rtol": 1e-20, "atol": 1e-5}),
        ("rotation", {"rtol": 1e-6, "t_eval": [0.5] * 3 + [1.0]}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_options_mean_the_same(field, options, dtype):
    x0 = batch(11, 4, dtype)
    x0[3] = 0.0
    x0[4] = 1e-30
    x0[5] = 1e30
    expected = reference(field, x0, 0.0, 1.0, **options)
    atol = options.get("atol", options["rtol"])
    assert_same(testing.solve(field, x0.numpy(), 0.0, 1.0, tile=4, **{**options, "atol": atol}), expected)


def test_equal_times_return_the_start():
    x0 = batch(9, 2, torch.float32)
    x0[2] = torch.nan
    expected = reference("cubic", x0, 1.5, 1.5, t_eval=[1.5])
    assert_same(testing.solve("cubic", x0.numpy(), 1.5, 1.5, t_eval=[1.5]), expected)
    assert expected.status.tolist().count(Status.NON_FINITE) == 1


@pytest.mark.parametrize("method", ["dopri5", "bosh3", "rk4"])
def test_results_do_not_depend_on_threads_tile_or_batch(method):
    x0 = batch(701, 3, torch.float32).numpy()
    arguments = {"t_eval": [0.5, 2.0], "max_steps": 20, **options_for(method)}
    whole = testing.solve("cubic", x0, 0.0, 2.0, tile=1000, threads=1, **arguments)
    assert len(set(whole["status"].tolist())) == 2
    for tile, threads in ((1, 1), (3, 2), (16, 4), (64, 3), (701, 8)):
        other = testing.solve("cubic", x0, 0.0, 2.0, tile=tile, threads=threads, **arguments)
        for name in (*RESULTS, "ys"):
            np.testing.assert_array_equal(other[name], whole[name], err_msg=f"{name}, tile {tile}, threads {threads}")
    for rows in (slice(0, 1), slice(5, 700, 9), slice(None, None, -1)):
        part = testing.solve("cubic", np.ascontiguousarray(x0[rows]), 0.0, 2.0, tile=8, threads=2, **arguments)
        for name in RESULTS:
            np.testing.assert_array_equal(part[name], whole[name][rows], err_msg=name)
        np.testing.assert_array_equal(part["ys"], whole["ys"][:, rows])


def test_flushed_denormal_numbers_of_the_caller_change_nothing():
    """Pool threads never flush; the caller's share of the work must not either, or results would depend on luck."""
    x0 = np.full((64, 2), 1e-39, dtype=np.float32)
    arguments = {"rtol": 1e-3, "atol": 1e-6}
    plain = testing.solve("cubic", x0, 0.0, 0.5, **arguments)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormal numbers")
    try:
        flushed = testing.solve("cubic", x0, 0.0, 0.5, **arguments)
        assert torch.tensor(1e-39) * 1.0 == 0.0  # the caller's mode is as it was
    finally:
        torch.set_flush_denormal(False)
    np.testing.assert_array_equal(flushed["x"], plain["x"])
    assert (plain["x"] > 0).all()


ENDLESS = {"rtol": 1e-9, "atol": 1e-12, "max_steps": 10**9}


def endless(threads, progress):
    """A solve that would take hours."""
    x0 = np.ones((4096, 4))
    return testing.solve("decay", x0, 0.0, 1e9, threads=threads, tile=32, progress=progress, **ENDLESS)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_monitor_that_answers_false_stops_a_solve(threads):
    calls = []

    def progress(done):
        calls.append((done, threading.get_ident(), time.perf_counter()))
        return len(calls) < 3

    started = time.perf_counter()
    assert endless(threads, progress)["finished"] is False
    assert time.perf_counter() - started < 5.0
    assert len(calls) == 3
    assert {ident for _, ident, _ in calls} == {threading.get_ident()}
    times = [started, *(when for *_, when in calls)]
    assert min(after - before for before, after in pairwise(times)) > 0.045


@pytest.mark.parametrize("threads", [1, 2])
def test_an_exception_of_the_monitor_reaches_the_caller(threads):
    def progress(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        endless(threads, progress)
    # The threads serve the next call.
    assert testing.solve("cubic", np.ones((100, 2)), 0.0, 1.0, threads=threads)["finished"]


def test_progress_counts_samples():
    counts = []

    def progress(done):
        counts.append(done)
        return True

    x0 = np.ones((3000, 8))
    solved = testing.solve("decay", x0, 0.0, 20.0, rtol=1e-4, threads=2, tile=16, progress=progress)
    assert solved["finished"]
    assert counts == sorted(counts)
    assert all(0 <= count <= 3000 for count in counts)


def test_two_callers_at_once():
    x0 = batch(600, 3, torch.float64).numpy()
    arguments = {"rtol": 1e-8, "atol": 1e-8, "threads": 2, "tile": 16}
    alone = testing.solve("cubic", x0, 0.0, 2.0, **arguments)
    results = [None] * 4

    def call(i):
        results[i] = testing.solve("cubic", x0, 0.0, 2.0, **arguments)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for result in results:
        for name in RESULTS:
            np.testing.assert_array_equal(result[name], alone[name])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_starts_its_own_threads():
    x0 = batch(600, 3, torch.float64).numpy()
    arguments = {"rtol": 1e-6, "atol": 1e-6, "threads": 2, "tile": 16}
    parent = testing.solve("cubic", x0, 0.0, 2.0, **arguments)
    child = os.fork()
    if child == 0:
        same = False
        try:
            solved = testing.solve("cubic", x0, 0.0, 2.0, **arguments)
            same = all(np.array_equal(solved[name], parent[name]) for name in RESULTS)
            if sys.platform.startswith("linux"):
                # The fork left it one; working alone in the parent's pool would give the same numbers.
                same &= len(list(Path("/proc/self/task").iterdir())) > 1
        finally:
            os._exit(0 if same else 1)
    for _ in range(600):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "rk5"}, "method must be dopri5"),
        ({"rtol": 0.0}, "rtol must be positive"),
        ({"rtol": math.nan}, "rtol must be positive"),
        ({"atol": -1.0}, "atol must be finite"),
        ({"max_steps": 0}, "max_steps must be >= 1"),
        ({"first_step": 0.0}, "first_step must be positive"),
        ({"proportional_share": 1.0}, "proportional_share must be at least 0 and below 1"),
        ({"proportional_share": -0.1}, "proportional_share must be at least 0 and below 1"),
        ({"proportional_share": math.nan}, "proportional_share must be at least 0 and below 1"),
        ({"method": "rk4", "steps": 0}, "steps must be >= 1"),
        ({"t_eval": [0.5, 0.4]}, "t_eval must be ordered"),
        ({"t_eval": [1.5]}, "t_eval must be ordered"),
        ({"t_eval": [math.nan]}, "t_eval must be ordered"),
        ({"t1": math.inf}, "t1 must be finite"),
        ({"threads": 0}, "threads must be >= 1"),
    ],
)
def test_bad_options_are_refused(change, message):
    arguments = {"t0": 0.0, "t1": 1.0, "rtol": 1e-5, **change}
    with pytest.raises(ValueError, match=message):
        testing.solve("cubic", np.ones((3, 2)), **arguments)
