"""Convolutional potentials: sampling and training steps by our engines, against autograd's and other solvers.

    python -m benchmarks images --root DIR      DIR has Fashion-MNIST's idx files; without them, images are random blobs
    python -m benchmarks images --device cuda   the cases of `benchmarks.image_targets`, on 32x32 colours

Arms of a case start from the same weights, batches and starts, run interleaved, and are held to float64. Ratios are
paired by round. Memory is the most that tensors take at once in a call, counted, without the weights; on CUDA it is the
allocator's, from before an arm is made ready to the end of its first call.
"""

from __future__ import annotations

import argparse
import csv
import gc
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import conformance, image_selections, image_targets
from benchmarks.conformance import ROOT, Gate
from benchmarks.devices import accelerator, timer, usable, wait
from benchmarks.image_arms import COMPILED_STEP, REFERENCE, Arm, Problem, Seen, arms_of
from benchmarks.image_models import MODELS, blobs, load_images, potential
from benchmarks.image_selections import JOBS, OURS, PEERS, Case
from benchmarks.measure import Quartiles, default_cache, paired_ratio, rotated
from benchmarks.peak_memory import peak_bytes
from benchmarks.peers.base import DisagreementError, UnavailableError
from benchmarks.provenance import RESULTS, append, commit
from vapo_fast.potentials.image import ImagePotential

SUMMARY = "image potentials: our engines against autograd and other solvers, time, memory and error"
CSV = RESULTS / "images.csv"
COLUMNS = (
    "run", "data", "model", "parameters", "job", "batch", "arm", "median_ms", "low_ms", "high_ms", "rounds", "ratio",
    "ratio_low", "ratio_high", "error", "peak_mib", "memory_ratio", "nfe", "warmup_s", "load", "tests", "device",
    "accelerator", "driver", "triton", "case", "rtol", "ours", "name", "precision", "used", "failed", "each_ms",
)  # fmt: skip
LEFT_OUT_COLUMNS = ("run", "device", "case", "arm", "reason")
EVERY_ARM = "every arm"
GATE = Gate("passes", "test_equality or test_contract or test_native_winograd or (test_pointwise and not triton)")
"""The tests that must pass before a speed is printed, of tests/engines/explicit."""
GATES = {"cpu": (GATE, "passes"), "cuda": (conformance.GRAPH, "conformance")}


@dataclass(frozen=True)
class Limits:
    """How long to measure.

    Attributes:
        rounds: in which the arms take turns. run_seconds: an arm one run of which takes longer is left out.
        case_seconds: once a case has taken as long, no further arm is made ready for it.
    """

    rounds: int = 7
    run_seconds: float = 600.0
    case_seconds: float = 3600.0


@dataclass
class Measured:
    """One arm: seconds of each round, of what came before the first, bytes at the peak, and what came of it."""

    arm: Arm
    rounds: list[float]
    warmup: float
    peak: int | None
    seen: Seen


# Measuring --------------------------------------------------------------------------------------------------------


class _Ready:
    """An arm that is compiled and warm."""

    def __init__(self, arm: Arm, device: str, limits: Limits) -> None:
        reason = arm.missing()
        if reason:
            raise UnavailableError(reason)
        self.arm, self._device, self._clock = arm, device, timer(device)
        before = _reset_peak(device)
        begin = time.perf_counter()
        self.call = arm.make()
        result = self.once() if arm.seconds is not None else self.call()
        wait(device)
        self.warmup = time.perf_counter() - begin
        self.peak = None if before is None else torch.cuda.max_memory_allocated() - before
        self.seen = arm.look(result)
        del result
        if self.seen.error is not None and not self.seen.error <= arm.largest_error:
            raise DisagreementError(
                f"its result differs from float64's by {self.seen.error:.2g}, over {arm.largest_error:.2g}"
            )
        # Warm, and what is recorded as it comes a second time is recorded now.
        once = self.once()
        if once > limits.run_seconds:
            raise UnavailableError(f"one run took {once:.1f} s, over the limit of {limits.run_seconds:g} s")

    def once(self) -> float:
        """Seconds of a run."""
        return self._clock(self.call) if self.arm.seconds is None else self.arm.seconds(self.call)

    def count(self) -> None:
        """The CPU's memory is counted in a run of its own."""
        if self._device == "cpu" and self.arm.countable:
            self.peak = peak_bytes(self.call)


