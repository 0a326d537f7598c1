"""What a potential gives beyond samples, one command each: python -m benchmarks.studies.potential_uses --out runs/uses

Trains small potentials on the 8x8 digits (all classes, the threes, the eights, seven classes of ten) with
`vapo-fast train`, then runs `likelihood`, `ood`, `interpolate`, `compose` and `refine` on them. ``--fashion`` names a
potential of Fashion-MNIST (a run's folder, or a checkpoint that the quality study left with its ``--keep``), for the
same on it; ``--cifar`` the images of CIFAR-10, seven classes of which a potential is then trained on, to be asked about
the other three. Every command and what it printed is kept in benchmarks/results/potential_uses.json,
pictures in docs/images/, and docs/potential_uses.md is written from them; ``--report`` does only that. A training that
is there already is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import pages, provenance
from benchmarks.provenance import ROOT

RESULTS = provenance.RESULTS / "potential_uses.json"
DOCS = ROOT / "docs" / "potential_uses.md"
IMAGES = ROOT / "docs" / "images"

_BACKBONE = "--data digits --sigma 0.02 --channels 32 --multipliers 1,2 --blocks 1 --data-scale 0.75 --batch-size 64"
_TRAIN = f"train {_BACKBONE} --lr 0.002 --sample-every 0 --no-progress"
TRAININGS = {
    "digits": f"{_TRAIN} --ema-decay 0.998 --steps 1000",
    "digits-0-6": f"{_TRAIN} --ema-decay 0.998 --steps 1000 --classes 0,1,2,3,4,5,6",
    "threes": f"{_TRAIN} --ema-decay 0.99 --steps 400 --classes 3",
    "eights": f"{_TRAIN} --ema-decay 0.99 --steps 400 --classes 8",
    "cifar7": "train --data {cifar} --classes 0,1,2,3,4,5,6 --augment flip --model unet --homotopy linear --t1 0.98 "
    "--time-sampling uniform --data-scale 0.5 --channels 48 --multipliers 1,2 --blocks 1 --patch-size 2 "
    "--batch-size 16 --lr 0.002 --sample-every 0 --no-progress --steps 4000",
}
"""By the run's name; in the words, ``{cifar}`` is the folder of CIFAR-10's images."""

KINDS = ("likelihood", "ood", "interpolate", "compose", "refine")
"""Of uses; each has its part of the page."""


@dataclass(frozen=True)
class Use:
    """A command to show: the name of its picture, which begins with the kind of use, and its words.

    In the words, ``{name}`` is a run of `TRAININGS`, ``{fashion}`` and ``{root}`` what was given for Fashion-MNIST,
    ``{cifar}`` for CIFAR-10.
    """

    name: str
    words: str


USES = (
    Use("likelihood_digits", "likelihood {digits} -n 100 --probes 8"),
    Use(
        "ood_digits",
        "ood {digits-0-6} --outside held-out --outside noise --outside flip -n 500 --noise-levels 0.02,0.1,0.3 "
        "--n-likelihood 100 --probes 4",
    ),
    Use("interpolate_digits", "interpolate {digits} --data digits --pairs 4"),
    Use("compose_half", "compose {threes} {eights} --weights 0.5,0.5 --refine 200"),
    Use("compose_full", "compose {threes} {eights} --weights 1,1 --refine 200"),
    Use("refine_digits", "refine {digits} --steps 200"),
    Use("likelihood_fashion", "likelihood {fashion} --data fashion-mnist --root {root} -n 32 --probes 1 --rtol 1e-3"),
    Use(
        "ood_fashion",
        "ood {fashion} --inside fashion-mnist --root {root} --outside digits --outside noise --outside flip -n 1000 "
        "--noise-levels 0.02,0.1,0.5 --n-likelihood 16 --probes 1",
    ),
    Use(
        "ood_cifar",
        "ood {cifar7} --inside {cifar} --outside held-out --outside noise --outside flip -n 1000 "
        "--noise-levels 0.02,0.1,0.2,0.5 --n-likelihood 16 --probes 1",
    ),
    Use("interpolate_fashion", "interpolate {fashion} --data fashion-mnist --root {root} --pairs 4 --rtol 1e-3"),
    Use("refine_fashion", "refine {fashion} --steps 50 --rtol 1e-3"),
)


def run(words: list[str], shown: str) -> dict[str, Any]:
    """Run one command of the command line; what it printed, without the names of the files it wrote."""
    began = time.perf_counter()
    environment = os.environ | {"COLUMNS": "110"}
    done = subprocess.run(
        [sys.executable, "-m", "vapo_fast", *words],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=ROOT,
    )
    if done.returncode:
        raise SystemExit(f"{shown} failed with {done.returncode}:\n{done.stderr}")
    lines = [line.rstrip() for line in (done.stdout + done.stderr).splitlines()]
    written = (".png", ".json", ".safetensors")
    kept = [line for line in lines if line and not line.endswith(written) and not line.startswith("scoring ")]
    return {"command": shown, "printed": kept, "seconds": round(time.perf_counter() - began, 1)}


@dataclass(frozen=True)
class Places:
    """Where things are here, and what the page calls them: by the names that commands have in braces."""

    here: dict[str, str]
    shown: dict[str, str]

    @classmethod
    def of(cls, options: argparse.Namespace) -> Places:
        """Of what was given; a name that was not is missing."""
        given = {"fashion": options.fashion, "root": options.root, "cifar": options.cifar}
        called = {"fashion": "FASHION", "root": "FOLDER", "cifar": "CIFAR"}
        here = {name: str(Path(value).resolve()) for name, value in given.items() if value is not None}
        runs = {name: str(options.out.resolve() / name) for name in TRAININGS}
        return cls(here | runs, called | {name: f"runs/{name}" for name in TRAININGS})

    def know(self, words: str) -> bool:
        """Whether all that a command names is there."""
        return not set(re.findall(r"{([\w-]+)}", words)) - set(self.here)


def train(name: str, places: Places) -> dict[str, Any]:
    """A run of `TRAININGS`, unless its folder is there; the command."""
    folder = Path(places.here[name])
    words, shown = (_filled(TRAININGS[name], values) for values in (places.here, places.shown))
    shown = f"vapo-fast {shown} --out runs/{name}"
    if not (folder / "model.safetensors").is_file():
        print(shown, flush=True)
        run([*shlex.split(words), "--out", str(folder)], shown)
    return {"command": shown}


def use(one: Use, places: Places) -> dict[str, Any]:
    """Run a use, keep its picture, and return what is to be shown."""
    picture = IMAGES / f"uses_{one.name}.png"
    words, shown = (_filled(one.words, values) for values in (places.here, places.shown))
    print(f"vapo-fast {shown}", flush=True)
    return run([*shlex.split(words), "--out", str(picture)], f"vapo-fast {shown} --out {one.name}.png")


def _filled(words: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        words = words.replace(f"{{{name}}}", value)
    return words


def write_docs(results: dict[str, Any], path: Path = DOCS) -> None:
    """The page's commands, what they printed and their pictures, from the kept results."""
    facts = results["provenance"]
    commands = [pages.wrapped(entry["command"]) for entry in results["trainings"].values()]
    where = f"{facts['machine']}, torch {facts['torch']}, {facts['date']}, commit {facts['commit']}."
    parts = {"trainings": "\n".join([where, "", "```bash", *commands, "```"])}
    for kind in KINDS:
        lines = []
        for one in USES:
            if not one.name.startswith(kind) or one.name not in results["uses"]:
                continue
            entry = results["uses"][one.name]
            lines += ["```bash", pages.wrapped(entry["command"]), "```", ""]
            if entry["printed"]:
                lines += ["```text", *entry["printed"], "```", ""]
            lines += [f"![{one.name}](images/uses_{one.name}.png)", ""]
        parts[kind] = "\n".join(lines)
    pages.write(path, parts)


