"""The results files: a row for each arm of each case of each run, for what was left out, and for each run."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import OURS_OF_IMAGES, Case
from benchmarks.devices import OURS, accelerator
from benchmarks.measure import CaseResult, Measured
from benchmarks.peers.image_arms import EAGER_ARM
from benchmarks.peers.machine import PRODUCT
from benchmarks.provenance import RESULTS, processor
from benchmarks.spread import Quartiles, paired_ratio

CSV = RESULTS / "bench.csv"
Key = tuple[object, ...]


@dataclass(frozen=True)
class Record:
    """One arm of one case, as it stands in the file; None where a number does not apply.

    Attributes:
        run: when the run began; rows of one run were measured together. hidden: the hidden widths, ``128x3``.
        median_ms, low_ms, high_ms: quartiles over rounds. ratio, ratio_low, ratio_high: this arm's time over ours
            (`ours`), paired by round. share, share_low, share_high: of the matrix product's rate in the same rounds.
        evaluations_mean, evaluations_max: of the field, per sample. field_share: of the time; field_how: "timed" inside
            a run, or "estimated" from the field alone. error_*: distance from the float64 solution (see
            `benchmarks.measure.Error`), or the relative error of a gradient. failed: samples that did not get there.
        conformance: what the suite said before the run. load: of the machine when the run began.
        device: of the case. accelerator, driver, triton: its name and versions, where it is not the processor.
        precision: of the products, where the arm tells.
        peers, precisions: of a case of images, see `benchmarks.cases.Case`; empty for MLPs. data: what its images were.
            parameters: of its network. speedup, speedup_low, speedup_high: eager PyTorch's time over this arm's, paired
            by round. peak_mib, memory_ratio: the most memory at once, in MiB, without the weights, and over eager's.
        each_ms: of every round, with spaces between them.

    Columns are only ever added, at the end, with a default: a file may have rows from before.
    """

    run: str
    job: str
    workload: str
    dimension: int
    hidden: str
    n: int
    rtol: float | None
    steps: int | None
    threads: int
    arm: str
    peer: bool
    version: str
    median_ms: float
    low_ms: float
    high_ms: float
    rounds: int
    repeats: int
    warmup_s: float
    cpu_per_wall: float | None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    gflops: float | None = None
    share: float | None = None
    share_low: float | None = None
    share_high: float | None = None
    evaluations_mean: float | None = None
    evaluations_max: float | None = None
    field_share: float | None = None
    field_how: str = ""
    failed: int = 0
    error_rms: float | None = None
    error_median: float | None = None
    error_max: float | None = None
    conformance: str = ""
    processor: str = ""
    python: str = ""
    numpy: str = ""
    load: float | None = None
    date: str = ""
    commit: str = ""
    machine: str = ""
    torch: str = ""
    device: str = "cpu"
    accelerator: str = ""
    driver: str = ""
    triton: str = ""
    precision: str = ""
    peers: str = ""
    precisions: str = ""
    data: str = ""
    parameters: int | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    peak_mib: float | None = None
    memory_ratio: float | None = None
    each_ms: str = ""

    @property
    def case(self) -> Key:
        """What tells cases apart. The host's threads are no part of it on another device."""
        threads = self.threads if self.device == "cpu" else None
        shape = self.job, self.workload, self.dimension, self.hidden, self.n, self.rtol, self.steps
        return *shape, threads, self.device, self.peers, self.precisions

    @property
    def ours(self) -> str:
        """The engine of ours that everybody is compared with in this case."""
        return OURS_OF_IMAGES[self.job] if self.peers else OURS[self.device]

    @property
    def name(self) -> str:
        """The arm's name, without its precision."""
        return self.arm.partition(", ")[0]

    @property
    def asked(self) -> str:
        """Of images: the precision that the arm was asked for."""
        return self.arm.partition(", ")[2] or "float32"

    @property
    def of_ours(self) -> bool:
        """Whether this is our engine, in whatever precision."""
        return self.name == self.ours

    @property
    def shape(self) -> str:
        """The network's shape."""
        return f"d {self.dimension}, {self.hidden.replace('x', '×')}"

    @property
    def each(self) -> list[float]:
        """Milliseconds of every round; none in rows from before they were kept."""
        return [float(value) for value in self.each_ms.split()]


