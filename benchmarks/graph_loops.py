"""Who repeats a recorded step of the graph engine: the host's loop of replays, or a WHILE node on the device.

    python -m benchmarks graph-loops --device cuda

Both loops solve the same problems in one run, taking turns, after solves that record them; rows are appended to
benchmarks/results/graph_loops.csv. A loop that cannot be had is a row with its reason. Where batches cannot shrink
(16 samples and fewer), results must have the same bits; elsewhere the two loops shrink batches at different steps, and
libraries round as the batch size has it, so that results must agree within the tolerance.
"""

from __future__ import annotations

import argparse
import csv
import gc
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

import vapo_fast as vf
from benchmarks.devices import accelerator, timer, usable
from benchmarks.image_models import blobs, potential
from benchmarks.measure import Quartiles, default_cache, rotated
from benchmarks.provenance import RESULTS, append, commit
from benchmarks.workloads import random_potential, start, stiff_potential
from vapo_fast.engines import GraphEngine, Job
from vapo_fast.engines.graph import capture
from vapo_fast.engines.graph.buckets import Buckets
from vapo_fast.engines.graph.engine import LOOPS
from vapo_fast.ode import SolveOptions

SUMMARY = "the graph engine's two loops over a recorded step: replays by the host, a WHILE node on the device"
CSV = RESULTS / "graph_loops.csv"
COLUMNS = (
    "run", "case", "n", "rtol", "precision", "loop", "median_ms", "low_ms", "high_ms", "rounds", "repeats", "steps",
    "launches", "difference", "bits", "agrees", "reason", "device", "accelerator", "driver", "triton",
)  # fmt: skip
WARM_SOLVES = 3
"""By then both programs have been run twice from Python, and recorded, and a WHILE loop knows how long a step takes."""
_ROUND_SECONDS = 0.05
_MOST_REPEATS = 50


@dataclass(frozen=True)
class Case:
    """One problem.

    Attributes:
        title: in tables. build: the potential, given the cache's folder. n: samples. rtol: rtol = atol.
        precision: of the products.
    """

    title: str
    build: Callable[[Path], vf.Potential]
    n: int
    rtol: float
    precision: str = "float32"

    @property
    def compacts(self) -> bool:
        """Whether the batch can shrink on the way, on CUDA."""
        ladder = Buckets.on("cuda", 1 << 20)
        return ladder.below(ladder.first(self.n)) > 0


def _mlp(dimension: int, widths: tuple[int, ...]) -> Callable[[Path], vf.Potential]:
    return lambda cache: random_potential(dimension, widths)


def _u_net(cache: Path) -> vf.Potential:
    return potential("unet_10m", blobs((3, 32, 32)), cache).eval()


CASES = (
    Case("MLP d 2, 128×3", _mlp(2, (128,) * 3), 16, 1e-5),
    Case("MLP d 2, 128×3", _mlp(2, (128,) * 3), 256, 1e-3),
    Case("MLP d 2, 128×3, 5 % stiff", lambda cache: stiff_potential(2, (128,) * 3), 8192, 1e-5),
    Case("U-Net 32×32", _u_net, 32, 1e-3, "bf16"),
    Case("MLP d 64, 256×3", _mlp(64, (256,) * 3), 1024, 1e-5),
    Case("U-Net 32×32", _u_net, 16, 1e-5, "tf32"),
)
"""In the order of what matters most."""


@dataclass
class Arm:
    """One loop with one problem.

    Attributes:
        solution: of the last solve before the clock started. launches: of its graphs. reason: why there is none.
        repeats: solves in a round. rounds: seconds of a solve in each.
    """

    loop: str
    call: Callable[[], vf.Solution]
    solution: vf.Solution
    launches: int
    reason: str
    repeats: int
    rounds: list[float]


def measure(case: Case, device: str, rounds: int, cache: Path) -> list[dict[str, object]]:
    """A row for each loop; if both are there, with whether their results agree."""
    model = case.build(cache).to(device).eval()
    path = model.homotopy
    x0 = start(model, case.n).to(device)
    job = Job("solve", case.precision, solve=SolveOptions(rtol=case.rtol, atol=case.rtol))

    def solve_by(engine: GraphEngine) -> Callable[[], vf.Solution]:
        return lambda: engine.solve(model, x0, path.t0, path.t1, job)

    clock = timer(device)
    arms = [_ready(loop, solve_by(GraphEngine(device, loop=loop)), clock) for loop in LOOPS]
    able = {arm.loop: arm for arm in arms if not arm.reason}
    gc.collect()
    gc.freeze()
    try:
        for i in range(rounds):
            for loop in rotated(list(able), i):
                arm = able[loop]
                gc.collect()
                arm.rounds.append(clock(lambda arm=arm: [arm.call() for _ in range(arm.repeats)]) / arm.repeats)
    finally:
        gc.unfreeze()
    difference, bits, agrees = _compared(case, [arm.solution for arm in able.values()])
    told = {"difference": difference, "bits": bits, "agrees": agrees} if len(able) == len(LOOPS) else {}
    return [_row(case, device, arm) | (told if arm.loop in able else {}) for arm in arms]


