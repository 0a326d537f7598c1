"""Error against time: one run's solves of one problem to several tolerances, as plots and as times to a given error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.cases import WORKLOAD_TITLES
from benchmarks.pages import count, details, html_table, note, number, paragraph
from benchmarks.records import Record, when

ERRORS = (1e-3, 1e-4, 1e-5)
"""Errors (root mean square) at which times are compared."""


@dataclass(frozen=True)
class Curve:
    """Rows of one problem and one run, by arm, each from the loosest tolerance to the tightest."""

    arms: Mapping[str, Sequence[Record]]

    @property
    def first(self) -> Record:
        """Any of its rows."""
        return next(iter(self.arms.values()))[0]

    @property
    def rows(self) -> list[Record]:
        """All of them."""
        return [row for rows in self.arms.values() for row in rows]

    def points(self, arm: str) -> list[tuple[float, float]]:
        """(error, ms) of an arm, if it is there."""
        return [(row.error_rms, row.median_ms) for row in self.arms.get(arm, ()) if row.error_rms is not None]

    @property
    def file_name(self) -> str:
        """Of its plot."""
        row = self.first
        where = f"{row.threads}t" if row.device == "cpu" else row.device
        return f"benchmark_{row.workload}_d{row.dimension}_{row.hidden}_n{row.n}_{where}.svg"

    @property
    def title(self) -> str:
        """Of its plot and table."""
        row = self.first
        where = f"threads: {row.threads}" if row.device == "cpu" else "CUDA"
        return f"{row.shape}, n {count(row.n)}, {WORKLOAD_TITLES[row.workload]}, {where}"

    @property
    def ours(self) -> str:
        """The arm that the others are compared with."""
        return self.first.ours


def curves(rows: Sequence[Record]) -> list[Curve]:
    """Each problem that a run solved to two tolerances or more; its newest such run, with our engine if one has it."""
    problems: dict[tuple[object, ...], dict[str, list[Record]]] = {}
    for row in rows:
        if row.job == "solve" and row.error_rms and row.rtol and not row.peers and not another_of_ours(row):
            threads = row.threads if row.device == "cpu" else None
            key = (row.workload, row.dimension, row.hidden, row.n, threads, row.device)
            problems.setdefault(key, {}).setdefault(row.run, []).append(row)
    found = []
    for runs in problems.values():
        usable = {run: its for run, its in runs.items() if len({row.rtol for row in its}) >= 2}
        if usable:
            with_ours = [run for run, its in usable.items() if any(row.arm == row.ours for row in its)]
            found.append(_curve(usable[max(with_ours or usable)]))
    return sorted(found, key=lambda curve: (curve.first.workload != "random", curve.file_name))


def another_of_ours(row: Record) -> bool:
    """Whether this is our engine called in another way, whose point lies on or beside its line."""
    return row.arm.startswith(f"{row.ours} ")


def time_at_error(points: Sequence[tuple[float, float]], error: float) -> float | None:
    """The time that an arm needs for an error, between its tolerances by a power law; None if it does not get there.

    Args:
        points: (error, time), from the loosest tolerance to the tightest.
    """
    if points and points[0][0] <= error:
        return points[0][1]
    for (loose, short), (tight, long) in pairwise(points):
        if loose >= error >= tight and loose > tight:
            part = math.log(loose / error) / math.log(loose / tight)
            return math.exp((1.0 - part) * math.log(short) + part * math.log(long))
    return None


def plot(curve: Curve, path: Path) -> Path:
    """Write an SVG; the same numbers give the same file."""
    import matplotlib as mpl

    mpl.use("Agg")
    # Without these every drawing of the same numbers would be another file.
    mpl.rcParams["svg.hashsalt"] = "vapo_fast"
    mpl.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.0, 4.2), layout="constrained")
    for i, (name, rows) in enumerate(curve.arms.items()):
        style = (
            {"linewidth": 2.6, "color": "black"} if name == curve.ours else {"linewidth": 1.2, "color": f"C{i % 10}"}
        )
        axes.plot([r.median_ms for r in rows], [r.error_rms for r in rows], marker="o", ms=4, label=name, **style)
    axes.set(xscale="log", yscale="log", xlabel="time, ms", ylabel="error of the end states, rms")
    axes.set_title(curve.title, fontsize=9)
    axes.grid(True, which="both", alpha=0.2)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path


def _curve(rows: Sequence[Record]) -> Curve:
    ours = rows[0].ours
    names = sorted({row.arm for row in rows}, key=lambda name: (name != ours, name))
    return Curve(
        {name: sorted((r for r in rows if r.arm == name), key=lambda row: -(row.rtol or 0.0)) for name in names}
    )


# On the pages ---------------------------------------------------------------------------------------------------------


def page(drawn: Sequence[Curve], tables: str) -> list[str]:
    """The plots, for a page beside which ``tables`` has the times."""
    lines = [
        "Each line is one arm from a loose to a tight tolerance, in one run; lower left is better. Solvers spend the",
        "same tolerance differently, so where errors differ this is the fair comparison.",
        f"[All tables]({tables}) has the times to an error.",
        "",
    ]
    return [*lines, *(f"![{WORKLOAD_TITLES[one.first.workload]}](images/{one.file_name})" for one in drawn)]


_TIMES_INTRODUCTION = (
    "Milliseconds to an error, read off the lines of the plots (a power law between two tolerances; – where an arm",
    "does not get there); in brackets over our engine's.",
)


def section(drawn: Sequence[Curve]) -> list[str]:
    """The tables of times to an error."""
    found = [details(one.title, html_table(_times_to_errors(one)), note(when(one.rows))) for one in drawn]
    return [paragraph(*_TIMES_INTRODUCTION), *found]


def _times_to_errors(curve: Curve) -> list[list[str]]:
    rows = [["arm", *(f"{error:.0e}" for error in ERRORS)]]
    ours = [time_at_error(curve.points(curve.ours), error) for error in ERRORS]
    for name in curve.arms:
        cells = [name]
        for error, our in zip(ERRORS, ours, strict=True):
            took = time_at_error(curve.points(name), error)
            ratio = "" if our is None or took is None or name == curve.ours else f" ({took / our:.2f})"
            cells.append(number(took) + ratio)
        rows.append(cells)
    return rows
