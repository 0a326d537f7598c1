"""Train a potential and flow matching on the same data for the same time, and score both.

    python -m benchmarks.studies.quality digits --seconds 150 --seeds 0 1 2
    python -m benchmarks.studies.quality fashion-mnist --root FOLDER --seconds 600 --keep runs/quality
    python -m benchmarks.studies.quality fashion-mnist --root FOLDER --arms potential "potential, wide ResNet"

The arms share the data, the linear path with uniform times and weight, the noise, Adam and the averaging, the
per-sample solver that draws their samples, and, but for the last, a U-Net's layers and initial weights:

- ``potential``: f = <z, F(z)> in the denoiser gauge, trained by the energy loss;
- ``flow matching``: the velocity F in the same gauge;
- ``flow matching, plain``: v = F(x), as usually written;
- ``potential, wide ResNet``: a potential of the paper's family, trained as the first.

The budget is either time (``--seconds``, from step times measured with the arms taking turns) or images
(``--images``). ``--clock cpu`` counts the process's own CPU time, which on one thread of a machine that others use too
is what wall-clock would be on an idle one. Scores of the averaged model are taken after each of ``--fractions`` of the
steps, with the real/real floors of `vapo_fast.metrics`, and appended to benchmarks/results/quality.csv; a picture goes
to docs/images/. ``--report`` only writes docs/quality.md from what is there, which has the commands for one GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import vapo_fast as vf
from benchmarks import provenance
from benchmarks.studies.quality import arms, report, results
from benchmarks.studies.quality.arms import Snapshots
from benchmarks.studies.quality.features import DEFAULT_CACHE, feature_extractor
from benchmarks.studies.quality.flow_matching import parameters
from benchmarks.studies.quality.settings import ARMS, SETTINGS, Setting, options_of
from vapo_fast import data, plots
from vapo_fast.cli import config
from vapo_fast.noise import permutation

CLOCKS: dict[str, arms.Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
_ROUNDS = 3
_PICTURED = 16


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; the exit code."""
    options = _parser().parse_args(arguments)
    if not options.report:
        torch.set_num_threads(options.threads)
        _run(options)
    report.write(provenance.load(options.csv), options.docs)
    print(f"wrote {options.docs}")
    return 0