def _reset_peak(device: str) -> int | None:
    if device != "cuda":
        return None
    wait(device)
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def measure(
    arms: Sequence[Arm], device: str, limits: Limits, counts: bool = True, say: Callable[[str], None] = print
) -> tuple[list[Measured], dict[str, str]]:
    """The arms of one case, measured in turns, and why others are not among them; ``counts`` the CPU's memory too.

    Raises: DisagreementError if an arm of ours computes something else. A peer that does is left out, by name.
    """
    begin, ready, left_out = time.perf_counter(), list[_Ready](), dict[str, str]()
    for arm in arms:
        try:
            if time.perf_counter() - begin > limits.case_seconds:
                raise UnavailableError(f"the case's {limits.case_seconds:g} s are up")
            ready.append(_Ready(arm, device, limits))
        except Exception as error:
            if isinstance(error, DisagreementError) and arm.ours:
                raise DisagreementError(f"{arm.key}: {error}") from None
            # One arm's trouble, such as memory that runs out, must not cost the others their turn.
            known = isinstance(error, (UnavailableError, DisagreementError))
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            left_out[arm.key] = (reason or type(error).__name__).splitlines()[0][:160]
            say(f"  left out: {arm.key}: {left_out[arm.key]}")
            del error
            _free(device)
    seconds: dict[str, list[float]] = {one.arm.key: [] for one in ready}
    by_key = {one.arm.key: one for one in ready}
    # What exists now is not looked through again: collecting between arms takes next to no time.
    gc.collect()
    gc.freeze()
    try:
        for i in range(limits.rounds):
            for key in rotated(list(by_key), i):
                gc.collect()
                seconds[key].append(by_key[key].once())
    finally:
        gc.unfreeze()
    for one in ready if counts else ():
        one.count()
    return [Measured(one.arm, seconds[one.arm.key], one.warmup, one.peak, one.seen) for one in ready], left_out


def _free(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def rows_of(found: Sequence[Measured]) -> list[dict[str, object]]:
    """A row for each arm; ratios are those of eager float32's time over the arm's, where that was measured."""
    base = next((one for one in found if one.arm.key == REFERENCE), None)
    rows: list[dict[str, object]] = []
    for one in found:
        spread = Quartiles.of(one.rounds)
        ratio = None if base is None else paired_ratio(base.rounds, one.rounds)
        shared = None if base is None or not base.peak or one.peak is None else one.peak / base.peak
        seen = one.seen
        rows.append(
            {
                "arm": one.arm.key,
                **{f"{key}_ms": f"{1e3 * getattr(spread, key):.6g}" for key in ("median", "low", "high")},
                "rounds": len(one.rounds),
                **{("ratio" if key == "median" else f"ratio_{key}"): _cell(ratio and getattr(ratio, key), ".4g")
                   for key in ("median", "low", "high")},
                "error": _cell(seen.error, ".3g"),
                "peak_mib": _cell(None if one.peak is None else one.peak / 2**20, ".4g"),
                "memory_ratio": _cell(shared, ".3g"),
                "nfe": _cell(seen.nfe, ".4g"),
                "warmup_s": f"{one.warmup:.3g}",
                "ours": one.arm.ours,
                "name": one.arm.name,
                "precision": one.arm.precision,
                "used": seen.precision,
                "failed": seen.failed,
                "each_ms": " ".join(f"{1e3 * value:.5g}" for value in one.rounds),
            }
        )  # fmt: skip
    return rows


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


# Running ----------------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> int:
    """Measure the cases and append them to the results."""
    reason = usable(options.device)
    if reason:
        print(f"error: {reason}")
        return 1
    torch.set_num_threads(options.threads)
    begin = time.perf_counter()
    commit()  # that of the code which is loaded now
    gate, suite = GATES[options.device]
    said = conformance.require(options.cache, ROOT / "tests" / suite, gate)
    print(f"tests: {said} ({time.perf_counter() - begin:.0f} s)", flush=True)
    kit = _Kit(options, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), said)
    cases, wrong = cases_for(options), list[str]()
    for i, case in enumerate(cases, 1):
        elapsed = time.perf_counter() - begin
        left = options.budget_seconds - elapsed
        if left <= case.least_seconds:
            kit.leave_out(
                case, {EVERY_ARM: f"{max(0.0, left):.0f} s of the run's {options.budget_seconds:.0f} were left"}
            )
            continue
        print(f"\n[{i}/{len(cases)}, {elapsed:.0f} s] {case.name}", flush=True)
        try:
            kit.measure(case)
        except DisagreementError as error:
            print(f"error: {error}", flush=True)
            kit.leave_out(case, {EVERY_ARM: str(error)})
            wrong.append(case.name)
    if options.device == "cuda":
        print(f"\n{image_targets.text(image_targets.findings(latest_cases(options.csv)))}")
    return int(bool(wrong))


def cases_for(options: argparse.Namespace) -> list[Case]:
    """Those that were asked for, of the models that are for the device."""
    models = [name for name in options.models or MODELS if MODELS[name].device == options.device]
    if options.device == "cuda":
        cases = image_selections.cuda(options.jobs, models)
    else:
        cases = image_selections.cpu(models, options.jobs, options.samples, options.batch)
    return [case for case in cases if options.peers is None or case.peers in options.peers]


