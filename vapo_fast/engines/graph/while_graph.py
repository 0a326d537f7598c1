"""Whole loops of steps as one CUDA graph, with a conditional WHILE node around a recorded step.

    enter -> WHILE( step -> again ) -> leave

Beside the recorded step, a child graph, there are three kernels of one thread (``condition.cu``): ``enter`` reads what
the host asks for and decides whether there is anything to do, ``again`` counts a step and decides whether another
follows, ``leave`` tells the host. The number of steps is limited by what the host asks for, whatever the step does, so
that a launch always ends.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from vapo_fast.engines.graph.driver import LIBRARY, DriverError, Library, out_of_memory_as_pytorchs
from vapo_fast.engines.graph.node_params import (
    ASSIGN_DEFAULT,
    CAPTURE_MODE_RELAXED,
    ERROR_LOG_BUFFER,
    ERROR_LOG_BUFFER_SIZE_BYTES,
    WHILE,
    InstantiateParams,
    InstantiateResult,
    NodeParams,
    NodeType,
)

OLDEST_CUDA = 12040
"""The first version with WHILE nodes whose bodies may copy and set memory, as cuDriverGetVersion writes it: 12.4."""
ALLOWED_IN_A_BODY = frozenset((NodeType.KERNEL, NodeType.MEMCPY, NodeType.MEMSET, NodeType.GRAPH, NodeType.EMPTY))
"""Node types that a conditional node's body may hold inside a child graph."""
STOP_AT, MOST, STEPS, RUNNING, FAR = range(5)
"""Places in ``Mailbox.asked``."""

_Handle = ctypes.c_void_p
_LOG_BYTES = 4096


class WhileUnavailableError(RuntimeError):
    """A WHILE node is not to be had here, or not around this step; the message says why."""


class Mailbox:
    """The numbers that a loop's kernels share with the host; one for all graphs that run one after the other.

    Attributes:
        asked: (5,) int64 in memory that host and device see: asked for `STOP_AT` and `MOST`; told `STEPS`, `RUNNING`
            and `FAR`. loop: (3,) int64 on the device.
    """

    def __init__(self, asked: Tensor, loop: Tensor) -> None:
        self.asked, self.loop = asked, loop

    @staticmethod
    def on(device: torch.device) -> Mailbox:
        """New memory; nothing is asked for."""
        asked = torch.zeros(5, dtype=torch.int64, pin_memory=device.type == "cuda")
        return Mailbox(asked, torch.zeros(3, dtype=torch.int64, device=device))

    def ask(self, stop_at: int, most: int) -> None:
        """Before a launch, when none is under way: how many rows may run at its end, and its most steps."""
        self.asked[STOP_AT], self.asked[MOST] = stop_at, most

    @property
    def steps(self) -> int:
        """After a launch: how many steps it made."""
        return int(self.asked[STEPS])

    @property
    def flags(self) -> int:
        """Address of what a launch tells: rows that run, and rows that are far from their end."""
        return self.asked[RUNNING:].data_ptr()


class WhileGraph:
    """A loop of one recorded step, ready to be launched; it goes with the object.

    To be made with the step's context current. One launch at a time, since all share the mailbox.

    Args:
        step: handle of the step's graph, which is copied. Its memory must live as long as this.
        flags: (2,) int64 on the device, written by each step: rows that run, rows that are far from their end.
        mailbox: of the loop. library: the CUDA driver.
    Raises:
        WhileUnavailableError: the driver is too old, or the step holds what a body must not.
        DriverError, torch.OutOfMemoryError: the driver's.
    """

    def __init__(self, step: int, flags: Tensor, mailbox: Mailbox, library: str = LIBRARY) -> None:
        with out_of_memory_as_pytorchs():
            driver = _driver(library)
            _refuse(driver, step)
            context = _Handle()
            driver.call("cuCtxGetCurrent", ctypes.byref(context))
            if not context.value:
                raise WhileUnavailableError("no CUDA context is current")
            with driver.captures_let_be():
                kernels = _kernels(library, context.value)
                graph = _Handle()
                driver.call("cuGraphCreate", ctypes.byref(graph), 0)
                built = _Built(driver, graph)
                self._close = weakref.finalize(self, built.destroy)
                # At the end of the process the driver may be gone, and takes its graphs with it.
                self._close.atexit = False
                try:
                    built.fill(step, context, kernels, flags, mailbox)
                    built.instantiate()
                except BaseException:
                    self._close()
                    raise
        self.handle = built.executable.value or 0
        """Of the graph that can be launched."""


