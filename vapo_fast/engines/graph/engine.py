"""The engine for any network on CUDA: masked steps recorded as CUDA graphs (`vapo_fast.engines.graph`).

A solve is one attempted step after another, each of a static shape and without the host, recorded once for each batch
size and replayed; samples that have ended leave when the others fit a smaller batch. Images lie in channels-last
memory. Derivatives are `vapo_fast.engines.explicit` where there are such for the potential, else autograd's. On the CPU
the same steps run from Python, for potentials with passes.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from vapo_fast import ode
from vapo_fast.core import checks, triton_support
from vapo_fast.core.memory import free_memory
from vapo_fast.engines.autocast import arithmetic
from vapo_fast.engines.base import Engine, Job, LossAndGrads, Progress
from vapo_fast.engines.base import Field as EngineField
from vapo_fast.engines.derivatives import Needs, derivatives
from vapo_fast.engines.explicit import unlike_a_plain_network
from vapo_fast.engines.graph.buckets import Buckets
from vapo_fast.engines.graph.fingerprint import fingerprint
from vapo_fast.engines.graph.launch import Recorder
from vapo_fast.engines.graph.solver import Solver
from vapo_fast.engines.graph.step import Field, Ops, Plan, TorchOps
from vapo_fast.engines.precision import Noise
from vapo_fast.loss import Batch
from vapo_fast.ode import Solution
from vapo_fast.ode.solve import check_state, checked
from vapo_fast.potentials.base import Potential

_NAMES = {torch.float32: "float32", torch.float64: "float64"}
# Share of the free memory that a batch's activations may use; the estimate does not see a library's workspaces.
_MEMORY_SHARE = 0.4
# States of a sample beside its stages: x, the point, and temporaries between two evaluations.
_STATES = 12
_MOST_ROWS = 1 << 20
# Bytes of a sample's times, status and counts.
_COUNTS_BYTES = 80
# Solvers kept for one model, each with a batch's activations in its recordings.
_MOST_SOLVERS = 3
# Points at which the noise of a reduced arithmetic is measured: a network for images is dear, and has many coordinates.
_NOISE_POINTS = 32


class GraphEngine(Engine):
    """Any `Potential` on CUDA in float32 or float64; see the module's docstring.

    Args:
        device_type: "cuda"; "cpu" for tests, which then run any module from Python. None, the registered engine's:
            CUDA, and on the CPU what has explicit passes.
        most_rows: the most samples of a batch, whatever memory allows.
    """

    name = "graph"
    capturable = True

    def __init__(self, device_type: str | None = None, most_rows: int | None = None) -> None:
        self._device_type = device_type
        self._most_rows = most_rows
        self._solvers: weakref.WeakKeyDictionary[Potential, _Solvers] = weakref.WeakKeyDictionary()
        self._noise = Noise(self._gradient, _NOISE_POINTS)

    def available(self) -> str | None:
        return None

    def supports(self, potential: Potential, device: torch.device, dtype: torch.dtype, job: Job) -> str | None:
        if dtype not in _NAMES:
            return f"the model's dtype is {dtype}; this engine computes in float32 or float64 (convert with .float())"
        if device.type not in ("cuda", "cpu") or self._device_type not in (None, device.type):
            return f"the model is on {device}; this engine runs on {(self._device_type or 'cuda').upper()}"
        missing = unlike_a_plain_network(potential) if device.type == "cpu" else None
        if missing is not None and self._device_type is None:
            return f"on the CPU this engine takes potentials with explicit passes: {missing}"
        options = job.loss if job.kind == "loss_and_grads" else None
        if options is not None and options.baseline is not None and unlike_a_plain_network(potential) is None:
            return "a baseline is a function of the user's own, which explicit passes have no derivatives of"
        if options is not None and job.precision == "bf16" and options.estimator != "velocity":
            # Phi itself is then known to 8 bits only, too few for its product with an innovation of zero mean.
            return "precision='bf16' goes with estimator='velocity'"
        allowed: tuple[str, ...] = ("auto", _NAMES[dtype])
        if dtype == torch.float32 and device.type == "cuda":
            allowed = (*allowed, "tf32", "bf16")
        elif dtype == torch.float32 and (missing is None or options is not None):
            allowed = (*allowed, "bf16")
        if job.precision not in allowed:
            return f"precision={job.precision!r} is none of this model's on {device.type}: {', '.join(allowed)}"
        return None

    def bytes_per_sample(self, potential: Potential, dtype: torch.dtype, job: Job, probes: int = 0) -> int | None:
        dimension = math.prod(potential.event_shape)
        if job.kind == "field":
            reference = potential.reference_tensor()
            device = torch.device("cpu") if reference is None else reference.device
            needs = derivatives(potential).needs(dtype, device, False, _NAMES[dtype])
            return None if needs is None else needs.sample + _STATES * dimension * dtype.itemsize
        # The start, the result, and what the caller makes of both: a solve finds its own batch for the activations.
        states = (4 + 2 * len(job.solve.t_eval or ())) * (dimension + max(1, probes))
        return states * dtype.itemsize + 4 * probes * dimension * torch.float64.itemsize + _COUNTS_BYTES

    def field(self, potential: Potential, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return derivatives(potential).field(x, t, _NAMES[x.dtype])

    def prepared_field(self, potential: Potential) -> EngineField:
        of = derivatives(potential)  # which keeps transformed weights from one call to the next
        return lambda x, t: of.field(x, t, _NAMES[x.dtype])

    def solve(
        self, potential: Potential, x0: Tensor, t0: float, t1: float, job: Job, progress: Progress | None = None
    ) -> Solution:
        of = derivatives(potential)
        precision = self._precision(potential, x0, t0, t1, job)

        def field(x: Tensor, t: Tensor) -> Tensor:
            return of.field(x, t, precision)[1]

        needs = partial(of.needs, x0.dtype, x0.device, False, precision)
        return self._solve(potential, field, x0, t0, t1, job, ("field", precision), needs, (), progress)

    def solve_with_trace(
        self,
        potential: Potential,
        x0: Tensor,
        t0: float,
        t1: float,
        job: Job,
        probes: Tensor | None,
        progress: Progress | None = None,
    ) -> tuple[Solution, Tensor]:
        of = derivatives(potential)
        precision = self._precision(potential, x0, t0, t1, job)
        event, dimension = x0.shape[1:], x0[0].numel()
        integrals = 1 if probes is None else probes.shape[1]

        def augmented(state: Tensor, t: Tensor, *rows: Tensor) -> Tensor:
            x = state[:, :dimension].reshape(-1, *event)
            gradient, trace = of.gradient_and_trace(x, t, rows[0] if rows else None, precision)
            return torch.cat((gradient.flatten(1), trace), dim=1)

        start = torch.cat((x0.flatten(1), x0.new_zeros(x0.shape[0], integrals)), dim=1)
        kind = ("exact" if probes is None else "probes", precision)
        args = () if probes is None else (probes.detach().to(x0.dtype),)
        needs = partial(of.needs, x0.dtype, x0.device, True, precision)
        solution = self._solve(potential, augmented, start, t0, t1, job, kind, needs, args, progress)
        x = solution.x[:, :dimension].reshape(-1, *event)
        ys = None if solution.ys is None else solution.ys[:, :, :dimension].reshape(-1, *x.shape)
        return replace(solution, x=x, ys=ys), solution.x[:, dimension:]

    def loss_and_grads(self, potential: Potential, batch: Batch, job: Job) -> LossAndGrads:
        precision = _NAMES[batch.x_data.dtype] if job.precision == "auto" else job.precision
        return derivatives(potential).loss_and_grads(batch, job, precision)

    def _solve(
        self,
        potential: Potential,
        field: Field,
        x0: Tensor,
        t0: float,
        t1: float,
        job: Job,
        kind: tuple[str, str],
        needs: Callable[[], Needs | None],
        args: Sequence[Tensor],
        progress: Progress | None,
    ) -> Solution:
        options = job.solve
        start, stop = checks.finite_float("t0", t0), checks.finite_float("t1", t1)
        check_state(x0, args)
        options.check_dtype(x0.dtype)
        options.check_times(start, stop)
        if start == stop:
            # Nothing is evaluated.
            solution = ode.integrate(field, x0, start, stop, options, args)
        else:
            # What is made inside somebody's inference mode could not take part in the field's autograd later.
            with (
                torch.inference_mode(False),
                torch.no_grad(),
                self._solver(potential, x0, args, Plan.of(options), kind, needs) as solver,
            ):
                solution = solver.solve(checked(field), x0.detach(), start, stop, options, args, progress)
        return replace(solution, engine=self.name, precision=kind[1])

    @contextmanager
    def _solver(
        self,
        potential: Potential,
        x0: Tensor,
        args: Sequence[Tensor],
        plan: Plan,
        kind: tuple[str, str],
        needs: Callable[[], Needs | None],
    ) -> Iterator[Solver]:
        """A solver whose recordings are of this potential as it is now, for one solve at a time."""
        shapes = (x0.dtype, x0.device, x0.shape[1:], tuple((a.dtype, a.shape[1:]) for a in args))
        known = self._solvers.setdefault(potential, _Solvers())
        make = partial(self._make, x0, plan, kind[1], needs)
        with known.lent(fingerprint(potential), (plan, *kind, *shapes), make) as solver:
            yield solver

    def _make(self, x0: Tensor, plan: Plan, precision: str, needs: Callable[[], Needs | None]) -> Solver:
        device = x0.device
        buckets = Buckets.on(device.type, self._rows(x0, plan, needs()))
        around = partial(arithmetic, precision, device.type)
        return Solver(plan, buckets, self._ops(device), self._recorder(device), around)

    def _rows(self, x0: Tensor, plan: Plan, needs: Needs | None) -> int:
        """How many samples of a batch a share of the free memory holds."""
        if needs is None:
            return 1
        # A later solve may bring more samples than this one, so their number is no bound.
        most = _MOST_ROWS if self._most_rows is None else self._most_rows
        free = free_memory(x0.device)
        if free is None:
            return most
        states = (_STATES + plan.tableau.stages + 2 * plan.outputs) * x0[0].numel() * x0.dtype.itemsize
        return max(1, min(most, int(_MEMORY_SHARE * (free - needs.weights) / (states + needs.sample + _COUNTS_BYTES))))

    def _ops(self, device: torch.device) -> Ops:
        if device.type == "cuda" and triton_support.unavailable_reason() is None:
            from vapo_fast.engines.graph.triton_ops import TritonOps

            return TritonOps()
        return TorchOps()

    def _recorder(self, device: torch.device) -> Recorder | None:
        if device.type != "cuda":
            return None
        from vapo_fast.engines.graph.capture import CudaRecorder

        return CudaRecorder(device)

    def _precision(self, potential: Potential, x0: Tensor, t0: float, t1: float, job: Job) -> str:
        """The arithmetic of a solve: the cheapest whose noise the tolerance does not see, or what the user says."""
        own = _NAMES[x0.dtype]
        if job.precision == own or (job.precision == "auto" and (x0.dtype == torch.float64 or not x0.is_cuda)):
            return own
        # The noise that is measured is the gradient's; a second derivative has its own.
        if not job.solve.tableau.adaptive or (job.kind == "solve_with_trace" and job.precision == "auto"):
            return own if job.precision == "auto" else job.precision
        with torch.inference_mode(False), torch.no_grad():
            return self._noise.choose(potential, job.precision, t0, t1, job.solve)

    def _gradient(self, potential: Potential, x: Tensor, t: Tensor, precision: str) -> Tensor:
        """grad Phi in an arithmetic; NaN in a reduced one that the potential's modules, or the device, refuse."""
        of = derivatives(potential)
        if precision == "ieee":
            return of.field(x, t, "float32")[1]
        try:
            return of.field(x, t, precision)[1]
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError):
            return torch.full_like(x, torch.nan)


class _Solvers:
    """The solvers of one model, for its latest fingerprint."""

    def __init__(self) -> None:
        self._fingerprint: object = None
        self._known: OrderedDict[object, tuple[Solver, threading.Lock]] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def lent(self, fingerprint: object, key: object, make: partial[Solver]) -> Iterator[Solver]:
        """A solver by key, made if there is none; one of its own for whoever comes while it is in use."""
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


GRAPH = GraphEngine()
"""The registered engine."""