def _ready(loop: str, call: Callable[[], vf.Solution], clock: Callable[[Callable[[], object]], float]) -> Arm:
    """Recorded, counted, and timed once to know how often to repeat."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(WARM_SOLVES):
            call()
        with launches() as launched:
            solution = call()
    # Both a step that cannot be recorded and a loop that the device cannot take over are warnings, and something else
    # would then be measured.
    reasons = [str(one.message) for one in said if "launched" in str(one.message)]
    if reasons:
        return Arm(loop, call, solution, sum(launched), reasons[0], 0, [])
    once = clock(call)
    repeats = max(1, min(_MOST_REPEATS, round(_ROUND_SECONDS / max(once, 1e-6))))
    return Arm(loop, call, solution, sum(launched), "", repeats, [])


@contextmanager
def launches() -> Iterator[list[int]]:
    """The launches of loops inside, one number for each time that the host waits."""
    seen, original = list[int](), capture.replay

    def counted(replays: capture.Replays, monitor: Callable[[int], None] | None = None) -> tuple[int, int]:
        running, launched = original(replays, monitor)
        seen.append(launched)
        return running, launched

    capture.replay = counted
    try:
        yield seen
    finally:
        capture.replay = original


def _compared(case: Case, solutions: Sequence[vf.Solution]) -> tuple[str, bool, bool]:
    """How far apart the loops' results are, in units of the tolerance; whether they have the same bits; and agree."""
    if len(solutions) < len(LOOPS):
        return "", False, False
    first, *others = solutions
    names = ("x", "t", "status", "nfe", "accepted", "rejected")
    bits = all(_same(getattr(first, name), getattr(other, name)) for other in others for name in names)
    distance = max(_distance(first.x, other.x, case.rtol) for other in others)
    statuses = all(torch.equal(first.status, other.status) for other in others)
    return f"{distance:.3g}", bits, bits if not case.compacts else statuses and distance <= 1.0


def _same(one: Tensor, other: Tensor) -> bool:
    return bool(((one == other) | (one.isnan() & other.isnan())).all()) if one.is_floating_point() else one.equal(other)


def _distance(one: Tensor, other: Tensor, rtol: float) -> float:
    """Root mean square of the difference over atol + rtol |x|."""
    scale = rtol * (1.0 + torch.maximum(one.abs(), other.abs()))
    return float(((one - other) / scale).double().square().mean().sqrt())


def _row(case: Case, device: str, arm: Arm) -> dict[str, object]:
    row: dict[str, object] = {
        "case": case.title,
        "n": case.n,
        "rtol": f"{case.rtol:g}",
        "precision": case.precision,
        "loop": arm.loop,
        "reason": arm.reason,
        "device": device,
        **asdict(accelerator(device)),
    }
    if arm.rounds:
        spread = Quartiles.of(arm.rounds)
        row |= {f"{key}_ms": f"{1e3 * getattr(spread, key):.6g}" for key in ("median", "low", "high")}
        row |= {"rounds": len(arm.rounds), "repeats": arm.repeats, "launches": arm.launches}
        row["steps"] = int((arm.solution.accepted + arm.solution.rejected).max())
    return row


def run(options: argparse.Namespace) -> int:
    """Measure the cases and append them to the results; 1 if the loops disagree."""
    reason = usable(options.device)
    if reason:
        print(f"error: {reason}")
        return 1
    torch.set_num_threads(options.threads)
    commit()  # that of the code which is loaded now
    begin, stamp = time.perf_counter(), datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    wrong = []
    for i, case in enumerate(CASES, 1):
        elapsed = time.perf_counter() - begin
        name = f"{case.title}, n {case.n}, {case.rtol:.0e}, {case.precision}"
        if elapsed > options.budget_seconds:
            print(f"not measured, the {options.budget_seconds:.0f} s of the run were up: {name}")
            continue
        print(f"[{i}/{len(CASES)}, {elapsed:.0f} s] {name}", flush=True)
        rows = [{"run": stamp} | row for row in measure(case, options.device, options.rounds, options.cache)]
        append(options.csv, COLUMNS, rows)
        for row in rows:
            print("  " + "  ".join(f"{key} {row[key]}" for key in _SHOWN if row.get(key, "") != ""), flush=True)
        if any(row.get("agrees") is False for row in rows):
            wrong.append(name)
    for name in wrong:
        print(f"error: the loops' results differ: {name}")
    return int(bool(wrong))


_SHOWN = ("loop", "median_ms", "low_ms", "high_ms", "steps", "launches", "difference", "bits", "reason")


def load(path: Path = CSV) -> list[dict[str, str]]:
    """Every row; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the command."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="the CPU has one loop, for trials")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--budget-seconds", type=float, default=math.inf, help="after this, begin no further case")
    parser.add_argument("--csv", type=Path, default=CSV)
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.set_defaults(command=run)
