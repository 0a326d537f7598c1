"""docs/quality.md from the file of scores."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, stdev

from benchmarks.provenance import ROOT
from benchmarks.quality.settings import ARMS, SETTINGS

DOCS = ROOT / "docs" / "quality.md"
Row = dict[str, str]

_HEAD = """# Quality beside flow matching

Written by `python -m benchmarks.quality` from `benchmarks/results/quality.csv`; that command's help says how each arm
is trained. All arms have the same data, batches, path (linear, with uniform times and weight), Adam, schedule and
averaging, and all but the last the layers and initial weights of one U-Net. *potential* is this project's; *flow
matching* puts out a velocity in the same gauge; *flow matching, plain* has no gauge, the network being the velocity, as
usually written; *potential, wide ResNet* is a potential with a pooled head, of about as many parameters. Samples are
drawn by the same per-sample dopri5. The floor is what as many real images score; no Fréchet distance here is an FID.
Seconds are wall-clock of training without the first steps, which compile; CPU seconds are the process's own (they
differ where a machine is shared). How the potential's loss and gradient are computed decides what its budget buys; the
file says which engine did. Path, batch sizes and learning rates were chosen for all arms alike
([quality_study.md](quality_study.md)), but for a lower rate where an arm was lost at the common one.
"""

_LATER = {
    "cifar10": "python -m benchmarks.quality cifar10 --data FOLDER --seconds 1500 --precision bf16 --compile "
    "--device cuda --threads 8 --keep runs/quality",
    "celeba": "python -m benchmarks.quality celeba --root FOLDER --seconds 3000 --precision bf16 --compile "
    "--device cuda --threads 8 --keep runs/quality",
}
_FOLDERS = {
    "cifar10": "an image folder of CIFAR-10, with train/CLASS/ and test/CLASS/",
    "celeba": "the folder of img_align_celeba/ and list_eval_partition.txt",
}

_LATER_NOTE = """`--seconds` are of training, for each of the three arms alike; scoring comes on top. With
`--arms potential "flow matching"` only the two that are compared most closely are trained. Images are decoded once and
then lie on the GPU, where they are also flipped. Features are EfficientNet-Lite0's, from two packages of the package
index; `--extractor cnn` needs nothing, and trains a classifier first. Scores and pictures are kept after each arm, and
this page is written at the end."""


def write(rows: list[Row], path: Path = DOCS) -> None:
    """The page; data sets that nobody has run yet are named with their commands."""
    lines = [_HEAD]
    for name in SETTINGS:
        own = [row for row in rows if row["set"] == name]
        if own:
            lines += section(name, newest(own))
    missing = [name for name in SETTINGS if not any(row["set"] == name for row in rows)]
    later = [f"- {name}, FOLDER being {_FOLDERS[name]}: `{_LATER[name]}`" for name in missing if name in _LATER]
    if later:
        lines += ["## Not run yet", "", "These need a GPU; one command each:", "", *later, "", _LATER_NOTE, ""]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")


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
    """Tables and picture of one data set."""
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
    lines = [f"## {name}", "", facts, ""]
    lines += ["| arm | images | training, s (CPU s) | FD (floor) | FD / floor | sliced-W2 (floor) | nfe |"]
    lines.append("|---|" + "---|" * 6)
    for arm in ARMS:
        own = [row for row in rows if row["arm"] == arm]
        for fraction in sorted({row["fraction"] for row in own}, key=float):
            lines.append(_curve_line(arm, [row for row in own if row["fraction"] == fraction]))
    lines += ["", "| at the end of training | precision | recall | density | coverage |", "|---|---|---|---|---|"]
    names = ("precision", "recall", "density", "coverage")
    ends = {arm: [row for row in rows if row["arm"] == arm and float(row["fraction"]) == 1.0] for arm in ARMS}
    for arm, own in ends.items():
        if own:
            cells = " | ".join(_spread([float(row[key]) for row in own], ".3f") for key in names)
            lines.append(f"| {arm} | {cells} |")
    floors = " | ".join(_spread([float(row[f"{key}_floor"]) for row in rows], ".3f", plain=True) for key in names)
    lines += [f"| real images | {floors} |", "", *comparison(ends), ""]
    lines += [f"![{name}](images/quality_{name}.png)", ""]
    return lines


def comparison(ends: dict[str, list[Row]]) -> list[str]:
    """The potential's Frechet distance over each baseline's, at the end of the budget."""
    own = [float(row["frechet"]) for row in ends[ARMS[0]]]
    return [
        f"FD of the potential over that of {arm}: {fmean(own) / fmean(float(row['frechet']) for row in ends[arm]):.2f} "
        "(means over seeds)."
        for arm in ARMS[1:3]
        if own and ends[arm]
    ]


def _curve_line(arm: str, own: list[Row]) -> str:
    def numbers(key: str) -> list[float]:
        return [float(row[key]) for row in own]

    images, floor, sliced_floor = (
        fmean(numbers("images")),
        fmean(numbers("frechet_floor")),
        fmean(numbers("sliced_wasserstein_floor")),
    )
    cells = (
        f"{images:,.0f}",
        f"{_spread(numbers('seconds'), '.0f', plain=True)} ({fmean(numbers('cpu_seconds')):.0f})",
        f"{_spread(numbers('frechet'), '.3g')} ({floor:.3g})",
        f"{fmean(numbers('frechet')) / floor:.2f}" if floor > 0 else "–",
        f"{_spread(numbers('sliced_wasserstein'), '.4f')} ({sliced_floor:.4f})",
        f"{fmean(numbers('nfe')):.0f}",
    )
    return f"| {arm} | " + " | ".join(cells) + " |"


def _spread(values: list[float], form: str, plain: bool = False) -> str:
    mean = format(fmean(values), form)
    return mean if plain or len(values) < 2 else f"{mean} ± {format(stdev(values), form)}"