@dataclasses.dataclass(frozen=True)
class _Task:
    """One data set, ready: what is trained on, what is compared with, and with which features."""

    options: argparse.Namespace
    setting: Setting
    event_shape: tuple[int, ...]
    real: dict[str, Tensor]
    events: Tensor
    extract: vf.metrics.Extractor
    device: torch.device

    @classmethod
    def prepare(cls, options: argparse.Namespace) -> _Task:
        names = ("data", "samples", "rtol", "extractor", "batch_size", "channels", "lr")
        given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
        setting = dataclasses.replace(SETTINGS[options.setting], **given)
        if options.lr is not None:
            setting = dataclasses.replace(setting, rates={})
        device = config.build_device(options.device)
        where = {"root": options.root, "image_size": setting.image_size}
        train, test = data.load(setting.data, n=options.n, **where), data.load(setting.data, split="test", **where)
        # Every score compares with all of both splits: files are decoded once.
        real = {"train": train.tensor(), "test": test.tensor()}
        # Where the arms compute: on a GPU the host then moves no rows.
        events = real["train"].to(device)
        extract = feature_extractor(setting, train, options.cache, options.setting, device)
        return cls(options, setting, train.event_shape, real, events, extract, device)

    def arm(self, name: str, seed: int) -> arms.Arm:
        options = self.options
        shape, device = self.event_shape, self.device
        return arms.make(name, self.setting, shape, device, seed, options.precision, options.compile)

    def steps(self, seed: int) -> dict[str, int]:
        """Optimiser steps that the budget buys each arm."""
        if self.options.images is not None:
            return dict.fromkeys(self.options.arms, max(1, self.options.images // self.setting.batch_size))
        makers = {name: functools.partial(self.arm, name, seed) for name in self.options.arms}
        each = arms.step_seconds(makers, self.events, self.device, CLOCKS[self.options.clock], _ROUNDS)
        print("seconds a step: " + ", ".join(f"{name} {value:.4g}" for name, value in each.items()), flush=True)
        return {name: max(1, int(self.options.seconds / value)) for name, value in each.items()}


def _run(options: argparse.Namespace) -> None:
    task = _Task.prepare(options)
    for seed in options.seeds:
        steps = task.steps(seed)
        drawn: dict[str, Tensor] = {}
        for name in options.arms:
            drawn[name] = _train_and_score(task, name, steps[name], seed)
            _draw(drawn, task.real["test"], options)


def _train_and_score(task: _Task, name: str, steps: int, seed: int) -> Tensor:
    """Append a row for each fraction of the training; the last samples."""
    options, setting, arm = task.options, task.setting, task.arm(name, seed)
    marks = {max(1, round(fraction * steps)): fraction for fraction in (*options.fractions, 1.0)}
    print(f"{name}, seed {seed}: {parameters(arm.network):,} parameters, {steps} steps", flush=True)
    snapshots = Snapshots(arm, set(marks), task.device)
    arm.fit(task.events, steps, snapshots)
    samples = torch.empty(0)
    for step, seconds, cpu_seconds, model in snapshots.taken:
        began = time.perf_counter()
        solution = arm.sample(model, setting.samples, setting.rtol, seed)
        drawn = time.perf_counter() - began
        samples = arms.images(solution.x)
        train, test = task.real["train"], task.real["test"]
        scores = vf.metrics.evaluate(samples, train, reference_split=test, extractor=task.extract, seed=seed)
        row = {
            "set": options.setting,
            "arm": name,
            "seed": seed,
            "budget": _budget(options),
            "device": torch.cuda.get_device_name(task.device) if task.device.type == "cuda" else "cpu",
            "arithmetic": options.precision,
            "compiled": options.compile,
            "backbone": f"{setting.channels}x{setting.multipliers}x{setting.blocks}, patch {setting.patch_size}",
            "parameters": parameters(arm.network),
            "batch_size": setting.batch_size,
            "lr": options_of(name, setting, seed).lr,
            "steps": steps,
            "fraction": marks[step],
            "images": step * setting.batch_size,
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "rtol": setting.rtol,
            "nfe": float(solution.nfe.double().mean()),
            "sample_seconds": drawn,
            "engine": arm.engine,
            "warm_up_seconds": snapshots.warm_up,
        }
        results.append(row, scores, options.csv)
        print(results.line(row, scores), flush=True)
        if options.keep is not None and step == steps and isinstance(model, vf.Potential):
            kind = "" if name == ARMS[0] else "-wide-resnet"
            kept = options.keep / f"{options.setting}{kind}-seed{seed}.safetensors"
            vf.save(model, kept, notes={"data": options.setting})
    return samples


def _budget(options: argparse.Namespace) -> str:
    if options.images is not None:
        return f"{options.images} images"
    return f"{options.seconds:g} s" + " of CPU time" * (options.clock == "cpu")


def _draw(rows: dict[str, Tensor], test: Tensor, options: argparse.Namespace) -> None:
    real = test[permutation(0, len(test), 0)[: 2 * _PICTURED]]
    pictures = torch.cat([real, *(samples[: 2 * _PICTURED] for samples in rows.values())])
    names = ", ".join(f"{2 * i + 3}-{2 * i + 4} {name}" for i, name in enumerate(rows))
    path = options.pictures / f"quality_{options.setting}.png"
    plots.sample_grid(pictures, path, columns=_PICTURED, title=f"rows 1-2 test images, {names}")
    print(f"wrote {path}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.studies.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("setting", choices=list(SETTINGS), nargs="?", default="digits", help="data set and backbone")
    parser.add_argument("--data", help="another name or path of the data, as for vapo-fast train")
    parser.add_argument("--root", help="folder with the files of a named image set")
    parser.add_argument("--n", type=int, help="use only this many training images")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--seconds", type=float, default=150.0, help="of training, each arm (default: %(default)s)")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="what --seconds are: see above")
    budget.add_argument("--images", type=int, help="seen in training, each arm, instead of a time")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS[:3]), help="default: the first three")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--fractions", nargs="+", type=float, default=[0.25, 0.5, 1.0], help="when to score")
    parser.add_argument("--samples", type=int, help="how many are scored")
    parser.add_argument("--rtol", type=float, help="tolerance of sampling")
    parser.add_argument("--extractor", help="cnn, efficientnet-lite0, inception:FILE or pixels")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--lr", type=float, help="of every arm")
    parser.add_argument("--channels", type=int)
    parser.add_argument("--precision", choices=("auto", "bf16"), default="auto", help="of training, every arm")
    parser.add_argument("--compile", action="store_true", help="torch.compile the baselines' networks")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder for the trained potentials")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder for the classifiers")
    parser.add_argument("--csv", type=Path, default=results.CSV, help="default: %(default)s")
    parser.add_argument("--docs", type=Path, default=report.DOCS, help="default: %(default)s")
    parser.add_argument("--pictures", type=Path, default=provenance.ROOT / "docs" / "images")
    parser.add_argument("--report", action="store_true", help="train nothing, only write the page")
    return parser


if __name__ == "__main__":
    sys.exit(main())
