"""The replay loop, in C++ and in Python, against a driver that tests write the script for."""

import ctypes
import itertools
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from vapo_fast.core import extension
from vapo_fast.engines.graph import capture
from vapo_fast.engines.graph.capture import every
from vapo_fast.engines.graph.driver import DriverError
from vapo_fast.engines.graph.replay import UNKNOWN, Replays, in_extension, in_python, replay

COMPILER = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
GRAPH, STREAM = 0x6A, 0x51
COUNTS = (
    "launches",
    "completed",
    "created",
    "destroyed",
    "records",
    "queries",
    "synchronized",
    "most_under_way",
    "ran_dry",
)

pytestmark = pytest.mark.skipif(COMPILER is None or os.name == "nt", reason="needs a C compiler on a POSIX system")


def build(folder, name, source):
    path = folder / f"{name}.so"
    command = [COMPILER, "-shared", "-fPIC", "-O1", "-o", str(path), "-x", "c", str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return path


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("driver"), "fake", Path(__file__).with_name("fake_driver.c"))


class Fake:
    """The scripted driver: what each replay leaves behind, and what it cost."""

    def __init__(self, path):
        self.path = str(path)
        self.library = ctypes.CDLL(self.path)
        self.library.fake_counts.restype = ctypes.POINTER(ctypes.c_longlong)
        self.flags = (ctypes.c_longlong * 2)(-1, -1)

    def script(self, running, far=None, queries=1):
        n = len(running)
        numbers = ctypes.c_longlong * n
        far = [0] * n if far is None else far
        self.flags[:] = (-1, -1)
        self.library.fake_reset(
            self.flags, numbers(*running), numbers(*far), ctypes.c_longlong(n), ctypes.c_longlong(queries)
        )

    def fail(self, function, call=0, code=719):
        self.library.fake_fail(function.encode(), ctypes.c_longlong(call), ctypes.c_longlong(code))

    def __getattr__(self, name):
        return self.library.fake_counts()[COUNTS.index(name)]

    def replays(self, every=1, stop_at=0, most=1000, **changed):
        handles = {"graph": GRAPH, "stream": STREAM, "flags": ctypes.addressof(self.flags)} | changed
        return Replays(**handles, every=every, stop_at=stop_at, most=most)


@pytest.fixture
def fake(built):
    return Fake(built)


@pytest.fixture(params=["extension", "python"])
def run(request, fake):
    if request.param == "extension" and extension.unavailable_reason() is not None:
        pytest.skip(str(extension.unavailable_reason()))
    loop = in_extension if request.param == "extension" else in_python
    return lambda replays, monitor=None: loop(replays, monitor, fake.path)


def test_stops_when_all_are_done(run, fake):
    fake.script([5, 5, 3, 0], [5, 3, 0, 0])
    assert run(fake.replays()) == (0, 4)
    assert fake.launches == 4
    assert fake.created == fake.destroyed == 2


def test_nothing_is_launched_in_vain_and_the_queue_does_not_run_dry(run, fake):
    """Whatever the samples do: far ones need two replays more, at least."""
    draw = random.Random(0)
    for _ in range(60):
        length = draw.randint(1, 40)
        left = [draw.randint(1, length) for _ in range(draw.randint(1, 9))] + [length]
        running = [sum(n > i for n in left) for i in range(1, length + 1)]
        # Of the samples with two steps or more left not all are known to be far.
        far = [draw.randint(0, sum(n > i + 1 for n in left)) for i in range(1, length + 1)]
        fake.script(running, far, draw.randint(1, 4))
        assert run(fake.replays()) == (0, length)
        assert fake.launches == length
        assert fake.most_under_way <= 2
        # It may run dry only where nothing told that another replay was needed.
        assert fake.ran_dry <= sum(count == 0 for count in [0, *far[:-1]])
    fake.script([9] * 30 + [0], [9] * 29 + [0, 0])
    run(fake.replays())
    assert fake.ran_dry == 1  # the first look


