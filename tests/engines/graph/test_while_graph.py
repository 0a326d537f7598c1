"""WHILE nodes without a device: what the driver is asked for, in which order, and how loops end; whole solves too.

The driver is `fake_graphs.cpp`, written against the real cuda.h, with the package's own condition kernels.
"""

import ctypes
import gc
import os
import shutil
import signal
import subprocess
import threading
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.engines.graph import condition_ptx, cuda_headers
from vapo_fast.core import extension
from vapo_fast.engines.graph import capture, while_graph
from vapo_fast.engines.graph.buckets import Buckets
from vapo_fast.engines.graph.capture import ReplayLoop, WhileLoop, WhileRecorder, most_steps
from vapo_fast.engines.graph.driver import DriverError
from vapo_fast.engines.graph.launch import Launcher
from vapo_fast.engines.graph.node_params import NodeType
from vapo_fast.engines.graph.replay import UNKNOWN, in_extension, in_python, replay
from vapo_fast.engines.graph.solver import Solver
from vapo_fast.engines.graph.step import Plan
from vapo_fast.engines.graph.while_graph import FAR, RUNNING, Mailbox, WhileGraph, WhileUnavailableError
from vapo_fast.ode import SolveOptions, integrate
from vapo_fast.ode.stages import expand

needs_the_header = pytest.mark.skipif(cuda_headers.missing() is not None, reason=str(cuda_headers.missing()))
COUNTS = (
    "graphs",
    "graphs_destroyed",
    "executables",
    "executables_destroyed",
    "modules",
    "launches",
    "completed",
    "steps",
    "synchronized",
    "events",
    "events_destroyed",
)
CONTEXT, STREAM = 0xC0, 0x51
CALLBACK = ctypes.CFUNCTYPE(None)
STEP = (NodeType.KERNEL, NodeType.MEMSET, NodeType.KERNEL, NodeType.MEMCPY, NodeType.EMPTY)
OF_CUDA_12_4 = 12040


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    path = tmp_path_factory.mktemp("driver") / "graphs.so"
    folder, source = cuda_headers.folders()[0], Path(__file__).with_name("fake_graphs.cpp")
    command = [cuda_headers.COMPILER, "-std=c++17", "-shared", "-fPIC", "-O1", "-I", folder]
    subprocess.run([*command, "-I", condition_ptx.FOLDER, "-o", path, source], check=True, capture_output=True)
    return str(path)


class Fake:
    """The driver, and graphs as captures leave them: each step is a function of a test's."""

    def __init__(self, path):
        self.path = path
        self.library = ctypes.CDLL(path)
        self.library.fake_counts.restype = ctypes.POINTER(ctypes.c_longlong)
        self.library.fake_log.restype = self.library.fake_complaint.restype = ctypes.c_char_p
        self.library.fake_captured.restype = ctypes.c_void_p
        self.mailbox = Mailbox.on(torch.device("cpu"))
        self.flags = torch.zeros(2, dtype=torch.int64)
        self.kept = []

    def reset(self, version=13000, context=CONTEXT, queries=1):
        # Kernels are kept for a process's contexts, which here come and go.
        while_graph._kernels.cache_clear()
        while_graph._driver.cache_clear()
        self.library.fake_reset(version, ctypes.c_ulonglong(context), ctypes.c_longlong(queries))

    def fail(self, function, call=0, code=719):
        self.library.fake_fail(function.encode(), ctypes.c_longlong(call), ctypes.c_longlong(code))

    def captured(self, step, kinds=STEP, inner=()):
        callback = CALLBACK(step)
        self.kept.append(callback)
        of = [(ctypes.c_int * max(1, len(k)))(*map(int, k)) for k in (kinds, inner)]
        return self.library.fake_captured(callback, of[0], len(kinds), of[1], len(inner))

    def scripted(self, running):
        """A step that leaves one number after the other in the flags."""
        left = list(running)

        def step():
            self.flags[:] = torch.tensor([left[0], max(0, left[0] - 1)])
            if len(left) > 1:
                left.pop(0)

        return self.captured(step)

    def graph(self, step, **more):
        return WhileGraph(step, self.flags, self.mailbox, library=self.path, **more)

    def launch(self, graph, stop_at, most):
        """One launch: (steps, running, far)."""
        self.mailbox.asked[RUNNING:] = -7
        self.mailbox.loop.fill_(-7)
        self.mailbox.ask(stop_at, most)
        assert self.library.cuGraphLaunch(ctypes.c_void_p(graph.handle), ctypes.c_void_p(STREAM)) == 0
        assert self.library.cuStreamSynchronize(ctypes.c_void_p(STREAM)) == 0
        return self.mailbox.steps, int(self.mailbox.asked[RUNNING]), int(self.mailbox.asked[FAR])

    @property
    def log(self):
        return self.library.fake_log().decode().split()

    @property
    def complaint(self):
        return self.library.fake_complaint().decode()

    def __getattr__(self, name):
        return self.library.fake_counts()[COUNTS.index(name)]


