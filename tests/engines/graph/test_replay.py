"""The replay loop, in C++ and in Python, against a driver that tests write the script for.

The loop in C++ opens that driver by name. The one in Python gets a graph, events and a stream that call it.
"""

import ctypes
import gc
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
from types import SimpleNamespace

import pytest
import torch

from vapo_fast.core import extension
from vapo_fast.engines.graph import capture
from vapo_fast.engines.graph import replay as replaying
from vapo_fast.engines.graph.capture import every
from vapo_fast.engines.graph.replay import UNKNOWN, Replays, in_extension, in_python

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
        self.flags = torch.full((2,), -1)

    def script(self, running, far=None, queries=1):
        n = len(running)
        numbers = ctypes.c_longlong * n
        far = [0] * n if far is None else far
        self.flags.fill_(-1)
        self.library.fake_reset(
            ctypes.c_void_p(self.flags.data_ptr()), numbers(*running), numbers(*far), ctypes.c_longlong(n),
            ctypes.c_longlong(queries),
        )  # fmt: skip

    def fail(self, function, call=0, code=719):
        self.library.fake_fail(function.encode(), ctypes.c_longlong(call), ctypes.c_longlong(code))

    def call(self, function, *arguments, allowed=()):
        """A call of the driver, with its errors raised as PyTorch raises them."""
        code = getattr(self.library, function)(*arguments)
        if code and code not in allowed:
            name = ctypes.c_char_p(b"unknown error")
            self.library.cuGetErrorName(code, ctypes.byref(name))
            raise RuntimeError(f"{function} failed: {name.value.decode()} ({code})")
        return code

    def __getattr__(self, name):
        return self.library.fake_counts()[COUNTS.index(name)]

    def replays(self, every=1, stop_at=0, most=1000, graph=GRAPH):
        return Replays(FakeGraph(self, graph), FakeStream(self), self.flags, every, stop_at, most)


class FakeGraph:
    """What the loops use of `torch.cuda.CUDAGraph`."""

    def __init__(self, fake, handle=GRAPH):
        self.fake, self.handle = fake, handle

    def raw_cuda_graph_exec(self):
        return self.handle

    def replay(self):
        self.fake.call("cuGraphLaunch", ctypes.c_void_p(self.handle), ctypes.c_void_p(STREAM))


class FakeStream:
    """What the loops use of `torch.cuda.Stream`."""

    cuda_stream = STREAM

    def __init__(self, fake):
        self.fake = fake

    def synchronize(self):
        self.fake.call("cuStreamSynchronize", ctypes.c_void_p(STREAM))


class FakeEvent:
    """What the loop in Python uses of `torch.cuda.Event`."""

    def __init__(self, fake):
        self.fake, self.handle = fake, ctypes.c_void_p()
        fake.call("cuEventCreate", ctypes.byref(self.handle), 2)

    def __del__(self):
        if self.handle:
            self.fake.call("cuEventDestroy_v2", self.handle)

    def record(self, stream):
        self.fake.call("cuEventRecord", self.handle, ctypes.c_void_p(stream.cuda_stream))

    def query(self):
        return self.fake.call("cuEventQuery", self.handle, allowed=(600,)) == 0


@pytest.fixture
def fake(built):
    gc.collect()  # events that an error of another test still holds are not to be counted here
    return Fake(built)


needs_extension = pytest.mark.skipif(
    extension.unavailable_reason() is not None, reason=str(extension.unavailable_reason())
)


@pytest.fixture(params=[pytest.param("extension", marks=needs_extension), "python"])
def run(request, fake):
    if request.param == "extension":
        return lambda replays, monitor=None: in_extension(replays, monitor, fake.path)
    return lambda replays, monitor=None: in_python(replays, monitor, partial(FakeEvent, fake))


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
    with pytest.raises(RuntimeError, match=rf"{function} failed: {name} \({code}\)"):
        run(fake.replays())
    assert fake.created == fake.destroyed
    if function != "cuEventCreate":
        assert fake.synchronized == 1
        assert fake.completed == fake.launches


def test_wrong_handles_are_the_drivers_to_tell(run, fake):
    fake.script([0])
    with pytest.raises(RuntimeError, match="CUDA_ERROR_INVALID_HANDLE"):
        run(fake.replays(graph=0x77))


@needs_extension
def test_no_driver_and_one_that_lacks_a_function(fake, tmp_path):
    lacking = tmp_path / "lacking.c"
    lacking.write_text("int cuEventCreate(void **e, unsigned f) { return e == 0 || f == 0; }\n")
    with pytest.raises(RuntimeError, match=r"loading .*none\.so failed"):
        in_extension(fake.replays(), None, str(tmp_path / "none.so"))
    with pytest.raises(RuntimeError, match=r"cuEventDestroy_v2 failed: not in the library \(-1\)"):
        in_extension(fake.replays(), None, str(build(tmp_path, "lacking", lacking)))


def test_monitor_is_told_now_and_then(run, fake):
    """Each replay takes far longer than the interval between two calls."""
    fake.script([7, 5, 0], [7, 5, 0], queries=1 << 40)
    told = []

    def monitor(running):
        if len(told) == 3:
            raise RuntimeError("enough")
        told.append((running, time.monotonic()))

    with pytest.raises(RuntimeError, match="enough"):
        run(fake.replays(), monitor)
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


@needs_extension
def test_memory_that_runs_out_has_pytorchs_name(fake):
    fake.script([7], [7])
    fake.fail("cuGraphLaunch", code=2)
    with pytest.raises(torch.OutOfMemoryError, match="cuGraphLaunch failed: CUDA_ERROR_OUT_OF_MEMORY"):
        in_extension(fake.replays(), None, fake.path)


def test_python_stands_in_for_the_extension(fake, monkeypatch):
    monkeypatch.setattr(replaying, "in_python", lambda replays, monitor: "python")
    monkeypatch.setattr(replaying, "in_extension", lambda replays, monitor: "extension")
    for reason, expected in ((None, "extension"), ("left out", "python")):
        monkeypatch.setattr(extension, "unavailable_reason", lambda reason=reason: reason)
        assert replaying.replay(fake.replays()) == expected


@needs_extension
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
    handles = {"library": fake.path, "graph": GRAPH, "stream": STREAM, "flags": fake.flags.data_ptr()}
    arguments = handles | {"every": 1, "stop_at": 0, "most": 1000, "monitor": None} | change
    with pytest.raises(error, match=message):
        extension.load().replay(**arguments)
    assert fake.launches == 0


def test_a_loop_looks_as_rarely_as_its_replays_are_short(run, fake, monkeypatch):
    told, clock = [], itertools.count(0.0, 30e-6)
    monkeypatch.setattr(capture, "replay", run)
    monkeypatch.setattr(capture, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    loop = capture.ReplayLoop(FakeGraph(fake), FakeStream(fake), fake.flags)
    fake.script([4, 2, 0], [4, 0, 0])
    assert loop.until(0, 10, told.append) == (0, 3)
    assert fake.flags.tolist() == [0, 0]
    # A replay takes 10 us, so looks are rarer from now on.
    fake.script([4] * 20, [4] * 20)
    assert loop.until(0, 20, None) == (4, 20)
    assert fake.records < 20


def test_looks_are_as_far_apart_as_they_cost():
    assert every(5e-3) == every(1.0) == 1
    assert every(60e-6) == 4
    assert every(1e-6) == every(0.0) == 16