def test_looks_now_and_then(run, fake):
    fake.script([9] * 9 + [4, 0, 0, 0], [9] * 8 + [4, 0, 0, 0, 0])
    # Three lots are needed for nine replays, a fourth for the tenth, and a fifth was under way by the fourth look.
    assert run(fake.replays(every=3)) == (0, 15)
    assert fake.records == 5
    assert fake.most_under_way <= 6


def test_stops_at_a_number_that_fits(run, fake):
    fake.script([9, 7, 4, 2, 0], [9, 9, 9, 9, 9])
    running, launched = run(fake.replays(stop_at=4))
    assert running <= 4
    assert launched <= 4
    assert fake.launches == launched


@pytest.mark.parametrize("spacing", [1, 2, 7])
def test_at_most_so_many(run, fake, spacing):
    fake.script([9] * 40, [9] * 40)
    assert run(fake.replays(every=spacing, most=11)) == (9, 11)
    assert fake.launches == fake.completed == 11


@pytest.mark.parametrize("function", ["cuEventCreate", "cuEventRecord", "cuEventQuery", "cuGraphLaunch"])
@pytest.mark.parametrize(("call", "code", "name"), [(0, 719, "CUDA_ERROR_LAUNCH_FAILED"), (1, 12345, "unknown error")])
def test_errors_have_the_drivers_names(run, fake, function, call, code, name):
    fake.script([9] * 50, [9] * 50)
    fake.fail(function, call, code)
    with pytest.raises(DriverError, match=rf"{function} failed: {name} \({code}\)") as caught:
        run(fake.replays())
    assert (caught.value.function, caught.value.name, caught.value.code) == (function, name, code)
    assert fake.created == fake.destroyed
    if function != "cuEventCreate":
        assert fake.synchronized == 1
        assert fake.completed == fake.launches


def test_wrong_handles_are_the_drivers_to_tell(run, fake):
    fake.script([0])
    with pytest.raises(DriverError, match="CUDA_ERROR_INVALID_HANDLE"):
        run(fake.replays(graph=0x77))


def test_no_driver_and_one_that_lacks_a_function(run, fake, tmp_path):
    lacking = tmp_path / "lacking.c"
    lacking.write_text("int cuEventCreate(void **e, unsigned f) { return e == 0 || f == 0; }\n")
    fake.path = str(tmp_path / "none.so")
    with pytest.raises(DriverError, match=r"loading .*none\.so failed"):
        run(fake.replays())
    fake.path = str(build(tmp_path, "lacking", lacking))
    with pytest.raises(DriverError, match=r"cuEventDestroy_v2 failed: not in the library \(-1\)"):
        run(fake.replays())


def test_monitor_is_told_now_and_then(run, fake):
    """Each replay takes far longer than the interval between two calls."""
    fake.script([7, 5, 0], [7, 5, 0], queries=1 << 40)
    told = []

    def monitor(running):
        told.append((running, time.monotonic()))
        if len(told) == 4:
            fake.library.fake_reset(
                fake.flags,
                (ctypes.c_longlong * 1)(0),
                (ctypes.c_longlong * 1)(0),
                ctypes.c_longlong(1),
                ctypes.c_longlong(1),
            )

    with pytest.raises(RuntimeError, match="enough"):
        run(fake.replays(), lambda running: monitor(running) if len(told) < 3 else _raise(RuntimeError("enough")))
    # No replay has ended, so that nothing may be told to have ended.
    assert [running for running, _ in told] == [UNKNOWN] * 3
    times = [moment for _, moment in told]
    assert len(times) == 3
    assert all(0.03 < later - earlier < 1.0 for earlier, later in itertools.pairwise(times))
    assert fake.synchronized == 1
    assert fake.completed == fake.launches
    assert fake.created == fake.destroyed


def _raise(error):
    raise error