@pytest.fixture
def fake(built):
    gc.collect()  # graphs of other tests, which would be counted
    one = Fake(built)
    one.reset()
    return one


@pytest.fixture(params=["extension", "python"])
def replayed(request, fake, monkeypatch):
    """`WhileLoop` with the fake driver, by either loop of replays."""
    if request.param == "extension" and extension.unavailable_reason() is not None:
        pytest.skip(str(extension.unavailable_reason()))
    loop = in_extension if request.param == "extension" else in_python
    monkeypatch.setattr(capture, "replay", lambda replays, monitor: loop(replays, monitor, fake.path))
    monkeypatch.setattr(capture, "WhileGraph", partial(WhileGraph, library=fake.path))
    return fake


class Captured:
    """What PyTorch keeps of a capture."""

    def __init__(self, handle):
        self.handle = handle

    def raw_cuda_graph(self):
        return self.handle


class Stream:
    cuda_stream = STREAM


# ---- the kernels ----


def test_ptx_is_that_of_its_source():
    """But for nvcc's version, of which another may choose other instructions: then the file is to be written anew."""
    nvcc = condition_ptx.compiler()
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    made, kept = condition_ptx.compiled(nvcc), condition_ptx.PTX.read_text(encoding="utf-8")
    if made.splitlines()[0] != kept.splitlines()[0]:
        pytest.skip(f"another nvcc: {made.splitlines()[0]!r}, not {kept.splitlines()[0]!r}")
    assert made == kept, "python tests/engines/graph/condition_ptx.py --write"


def assemblers():
    found = [shutil.which("ptxas"), shutil.which("ptxas", path="/usr/local/cuda/bin")]
    found += [str(folder.parent / "bin" / "ptxas") for folder in cuda_headers.folders()]
    return sorted({os.path.realpath(one) for one in found if one is not None and os.access(one, os.X_OK)})


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90", "sm_100"])
def test_ptx_is_taken_by_the_assembler(arch, tmp_path):
    if not assemblers():
        pytest.skip("no ptxas here")
    for assembler in assemblers():
        code = tmp_path / "condition.cubin"
        subprocess.run([assembler, f"-arch={arch}", condition_ptx.PTX, "-o", code], check=True, capture_output=True)
        # What is left for the driver to find.
        assert b"cudaGraphSetConditional" in code.read_bytes()


def test_ptx_is_old_enough_for_the_oldest_driver():
    """Drivers for CUDA 12.4 take PTX up to 8.4."""
    (version,) = [line.split()[1] for line in condition_ptx.PTX.read_text().splitlines() if line.startswith(".version")]
    assert tuple(map(int, version.split("."))) <= (8, 4)


# ---- building ----


