"""docs/quality.md from the file of scores."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, stdev

from benchmarks import pages
from benchmarks.pages import markdown
from benchmarks.provenance import ROOT
from benchmarks.studies.quality.settings import ARMS, SETTINGS

DOCS = ROOT / "docs" / "quality.md"
Row = dict[str, str]


def write(rows: list[Row], path: Path = DOCS) -> None:
    """Scores and pictures of every data set on the page, from the file alone."""
    parts = {}
    for name in SETTINGS:
        own = [row for row in rows if row["set"] == name]
        parts[name] = "\n".join(section(name, newest(own))) if own else "Not run yet."
    pages.write(path, parts)


def newest(rows: Iterable[Row]) -> list[Row]:
    """Of rows that scored the same thing, the last; only those with the last row's budget, device and so on, and with
    the last learning rate of their arm.
    """
    kept, rates = {}, {}
    for row in rows:
        kept[_protocol(row), row["arm"], row["lr"], row["seed"], row["fraction"]] = row
        rates[_protocol(row), row["arm"]] = row["lr"]
    last = _protocol(list(kept.values())[-1])
    return [row for key, row in kept.items() if key[0] == last and row["lr"] == rates[last, row["arm"]]]


def _protocol(row: Row) -> tuple[str, ...]:
    names = ("budget", "device", "arithmetic", "backbone", "batch_size", "rtol", "extractor")
    return tuple(row[name] for name in names)


def _rates(rows: list[Row]) -> str:
    """The learning rate, and those of arms that have another."""
    rates = {arm: f"{float(row['lr']):g}" for arm in ARMS for row in rows if row["arm"] == arm}
    first = next(iter(rates.values()))
    others = [f"{arm}: {rate}" for arm, rate in rates.items() if rate != first]
    return f"lr {first}" + (f" ({', '.join(others)})" if others else "")


def section(name: str, rows: list[Row]) -> list[str]:
    """Facts, tables and picture of one data set."""
    first = next((row for row in rows if row["arm"] != ARMS[3]), rows[0])
    seeds = sorted({row["seed"] for row in rows}, key=int)
    commits = " and ".join(dict.fromkeys(row["commit"] for row in rows))
    facts = (
        f"Budget {first['budget']} each, {first['device']} ({first['machine']}, {first['threads']} threads, torch "
        f"{first['torch']}, {first['date']}, commit {commits}); U-Net {first['backbone']}, "
        f"{int(first['parameters']):,} parameters, batch {first['batch_size']}, {_rates(rows)}; "
        f"{first['n_fake']} samples at rtol {float(first['rtol']):g} against {first['n_real']} training images; "
        f"features {first['extractor']}; {len(seeds)} seed{'s' if len(seeds) > 1 else ''}."
    )
    wide = [row for row in rows if row["arm"] == ARMS[3]]
    if wide:
        blocks, count = SETTINGS[name].wide_blocks, int(wide[-1]["parameters"])
        facts += f" The wide residual network has {blocks} blocks at each resolution and {count:,} parameters."
    table = [["arm", "images", "training, s (CPU s)", "FD (floor)", "FD / floor", "sliced-W2 (floor)", "nfe"]]
    for arm in ARMS:
        own = [row for row in rows if row["arm"] == arm]
        for fraction in sorted({row["fraction"] for row in own}, key=float):
            table.append(_curve_line(arm, [row for row in own if row["fraction"] == fraction]))
    names = ("precision", "recall", "density", "coverage")
    table_of_ends = [["at the end of training", *names]]
    ends = {arm: [row for row in rows if row["arm"] == arm and float(row["fraction"]) == 1.0] for arm in ARMS}
    for arm, own in ends.items():
        if own:
            table_of_ends.append([arm, *(_spread([float(row[key]) for row in own], ".3f") for key in names)])
    floors = [_spread([float(row[f"{key}_floor"]) for row in rows], ".3f", plain=True) for key in names]
    table_of_ends.append(["real images", *floors])
    lines = [pages.filled(facts), "", markdown(table), "", markdown(table_of_ends), "", *comparison(ends), ""]
    return [*lines, f"![{name}](images/quality_{name}.png)"]


def comparison(ends: dict[str, list[Row]]) -> list[str]:
    """The potential's Frechet distance over each baseline's, at the end of the budget."""
    own = [float(row["frechet"]) for row in ends[ARMS[0]]]
    return [
        f"FD of the potential over that of {arm}: {fmean(own) / fmean(float(row['frechet']) for row in ends[arm]):.2f} "
        "(means over seeds)."
        for arm in ARMS[1:3]
        if own and ends[arm]
    ]


def _curve_line(arm: str, own: list[Row]) -> list[str]:
    def numbers(key: str) -> list[float]:
        return [float(row[key]) for row in own]

    images, floor, sliced_floor = (
        fmean(numbers("images")),
        fmean(numbers("frechet_floor")),
        fmean(numbers("sliced_wasserstein_floor")),
    )
    return [
        arm,
        f"{images:,.0f}",
        f"{_spread(numbers('seconds'), '.0f', plain=True)} ({fmean(numbers('cpu_seconds')):.0f})",
        f"{_spread(numbers('frechet'), '.3g')} ({floor:.3g})",
        f"{fmean(numbers('frechet')) / floor:.2f}" if floor > 0 else "–",
        f"{_spread(numbers('sliced_wasserstein'), '.4f')} ({sliced_floor:.4f})",
        f"{fmean(numbers('nfe')):.0f}",
    ]


def _spread(values: list[float], form: str, plain: bool = False) -> str:
    mean = format(fmean(values), form)
    return mean if plain or len(values) < 2 else f"{mean} ± {format(stdev(values), form)}"
