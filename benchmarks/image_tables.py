"""The part of docs/benchmarks.md on images on a GPU: targets, then each case's arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.image_models import MODELS
from benchmarks.image_targets import findings, text

Row = Mapping[str, str]
Cases = Mapping[str, Sequence[Row]]

_INTRODUCTION = (
    "32×32 colours, networks of at least as many parameters as their names say, rtol = atol. Arms of a table took",
    "turns in one run; a target counts only where ours is as exact as the peer's, or within the tolerance. *error*:",
    "of sampling, the root mean square distance from a float64 solution at 1e-7; of training steps, relative, of all",
    "gradients. *memory*: the allocator's peak while an arm was made ready and run once, without the weights.",
)
_COLUMNS = ("arm", "ms", "quartiles", "time / fastest of ours", "error", "evaluations", "memory, MiB", "arithmetic")


def section(cases: Cases, left_out: Sequence[Row]) -> list[str]:
    """Lines of Markdown, of `benchmarks.images.latest_cases` and all rows of what was not measured."""
    lines = ["## Images on a GPU", "", *_INTRODUCTION, "", text(findings(cases)), ""]
    for name, rows in cases.items():
        first = rows[0]
        title = f"{MODELS[first['model']].title}, {int(first['parameters']):,} parameters, {_job(first)}"
        lines += [f"**{title}**", "", *_table(rows), ""]
        missing = [
            f"{row['arm']} ({row['reason']})" for row in left_out if (row["run"], row["case"]) == (first["run"], name)
        ]
        lines += [_where(first), *([f"<sub>Left out: {'; '.join(missing)}.</sub>"] if missing else []), ""]
    return lines


def _job(row: Row) -> str:
    if row["job"] == "train":
        return f"loss and all gradients, {row['batch']} images"
    return f"sampling {row['batch']} images at {float(row['rtol']):.0e}"


def _table(rows: Sequence[Row]) -> list[str]:
    ours = min((float(row["median_ms"]) for row in rows if row["ours"] == "True"), default=None)
    body = []
    for row in sorted(rows, key=lambda row: float(row["median_ms"])):
        ratio = "–" if ours is None else f"{float(row['median_ms']) / ours:.2f}"
        spread = f"{float(row['low_ms']):.4g} – {float(row['high_ms']):.4g}"
        cells = (row["error"], row["nfe"], row["peak_mib"], row["used"] or row["precision"])
        body.append([row["arm"], f"{float(row['median_ms']):.4g}", spread, ratio, *(cell or "–" for cell in cells)])
    return ["| " + " | ".join(line) + " |" for line in (_COLUMNS, ["---"] * len(_COLUMNS), *body)]


def _where(row: Row) -> str:
    versions = f"driver {row['driver']}, torch {row['torch']}, triton {row['triton']}"
    when = f"{row['date']} at commit {row['commit']}"
    return f"<sub>{row['accelerator']}, {versions}; rounds: {row['rounds']}; {when}.</sub>"