@dataclass(frozen=True)
class LeftOut:
    """An arm that did not take part in a case, with the reason; the columns are those of `Record`."""

    run: str
    job: str
    workload: str
    dimension: int
    hidden: str
    n: int
    rtol: float | None
    steps: int | None
    threads: int
    device: str
    arm: str
    reason: str
    date: str = ""
    commit: str = ""
    machine: str = ""
    torch: str = ""
    peers: str = ""
    precisions: str = ""

    case = Record.case


EVERY_ARM = "every arm"
"""``arm`` of a case that was not measured at all."""


@dataclass(frozen=True)
class Run:
    """One run of the kit.

    Attributes:
        run: when it began measuring, as in the rows of its results. measured, left_out: cases. conformance_s, seconds:
            of the conformance suite's part (next to nothing if its result was remembered), and of everything.
    """

    run: str
    selection: str
    device: str
    measured: int
    left_out: int
    conformance_s: float
    seconds: float
    date: str = ""
    commit: str = ""
    machine: str = ""
    threads: int = 0
    torch: str = ""


def beside(results: Path, what: str) -> Path:
    """A file that goes with a results file: ``bench_left_out.csv`` or ``bench_runs.csv`` for ``bench.csv``."""
    return results.with_name(f"{results.stem}_{what}.csv")


def records(result: CaseResult, run: str, conformance: str) -> list[Record]:
    """The rows of a case."""
    return [_record(result, one, run, conformance) for one in result.arms.values()]


def left_out(case: Case, run: str, reasons: Mapping[str, str]) -> list[LeftOut]:
    """The rows of what a case was measured without, from each arm's reason."""
    common = {name: value for name, value in _of_case(case).items() if name != "device"}
    return [LeftOut(run=run, device=case.device, arm=arm, reason=why, **common) for arm, why in reasons.items()]


def reasons_of(rows: Sequence[LeftOut], case: Key, run: str) -> dict[str, str]:
    """Arms and reasons of a case of a run."""
    return {row.arm: row.reason for row in rows if row.case == case and row.run == run}


def key_of(case: Case) -> Key:
    """`Record.case` of a case."""
    return left_out(case, "", {"": ""})[0].case


def _of_case(case: Case) -> dict[str, Any]:
    names = ("job", "workload", "dimension", "hidden", "n", "rtol", "steps", "threads", "device", "peers")
    return {name: getattr(case, name) for name in names} | {"precisions": "+".join(case.precisions)}


def latest(rows: Sequence[Record]) -> dict[Key, list[Record]]:
    """For each case the rows of its newest run, preferring runs that measured our engine.

    Rows of different runs are never mixed: their times are not comparable.
    """
    runs: dict[Key, dict[str, list[Record]]] = {}
    for row in rows:
        runs.setdefault(row.case, {}).setdefault(row.run, []).append(row)
    chosen = {}
    for case, by_run in runs.items():
        with_ours = [run for run, its in by_run.items() if any(row.of_ours for row in its)]
        chosen[case] = by_run[max(with_ours or by_run)]
    return chosen


def whole_run(rows: Sequence[Record], cases: Sequence[Key]) -> dict[Key, list[Record]] | None:
    """For each of these cases the rows of the newest run that measured our engine in all of them; None if none did."""
    runs: dict[str, dict[Key, list[Record]]] = {}
    for row in rows:
        if row.case in cases:
            runs.setdefault(row.run, {}).setdefault(row.case, []).append(row)

    def measured(its: dict[Key, list[Record]], case: Key) -> bool:
        return any(row.of_ours for row in its.get(case, ()))

    whole = [run for run, its in runs.items() if all(measured(its, case) for case in cases)]
    return runs[max(whole)] if whole else None


