"""Write docs/images.md from finished runs: python benchmarks/image_report.py --digits out --fashion runs/fashion

``--digits`` is the folder that `make demo` wrote. ``--fashion`` is the folder of a `vapo-fast train` run in which
`vapo-fast evaluate RUN --out RUN/scores.json` and `vapo-fast sample RUN --out RUN/samples.png` have been run. Scores
are kept in benchmarks/results/, pictures in docs/images/; a run that is not named keeps what is there.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import yaml

from vapo_fast.cli.config import FIELDS, TrainConfig

ROOT = Path(__file__).resolve().parent.parent
RESULTS, IMAGES = ROOT / "benchmarks" / "results", ROOT / "docs" / "images"
# What a run's folder says about the machine and not about the run.
_LOCAL = ("root", "out", "device")
_MLP_ONLY = ("widths", "activation", "fourier_features", "fourier_scale")


def keep(name: str, folder: Path, facts: dict[str, Any]) -> None:
    """Store a run's scores with ``facts`` about it, and its pictures."""
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    scores.pop("generated", None)  # a path on the machine that ran it
    text = json.dumps(scores | facts, indent=2) + "\n"
    (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")
    for picture in ("samples.png", "training.png"):
        shutil.copyfile(folder / picture, IMAGES / f"{name}_{picture}")


def training_facts(folder: Path) -> dict[str, Any]:
    """Steps, seconds and command line of a `vapo-fast train` run, from the files in its folder."""
    settings = yaml.safe_load((folder / "resolved.yaml").read_text(encoding="utf-8"))
    defaults = dataclasses.asdict(TrainConfig())
    flags = ["vapo-fast", "train"]
    for name in FIELDS:
        value = settings[name]
        if name in _LOCAL or value == defaults[name] or (settings["model"] != "mlp" and name in _MLP_ONLY):
            continue
        flag = "--" + name.replace("_", "-")
        flags += [flag, ",".join(f"{v:g}" for v in value) if isinstance(value, list) else str(value)]
    with (folder / "training.csv").open(newline="", encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    return {
        "command": shlex.join(flags),
        "steps": int(last["step"]),
        "training_seconds": round(float(last["seconds"]), 1),
    }


def table(scores: dict[str, Any]) -> list[str]:
    """The metrics with their floors."""
    lines = ["| metric | samples | floor |", "|---|---|---|"]
    for name, numbers in scores["metrics"].items():
        spread = f" ± {numbers['floor_sd']:.2g}" if numbers["floor_sd"] is not None else ""
        lines.append(f"| {name} | {numbers['value']:.4g} | {numbers['floor']:.4g}{spread} |")
    return [*lines, ""]


def section(name: str, title: str, words: str) -> list[str]:
    """One run's part of the page; empty if there are no scores of it."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return []
    scores = json.loads(path.read_text(encoding="utf-8"))
    lines = [
        f"## {title}",
        "",
        words,
        "",
        f"`{scores.get('command', 'make demo')}`",
        "",
        f"{scores['steps']} steps in {scores['training_seconds']:.0f} s on {scores['machine']}. {scores['n_fake']} "
        f"samples against {scores['n_real']} real images; features: {scores['extractor']}. The floor is what as many "
        "other real images score.",
        "",
        *table(scores),
    ]
    shares = scores.get("class_shares")
    if shares:
        lines += ["| class | " + " | ".join(shares) + " |", "|---|" + "---|" * len(shares)]
        lines += ["| share of the samples, % | " + " | ".join(f"{100 * v:.1f}" for v in shares.values()) + " |", ""]
    lines += [f"![samples](images/{name}_samples.png)", "", f"![loss](images/{name}_training.png)", ""]
    return lines


def main() -> None:
    """Keep what the runs named hold, then write the page from what is kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", type=Path, help="folder of `make demo`")
    parser.add_argument("--fashion", type=Path, help="folder of a Fashion-MNIST run")
    parser.add_argument("--machine", required=True, help="what the runs named ran on, such as '2 CPU cores'")
    options = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    IMAGES.mkdir(parents=True, exist_ok=True)
    machine = {"machine": options.machine}
    if options.digits:
        keep("digits", options.digits, machine)
    if options.fashion:
        keep("fashion_mnist", options.fashion, machine | training_facts(options.fashion))
    lines = ["# Images", "", "Written by `python benchmarks/image_report.py` from `benchmarks/results/*.json`.", ""]
    lines += section(
        "digits",
        "Digits",
        "scikit-learn's 1 797 handwritten digits of 8×8 pixels; a fifth is held out as the test split.",
    )
    lines += section(
        "fashion_mnist",
        "Fashion-MNIST",
        "The 60 000 training images at 28×28; the idx files lie in `--root` (or where Debian's package "
        "`dataset-fashion-mnist` puts them). Scored by `vapo-fast evaluate RUN --out RUN/scores.json`.",
    )
    (ROOT / "docs" / "images.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
