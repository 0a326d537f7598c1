"""Convolutional potentials at 28x28: sampling and training steps by explicit passes, against autograd's.

    python -m benchmarks images --root DIR      DIR has Fashion-MNIST's idx files; without them, images are random blobs

Arms of a case start from the same weights, batches and starts, run interleaved, and are held to float64. Ratios are
paired by round. Memory is the most that tensors take at once in a call, counted, without the weights.
"""

from __future__ import annotations

import argparse
import csv
import gc
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor, nn

import vapo_fast as vf
from benchmarks import conformance
from benchmarks.conformance import ROOT, Gate
from benchmarks.measure import Quartiles, default_cache, paired_ratio, rotated
from benchmarks.peak_memory import peak_bytes
from benchmarks.provenance import RESULTS, append, commit
from vapo_fast import noise, ode
from vapo_fast.batches import Batch, as_source, training_batch
from vapo_fast.data import DataNotFoundError
from vapo_fast.engines.base import Job
from vapo_fast.engines.reference import ReferenceEngine
from vapo_fast.ode import SolveOptions
from vapo_fast.passes import explicit_passes
from vapo_fast.potentials.image import ImagePotential

SUMMARY = "image potentials: explicit passes against autograd, time and memory"
CSV = RESULTS / "images.csv"
COLUMNS = (
    "run", "data", "model", "parameters", "job", "batch", "arm", "median_ms", "low_ms", "high_ms", "rounds", "ratio",
    "ratio_low", "ratio_high", "error", "peak_mib", "memory_ratio", "nfe", "warmup_s", "load", "tests",
)  # fmt: skip
EAGER, COMPILED = "eager", "torch.compile(func.grad)"
GATE = Gate("passes", "test_equality or test_contract or test_native_winograd or (test_pointwise and not triton)")
"""The tests that must pass before a speed is printed, of tests/passes."""
SHAPE = (1, 28, 28)
TOLERANCE = 1e-3
# Enough for a field that is not the prior's: its samples are blurred garments.
TRAINING_STEPS = 200
MODELS: dict[str, Callable[[], ImagePotential]] = {
    # That of docs/images.md.
    "unet": lambda: vf.UNetPotential(SHAPE, _path(), 48, (1, 2), 1, patch_size=2, data_scale=0.825),
    "wide_resnet": lambda: vf.WideResNetPotential(SHAPE, _path(), 32, (1, 2, 2), 2, data_scale=0.825),
}


def _path() -> vf.DataHomotopy:
    return vf.DataHomotopy(omega=1.0, sigma=0.02)


@dataclass
class Arm:
    """One way to do a job: what is timed, the relative error of its result, and what else is known of it."""

    call: Callable[[], object]
    error: Callable[[object], float]
    nfe: Callable[[object], float] | None = None
    countable: bool = True


# Data and weights -------------------------------------------------------------------------------------------------


def load_images(root: Path | None) -> tuple[str, Tensor]:
    """Fashion-MNIST's images, or as many smooth random ones; (name, (n, 1, 28, 28))."""
    try:
        data = vf.data.load("fashion-mnist", root=root, n=2048)
        return "fashion-mnist", torch.stack([data[i] for i in range(len(data))])
    except DataNotFoundError:
        drawn = noise.normal(3, range(2048), (1, 7, 7))
        return "blobs", nn.functional.interpolate(drawn, SHAPE[1:], mode="bilinear").tanh()


def potential(name: str, data: Tensor, cache: Path) -> ImagePotential:
    """A briefly trained model; kept in the cache."""
    torch.manual_seed(0)
    model, file = MODELS[name](), cache / f"images-{name}-{TRAINING_STEPS}.pt"
    if file.exists():
        model.load_state_dict(torch.load(file, weights_only=True))
        return model
    passes, source = explicit_passes(model), as_source(data, SHAPE)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.99))
    for step in range(TRAINING_STEPS):
        grads = passes.loss_and_grads(_batch(model, source, step, 64))[1]
        for key, parameter in model.named_parameters():
            parameter.grad = grads[key]
        optimiser.step()
    cache.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), file)
    return model