@needs_the_header
def test_what_is_built_and_in_which_order(fake):
    step = fake.scripted([0])
    graph = fake.graph(step)
    looked_at = ["cuGraphGetNodes"] * 2 + ["cuGraphNodeGetType"] * len(STEP)
    kernels = ["cuModuleLoadDataEx"] + ["cuModuleGetFunction"] * 3
    made = ["cuGraphCreate", "cuGraphConditionalHandleCreate"] + ["cuGraphAddNode_v2"] * 5
    made += ["cuGraphInstantiateWithParams"]
    relax = ["cuThreadExchangeStreamCaptureMode"]
    built = ["cuDriverGetVersion", *looked_at, "cuCtxGetCurrent", *relax, *kernels, *made, *relax]
    assert fake.log == built
    assert fake.complaint == ""
    # The second one finds driver and kernels.
    other = fake.graph(step)
    assert fake.log[len(built) :] == [*looked_at, "cuCtxGetCurrent", *relax, *made, *relax]
    assert (fake.graphs, fake.executables, fake.modules) == (2, 2, 1)
    del graph
    gc.collect()
    assert fake.log[-4:] == [*relax, "cuGraphExecDestroy", "cuGraphDestroy", *relax]
    assert fake.library.fake_capture_mode() == 0
    assert (fake.graphs_destroyed, fake.executables_destroyed) == (1, 1)
    del other
    gc.collect()
    assert (fake.graphs_destroyed, fake.executables_destroyed) == (2, 2)
    assert fake.complaint == ""


@needs_the_header
def test_the_step_is_copied(fake):
    step = fake.scripted([3, 2, 1, 0])
    graph = fake.graph(step)
    fake.library.fake_release(ctypes.c_void_p(step))
    fake.flags[0] = 4
    assert fake.launch(graph, 0, 100) == (4, 0, 0)


@needs_the_header
def test_a_launch_stops_where_it_was_asked_to(fake):
    def launch(running, stop_at, most, first=9):
        fake.reset()
        graph = fake.graph(fake.scripted(running))
        fake.flags[:] = torch.tensor([first, first])
        told = fake.launch(graph, stop_at, most)
        assert fake.steps == told[0]
        return told

    assert launch([9, 7, 4, 2, 0], 0, 100) == (5, 0, 0)
    assert launch([9, 7, 4, 2, 0], 4, 100) == (3, 4, 3)
    assert launch([9, 7, 4, 2, 0], 5, 100) == (3, 4, 3)
    assert launch([9, 7, 4, 2, 0], 0, 2) == (2, 7, 6)
    assert launch([9], 0, 37) == (37, 9, 8)  # a step that never ends anything
    assert launch([0], 0, 1) == (1, 0, 0)
    assert launch([0], 9, 100) == (0, 9, 9)  # nothing to do
    assert launch([0], 0, 0) == (0, 9, 9)


@needs_the_header
def test_launches_follow_each_other(fake):
    graph = fake.graph(fake.scripted([8, 7, 6, 5, 4, 3, 2, 1, 0]))
    fake.flags[:] = 9
    assert fake.launch(graph, 0, 4) == (4, 5, 4)
    assert fake.launch(graph, 2, 4) == (3, 2, 1)
    assert fake.launch(graph, 2, 4) == (0, 2, 1)
    assert fake.launch(graph, 0, 4) == (2, 0, 0)


@needs_the_header
def test_too_old_a_driver(fake):
    step = fake.scripted([0])
    fake.reset(version=12030)
    with pytest.raises(WhileUnavailableError, match=r"the driver is for CUDA 12\.3, WHILE nodes need 12\.4"):
        fake.graph(step)
    fake.reset(version=OF_CUDA_12_4)
    assert fake.graph(step).handle