def kept() -> dict[str, Any]:
    """What was run so far."""
    if not RESULTS.is_file():
        return {"trainings": {}, "uses": {}}
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return results


def main() -> None:
    """Train what is missing, run the uses, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/uses"), help="folder of the runs (default: %(default)s)")
    parser.add_argument("--fashion", type=Path, help="a potential of Fashion-MNIST: a run's folder or a checkpoint")
    parser.add_argument("--root", help="folder with the files of Fashion-MNIST")
    parser.add_argument("--cifar", type=Path, help="an image folder of CIFAR-10, with train/CLASS/ and test/CLASS/")
    parser.add_argument("--only", nargs="+", choices=[one.name for one in USES], help="run only these uses")
    parser.add_argument("--report", action="store_true", help="run nothing, only write the page")
    options = parser.parse_args()
    results = kept()
    if not options.report:
        places = Places.of(options)
        results["provenance"] = {key: str(value) for key, value in provenance.provenance().items()}
        trainings = [name for name, words in TRAININGS.items() if places.know(words)]
        results["trainings"] |= {name: train(name, places) for name in trainings}
        for one in USES:
            wanted = options.only is None or one.name in options.only
            runs = [name for name in TRAININGS if f"{{{name}}}" in one.words]
            if wanted and places.know(one.words) and set(runs) <= set(trainings):
                results["uses"][one.name] = use(one, places)
                RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    write_docs(results)


if __name__ == "__main__":
    main()