def test_ctrl_c_ends_a_replay_that_does_not(run, fake):
    fake.script([7], [7], queries=1 << 40)
    timer = threading.Timer(0.2, partial(os.kill, os.getpid(), signal.SIGINT))
    begin = time.monotonic()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        run(fake.replays())
    timer.join()
    assert time.monotonic() - begin < 5.0
    assert fake.completed == fake.launches


def test_other_threads_run_meanwhile(run, fake):
    fake.script([7], [7], queries=1 << 40)
    ticks, stop = [0], threading.Event()

    def tick():
        while not stop.wait(0.001):
            ticks[0] += 1

    thread = threading.Thread(target=tick)
    thread.start()
    calls = []
    try:
        with pytest.raises(RuntimeError):
            run(fake.replays(), lambda running: calls.append(1) or (len(calls) > 3 and _raise(RuntimeError())))
    finally:
        stop.set()
        thread.join()
    assert ticks[0] > 20


def test_memory_that_runs_out_has_pytorchs_name(fake):
    fake.script([7], [7])
    fake.fail("cuGraphLaunch", code=2)
    with pytest.raises(torch.OutOfMemoryError, match="cuGraphLaunch failed: CUDA_ERROR_OUT_OF_MEMORY"):
        replay(fake.replays(), library=fake.path)


def test_python_stands_in_for_the_extension(fake, monkeypatch):
    fake.script([3, 0], [0, 0])
    monkeypatch.setattr(extension, "unavailable_reason", lambda: "left out")
    monkeypatch.setattr(extension, "load", None)  # would fail if called
    assert replay(fake.replays(), library=fake.path) == (0, 2)


@pytest.mark.skipif(extension.unavailable_reason() is not None, reason=str(extension.unavailable_reason()))
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"graph": 0}, ValueError, "graph must be a handle, got 0"),
        ({"graph": "a"}, TypeError, "graph must be an integer, got 'a'"),
        ({"graph": -1}, ValueError, r"graph must be in \[0, 2\^64\), got -1"),
        ({"flags": 0}, ValueError, "flags must be an address that is a multiple of 8, got 0"),
        ({"flags": 12}, ValueError, "flags must be an address that is a multiple of 8, got 12"),
        ({"every": 0}, ValueError, r"every must be in \[1, .*, got 0"),
        ({"most": 0}, ValueError, r"most must be in \[1, .*, got 0"),
        ({"stop_at": -1}, ValueError, r"stop_at must be in \[0, .*, got -1"),
        ({"stop_at": 1.5}, TypeError, r"stop_at must be an integer, got 1\.5"),
        ({"library": 3}, TypeError, "library must be a str, got 3"),
        ({"monitor": 3}, TypeError, "progress must be callable or None, got int"),
    ],
)
def test_wrong_calls_of_the_extension(fake, change, error, message):
    fake.script([0])
    arguments = {"library": fake.path, **vars(fake.replays()), "monitor": None} | change
    with pytest.raises(error, match=message):
        extension.load().replay(**arguments)
    assert fake.launches == 0


def test_a_loop_hands_its_handles_to_the_replays(fake, monkeypatch):
    class Graph:
        def raw_cuda_graph_exec(self):
            return GRAPH

    class Stream:
        cuda_stream = STREAM

    flags, told = torch.zeros(2, dtype=torch.int64), []
    monkeypatch.setattr(capture, "replay", partial(replay, library=fake.path))
    loop = capture.ReplayLoop(Graph(), Stream(), flags)
    fake.flags = (ctypes.c_longlong * 2).from_address(flags.data_ptr())
    fake.script([4, 2, 0], [4, 0, 0])
    assert loop.until(0, 10, told.append) == (0, 3)
    assert flags.tolist() == [0, 0]
    # The driver took no time at all, so looks are rarer from now on.
    fake.script([4] * 20, [4] * 20)
    assert loop.until(0, 20, None) == (4, 20)
    assert fake.records < 20


def test_looks_are_as_far_apart_as_they_cost():
    assert every(5e-3) == every(1.0) == 1
    assert every(60e-6) == 4
    assert every(1e-6) == every(0.0) == 16