@needs_the_header
def test_no_driver_and_one_that_lacks_a_function(fake, tmp_path):
    step, fake.path = fake.scripted([0]), str(tmp_path / "none.so")
    with pytest.raises(DriverError, match=r"loading .*none\.so failed"):
        fake.graph(step)
    source, lacking = tmp_path / "lacking.cpp", tmp_path / "lacking.so"
    source.write_text('extern "C" int cuDriverGetVersion(int *found) { *found = 12080; return 0; }\n')
    subprocess.run([cuda_headers.COMPILER, "-shared", "-fPIC", "-o", lacking, source], check=True)
    fake.path = str(lacking)
    with pytest.raises(DriverError, match=r"cuCtxGetCurrent failed: not in the library \(-1\)"):
        fake.graph(step)


@needs_the_header
def test_without_a_context(fake):
    step = fake.scripted([0])
    fake.reset(context=0)
    with pytest.raises(WhileUnavailableError, match="no CUDA context is current"):
        fake.graph(step)
    assert fake.graphs == 0


@needs_the_header
@pytest.mark.parametrize(
    ("kinds", "inner", "message"),
    [
        ((NodeType.KERNEL, NodeType.HOST), (), "HOST"),
        ((NodeType.MEM_ALLOC, NodeType.KERNEL, NodeType.MEM_FREE), (), "MEM_ALLOC, MEM_FREE"),
        ((NodeType.KERNEL, NodeType.CONDITIONAL), (), "CONDITIONAL"),
        ((NodeType.KERNEL, NodeType.GRAPH), (NodeType.KERNEL, NodeType.EVENT_RECORD), "EVENT_RECORD"),
        ((NodeType.KERNEL, 99), (), "type 99"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_nodes_that_a_body_must_not_hold(fake, kinds, inner, message):
    with pytest.raises(WhileUnavailableError, match=f"nodes that a WHILE node's body must not: {message}$"):
        fake.graph(fake.captured(lambda: None, kinds, inner))
    assert fake.graphs == 0
    assert fake.graph(fake.captured(lambda: None, (NodeType.GRAPH,), (NodeType.KERNEL,))).handle


BUILDING = {
    "cuDriverGetVersion": 1,
    "cuCtxGetCurrent": 1,
    "cuThreadExchangeStreamCaptureMode": 1,
    "cuModuleLoadDataEx": 1,
    "cuModuleGetFunction": 3,
    "cuGraphCreate": 1,
    "cuGraphGetNodes": 2,
    "cuGraphNodeGetType": len(STEP),
    "cuGraphConditionalHandleCreate": 1,
    "cuGraphAddNode_v2": 5,
    "cuGraphInstantiateWithParams": 1,
}


@needs_the_header
@pytest.mark.parametrize(("function", "call"), [(name, n) for name, count in BUILDING.items() for n in range(count)])
def test_errors_of_building_have_the_drivers_names_and_leave_nothing(fake, function, call):
    step = fake.scripted([0])
    fake.fail(function, call)
    with pytest.raises(DriverError, match=f"{function} failed: CUDA_ERROR_LAUNCH_FAILED") as caught:
        fake.graph(step)
    assert (caught.value.function, caught.value.code) == (function, 719)
    assert fake.graphs == fake.graphs_destroyed
    assert fake.executables == fake.executables_destroyed
    assert fake.library.fake_capture_mode() == 0
    fake.reset()
    assert fake.graph(step).handle


@needs_the_header
def test_errors_say_what_else_the_driver_knows(fake):
    step = fake.scripted([0])
    fake.fail("cuModuleLoadDataEx", code=218)
    with pytest.raises(DriverError, match=r"CUDA_ERROR_INVALID_PTX: ptxas fatal: no such instruction \(218\)"):
        fake.graph(step)
    fake.fail("cuGraphInstantiateWithParams", code=801)
    with pytest.raises(DriverError, match=r"CUDA_ERROR_NOT_SUPPORTED, NODE_OPERATION_NOT_SUPPORTED \(801\)"):
        fake.graph(step)
    fake.fail("cuGraphInstantiateWithParams", code=2)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        fake.graph(step)


# ---- loops of launches ----


@needs_the_header
def test_a_loop_of_launches_until_few_enough_run(replayed, monkeypatch):
    fake, told = replayed, []
    monkeypatch.setattr(capture, "most_steps", lambda seconds: 1000)
    script = [9] * 20 + [4] * 10 + [0]
    loop = WhileLoop(Captured(fake.scripted(script)), Stream(), fake.flags, fake.mailbox)
    fake.flags[:] = 9
    assert loop.until(4, 1000, told.append) == (4, 21)
    # Of the first launch, which is one step, it is not known how long it takes; the second makes all the others.
    assert (fake.steps, fake.launches) == (21, 2)
    assert loop.until(0, 1000, told.append) == (0, 10)
    assert (fake.steps, fake.launches) == (31, 3)
    assert loop.until(0, 1000, told.append) == (0, 0)
    assert fake.events == fake.events_destroyed
    assert fake.synchronized == 0


@needs_the_header
@pytest.mark.parametrize("limit", [1, 7])
def test_no_more_steps_than_allowed(replayed, monkeypatch, limit):
    fake = replayed
    monkeypatch.setattr(capture, "most_steps", lambda seconds: limit)
    loop = WhileLoop(Captured(fake.scripted([9])), Stream(), fake.flags, fake.mailbox)
    fake.flags[:] = 9
    assert loop.until(0, 17, None) == (9, 17)
    assert fake.steps == 17
    assert fake.launches == (17 if limit == 1 else 4)  # 1, 7, 7 and 2


def test_steps_of_a_launch_take_some_hundredths_of_a_second():
    assert most_steps(1e-3) == 50
    assert most_steps(0.04) == most_steps(3.0) == 1
    assert most_steps(0.0) == 1 << 16


@needs_the_header
def test_what_a_launch_left_is_told(replayed, monkeypatch):
    fake, told = replayed, []
    monkeypatch.setattr(capture, "most_steps", lambda seconds: 1)
    loop = WhileLoop(Captured(fake.scripted([8, 6, 5])), Stream(), fake.flags, fake.mailbox)
    fake.flags[:] = 9
    assert loop.until(5, 100, told.append) == (5, 3)
    assert [running for running in told if running != UNKNOWN] == [8, 6, 5]


@needs_the_header
def test_ctrl_c_ends_a_loop(replayed):
    fake = replayed
    fake.reset(queries=1 << 40)
    loop = WhileLoop(Captured(fake.scripted([7])), Stream(), fake.flags, fake.mailbox)
    fake.flags[:] = 9
    timer = threading.Timer(0.2, partial(os.kill, os.getpid(), signal.SIGINT))
    begin = time.monotonic()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        loop.until(0, 1 << 40, None)
    timer.join()
    assert time.monotonic() - begin < 5.0
    assert fake.launches == fake.completed  # nothing is under way
    assert fake.steps <= 1 << 16


@needs_the_header
@pytest.mark.parametrize(("code", "error"), [(719, DriverError), (2, torch.OutOfMemoryError)])
def test_errors_of_a_launch(replayed, monkeypatch, code, error):
    fake = replayed
    monkeypatch.setattr(capture, "replay", partial(replay, library=fake.path))
    loop = WhileLoop(Captured(fake.scripted([7])), Stream(), fake.flags, fake.mailbox)
    fake.flags[:] = 9
    fake.fail("cuGraphLaunch", code=code)
    with pytest.raises(error, match="cuGraphLaunch failed"):
        loop.until(0, 10, None)
    assert fake.launches == fake.completed


@needs_the_header
def test_a_device_that_does_nothing_is_an_error(replayed):
    """As if the condition were never set: without this the host would launch for ever."""
    fake = replayed
    loop = WhileLoop(Captured(fake.scripted([7])), Stream(), fake.flags, fake.mailbox)
    fake.flags[:] = 9
    fake.mailbox.ask = lambda stop_at, most: fake.mailbox.asked.copy_(torch.tensor([stop_at, 0, 0, 0, 0]))
    with pytest.raises(RuntimeError, match="the device made no step although 9 samples run"):
        loop.until(0, 10, None)


# ---- the recorder ----


class Emulated(WhileRecorder):
    """On the CPU: a "capture" is the call itself, which the driver runs as a graph's only node."""

    def __init__(self, fake, kinds=STEP):
        self.fake, self.kinds, self.captures, self.inside = fake, kinds, 0, 0
        self._stream, self._flags = Stream(), torch.zeros(2, dtype=torch.int64)
        self._mailbox, self._unavailable = Mailbox.on(torch.device("cpu")), False

    def context(self):
        return nullcontext()

    def _capture(self, graph, call):
        self.captures += 1
        graph.take(self.fake, call, self.kinds)
        return graph


class Graph:
    """torch.cuda.CUDAGraph, as far as it is used."""

    def __init__(self, keep_graph=False):
        self.keep_graph = keep_graph

    def take(self, fake, call, kinds):
        self.call, self.fake = call, fake
        self.handle = fake.captured(call, kinds)

    def replay(self):
        self.call()

    def raw_cuda_graph(self):
        assert self.keep_graph, "PyTorch destroys the graph of a capture that is not told to keep it"
        return self.handle

    def raw_cuda_graph_exec(self):
        assert not self.keep_graph
        return self.handle


@pytest.fixture
def emulated(replayed, monkeypatch):
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    return replayed


def counted_down(flags: Tensor):
    def call():
        flags[0] -= 1

    return call


def replays_on_the_host(monkeypatch):
    """The loop of replays without a driver: (running, launches), flags looked at after each."""

    def replay(replays, monitor):
        flags, launches = (ctypes.c_longlong * 2).from_address(replays.flags), 0
        while launches < replays.most:
            STANDING[replays.graph]()
            launches += 1
            if flags[0] <= replays.stop_at:
                break
        return flags[0], launches

    monkeypatch.setattr(capture, "replay", replay)


STANDING = {}


@needs_the_header
def test_loops_are_while_nodes(emulated):
    flags = torch.tensor([6, 6])
    recorder = Emulated(emulated)
    loop = recorder.loop(counted_down(flags), flags)
    assert isinstance(loop, WhileLoop)
    assert loop.until(2, 100, None) == (2, 4)
    assert recorder.captures == 1
    once = recorder.record(counted_down(flags))
    once.once()
    assert flags.tolist() == [1, 6]


@needs_the_header
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda fake, recorder: fake.reset(version=12020), "the driver is for CUDA 12.2"),
        (lambda fake, recorder: fake.fail("cuGraphInstantiateWithParams"), "cuGraphInstantiateWithParams failed"),
        (lambda fake, recorder: setattr(recorder, "kinds", (NodeType.HOST,)), "must not: HOST"),
    ],
    ids=["old", "refused", "host node"],
)
def test_what_the_device_cannot_repeat_is_replayed_by_the_host(emulated, monkeypatch, spoil, said):
    flags = torch.tensor([6, 6])
    recorder = Emulated(emulated)
    spoil(emulated, recorder)
    with pytest.warns(
        UserWarning, match="steps are launched one by one, since the device cannot repeat them"
    ) as warned:
        loop = recorder.loop(counted_down(flags), flags)
    assert len(warned) == 1
    assert said in str(warned[0].message)
    assert isinstance(loop, ReplayLoop)
    assert emulated.graphs == emulated.graphs_destroyed
    # The replay loop works, on a capture of its own that tells the host the flags.
    STANDING[loop._graph.handle] = loop._graph.call
    replays_on_the_host(monkeypatch)
    assert loop.until(0, 100, None) == (0, 6)
    # It is not tried again, and nothing is said again.
    assert isinstance(recorder.loop(counted_down(flags), flags), ReplayLoop)
    assert recorder.captures == 3


