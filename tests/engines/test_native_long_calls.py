"""Long calls of the native engine: Ctrl-C, progress, and other threads meanwhile."""

import _thread
import os
import subprocess
import sys
import threading
import time

import pytest
import torch
from torch import nn

import vapo_fast as vf
from tests.engines.native_models import PATH, job, mlp
from vapo_fast.core import extension
from vapo_fast.engines import (
    Batch,
)
from vapo_fast.engines.native import NATIVE
from vapo_fast.ode import SolveOptions

pytestmark = pytest.mark.skipif(extension.unavailable_reason() is not None, reason=str(extension.unavailable_reason()))


class EnoughError(Exception):
    """Ends a call from its progress callback."""


def slow_job(steps):
    return job(solve=SolveOptions("rk4", steps=steps))


def wide():
    """A network of which a few rows take long."""
    torch.manual_seed(0)
    model = vf.MLPPotential((2,), PATH, widths=(512, 512, 512))
    nn.init.normal_(model.output.weight)
    return model


def endless_solve():
    model, x0 = mlp(), torch.randn(50, 2)
    return lambda: NATIVE.solve(model, x0, 0.0, 1.0, slow_job(10**12))


def endless_exact_trace():
    model, x0 = mlp(), torch.randn(50, 2)
    return lambda: NATIVE.solve_with_trace(model, x0, 0.0, 1.0, slow_job(10**12), None)


def endless_estimated_trace():
    model, x0, probes = mlp(), torch.randn(50, 2), torch.randn(50, 3, 2)
    return lambda: NATIVE.solve_with_trace(model, x0, 0.0, 1.0, slow_job(10**12), probes)


def long_field():
    model, x, t = wide(), torch.randn(4 * 10**6, 2), torch.full((4 * 10**6,), 0.5)
    return lambda: NATIVE.field(model, x, t)


def long_loss():
    model, part = wide(), Batch(torch.randn(10**6, 2), torch.full((10**6,), 0.5), torch.randn(10**6, 2))
    return lambda: NATIVE.loss_and_grads(model, part, job("loss_and_grads"))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("make", [endless_solve, endless_exact_trace, endless_estimated_trace, long_field, long_loss])
def test_ctrl_c_stops(make, threads):
    call = make()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    timer = threading.Timer(0.3, _thread.interrupt_main)
    start = time.monotonic()
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            call()
    finally:
        timer.cancel()
        torch.set_num_threads(before)
    # Two fast threads would take 10 s for the field and the loss, and months for the solves.
    assert time.monotonic() - start < 5.0
    assert bool(NATIVE.solve(mlp(), torch.randn(5, 2), 0.0, 1.0, slow_job(2)).success.all())


def test_an_error_of_the_progress_callback_comes_through():
    def refuse(ended):
        raise ZeroDivisionError("from the callback")

    with pytest.raises(ZeroDivisionError, match="from the callback"):
        NATIVE.solve(mlp(), torch.randn(50, 2), 0.0, 1.0, slow_job(10**12), refuse)


def solve_told(model, n, steps, tell):
    NATIVE.solve(model, torch.randn(n, 2), 0.0, 1.0, slow_job(steps), tell)


def trace_told(model, n, steps, tell):
    NATIVE.solve_with_trace(model, torch.randn(n, 2), 0.0, 1.0, slow_job(steps), None, tell)


@pytest.mark.parametrize("call", [solve_told, trace_told])
def test_progress_within_a_batch(call):
    told = []

    def tell(ended):
        told.append(ended)
        if len(told) == 4:
            raise EnoughError

    with pytest.raises(EnoughError):
        call(mlp(), 10**6, 200, tell)
    assert told == sorted(told)
    assert 0 < told[-1] < 10**6


