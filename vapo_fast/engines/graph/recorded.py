"""The stepper on CUDA: masked steps, recorded once as CUDA graphs and replayed.

A solve is one attempted step after another, each of a static shape and without the host, recorded once for each batch
size; samples that have ended leave when the others fit a smaller batch. Images lie in channels-last memory.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch

from vapo_fast.core import checks, triton_support
from vapo_fast.core.memory import free_memory
from vapo_fast.engines.autocast import arithmetic
from vapo_fast.engines.base import Progress
from vapo_fast.engines.composed import COUNTS_BYTES, STATES
from vapo_fast.engines.graph.buckets import Buckets
from vapo_fast.engines.graph.capture import CudaRecorder
from vapo_fast.engines.graph.fingerprint import fingerprint
from vapo_fast.engines.graph.launch import Recorder
from vapo_fast.engines.graph.solver import Solver
from vapo_fast.engines.stepper import Flow, Stepper, integrate
from vapo_fast.ode import Solution
from vapo_fast.ode.masked_step import Ops, Plan, TorchOps
from vapo_fast.ode.solve import check_state, checked
from vapo_fast.potentials.base import Potential

# Share of the free memory that a batch's activations may use; the estimate does not see a library's workspaces.
_MEMORY_SHARE = 0.4
_MOST_ROWS = 1 << 20
# Solvers kept for one model, each with a batch's activations in its recordings.
_MOST_SOLVERS = 3


class Recorded(Stepper):
    """Solves by recordings, which are kept for each model; see the module's docstring.

    Args:
        most_rows: the most samples of a batch, whatever memory allows.
        recorder: what records on a device.
    """

    splits_batches = True

    def __init__(
        self, most_rows: int = _MOST_ROWS, recorder: Callable[[torch.device], Recorder] = CudaRecorder
    ) -> None:
        self._most_rows, self._recorder = most_rows, recorder
        self._solvers: weakref.WeakKeyDictionary[Potential, _Solvers] = weakref.WeakKeyDictionary()

    def solve(self, flow: Flow, progress: Progress | None) -> Solution:
        t0, t1 = checks.finite_float("t0", flow.t0), checks.finite_float("t1", flow.t1)
        check_state(flow.x0, flow.args)
        flow.options.check_dtype(flow.x0.dtype)
        flow.options.check_times(t0, t1)
        if t0 == t1:
            return integrate.solve(flow, progress)  # nothing is evaluated
        with self._solver(flow) as solver:
            field, x0 = checked(flow.field), flow.x0.detach()
            return solver.solve(field, x0, t0, t1, flow.options, flow.args, progress)

    @contextmanager
    def _solver(self, flow: Flow) -> Iterator[Solver]:
        """A solver whose recordings are of this potential as it is now, for one solve at a time."""
        x0, plan = flow.x0, Plan.of(flow.options)
        shapes = (x0.dtype, x0.device, x0.shape[1:], tuple((a.dtype, a.shape[1:]) for a in flow.args))
        known = self._solvers.setdefault(flow.potential, _Solvers())
        key = (plan, flow.contents, flow.precision, *shapes)
        with known.lent(fingerprint(flow.potential), key, partial(self._make, flow, plan)) as solver:
            yield solver

    def _make(self, flow: Flow, plan: Plan) -> Solver:
        device = flow.x0.device
        around = partial(arithmetic, flow.precision, device.type)
        return Solver(plan, Buckets(self._rows(flow, plan)), self._recorder(device), _ops(device), around)

    def _rows(self, flow: Flow, plan: Plan) -> int:
        """How many samples of a batch a share of the free memory holds."""
        memory = flow.memory()
        if memory is None:
            return 1
        # A later solve may bring more samples than this one, so their number is no bound.
        free = free_memory(flow.x0.device)
        if free is None:
            return self._most_rows
        states = (STATES + plan.tableau.stages + 2 * plan.outputs) * flow.x0[0].numel() * flow.x0.dtype.itemsize
        fit = int(_MEMORY_SHARE * (free - memory.weights) / (states + memory.sample + COUNTS_BYTES))
        return max(1, min(self._most_rows, fit))


def _ops(device: torch.device) -> Ops:
    if device.type == "cuda" and triton_support.unavailable_reason() is None:
        from vapo_fast.engines.graph.triton_ops import TritonOps

        return TritonOps()
    return TorchOps()


class _Solvers:
    """The solvers of one model, for its latest fingerprint."""

    def __init__(self) -> None:
        self._fingerprint: object = None
        self._known: OrderedDict[object, tuple[Solver, threading.Lock]] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def lent(self, fingerprint: object, key: object, make: Callable[[], Solver]) -> Iterator[Solver]:
        """A solver by key, made if there is none; a new one if it is in use."""
        with self._lock:
            if self._fingerprint != fingerprint:
                self._known.clear()
                self._fingerprint = fingerprint
            if key not in self._known:
                self._known[key] = make(), threading.Lock()
                if len(self._known) > _MOST_SOLVERS:
                    self._known.popitem(last=False)
            self._known.move_to_end(key)
            solver, lock = self._known[key]
        if not lock.acquire(blocking=False):
            yield make()
            return
        try:
            yield solver
        finally:
            lock.release()
