"""What would train a potential better than the settings do: python -m benchmarks.studies.quality.study digits

One change at a time, for the potential and for flow matching alike, at an equal number of images: how much of the noise
each leaves in held-out images, by noise level, and with ``--score`` the Frechet distance of samples. "Noise left" is
``E|x_hat - x_data|^2 / (beta^2 D)`` with the posterior mean x_hat that a field stands for; it has one scale for both
arms and hardly depends on the seed, so that short runs can be told apart. CPU seconds a step say what a change costs.
Runs that the file holds already are not repeated. Writes docs/quality_study.md from benchmarks/results/
quality_study.csv; ``--report`` does only that.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

import vapo_fast as vf
from benchmarks import pages, provenance
from benchmarks.studies.quality import arms
from benchmarks.studies.quality.features import DEFAULT_CACHE, feature_extractor
from benchmarks.studies.quality.heads import HEADS
from benchmarks.studies.quality.settings import ARMS, SETTINGS, Setting, path_of
from vapo_fast import noise
from vapo_fast.homotopy import Homotopy, expand_time
from vapo_fast.loss import loss_weight

RESULTS = provenance.RESULTS / "quality_study.csv"
DOCS = provenance.ROOT / "docs" / "quality_study.md"
STUDIED = ARMS[:2]
START: dict[str, dict[str, Any]] = {
    "digits": {"batch_size": 64, "lr": 2e-3, "linear": False},
    "fashion-mnist": {"batch_size": 64, "lr": 1e-3, "linear": False},
}
"""What changes are made to: the settings before this study, where it has changed them."""
LEVELS = {"noise_left_high": (1.0, 0.3), "noise_left_middle": (0.3, 0.08), "noise_left_low": (0.08, 0.02)}
"""Ranges of beta, in which ln beta is uniform."""
_HELD_OUT = 360

COLUMNS = (
    "set", "arm", "variation", "backbone", "images", "seed", "parameters", "steps", "cpu_seconds_a_step", "engine",
    *LEVELS, "frechet", "frechet_floor", "sliced_wasserstein", "nfe",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Variation:
    """A change of what the arms of a setting are trained with.

    Attributes:
        setting: fields of `Setting` that are replaced; the learning rate and the warm-up are factors instead.
        betas: of Adam.
        weight: the loss weight is multiplied by beta to this power.
        head: of the potential; a variation with another one is not for flow matching.
    """

    setting: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    lr: float = 1.0
    warmup: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    weight: float = 0.0
    head: str = next(iter(HEADS))

    def of(self, setting: Setting) -> Setting:
        """The setting with the change made."""
        changed = {"lr": self.lr * setting.lr, "warmup_steps": round(self.warmup * setting.warmup_steps)}
        changed |= {"potential": HEADS[self.head]}
        setting = dataclasses.replace(setting, **changed | dict(self.setting))
        return dataclasses.replace(setting, weight=self._weight(path_of(ARMS[0], setting)))

    def _weight(self, path: Homotopy) -> Callable[[Tensor], Tensor] | None:
        if not self.weight:
            return None
        return lambda t: loss_weight(path, path.balanced_weight, t) * path.kernel(t).beta.pow(self.weight)


VARIATIONS: dict[str, Variation] = {
    "none": Variation(),
    "lr x 2": Variation(lr=2.0),
    "lr x 4": Variation(lr=4.0),
    "lr / 2": Variation(lr=0.5),
    "warm-up / 4": Variation(warmup=0.25),
    "batch 32": Variation({"batch_size": 32}),
    "batch 16": Variation({"batch_size": 16}),
    "batch 32, lr x 2": Variation({"batch_size": 32}, lr=2.0),
    "batch 32, lr x 4": Variation({"batch_size": 32}, lr=4.0),
    "batch 32, lr x 8": Variation({"batch_size": 32}, lr=8.0),
    "batch 16, lr x 2": Variation({"batch_size": 16}, lr=2.0),
    "batch 32, lr x 2, weight x beta^.5": Variation({"batch_size": 32}, lr=2.0, weight=0.5),
    "batch 32, lr x 2, weight x beta": Variation({"batch_size": 32}, lr=2.0, weight=1.0),
    "batch 32, lr x 2, linear path": Variation({"batch_size": 32, "linear": True}, lr=2.0),
    "batch 32, lr x 2, linear path, betas .9, .99": Variation(
        {"batch_size": 32, "linear": True}, 2.0, 1.0, (0.9, 0.99)
    ),
    "batch 32, lr x 4, linear path": Variation({"batch_size": 32, "linear": True}, lr=4.0),
    "batch 16, lr x 2, linear path": Variation({"batch_size": 16, "linear": True}, lr=2.0),
    "batch 16, lr x 2, linear path, group norm": Variation(
        {"batch_size": 16, "linear": True, "group_norm": True}, lr=2.0
    ),
    "betas .9, .99": Variation(betas=(0.9, 0.99)),
    "weight x beta^.5": Variation(weight=0.5),
    "weight x beta": Variation(weight=1.0),
    **{f"head {head}": Variation(head=head) for head in list(HEADS)[1:]},
}


def run(name: str, setting: Setting, variation: Variation, images: int, seed: int, task: Task) -> dict[str, object]:
    """Train an arm with a variation, and judge it."""
    changed = variation.of(setting)
    arm = arms.make(name, changed, task.event_shape, task.device, seed)
    arm.optimizer.param_groups[0]["betas"] = variation.betas
    steps, began = max(1, images // changed.batch_size), time.process_time()
    arm.fit(task.train, steps)
    row: dict[str, object] = {
        "cpu_seconds_a_step": (time.process_time() - began) / steps,
        "parameters": sum(p.numel() for p in arm.network.parameters()),
        "steps": steps,
        "engine": arm.engine,
    }
    model = arm.averaged()
    field = model if name == ARMS[1] else (lambda x, t: model.field(x, t)[1])
    row |= noise_left(field, path_of(name, changed), task.test[:_HELD_OUT])
    if task.extract is not None:
        solution = arm.sample(model, setting.samples, setting.rtol, seed)
        scores = vf.metrics.evaluate(
            arms.images(solution.x), task.train, reference_split=task.test, extractor=task.extract, seed=seed
        )["metrics"]
        frechet = next(value for key, value in scores.items() if key.startswith("FD-"))
        row |= {"frechet": frechet["value"], "frechet_floor": frechet["floor"]}
        row |= {"sliced_wasserstein": scores["sliced_wasserstein"]["value"]}
        row |= {"nfe": float(solution.nfe.double().mean())}
    return row


@torch.no_grad()
def noise_left(field: Callable[[Tensor, Tensor], Tensor], path: Homotopy, data: Tensor) -> dict[str, float]:
    """``E|x_hat - x_data|^2 / (beta^2 D)`` of a field, for each range of `LEVELS`; always at the same noise."""
    found = {}
    for i, (name, (most, least)) in enumerate(LEVELS.items()):
        draws = noise.normal(i, range(len(data)), tuple(data.shape[1:]))
        u = (torch.arange(len(data)) + 0.5) / len(data)
        beta = most * (least / most) ** u
        # Rows in some order of their own meet all noise levels.
        t = path.time_at_noise_level(beta[noise.permutation(0, len(data), i)]).to(data.dtype)
        point = path.perturb(data, t, draws)
        scale = expand_time(path.gauge(t).scale * path.kernel(t).beta, data)
        error = (field(point.x, t) - point.velocity) / scale
        found[name] = float(error.square().mean())
    return found


@dataclasses.dataclass(frozen=True)
class Task:
    """A data set, ready."""

    train: Tensor
    test: Tensor
    extract: vf.metrics.Extractor | None
    device: torch.device = torch.device("cpu")

    @property
    def event_shape(self) -> tuple[int, ...]:
        return tuple(self.train.shape[1:])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; the exit code."""
    options = _parser().parse_args(arguments)
    if not options.report:
        torch.set_num_threads(options.threads)
        _run(options)
    write(provenance.load(options.csv), options.docs)
    print(f"wrote {options.docs}")
    return 0