@needs_the_header
def test_no_memory_is_no_reason_to_fall_back(emulated):
    recorder, flags = Emulated(emulated), torch.tensor([6, 6])
    emulated.fail("cuGraphInstantiateWithParams", code=2)
    with pytest.raises(torch.OutOfMemoryError):
        recorder.loop(counted_down(flags), flags)
    emulated.fail("")
    assert isinstance(recorder.loop(counted_down(flags), flags), WhileLoop)


# ---- whole solves ----


def cubic(x, t):
    return x * (1.0 + 0.25 * expand(t, x)) - x * x * x


def batch(rows=60):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 5, generator=generator, dtype=torch.float64)
    return x * torch.linspace(0.01, 6.0, rows, dtype=torch.float64)[:, None]


OPTIONS = {
    "adaptive": SolveOptions("dopri5", rtol=1e-5, t_eval=(0.5, 2.0)),
    "limited": SolveOptions("tsit5", rtol=1e-5, max_steps=9),
    "fixed": SolveOptions("rk4", steps=12, t_eval=(0.5, 2.0)),
}


@needs_the_header
@pytest.mark.parametrize("limit", [None, 3])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_bits_of_whole_solves(emulated, monkeypatch, options, limit):
    """Steps that the device repeats, through compaction, chunks and limits, are the reference's."""
    if limit is not None:
        monkeypatch.setattr(capture, "most_steps", lambda seconds: limit)
    expected = integrate(cubic, batch(), 0.0, 2.0, options)
    for ladder in (Buckets(1000, step=8, ratio=0.75, smallest=8), Buckets(20, step=4, ratio=0.5, smallest=4)):
        solver, told = Solver(Plan.of(options), ladder, recorder=Emulated(emulated)), []
        for _ in range(4):
            told.clear()
            actual = solver.solve(cubic, batch(), 0.0, 2.0, options, progress=told.append)
            for name in ("x", "t", "status", "nfe", "accepted", "rejected", "ys"):
                ours, theirs = getattr(actual, name), getattr(expected, name)
                if theirs is not None:
                    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True, msg=name)
            assert told == sorted(told)
    assert emulated.steps > 0
    assert emulated.complaint == ""