def _batch(model: ImagePotential, source: object, step: int, size: int) -> Batch:
    return training_batch(
        source,  # type: ignore[arg-type]
        step,
        homotopy=model.homotopy,
        seed=0,
        batch_size=size,
        time_sampling="log_noise",
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


# Jobs -------------------------------------------------------------------------------------------------------------


def training_arms(model: ImagePotential, batch: Batch, compiled: bool) -> dict[str, Arm]:
    """Loss and all gradients of one batch."""
    engine, passes = ReferenceEngine(), explicit_passes(model)
    double = in_float64(model)
    exact = flat(explicit_passes(double).loss_and_grads(Batch(*(part.double() for part in batch)))[1])

    def error(result: object) -> float:
        grads: dict[str, Tensor] = result[1]  # type: ignore[index]
        return float((flat(grads).double() - exact).norm() / exact.norm())

    arms = {
        EAGER: Arm(lambda: engine.loss_and_grads(model, batch, Job("loss_and_grads")), error),
        "passes": Arm(lambda: passes.loss_and_grads(batch), error),
        "passes, recomputing": Arm(lambda: passes.loss_and_grads(batch, recompute=True), error),
        "eager, bf16": Arm(lambda: engine.loss_and_grads(model, batch, Job("loss_and_grads", "bf16")), error),
        "passes, bf16": Arm(lambda: passes.loss_and_grads(batch, precision="bf16"), error),
    }
    if compiled:
        step = _compiled_step(model)
        arms[COMPILED] = Arm(lambda: step(batch), error, countable=False)
    return arms


def _compiled_step(model: ImagePotential) -> Callable[[Batch], tuple[None, dict[str, Tensor]]]:
    """Both derivatives in one function, compiled as a whole: double backward through a compiled module is refused."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())
    path = model.homotopy

    def loss(parameters: Mapping[str, Tensor], x: Tensor, velocity: Tensor, t: Tensor, weight: Tensor) -> Tensor:
        def phi(x: Tensor) -> Tensor:
            return torch.func.functional_call(model, {**parameters, **buffers}, (x, t)).sum()

        gradient = torch.func.grad(phi)(x).flatten(1)
        terms = 0.5 * gradient.square().sum(1) - (gradient * velocity.flatten(1)).sum(1)
        return (weight * terms).mean()

    compiled = torch.compile(torch.func.grad(loss), dynamic=False)

    def step(batch: Batch) -> tuple[None, dict[str, Tensor]]:
        point = path.perturb(*batch)
        weight = path.kernel(batch.t).beta.pow(-2)
        return None, compiled(parameters, point.x, point.velocity, batch.t, weight)

    return step


def sampling_arms(model: ImagePotential, n: int) -> dict[str, Arm]:
    """A whole adaptive solve from the prior to the data."""
    engine, passes, path = ReferenceEngine(), explicit_passes(model), model.homotopy
    start = path.omega * noise.normal(5, range(n), SHAPE)
    options = SolveOptions(rtol=TOLERANCE)
    few = slice(0, min(4, n))
    tight = SolveOptions(rtol=1e-6)
    exact_passes = explicit_passes(in_float64(model))
    exact = ode.integrate(lambda x, t: exact_passes.field(x, t)[1], start[few].double(), path.t0, path.t1, tight).x

    def solve(precision: str) -> object:
        return ode.integrate(lambda x, t: passes.field(x, t, precision)[1], start, path.t0, path.t1, options)

    def error(result: object) -> float:
        difference = result.x[few].double() - exact  # type: ignore[attr-defined]
        return float(difference.square().mean().sqrt())

    def nfe(result: object) -> float:
        return float(result.nfe.double().mean())  # type: ignore[attr-defined]

    return {
        EAGER: Arm(lambda: engine.solve(model, start, path.t0, path.t1, Job("solve", solve=options)), error, nfe),
        "passes": Arm(lambda: solve("auto"), error, nfe),
        "passes, bf16": Arm(lambda: solve("bf16"), error, nfe),
    }


def in_float64(model: ImagePotential) -> ImagePotential:
    double = vf.potentials.potential_from_config(model.config()).double()
    double.load_state_dict(model.state_dict())
    assert isinstance(double, ImagePotential)
    return double


def flat(grads: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([grads[name].flatten() for name in sorted(grads)])


# Measuring --------------------------------------------------------------------------------------------------------


def interleaved(arms: Mapping[str, Arm], rounds: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of every round, one run of each arm a round, and of what came before the first."""
    warmup, seconds = {}, {name: [] for name in arms}
    for name, arm in arms.items():
        begin = time.perf_counter()
        arm.call()
        warmup[name] = time.perf_counter() - begin
    for i in range(rounds):
        for name in rotated(list(arms), i):
            gc.collect()
            begin = time.perf_counter()
            arms[name].call()
            seconds[name].append(time.perf_counter() - begin)
    return seconds, warmup


def rows_of(arms: Mapping[str, Arm], rounds: int) -> list[dict[str, object]]:
    """A row for each arm."""
    seconds, warmup = interleaved(arms, rounds)
    peaks = {name: peak_bytes(arm.call) if arm.countable else None for name, arm in arms.items()}
    rows: list[dict[str, object]] = []
    for name, arm in arms.items():
        result = arm.call()
        spread, ratio = Quartiles.of(seconds[name]), paired_ratio(seconds[EAGER], seconds[name])
        peak, eager = peaks[name], peaks[EAGER]
        rows.append(
            {
                "arm": name,
                **{f"{key}_ms": f"{1e3 * getattr(spread, key):.6g}" for key in ("median", "low", "high")},
                "rounds": rounds,
                **{("ratio" if key == "median" else f"ratio_{key}"): f"{getattr(ratio, key):.4g}"
                   for key in ("median", "low", "high")},
                "error": f"{arm.error(result):.3g}",
                "peak_mib": "" if peak is None else f"{peak / 2**20:.4g}",
                "memory_ratio": "" if peak is None or eager is None else f"{peak / eager:.3g}",
                "nfe": "" if arm.nfe is None else f"{arm.nfe(result):.4g}",
                "warmup_s": f"{warmup[name]:.3g}",
            }
        )  # fmt: skip
    return rows


def run(options: argparse.Namespace) -> int:
    """Measure every case and append it to the results."""
    torch.set_num_threads(options.threads)
    begin = time.perf_counter()
    commit()  # that of the code which is loaded now
    said = conformance.require(options.cache, ROOT / "tests" / "passes", GATE)
    data_name, data = load_images(options.root)
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    for name in options.models:
        model = potential(name, data, options.cache)
        parameters = sum(p.numel() for p in model.parameters())
        batch = _batch(model, as_source(data, SHAPE), TRAINING_STEPS, options.batch)
        jobs: dict[str, Callable[[], dict[str, Arm]]] = {
            "train": lambda model=model, batch=batch: training_arms(model, batch, options.compile),
            "sample": lambda model=model: sampling_arms(model, options.samples),
        }
        for job, make in jobs.items():
            if job not in options.jobs:
                continue
            load = os.getloadavg()[0]
            rows = rows_of(make(), options.rounds)
            size = options.batch if job == "train" else options.samples
            common = {"run": stamp, "data": data_name, "model": name, "parameters": parameters, "job": job}
            append(options.csv, COLUMNS, [
                {**common, "batch": size, **row, "load": f"{load:.2f}", "tests": said} for row in rows
            ])  # fmt: skip
            print(f"\n{name}, {job}, {size} images ({time.perf_counter() - begin:.0f} s)")
            print(table(rows), flush=True)
    return 0


SHOWN = ("arm", "median_ms", "ratio", "ratio_low", "ratio_high", "error", "peak_mib", "memory_ratio", "nfe")


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """As Markdown."""
    lines = ["| " + " | ".join(SHOWN) + " |", "|" + "---|" * len(SHOWN)]
    return "\n".join([*lines, *("| " + " | ".join(str(row[key]) for key in SHOWN) + " |" for row in rows)])


def latest(path: Path = CSV) -> list[dict[str, str]]:
    """Rows of the newest run of each model and job."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    newest = {(row["model"], row["job"]): row["run"] for row in rows}
    return [row for row in rows if newest[row["model"], row["job"]] == row["run"]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the command."""
    parser.add_argument("--root", type=Path, help="folder with Fashion-MNIST's idx files")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--jobs", nargs="+", choices=["train", "sample"], default=["train", "sample"])
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=64, help="images of a training step")
    parser.add_argument("--samples", type=int, default=64, help="images that are sampled")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="without the arm that compiles")
    parser.add_argument("--csv", type=Path, default=CSV)
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.set_defaults(command=run)