def _run(options: argparse.Namespace) -> None:
    setting = dataclasses.replace(SETTINGS[options.setting], **START.get(options.setting, {}))
    given = {name: getattr(options, name) for name in ("channels", "samples") if getattr(options, name) is not None}
    setting = dataclasses.replace(setting, **given)
    train, test = (vf.data.load(setting.data, split=split, root=options.root) for split in ("train", "test"))
    extract = None
    if options.score:
        extract = feature_extractor(setting, train, options.cache, options.setting, torch.device("cpu"))
    task = Task(train.tensor(), test.tensor(), extract)
    for seed in options.seeds:
        for variation in options.only or VARIATIONS:
            for name in options.arms:
                if name != ARMS[0] and VARIATIONS[variation].head != next(iter(HEADS)):
                    continue
                key: dict[str, object] = {"set": options.setting, "arm": name, "variation": variation}
                key |= {"backbone": f"{setting.channels}x{setting.multipliers}x{setting.blocks}"}
                key |= {"images": options.images, "seed": seed}
                if _done(provenance.load(options.csv), key, options.score):
                    continue
                row = key | run(name, setting, VARIATIONS[variation], options.images, seed, task)
                provenance.append(options.csv, COLUMNS, [row])
                print(", ".join(f"{k} {v:.4g}" if isinstance(v, float) else str(v) for k, v in row.items()), flush=True)


