"""The part of docs/benchmarks.md on the graph engine's two loops, and which of them the rows are for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Row = Mapping[str, str]
Pairs = list[dict[str, Row]]

ENOUGH = 1.02
"""How many times as fast the WHILE node must be, as a geometric mean: between equals, the host's loop is kept."""

_INTRODUCTION = (
    "The graph engine's recorded step is repeated by the host, which launches replays ahead of what it knows, or by a",
    "WHILE node on the device, which launches for itself; each in the same run, on the same problems",
    "(`python -m benchmarks graph-loops`). *Launches*: of graphs by the host, for the steps of a solve. *Difference*:",
    "root mean square of the two results' difference, in units of the tolerance.",
)


def latest(rows: Sequence[Row]) -> Pairs:
    """Of each case the newest run's rows, by loop."""
    found: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("case", "n", "rtol", "precision", "device", "accelerator"))
        known = found.setdefault(key, {})
        if known and next(iter(known.values()))["run"] != row["run"]:
            known.clear()
        known[row["loop"]] = row
    return list(found.values())


def faster(rows: Sequence[Row]) -> str:
    """The loop to keep, "replay" or "while": the latter if it can be had in every case, agrees, and is faster."""
    ratios = [ratio(pair) for pair in latest(rows)]
    if not ratios or any(one is None for one in ratios):
        return "replay"
    mean = math.exp(sum(math.log(one) for one in ratios if one is not None) / len(ratios))
    return "while" if mean >= ENOUGH else "replay"


def ratio(pair: Mapping[str, Row]) -> float | None:
    """The replays' time over the WHILE node's; None if one of them is missing, or the results do not agree."""
    if any(loop not in pair or not pair[loop]["median_ms"] for loop in ("replay", "while")):
        return None
    if pair["while"]["agrees"] != "True":
        return None
    return float(pair["replay"]["median_ms"]) / float(pair["while"]["median_ms"])


def section(rows: Sequence[Row]) -> list[str]:
    """Lines of Markdown; none without rows."""
    pairs = latest(rows)
    if not pairs:
        return []
    titles = ("case", "n", "rtol", "products", "steps", "replays, ms", "WHILE, ms", "replays / WHILE")
    lines = ["## Who repeats a recorded step", "", *_INTRODUCTION, ""]
    lines += ["| " + " | ".join((*titles, "launches", "difference")) + " |", "|" + "---|" * (len(titles) + 2)]
    for pair in pairs:
        first = next(iter(pair.values()))
        cells = [first["case"], first["n"], first["rtol"], first["precision"], first["steps"] or "–"]
        cells += [_time(pair.get(loop)) for loop in ("replay", "while")]
        found = ratio(pair)
        cells.append("–" if found is None else f"{found:.3f}")
        cells.append(" / ".join(pair[loop]["launches"] or "–" for loop in ("replay", "while") if loop in pair))
        cells.append("same bits" if first["bits"] == "True" else first["difference"] or "–")
        lines.append("| " + " | ".join(cells) + " |")
    kept = "the WHILE node" if faster(rows) == "while" else "the host's loop"
    rule = f"kept is the WHILE node if it is {ENOUGH:g} times as fast in the geometric mean, and there and right in all"
    reasons = sorted({row["reason"] for pair in pairs for row in pair.values() if row["reason"]})
    last = next(iter(pairs[-1].values()))
    where = f"{last['accelerator'] or 'CPU'}, driver {last['driver'] or '–'}, torch {last['torch']}"
    lines += ["", f"By these rows, {kept} is to be kept ({rule}).", ""]
    lines += [f"<sub>{where}; rounds: {last['rounds']}; {last['date']} at commit {last['commit']}.</sub>"]
    return [*lines, *(f"\n<sub>Not to be had: {reason}.</sub>" for reason in reasons)]


def _time(row: Row | None) -> str:
    if row is None or not row["median_ms"]:
        return "–"
    low, high = float(row["low_ms"]), float(row["high_ms"])
    return f"{float(row['median_ms']):.4g} ({low:.4g} – {high:.4g})"