class _Driver(Library):
    """The functions that building takes; WhileUnavailableError from a driver that is too old."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        version = ctypes.c_int()
        self.check(
            "cuDriverGetVersion",
            self.function("cuDriverGetVersion", ctypes.POINTER(ctypes.c_int))(ctypes.byref(version)),
        )
        if version.value < OLDEST_CUDA:
            raise WhileUnavailableError(
                f"the driver is for CUDA {_version(version.value)}, WHILE nodes need {_version(OLDEST_CUDA)}"
            )
        self._functions = {name: self.function(name, *arguments) for name, arguments in _FUNCTIONS.items()}

    def call(self, name: str, *values: Any) -> None:
        """Call one of them; DriverError if it fails."""
        self.check(name, self._functions[name](*values))

    @contextmanager
    def captures_let_be(self) -> Iterator[None]:
        """Inside, calls do not spoil a capture that is under way, of this thread or another: they are no part of it.

        Objects are collected at any moment, in the middle of a capture too.
        """
        mode = ctypes.c_int(CAPTURE_MODE_RELAXED)
        self.call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
        try:
            yield
        finally:
            self.call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))

    def call_regardless(self, name: str, *values: Any) -> None:
        """Call one of them, when an error is of no use to anybody."""
        self._functions[name](*values)


_OUT = ctypes.POINTER(_Handle)
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cuCtxGetCurrent": (_OUT,),
    "cuThreadExchangeStreamCaptureMode": (ctypes.POINTER(ctypes.c_int),),
    "cuModuleLoadDataEx": (_OUT, ctypes.c_char_p, ctypes.c_uint, ctypes.POINTER(ctypes.c_int), _OUT),
    "cuModuleGetFunction": (_OUT, _Handle, ctypes.c_char_p),
    "cuGraphCreate": (_OUT, ctypes.c_uint),
    "cuGraphDestroy": (_Handle,),
    "cuGraphGetNodes": (_Handle, _OUT, ctypes.POINTER(ctypes.c_size_t)),
    "cuGraphNodeGetType": (_Handle, ctypes.POINTER(ctypes.c_int)),
    "cuGraphChildGraphNodeGetGraph": (_Handle, _OUT),
    "cuGraphConditionalHandleCreate": (
        ctypes.POINTER(ctypes.c_ulonglong), _Handle, _Handle, ctypes.c_uint, ctypes.c_uint,
    ),
    # The one with a place for the edges' data, which is what cuda.h calls cuGraphAddNode from CUDA 13 on.
    "cuGraphAddNode_v2": (_OUT, _Handle, _OUT, _Handle, ctypes.c_size_t, ctypes.POINTER(NodeParams)),
    "cuGraphInstantiateWithParams": (_OUT, _Handle, ctypes.POINTER(InstantiateParams)),
    "cuGraphExecDestroy": (_Handle,),
}  # fmt: skip


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


@cache
def _driver(library: str) -> _Driver:
    return _Driver(library)  # a process has one driver; what raises is tried again


def _refuse(driver: _Driver, graph: int) -> None:
    """WhileUnavailableError if a graph holds nodes that a body must not."""
    found = sorted(_types(driver, graph) - ALLOWED_IN_A_BODY)
    if found:
        names = ", ".join(NodeType(kind).name if kind in list(NodeType) else f"type {kind}" for kind in found)
        raise WhileUnavailableError(f"the recorded step holds nodes that a WHILE node's body must not: {names}")


def _types(driver: _Driver, graph: int | None) -> set[int]:
    """The node types of a graph and of its child graphs."""
    count = ctypes.c_size_t()
    driver.call("cuGraphGetNodes", graph, None, ctypes.byref(count))
    nodes = (_Handle * count.value)()
    driver.call("cuGraphGetNodes", graph, nodes, ctypes.byref(count))
    types = set()
    for node in nodes[: count.value]:
        kind = ctypes.c_int()
        driver.call("cuGraphNodeGetType", node, ctypes.byref(kind))
        types.add(kind.value)
        if kind.value == NodeType.GRAPH:
            child = _Handle()
            driver.call("cuGraphChildGraphNodeGetGraph", node, ctypes.byref(child))
            types |= _types(driver, child.value)
    return types


@cache
def _kernels(library: str, context: int) -> tuple[_Handle, _Handle, _Handle]:
    """``enter``, ``again`` and ``leave``, compiled by the driver for a context's device, which keeps them."""
    driver = _driver(library)
    image = resources.files("vapo_fast.engines.graph").joinpath("condition.ptx").read_bytes()
    log = ctypes.create_string_buffer(_LOG_BYTES)
    options = (ctypes.c_int * 2)(ERROR_LOG_BUFFER, ERROR_LOG_BUFFER_SIZE_BYTES)
    values = (_Handle * 2)(ctypes.addressof(log), _LOG_BYTES)
    module = _Handle()
    try:
        driver.call("cuModuleLoadDataEx", ctypes.byref(module), image, len(options), options, values)
    except DriverError as error:
        said = log.value.decode(errors="replace").strip()
        raise DriverError(error.function, f"{error.name}: {said}" if said else error.name, error.code) from error
    found = []
    for name in (b"vapo_fast_enter", b"vapo_fast_again", b"vapo_fast_leave"):
        function = _Handle()
        driver.call("cuModuleGetFunction", ctypes.byref(function), module, name)
        found.append(function)
    return found[0], found[1], found[2]


