"""Cases as tables, and the small print that says where and when they were measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from benchmarks.cases import THREADS, WORKLOAD_TITLES
from benchmarks.pages import count, details, html_table, markdown, note, number, share, spread
from benchmarks.peers.machine import PEAK
from benchmarks.potentials import MODELS
from benchmarks.records import Key, LeftOut, Record, paired, reasons_of, when
from benchmarks.targets import of_equal_error

Cases = Mapping[Key, Sequence[Record]]

JOB_TITLES = {
    "solve": "Solves to a tolerance",
    "solve_fixed": "Solves with equal steps",
    "sample": "Samples, from the call to the result",
    "field": "The field alone",
    "loss": "Loss and all parameter gradients",
    "trainer": "Whole training steps",
}


def case_text(rows: Sequence[Record]) -> str:
    """One case as a table."""
    return markdown(_arm_rows(rows))


def _arm_rows(rows: Sequence[Record]) -> list[list[str]]:
    """Ours first, then by time; of images, times are over the fastest of ours."""
    first = rows[0]
    columns = [*_COMMON, *(_IMAGES if first.peers else _COLUMNS.get(first.job, ()))]
    titles = [title.format(ours="our fastest" if first.peers else first.ours) for title, _ in columns]
    ours = min((row for row in rows if row.of_ours), key=lambda row: row.median_ms, default=None)
    ordered = sorted((row for row in rows if row.arm != PEAK), key=lambda row: (row.arm != row.ours, row.median_ms))
    return [titles, *([cell(row, ours) for _, cell in columns] for row in ordered)]


def _own(row: Record) -> str:
    if row.field_share is None:
        return "–"
    estimated = "~" if row.field_how == "estimated" else ""
    return f"{estimated}{100 * (1 - row.field_share):.0f} %"


def _evaluations(row: Record) -> str:
    if row.evaluations_mean is None:
        return "–"
    alike = row.evaluations_max is None or row.evaluations_mean == row.evaluations_max
    return f"{row.evaluations_mean:.0f}" if alike else f"{row.evaluations_mean:.0f} (≤ {row.evaluations_max:.0f})"


def _ratio(row: Record, ours: Record | None) -> str:
    if ours is not None and row.arm == ours.arm:
        return "1"
    if row.peers:
        found = None if ours is None else paired(row, ours)
        return "–" if found is None else spread(found.median, found.low, found.high)
    return spread(row.ratio, row.ratio_low, row.ratio_high)


Column = tuple[str, Callable[[Record, Record | None], str]]
_COMMON: tuple[Column, ...] = (
    ("arm", lambda row, ours: row.arm),
    ("ms", lambda row, ours: number(row.median_ms)),
    ("quartiles", lambda row, ours: f"{number(row.low_ms)} – {number(row.high_ms)}"),
    ("time / {ours}'s", _ratio),
)
_ERROR: Column = ("error", lambda row, ours: number(row.error_rms))
_WARM: Column = ("warm-up s", lambda row, ours: f"{row.warmup_s:.2f}")
_SOLVE: tuple[Column, ...] = (
    ("evaluations", lambda row, ours: _evaluations(row)),
    (
        "µs per mean evaluation",
        lambda row, ours: number(1e3 * row.median_ms / row.evaluations_mean if row.evaluations_mean else None),
    ),
    ("solver's own", lambda row, ours: _own(row)),
    ("error rms", lambda row, ours: number(row.error_rms)),
    ("median", lambda row, ours: number(row.error_median)),
    ("largest", lambda row, ours: number(row.error_max)),
    ("failed", lambda row, ours: str(row.failed)),
    _WARM,
)
_COLUMNS: dict[str, tuple[Column, ...]] = {
    "solve": _SOLVE,
    "solve_fixed": _SOLVE,
    "sample": _SOLVE,
    "field": (
        ("GFLOP/s", lambda row, ours: number(row.gflops)),
        ("of the product's rate", lambda row, ours: share(row.share)),
        ("largest error", lambda row, ours: number(row.error_max)),
        _WARM,
    ),
    "loss": (_ERROR, _WARM),
    "trainer": (_WARM,),
}
_IMAGES: tuple[Column, ...] = (
    _ERROR,
    ("evaluations", lambda row, ours: _evaluations(row)),
    ("memory, MiB", lambda row, ours: number(row.peak_mib)),
    ("arithmetic", lambda row, ours: row.precision or row.asked),
)


def cases_html(cases: Cases, left_out: Sequence[LeftOut]) -> list[str]:
    parts = []
    for rows in sorted(cases.values(), key=lambda its: _order(its[0])):
        shown = [row for row in rows if row.arm == row.ours or row.arm not in of_equal_error(row.ours)]
        missing = _left_out_of(rows[0].case, rows[0].run, left_out)
        parts += [details(_case_title(rows[0]), html_table(_arm_rows(shown)), note(when(rows)), note(missing))]
    return parts


def _case_title(row: Record) -> str:
    how = "" if row.rtol is None else f", rtol = atol = {row.rtol:.0e}"
    how += "" if row.steps is None else f", {row.steps} steps of rk4"
    where = f"{row.threads} thread{'s' if row.threads > 1 else ''}" if row.device == "cpu" else "CUDA"
    if row.peers:
        what = f"{MODELS[row.workload].title}, {row.parameters or 0:,} parameters, {JOB_TITLES[row.job].lower()}"
        return f"{what}, {row.n} images{how}, {where}"
    return f"{row.shape}, n {count(row.n)}, {WORKLOAD_TITLES[row.workload]}{how}, {where}"


def _order(row: Record) -> tuple[object, ...]:
    order = row.workload != "random", row.workload, row.dimension, row.threads, row.rtol or 0.0, row.n
    return row.device != "cpu", *order


# Where and when -------------------------------------------------------------------------------------------------------


def measured_where(rows: Sequence[Record]) -> str:
    """The machine and the versions."""
    places = sorted({f"{row.processor} ({row.machine})" for row in rows})
    places += sorted({f"{row.accelerator}, driver {row.driver}" for row in rows if row.accelerator})
    libraries = {name for row in rows for name in (f"torch {row.torch}", f"numpy {row.numpy}", f"Python {row.python}")}
    libraries |= {f"triton {row.triton}" for row in rows if row.triton}
    versions = ", ".join(sorted({row.version for row in rows} | libraries))
    return note(f"{'; '.join(places)}; {versions}." if rows else "")


def measured_when(cases: Cases) -> str:
    """How often, when, how busy the machine was, and whether all of a table is of one run."""
    rows = flat(cases)
    runs = sorted({row.run for row in rows})
    if len(runs) == 1:
        which = f"Everything in this table was measured in one run, {runs[0]}."
    else:
        which = (
            f"The arms of a row were measured in one run, the rows in {len(runs)} of them, because no run holds all "
            "of these cases: the machine was not equally fast in all rows."
        )
    return note(when(rows), which if runs else "")


def threads_of_targets(cases: Cases) -> int:
    """The larger number of threads that the CPU's cases were measured with."""
    counts = [rows[0].threads for rows in cases.values() if rows[0].device == "cpu"]
    return max(counts, default=max(THREADS))


def flat(cases: Cases) -> list[Record]:
    return [row for rows in cases.values() for row in rows]


def left_out_text(cases: Cases, left_out: Sequence[LeftOut]) -> list[str]:
    """A line for each case that arms are missing from, with the reasons that its run wrote down."""
    told = {rows[0]: _left_out_of(case, rows[0].run, left_out) for case, rows in cases.items()}
    return [note(f"{_case_title(first)}: {line}") for first, line in told.items() if line]


def _left_out_of(case: Key, run: str, left_out: Sequence[LeftOut]) -> str:
    by_reason: dict[str, list[str]] = {}
    for arm, reason in reasons_of(left_out, case, run).items():
        by_reason.setdefault(reason, []).append(arm)
    told = "; ".join(f"{', '.join(arms)} ({reason})" for reason, arms in by_reason.items())
    return f"Left out: {told}." if told else ""