class _Kit:
    """One run: models as they are needed, and rows as they come."""

    def __init__(self, options: argparse.Namespace, stamp: str, said: str) -> None:
        self._options, self._stamp, self._said = options, stamp, said
        self._limits = Limits(options.rounds, options.run_seconds, options.case_seconds)
        self._loaded: tuple[str, ImagePotential, str, Tensor] | None = None

    def measure(self, case: Case) -> None:
        """Measure a case and append its rows; what of it fails is left out by name."""
        try:
            self._measure(case)
        finally:
            # What was compiled and captured goes before the next case's memory is asked for.
            torch.compiler.reset()
            _free(case.device)

    def _measure(self, case: Case) -> None:
        load = os.getloadavg()[0]
        model, data_name, data = self._model(case)
        problem = Problem(case, model, data, self._options.cache)
        arms = [arm for arm in arms_of(problem) if self._options.compile or arm.name != COMPILED_STEP]
        found, left_out = measure(arms, case.device, self._limits, case.peers == OURS)
        rows = rows_of(found)
        common = {
            **self._keys(case),
            "data": data_name,
            "model": case.model,
            "parameters": sum(p.numel() for p in model.parameters()),
            "job": case.job,
            "batch": case.n,
            "rtol": "" if case.rtol is None else f"{case.rtol:g}",
            "load": f"{load:.2f}",
            "tests": self._said,
            **asdict(accelerator(case.device)),
        }
        append(self._options.csv, COLUMNS, [common | row for row in rows])
        self.leave_out(case, left_out)
        print(table(rows), flush=True)

    def leave_out(self, case: Case, reasons: Mapping[str, str]) -> None:
        """Write down what was not measured, and why."""
        if EVERY_ARM in reasons:
            print(f"not measured: {case.name}: {reasons[EVERY_ARM]}", flush=True)
        rows = [self._keys(case) | {"arm": arm, "reason": reason} for arm, reason in reasons.items()]
        if rows:
            append(beside(self._options.csv), LEFT_OUT_COLUMNS, rows)

    def _keys(self, case: Case) -> dict[str, object]:
        return {"run": self._stamp, "device": case.device, "case": case.name}

    def _model(self, case: Case) -> tuple[ImagePotential, str, Tensor]:
        if self._loaded is None or self._loaded[0] != case.model:
            self._loaded = None  # before the next one is made
            one = MODELS[case.model]
            data_name, data = load_images(self._options.root) if one.trained else ("blobs", blobs(one.shape))
            model = potential(case.model, data, self._options.cache)
            self._loaded = case.model, model.to(torch.device(case.device)).eval(), data_name, data
        return self._loaded[1:]


# Results ----------------------------------------------------------------------------------------------------------

SHOWN = ("arm", "median_ms", "ratio", "ratio_low", "ratio_high", "error", "peak_mib", "memory_ratio", "nfe", "used")


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """As Markdown."""
    lines = ["| " + " | ".join(SHOWN) + " |", "|" + "---|" * len(SHOWN)]
    return "\n".join([*lines, *("| " + " | ".join(str(row[key]) for key in SHOWN) + " |" for row in rows)])


def beside(results: Path = CSV) -> Path:
    """The file of what was left out that goes with a results file: ``images_left_out.csv`` for ``images.csv``."""
    return results.with_name(f"{results.stem}_left_out.csv")


def load(path: Path) -> list[dict[str, str]]:
    """Every row of a file; none if there is no file. Rows from before a column was added have an empty cell there."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: cell or "" for name, cell in row.items()} for row in csv.DictReader(file)]


def latest(path: Path = CSV) -> list[dict[str, str]]:
    """On the CPU: rows of the newest run of each model and job."""
    rows = [row for row in load(path) if row.get("device", "") in ("", "cpu")]
    newest = {(row["model"], row["job"]): row["run"] for row in rows}
    return [row for row in rows if newest[row["model"], row["job"]] == row["run"]]


def latest_cases(path: Path = CSV) -> dict[str, list[dict[str, str]]]:
    """On CUDA: for each case, by name, the rows of its newest run."""
    rows = [row for row in load(path) if row.get("device") == "cuda"]
    newest = {row["case"]: row["run"] for row in rows}
    found: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        if newest[row["case"]] == row["run"]:
            found.setdefault(row["case"], []).append(row)
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the command."""
    parser.add_argument("--root", type=Path, help="folder with Fashion-MNIST's idx files")
    parser.add_argument("--device", choices=list(GATES), default="cpu")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), help="default: all that are for the device")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=["train", "sample"])
    parser.add_argument("--peers", nargs="+", choices=PEERS, help="only cases with these peers")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--run-seconds", type=float, default=600.0, help="leave out an arm whose run is longer")
    parser.add_argument("--case-seconds", type=float, default=3600.0, help="then make no further arm of a case ready")
    parser.add_argument("--budget-seconds", type=float, default=math.inf, help="after this, begin no further case")
    parser.add_argument("--batch", type=int, default=64, help="images of a training step on the CPU")
    parser.add_argument("--samples", type=int, default=64, help="images that are sampled on the CPU")
    parser.add_argument(
        "--no-compile", dest="compile", action="store_false", help="without the CPU's arm that compiles"
    )
    parser.add_argument("--csv", type=Path, default=CSV)
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.set_defaults(command=run)