class _Built:
    """The driver's graph and what is instantiated from it."""

    def __init__(self, driver: _Driver, graph: _Handle) -> None:
        self._driver, self._graph = driver, graph
        self.executable = _Handle()

    def fill(
        self, step: int, context: _Handle, kernels: tuple[_Handle, _Handle, _Handle], flags: Tensor, mailbox: Mailbox
    ) -> None:
        """Add all nodes."""
        condition = ctypes.c_ulonglong()
        # Nothing is repeated unless a kernel says so.
        self._driver.call(
            "cuGraphConditionalHandleCreate", ctypes.byref(condition), self._graph, context, 0, ASSIGN_DEFAULT
        )
        addresses = [tensor.data_ptr() for tensor in (mailbox.asked, mailbox.loop, flags)]
        asked, loop, written = (ctypes.c_ulonglong(address) for address in addresses)
        enter, again, leave = kernels
        before = self._kernel(self._graph, (), enter, context, (condition, asked, loop, written))
        repeat = NodeParams(type=NodeType.CONDITIONAL)
        repeat.conditional.handle, repeat.conditional.type = condition.value, WHILE
        repeat.conditional.size, repeat.conditional.ctx = 1, context
        loop_node = self._add(self._graph, (before,), repeat)
        body = _Handle(repeat.conditional.phGraph_out[0])
        once = NodeParams(type=NodeType.GRAPH)
        once.graph.graph = step
        step_node = self._add(body, (), once)
        self._kernel(body, (step_node,), again, context, (condition, loop, written))
        self._kernel(self._graph, (loop_node,), leave, context, (asked, loop, written))

    def instantiate(self) -> None:
        """Make it ready to be launched."""
        params = InstantiateParams()
        try:
            self._driver.call(
                "cuGraphInstantiateWithParams", ctypes.byref(self.executable), self._graph, ctypes.byref(params)
            )
        except DriverError as error:
            self.executable = _Handle()
            known = params.result_out in list(InstantiateResult)
            reason = InstantiateResult(params.result_out).name if known else f"result {params.result_out}"
            raise DriverError(error.function, f"{error.name}, {reason}", error.code) from error

    def destroy(self) -> None:
        """Both; nothing of it may be under way."""
        with self._driver.captures_let_be():
            if self.executable.value:
                self._driver.call_regardless("cuGraphExecDestroy", self.executable)
            self._driver.call_regardless("cuGraphDestroy", self._graph)

    def _kernel(
        self, graph: _Handle, after: Sequence[_Handle], function: _Handle, context: _Handle, values: Sequence[Any]
    ) -> _Handle:
        """A kernel of one thread; its arguments are copied when the node is added."""
        params = NodeParams(type=NodeType.KERNEL)
        kernel = params.kernel
        kernel.func, kernel.ctx = function, context
        kernel.gridDimX = kernel.gridDimY = kernel.gridDimZ = 1
        kernel.blockDimX = kernel.blockDimY = kernel.blockDimZ = 1
        places = (_Handle * len(values))(*(ctypes.addressof(value) for value in values))
        kernel.kernelParams = places
        return self._add(graph, after, params)

    def _add(self, graph: _Handle, after: Sequence[_Handle], params: NodeParams) -> _Handle:
        node, before = _Handle(), (_Handle * max(1, len(after)))(*after)
        self._driver.call(
            "cuGraphAddNode_v2",
            ctypes.byref(node),
            graph,
            before if after else None,
            None,
            len(after),
            ctypes.byref(params),
        )
        return node