def best_peer(rows: Sequence[Record], among: Sequence[str] = ()) -> Record | None:
    """The fastest peer of a case, or of those named."""
    peers = [row for row in rows if row.peer and (not among or row.arm in among)]
    return min(peers, key=lambda row: row.median_ms, default=None)


def of_arm(rows: Sequence[Record], arm: str) -> Record | None:
    """The row of an arm."""
    return next((row for row in rows if row.arm == arm), None)


def when(rows: Sequence[Record]) -> str:
    """How often, when, and how busy the machine was, in words."""
    loads = [row.load for row in rows if row.load is not None]
    busy = f"{min(loads):.1f} – {max(loads):.1f}" if loads else "unknown"
    rounds = ", ".join(str(count) for count in sorted({row.rounds for row in rows}))
    threads = ", ".join(str(count) for count in sorted({row.threads for row in rows}))
    dates = ", ".join(sorted({f"{row.date} at commit {row.commit}" for row in rows}))
    return f"Threads: {threads}; rounds: {rounds}; load: {busy}; {dates}." if rows else ""


def paired(peer: Record, ours: Record) -> Quartiles | None:
    """A peer's time over ours, paired by round, of rows of one case and run; None where the rounds are not known."""
    if peer.each and ours.each:
        return paired_ratio(peer.each, ours.each)
    if peer.ratio is None or peer.ratio_low is None or peer.ratio_high is None or ours.arm != ours.ours:
        return None
    return Quartiles(peer.ratio, peer.ratio_low, peer.ratio_high)


def _record(result: CaseResult, one: Measured, run: str, conformance: str) -> Record:
    case, outcome, evaluations = result.case, one.outcome, one.outcome.evaluations
    eager = result.arms.get(EAGER_ARM)
    shared = eager.peak_bytes if eager is not None else None
    return Record(
        run=run,
        **_of_case(case),
        arm=one.arm,
        peer=one.peer,
        version=one.version,
        median_ms=1e3 * one.seconds.median,
        low_ms=1e3 * one.seconds.low,
        high_ms=1e3 * one.seconds.high,
        rounds=len(one.rounds),
        repeats=one.repeats,
        warmup_s=one.warmup_seconds,
        cpu_per_wall=one.cpu_per_wall,
        gflops=None if one.flops is None else 1e-9 * one.flops / one.seconds.median,
        evaluations_mean=None if evaluations is None else float(evaluations.mean()),
        evaluations_max=None if evaluations is None else float(evaluations.max()),
        field_share=outcome.field_share,
        field_how="" if outcome.field_share is None else ("estimated" if outcome.field_estimated else "timed"),
        failed=outcome.failed,
        error_rms=one.error and one.error.rms,
        error_median=one.error and one.error.median,
        error_max=one.error and one.error.largest,
        conformance=conformance,
        processor=processor(),
        python=platform.python_version(),
        numpy=np.__version__,
        load=os.getloadavg()[0],
        precision=outcome.precision,
        data=result.data,
        parameters=result.parameters,
        peak_mib=None if one.peak_bytes is None else one.peak_bytes / 2**20,
        memory_ratio=None if one.peak_bytes is None or not shared else one.peak_bytes / shared,
        each_ms=" ".join(f"{1e3 * value:.6g}" for value in one.rounds),
        **_quartiles("ratio", result.ratio(one.arm, case.ours)),
        **_quartiles("share", _share(result, one)),
        **_quartiles("speedup", result.ratio(EAGER_ARM, one.arm) if case.of_images else None),
        **asdict(accelerator(case.device)),
    )


def _quartiles(name: str, found: Quartiles | None) -> dict[str, Any]:
    return {} if found is None else {name: found.median, f"{name}_low": found.low, f"{name}_high": found.high}


def _share(result: CaseResult, one: Measured) -> Quartiles | None:
    """Rate of an arm over the rate of the matrix product, paired by round."""
    product = result.arms.get(PRODUCT)
    if product is None or product.flops is None or one.flops is None:
        return None
    times = paired_ratio(product.rounds, one.rounds)
    scale = one.flops / product.flops
    return Quartiles(scale * times.median, scale * times.low, scale * times.high)