class Ticker:
    """A Python thread that notes the time again and again, as long as it gets the interpreter's lock."""

    def __enter__(self):
        self.ticks = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._tick)
        self._thread.start()
        while not self.ticks:
            time.sleep(0.001)
        return self

    def _tick(self):
        while not self._stop.wait(0.005):
            self.ticks.append(time.monotonic())

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def between(self, first, last):
        return sum(first < tick < last for tick in self.ticks)


@pytest.mark.parametrize("call", [solve_told, trace_told])
def test_other_threads_run_between_two_callbacks(call):
    """The interpreter's lock is free in a solve, and not only where a callback gives way."""
    windows = []
    left = [time.monotonic()]

    def tell(ended):
        windows.append((left[0], time.monotonic()))
        if len(windows) == 7:
            raise EnoughError
        left[0] = time.monotonic()

    with Ticker() as ticker, pytest.raises(EnoughError):
        call(mlp(), 50, 10**12, tell)
    # About 50 ms each; the first begins before the call. A call that kept the lock would let one tick through as it
    # enters the callback and one as it leaves.
    assert sum(ticker.between(*window) >= 4 for window in windows[1:]) >= 2


@pytest.mark.parametrize("call", ["field", "loss"])
def test_other_threads_run_during_a_call(call):
    model = wide()

    def seconds(n):
        rows, t = torch.randn(n, 2), torch.full((n,), 0.5)
        options = job("loss_and_grads")
        begin = time.monotonic()
        if call == "field":
            NATIVE.field(model, rows, t)
        else:
            NATIVE.loss_and_grads(model, Batch(rows, t, rows), options)
        return begin, time.monotonic()

    with Ticker() as ticker:
        n = 500
        while True:
            begin, end = seconds(n)
            if end - begin > 0.15:
                break
            n *= 2
    # A margin for what is Python in the call itself.
    assert ticker.between(begin + 0.02, end - 0.02) >= 3


ENDS_AT_WORK = """
import sys, threading, time
import torch
import vapo_fast as vf
from vapo_fast.engines import Batch, Job
from vapo_fast.engines.native import NATIVE
from vapo_fast.ode import SolveOptions


def tell(ended):
    for _ in range(10**8):
        pass


torch.set_num_threads(2)
model = vf.MLPPotential((2,), vf.DataHomotopy(), (512, 512, 512))
rows, t = torch.randn(10**6, 2), torch.full((10**6,), 0.5)
endless = Job("solve", solve=SolveOptions("rk4", steps=10**12))
calls = {
    "solve": lambda: NATIVE.solve(model, rows, 0.0, 1.0, endless),
    "callback": lambda: NATIVE.solve(model, rows[:50], 0.0, 1.0, endless, tell),
    "field": lambda: NATIVE.field(model, rows, t),
    "loss": lambda: NATIVE.loss_and_grads(model, Batch(rows, t, rows), Job("loss_and_grads")),
}
threading.Thread(target=calls[sys.argv[1]], daemon=True).start()
time.sleep(0.3)
print("over", flush=True)
"""


def test_the_process_may_end_while_a_thread_is_at_work():
    """Python ends a daemon thread that asks for the interpreter's lock by then, which must not abort the process."""
    processes = {
        call: subprocess.Popen(
            [sys.executable, "-c", ENDS_AT_WORK, call],
            env={**os.environ, "OMP_NUM_THREADS": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for call in ("solve", "callback", "field", "loss")
    }
    for call, process in processes.items():
        said, errors = process.communicate(timeout=120)
        assert (said, errors, process.returncode) == ("over\n", "", 0), call


def test_two_python_threads_share_a_potential():
    model = mlp()
    x0 = torch.randn(300, 2)
    expected = NATIVE.solve(model, x0, 0.0, 2.0, job(solve=SolveOptions(rtol=1e-4))).x
    results = [None] * 4

    def work(i):
        results[i] = [NATIVE.solve(model, x0, 0.0, 2.0, job(solve=SolveOptions(rtol=1e-4))).x for _ in range(5)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(x, expected) for found in results for x in found)
