"""The results file: one row for each arm of each case of each run, appended and never changed."""

from __future__ import annotations

import csv
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks.cases import Case
from benchmarks.devices import OURS, accelerator
from benchmarks.measure import PRODUCT, CaseResult, Measured, Quartiles, paired_ratio
from benchmarks.provenance import COLUMNS, RESULTS, append

CSV = RESULTS / "bench.csv"
Row = TypeVar("Row")


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
    cpu_per_wall: float
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

    @property
    def case(self) -> tuple[object, ...]:
        """What tells cases apart. The host's threads are no part of it on another device."""
        threads = self.threads if self.device == "cpu" else None
        return self.job, self.workload, self.dimension, self.hidden, self.n, self.rtol, self.steps, threads, self.device

    @property
    def ours(self) -> str:
        """The engine of ours that everybody is compared with on this device."""
        return OURS[self.device]

    @property
    def shape(self) -> str:
        """The network's shape."""
        return f"d {self.dimension}, {self.hidden.replace('x', '×')}"


def records(result: CaseResult, run: str, conformance: str) -> list[Record]:
    """The rows of a case."""
    return [_record(result, one, run, conformance) for one in result.arms.values()]


def write(rows: Iterable[Record], path: Path = CSV) -> None:
    """Append rows with their provenance."""
    append_rows_of(path, Record, rows)


def load(path: Path = CSV) -> list[Record]:
    """Every row of the file.

    Raises: ValueError naming the line of a row that cannot be read.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    return read(path, Record)


def append_rows_of(path: Path, kind: type[Row], rows: Iterable[Row]) -> None:
    """Append rows of a dataclass with their provenance, of which ``threads`` is the row's own."""
    columns = [column.name for column in fields(kind) if column.name not in COLUMNS]  # type: ignore[arg-type]
    own = (*columns, "threads")
    append(path, columns, [{name: cell(getattr(row, name)) for name in own} for row in rows])


def read(path: Path, kind: type[Row]) -> list[Row]:
    """Every row of a file whose columns are the fields of a dataclass; none if there is no file.

    Raises: ValueError naming the line of a row that cannot be read.
    """
    if not path.exists():
        return []
    kinds = {column.name: str(column.type) for column in fields(kind)}  # type: ignore[arg-type]
    with path.open(newline="", encoding="utf-8") as file:
        reader, rows = csv.DictReader(file), []
        for cells in reader:
            try:
                # A line from before a column was added ends early.
                filled = {name: value_of(kinds[name], text) for name, text in cells.items() if text is not None}
                rows.append(kind(**filled))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
        return rows


def latest(rows: Sequence[Record]) -> dict[tuple[object, ...], list[Record]]:
    """For each case the rows of its newest run, preferring runs that measured our engine.

    Rows of different runs are never mixed: their times are not comparable.
    """
    runs: dict[tuple[object, ...], dict[str, list[Record]]] = {}
    for row in rows:
        runs.setdefault(row.case, {}).setdefault(row.run, []).append(row)
    chosen = {}
    for case, by_run in runs.items():
        with_ours = [run for run, its in by_run.items() if any(row.arm == row.ours for row in its)]
        chosen[case] = by_run[max(with_ours or by_run)]
    return chosen


def whole_run(
    rows: Sequence[Record], cases: Sequence[tuple[object, ...]]
) -> dict[tuple[object, ...], list[Record]] | None:
    """For each of these cases the rows of the newest run that measured our engine in all of them; None if none did."""
    runs: dict[str, dict[tuple[object, ...], list[Record]]] = {}
    for row in rows:
        if row.case in cases:
            runs.setdefault(row.run, {}).setdefault(row.case, []).append(row)

    def measured(its: dict[tuple[object, ...], list[Record]], case: tuple[object, ...]) -> bool:
        return any(row.arm == row.ours for row in its.get(case, ()))

    whole = [run for run, its in runs.items() if all(measured(its, case) for case in cases)]
    return runs[max(whole)] if whole else None


def best_peer(rows: Sequence[Record], among: Sequence[str] = ()) -> Record | None:
    """The fastest peer of a case, or of those named."""
    peers = [row for row in rows if row.peer and (not among or row.arm in among)]
    return min(peers, key=lambda row: row.median_ms, default=None)


def of_arm(rows: Sequence[Record], arm: str) -> Record | None:
    """The row of an arm."""
    return next((row for row in rows if row.arm == arm), None)


def hidden_name(case: Case) -> str:
    """``128x3``."""
    return case.shape.split(" ", 1)[1]


def processor() -> str:
    """The processor's model name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _record(result: CaseResult, one: Measured, run: str, conformance: str) -> Record:
    case, seconds, outcome = result.case, one.seconds, one.outcome
    ratio = result.ratio(one.arm)
    share = _share(result, one)
    evaluations = outcome.evaluations
    return Record(
        run=run,
        job=case.job,
        workload=case.workload,
        dimension=case.dimension,
        hidden=hidden_name(case),
        n=case.n,
        rtol=case.rtol,
        steps=case.steps,
        threads=case.threads,
        arm=one.arm,
        peer=one.peer,
        version=one.version,
        median_ms=1e3 * seconds.median,
        low_ms=1e3 * seconds.low,
        high_ms=1e3 * seconds.high,
        rounds=len(one.rounds),
        repeats=one.repeats,
        warmup_s=one.warmup_seconds,
        cpu_per_wall=one.cpu_per_wall,
        ratio=ratio and ratio.median,
        ratio_low=ratio and ratio.low,
        ratio_high=ratio and ratio.high,
        gflops=None if one.flops is None else 1e-9 * one.flops / seconds.median,
        share=share and share.median,
        share_low=share and share.low,
        share_high=share and share.high,
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
        device=case.device,
        precision=outcome.precision,
        **asdict(accelerator(case.device)),
    )


def _share(result: CaseResult, one: Measured) -> Quartiles | None:
    """Rate of an arm over the rate of the matrix product, paired by round."""
    product = result.arms.get(PRODUCT)
    if product is None or product.flops is None or one.flops is None:
        return None
    times = paired_ratio(product.rounds, one.rounds)
    scale = one.flops / product.flops
    return Quartiles(scale * times.median, scale * times.low, scale * times.high)


def cell(value: object) -> object:
    """As it stands in a results file."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


def value_of(kind: str, text: str) -> Any:
    """What stands in a results file, for a column of a type."""
    if kind.endswith("| None") and text == "":
        return None
    if kind.startswith("bool"):
        return {"True": True, "False": False}[text]
    return {"int": int, "float": float, "str": str}[kind.removesuffix(" | None")](text)
