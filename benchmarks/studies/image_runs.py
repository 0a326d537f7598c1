"""Write docs/images.md from finished runs: python -m benchmarks.studies.image_runs --digits out --fashion runs/fashion

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

from benchmarks import pages
from benchmarks.provenance import RESULTS, ROOT
from vapo_fast.cli.config import FIELDS, TrainConfig

DOCS, IMAGES = ROOT / "docs" / "images.md", ROOT / "docs" / "images"
RUNS = ("digits", "fashion_mnist")
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


def section(name: str) -> str:
    """One run's part of the page: how it was trained, its scores beside their floors, and its pictures."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return "Not run."
    scores = json.loads(path.read_text(encoding="utf-8"))
    facts = (
        f"{scores['steps']} steps in {scores['training_seconds']:.0f} s on {scores['machine']}. {scores['n_fake']} "
        f"samples against {scores['n_real']} real images; features: {scores['extractor']}. The floor is what as many "
        "other real images score."
    )
    table = [["metric", "samples", "floor"]]
    for metric, numbers in scores["metrics"].items():
        spread = f" ± {numbers['floor_sd']:.2g}" if numbers["floor_sd"] is not None else ""
        table.append([metric, f"{numbers['value']:.4g}", f"{numbers['floor']:.4g}{spread}"])
    command = pages.wrapped(scores.get("command", "make demo"))
    lines = ["```bash", command, "```", "", pages.filled(facts), "", pages.markdown(table), ""]
    shares = scores.get("class_shares")
    if shares:
        percent = ["share of the samples, %", *(f"{100 * value:.1f}" for value in shares.values())]
        lines += [pages.markdown([["class", *shares], percent]), ""]
    return "\n".join([*lines, f"![samples](images/{name}_samples.png)", "", f"![loss](images/{name}_training.png)"])


def write_docs() -> None:
    """The page, from what is kept."""
    pages.write(DOCS, {name: section(name) for name in RUNS})


def main() -> None:
    """Keep what the runs named hold, then write the page from what is kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", type=Path, help="folder of `make demo`")
    parser.add_argument("--fashion", type=Path, help="folder of a Fashion-MNIST run")
    parser.add_argument("--machine", default="", help="what the runs named ran on, such as '2 CPU cores'")
    options = parser.parse_args()
    if (options.digits or options.fashion) and not options.machine:
        parser.error("--machine is needed with --digits and --fashion")
    machine = {"machine": options.machine}
    if options.digits:
        keep("digits", options.digits, machine)
    if options.fashion:
        keep("fashion_mnist", options.fashion, machine | training_facts(options.fashion))
    write_docs()


if __name__ == "__main__":
    main()