def _done(rows: list[dict[str, str]], key: Mapping[str, object], scored: bool) -> bool:
    return any(
        all(row[name] == str(value) for name, value in key.items()) and (row["frechet"] or not scored) for row in rows
    )


def write(rows: list[dict[str, str]], path: Path = DOCS) -> None:
    """The tables of the page, from the file alone."""
    lines = []
    for key in dict.fromkeys((row["set"], row["backbone"], row["images"]) for row in rows):
        own = [row for row in rows if (row["set"], row["backbone"], row["images"]) == key]
        # Of a case that was run again, the last.
        own = list({(row["variation"], row["arm"], row["seed"]): row for row in own}.values())
        first, seeds = own[-1], len({row["seed"] for row in own})
        where = f"{first['machine']}, {first['threads']} thread, torch {first['torch']}, {first['date']}"
        lines += [f"## {key[0]}, U-Net {key[1]}, {int(key[2]):,} images", ""]
        lines += [f"{where}; {seeds} seed{'s' if seeds > 1 else ''} at most.", ""]
        titles = ["change", "arm", "seeds", "steps", "noise left: high", "middle", "low", "FD", "nfe", "CPU ms a step"]
        table = [titles]
        for variation in VARIATIONS:
            for arm in STUDIED:
                these = [row for row in own if row["variation"] == variation and row["arm"] == arm]
                if these:
                    table.append(_line(variation, arm, these))
        lines += [pages.markdown(table), ""]
    pages.write(path, {"study": "\n".join(lines)})


def _line(variation: str, arm: str, rows: list[dict[str, str]]) -> list[str]:
    def mean(name: str, form: str, scale: float = 1.0) -> str:
        known = [float(row[name]) for row in rows if row[name]]
        return format(scale * fmean(known), form) if known else "–"

    cells = [variation.replace("|", "\\|"), arm, str(len({row["seed"] for row in rows})), mean("steps", ".0f")]
    cells += [mean(name, ".4f") for name in LEVELS]
    cells += [mean("frechet", ".1f"), mean("nfe", ".0f"), mean("cpu_seconds_a_step", ".1f", 1e3)]
    return cells


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.studies.quality.study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("setting", choices=list(SETTINGS), nargs="?", default="digits", help="data set and backbone")
    parser.add_argument("--root", help="folder with the files of a named image set")
    parser.add_argument("--images", type=int, default=32_000, help="seen in training (default: %(default)s)")
    parser.add_argument("--arms", nargs="+", choices=STUDIED, default=list(STUDIED))
    parser.add_argument("--only", nargs="+", choices=list(VARIATIONS), help="variations (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--score", action="store_true", help="draw samples, and take their Frechet distance")
    parser.add_argument("--samples", type=int, help="how many are scored")
    parser.add_argument("--channels", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder for the classifiers")
    parser.add_argument("--csv", type=Path, default=RESULTS, help="default: %(default)s")
    parser.add_argument("--docs", type=Path, default=DOCS, help="default: %(default)s")
    parser.add_argument("--report", action="store_true", help="train nothing, only write the page")
    return parser


if __name__ == "__main__":
    sys.exit(main())