@needs_the_header
def test_a_solve_is_a_few_launches(emulated, monkeypatch):
    """One for each batch size that it moves through, once it is known how long a step takes."""
    monkeypatch.setattr(capture, "most_steps", lambda seconds: 1000)
    options = OPTIONS["adaptive"]
    solver = Solver(Plan.of(options), Buckets(1000, step=8, ratio=0.5, smallest=8), recorder=Emulated(emulated))
    for _ in range(4):
        solver.solve(cubic, batch(), 0.0, 2.0, options)
    before = emulated.launches, emulated.steps
    solution = solver.solve(cubic, batch(), 0.0, 2.0, options)
    launches, steps = emulated.launches - before[0], emulated.steps - before[1]
    most = int((solution.accepted + solution.rejected).max())
    assert steps == most  # none in vain
    sizes = len(solver._launcher._loops)
    assert 2 < sizes < most
    assert launches <= sizes


@needs_the_header
def test_solvers_give_back_what_they_built(emulated):
    options = OPTIONS["adaptive"]
    solver = Solver(Plan.of(options), Buckets(1000, step=8, ratio=0.5, smallest=8), recorder=Emulated(emulated))
    for _ in range(Launcher.WARM_RUNS + 1):
        solver.solve(cubic, batch(), 0.0, 2.0, options)
    assert emulated.graphs > emulated.graphs_destroyed == 0
    del solver
    emulated.kept.clear()  # a capture keeps no call, this one does
    gc.collect()
    assert emulated.graphs == emulated.graphs_destroyed
    assert emulated.executables == emulated.executables_destroyed
