"""The command line: ``vapo-fast train | sample | evaluate | plot | info``, and what a potential gives beyond samples:
``likelihood | ood | interpolate | compose | refine``.

Exit codes: 0 done, 1 failed, 2 wrong usage (flags, configuration, arguments), 130 interrupted by Ctrl-C. Results go to
standard output, everything else (progress, warnings, errors) to standard error.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import os
import platform
import sys
import tempfile
import traceback
import typing
import warnings
from collections.abc import Callable, Iterator
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from vapo_fast import checkpoint, data, distributed, metrics, noise, plots
from vapo_fast.cli import config
from vapo_fast.cli.config import ConfigError, TrainConfig
from vapo_fast.core import extension, processes
from vapo_fast.engines import UnsupportedJobError, engines
from vapo_fast.engines.triton import tune as tune_tiles
from vapo_fast.ode import Solution
from vapo_fast.ode.options import DEFAULT_MAX_STEPS
from vapo_fast.potentials import SumPotential
from vapo_fast.potentials.base import Potential
from vapo_fast.sampling.bits_per_dim import bits_per_dim
from vapo_fast.sampling.density import log_density as read_out
from vapo_fast.sampling.langevin import refine as refine_samples
from vapo_fast.sampling.ood import auroc, ood_scores, time_of_noise, typicality
from vapo_fast.sampling.sample import interpolate as interpolate_samples
from vapo_fast.training import callbacks
from vapo_fast.training.budget import steps_within
from vapo_fast.training.optimizer import NonFiniteLossError
from vapo_fast.training.run import Callback, Metrics, TrainingRun
from vapo_fast.training.trainer import Trainer

FAILED, USAGE, INTERRUPTED = 1, 2, 130
_FIGURES = (".png", ".pdf", ".svg")
_ARRAY_OR_PICTURE = (".npy", ".png")
_RESOLVED = "resolved.yaml"
_LOG = "training.csv"
_CNN = "cnn"
_EVALUATED = 10_000

app = typer.Typer(
    name="vapo-fast",
    help="Potential-flow generative models: train a scalar potential, follow its gradient from noise to data.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. Every command has --help.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
plot_app = typer.Typer(
    help="Draw a training log, or a model on the plane, or an interpolation between images.", no_args_is_help=True
)
app.add_typer(plot_app, name="plot")

ProgressFlag = Annotated[
    bool | None,
    typer.Option("--progress/--no-progress", show_default="on a terminal", help="Show a progress bar."),
]
DebugFlag = Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")]
CheckpointPath = Annotated[
    Path, typer.Argument(help="A .safetensors checkpoint, or the folder of a training run.", show_default=False)
]
RtolOption = Annotated[float, typer.Option(help="Relative tolerance of the solver.")]
MaxStepsOption = Annotated[int, typer.Option(help="Most steps that the solver may try for each sample.")]
SeedOption = Annotated[int, typer.Option(help="Sample i depends on the seed and i only.")]
TEndOption = Annotated[
    float | None, typer.Option(show_default="the path's end", help="Time to integrate to (time-independent models).")
]
DeviceOption = Annotated[str, typer.Option(help="auto (CUDA if there is one), cpu, cuda, cuda:1, ...")]
EngineOption = Annotated[str, typer.Option(help="Engine for the solve, see `vapo-fast info`.")]
BatchOption = Annotated[
    int | None, typer.Option(show_default="as many as fit", help="Samples integrated at a time; does not change them.")
]


class Method(StrEnum):
    """Runge-Kutta methods that choose their own steps."""

    dopri5 = "dopri5"
    tsit5 = "tsit5"
    bosh3 = "bosh3"


def main() -> None:
    """Run the command line and exit with its code."""
    app()


def _with_settings(function: Callable[..., None]) -> Callable[..., None]:
    """Replace a command's ``**settings`` by one flag for each field of `TrainConfig`.

    Flags default to None, which means "not given", so that a configuration file can come between them and the defaults.
    """
    signature = inspect.signature(function, eval_str=True)
    parameters = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    for name, field in config.FIELDS.items():
        kind = config.TYPES[name]
        kind = next((k for k in typing.get_args(kind) if k is not type(None)), kind) if _optional(kind) else kind
        is_list = typing.get_origin(kind) is list
        default = getattr(TrainConfig(), name)
        shown = ",".join(f"{v:g}" for v in default) if is_list and default is not None else default
        option = typer.Option(
            None,
            f"--{name.replace('_', '-')}" + (f"/--no-{name.replace('_', '-')}" if kind is bool else ""),
            help=field.metadata["help"],
            rich_help_panel=field.metadata["panel"],
            show_default=str(shown).lower() if kind is bool else (False if shown in (None, "") else str(shown)),
            metavar="LIST" if is_list else None,
        )
        annotation = (str if is_list else kind) | None
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=annotation)
        )
    function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
    return function


def _optional(kind: Any) -> bool:
    return type(None) in typing.get_args(kind)


@app.command()
@_with_settings
def train(
    *,
    config_file: Annotated[
        Path | None,
        typer.Option("--config", "-c", show_default=False, help="YAML or JSON file of settings; flags override it."),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(show_default=False, help="Continue the run in this folder, with its settings; flags override."),
    ] = None,
    progress: ProgressFlag = None,
    debug: DebugFlag = False,
    **settings: Any,
) -> None:
    """Train a potential on a data set.

    Writes into the run's folder: resolved.yaml (every setting in use; the same file gives the same run again),
    training.csv, training.png, step-*.safetensors to resume from, model.safetensors (the averaged model, for the other
    commands) and pictures of samples. Ctrl-C saves and says how to go on.

    Examples:

      vapo-fast train --data 8gaussians --steps 3000

      vapo-fast train --data fashion-mnist --model unet --channels 32 --minutes 30 --out runs/fashion

      vapo-fast train --resume runs/fashion

      torchrun --nproc-per-node 2 -m vapo_fast train --data fashion-mnist --out runs/fashion
    """
    with _reporting(debug), contextlib.ExitStack() as stack:
        with _usage():
            given = config.check({k: v for k, v in settings.items() if v is not None}, "command line")
            layers = [config.read_file(config_file)] if config_file is not None else []
            if resume is not None:
                layers.insert(0, _settings_of_run(resume))
                given["out"] = str(resume)
            run = config.merge(*layers, given)
            device = config.build_device(run.device)
            stack.enter_context(processes.process_group(device))
            dataset = config.build_data(run)
            model = config.build_model(run, dataset).to(device)
            options = config.trainer_options(run)
            trainer = Trainer(model, **options)
            # The resolved settings name what was left to the model.
            run.lr, run.batch_size = trainer.options.lr, trainer.options.batch_size
            run.weight = str(trainer.options.weight)
            out = Path(str(run.out))
            if resume is None and checkpoint.step_paths(out):
                raise ConfigError(
                    f"{out} holds the checkpoints of a run; continue it with --resume {out}, or choose another --out"
                )
        events = config.training_data(dataset)
        if run.minutes is not None:
            steps = steps_within(60.0 * run.minutes, model, events, **options)
            _tell(f"{run.minutes:g} minutes hold about {steps} steps on this machine now")
            # From here on the run is one of that many steps: a resumed one must follow the same schedule.
            run.steps, run.minutes = steps, None
        steps = int(run.steps or 0)
        here = processes.world()
        if here.is_first:
            _write_text(out / _RESOLVED, config.as_yaml(run))
        parameters = sum(p.numel() for p in model.parameters())
        among = "" if here.size == 1 else f" in {here.size} processes"
        _tell(
            f"{type(model).__name__} with {parameters:,} parameters on {run.data} ({len(dataset)} events of shape "
            f"{tuple(dataset.event_shape)}), {steps} steps of {run.batch_size} on {device}{among}, into {out}"
        )
        try:
            trainer.fit(events, steps, _callbacks(run, out, steps, _shown(progress)), resume=resume)
        except KeyboardInterrupt as error:
            command = "vapo-fast" if here.size == 1 else f"torchrun --nproc-per-node {here.size} -m vapo_fast"
            raise KeyboardInterrupt(f"{error}\nContinue with: {command} train --resume {out}") from None
        if here.is_first:
            with contextlib.suppress(ImportError):
                plots.training_curve(out / _LOG, out / "training.png", title=out.name)
            typer.echo(str(out / "model.safetensors"))


@app.command()
def sample(
    model: CheckpointPath,
    out: Annotated[
        Path, typer.Option("--out", "-o", help=".npy for the numbers, .png for a picture (of images or points).")
    ] = Path("samples.npy"),
    n: Annotated[int, typer.Option("--n", "-n", help="How many samples.")] = 64,
    rtol: RtolOption = 1e-5,
    atol: Annotated[float | None, typer.Option(show_default="rtol", help="Absolute tolerance.")] = None,
    method: Annotated[Method, typer.Option(help="Runge-Kutta method.")] = Method.dopri5,
    max_steps: MaxStepsOption = DEFAULT_MAX_STEPS,
    t_end: TEndOption = None,
    seed: SeedOption = 0,
    batch_size: BatchOption = None,
    columns: Annotated[int | None, typer.Option(show_default="about square", help="Of a picture of images.")] = None,
    engine: EngineOption = "auto",
    precision: Annotated[str, typer.Option(help="auto or the name of a precision of the engine.")] = "auto",
    device: DeviceOption = "auto",
    progress: ProgressFlag = None,
    debug: DebugFlag = False,
) -> None:
    """Draw samples from a trained model into a file.

    Examples:

      vapo-fast sample runs/digits -n 100 -o digits.png

      vapo-fast sample runs/digits/model.safetensors -n 10000 --seed 1 -o digits.npy

      torchrun --nproc-per-node 2 -m vapo_fast sample runs/digits -n 10000 -o digits.npy
    """
    with _reporting(debug), contextlib.ExitStack() as stack:
        with _usage():
            _check_ending("--out", out, _ARRAY_OR_PICTURE)
            where = config.build_device(device)
            stack.enter_context(processes.process_group(where))
        potential = _load_model(model, where)
        _check_writable("--out", out)
        if out.suffix.lower() == ".png" and potential.event_shape == (2,):
            with _usage():
                _refuse_for_points(
                    atol=atol is not None,
                    method=method != Method.dopri5,
                    max_steps=max_steps != DEFAULT_MAX_STEPS,
                    batch_size=batch_size is not None,
                    columns=columns is not None,
                    engine=engine != "auto",
                    precision=precision != "auto",
                )
            if processes.world().is_first:
                plots.samples_2d(potential, out, n=n, t_end=t_end, seed=seed, rtol=rtol)
                typer.echo(str(out))
            return
        solution = _solve(
            potential,
            n,
            rtol=rtol,
            atol=atol,
            method=method.value,
            max_steps=max_steps,
            t_end=t_end,
            seed=seed,
            batch_size=batch_size,
            engine=engine,
            precision=precision,
            progress=_shown(progress),
        )
        if not processes.world().is_first:
            return
        nfe = solution.nfe
        _note(
            f"{n} samples by engine {solution.engine} in {solution.precision}, "
            f"{nfe.double().mean():.1f} evaluations of the field each (most: {int(nfe.max())})"
        )
        if out.suffix.lower() == ".npy":
            _write_npy(out, solution.x)
        else:
            plots.sample_grid(solution.x, out, columns=columns)
        typer.echo(str(out))


def _refuse_for_points(**given: bool) -> None:
    names = [f"--{name.replace('_', '-')}" for name, is_given in given.items() if is_given]
    if names:
        raise ConfigError(
            f"{', '.join(names)} cannot be used for a picture of points, whose paths are drawn by the default "
            "solver; write the samples to a .npy file instead"
        )


@app.command()
def evaluate(
    generated: Annotated[
        Path,
        typer.Argument(show_default=False, help="A checkpoint, a run's folder, or samples as .npy (n, *event)."),
    ],
    data_name: Annotated[
        str | None,
        typer.Option("--data", show_default="that of the run", help="Data set to compare with, as for train."),
    ] = None,
    root: Annotated[
        str | None, typer.Option(show_default=False, help="Folder with the files of a named image set.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(show_default=False, help="Resize images to this side.")] = None,
    test_data: Annotated[
        str | None,
        typer.Option(
            show_default="the data's test split",
            help="Real data that plays the perfect model, for data without a test split.",
        ),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option("--n", "-n", show_default=f"as the test split, at most {_EVALUATED}", help="Samples to draw."),
    ] = None,
    extractor: Annotated[
        str | None,
        typer.Option(
            show_default="cnn for labelled images, else pixels",
            help="Features of the Frechet distance: pixels, cnn (a small classifier trained on the data now), "
            "efficientnet-lite0, inception:WEIGHTS_FILE, or the .safetensors file of a saved CNN.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", show_default=False, help="Also write a .json file.")
    ] = None,
    rtol: RtolOption = 1e-5,
    max_steps: MaxStepsOption = DEFAULT_MAX_STEPS,
    t_end: TEndOption = None,
    seed: SeedOption = 0,
    batch_size: BatchOption = None,
    engine: EngineOption = "auto",
    device: DeviceOption = "auto",
    progress: ProgressFlag = None,
    debug: DebugFlag = False,
) -> None:
    """Compare a model's samples, or any samples, with real data.

    Beside each number stands its floor: what the data's test split, playing a perfect model, scores against its
    training split.

    Examples:

      vapo-fast evaluate runs/fashion -o scores.json

      vapo-fast evaluate samples.npy --data digits
    """
    with _reporting(debug), contextlib.ExitStack() as stack:
        with _usage():
            where = config.build_device(device)
            stack.enter_context(processes.process_group(where))
            _check_ending("--out", out, (".json",))
            _at_least(1, n=n)
            known = _settings_beside(generated)
            name = data_name or known.get("data")
            if not name:
                raise ConfigError("--data is needed: there is no resolved.yaml beside what is evaluated")
            if data_name in (None, known.get("data")):
                root, image_size = root or known.get("root"), image_size or known.get("image_size")
            real = data.load(name, root=root, image_size=image_size)
            held_out = _test_data(name, test_data, root, image_size)
            if data_name in (None, known.get("data")) and known.get("classes"):
                real, held_out = (data.of_classes(part, known["classes"]) for part in (real, held_out))
            held_out = _at_most(held_out, _EVALUATED)
        if len(real.event_shape) == 1:
            # Sets of points are generated, far more of them than the scores need.
            real = _at_most(real, _EVALUATED)
        shown = _shown(progress)
        if generated.suffix.lower() == ".npy":
            fake = _read_npy(generated)
            _check_shape(tuple(fake.shape[1:]), real)
            _check_writable("--out", out)
        else:
            potential = _load_model(generated, where)
            _check_shape(potential.event_shape, real)
            _check_writable("--out", out)
            count = n if n is not None else len(held_out)
            options = {"rtol": rtol, "max_steps": max_steps, "t_end": t_end, "seed": seed, "batch_size": batch_size}
            fake = _solve(potential, count, progress=shown, engine=engine, **options).x.float().cpu()
        if not processes.world().is_first:
            # The others have done their share of the samples.
            return
        labelled = len(real.event_shape) == 3 and real.labels is not None and min(real.event_shape[1:]) >= 8
        chosen: Any = extractor or (_CNN if labelled else "pixels")
        if chosen == _CNN:
            _note(f"training a small classifier on {name} for its features")
            chosen = metrics.CNNExtractor.train(real)
        report = metrics.evaluate(fake, real, reference_split=held_out, extractor=chosen, seed=seed)
        report = {"data": str(name), "generated": str(generated), **report}
        if real.labels is not None and len(real.event_shape) == 3:
            examples = _at_most(real, _EVALUATED)
            shares = metrics.class_shares(fake, examples.tensor(), cast("Tensor", examples.labels))
            report["class_shares"] = {str(k): v for k, v in shares.items()}
        _print_report(report)
        if out is not None:
            _write_text(out, json.dumps(report, indent=2) + "\n")
            typer.echo(str(out))


def _check_shape(shape: tuple[int, ...], real: data.Dataset) -> None:
    """Before features are learnt and samples drawn, not after it."""
    if shape != real.event_shape:
        raise ConfigError(f"fake and real must hold events of one shape, got {shape} and {real.event_shape}")


def _test_data(name: str, test_data: str | None, root: str | None, image_size: int | None) -> data.Dataset:
    """The events that play a perfect model: of ``test_data`` if given, else the test split of ``name``."""
    if test_data is not None:
        has_test_split = test_data in data.names() or (Path(test_data) / "test").is_dir()
        return data.load(test_data, root=root, split="test" if has_test_split else "train", image_size=image_size)
    place = Path(name)
    if (place.is_file() and place.suffix != ".npz") or (place.is_dir() and not (place / "test").is_dir()):
        raise ConfigError(
            f"--test-data is needed: {name} has no test split, and the floor of each score is what other real events, "
            "which are not in it, score against it"
        )
    return data.load(name, root=root, split="test", image_size=image_size)


def _at_most(events: data.Dataset, n: int) -> data.Dataset:
    """The first ``n`` of a shuffle: files are often in the order of their classes."""
    return events if len(events) <= n else data.Subset(events, noise.permutation(0, len(events), 0)[:n])


@plot_app.command("curve")
def plot_curve(
    log: Annotated[Path, typer.Argument(show_default=False, help="A training.csv, or the folder of a run.")],
    out: Annotated[Path, typer.Option("--out", "-o", help=".png, .pdf or .svg.")] = Path("training.png"),
    debug: DebugFlag = False,
) -> None:
    """Loss, its two terms and the gradient norm of a training run."""
    with _reporting(debug):
        typer.echo(str(plots.training_curve(log / _LOG if log.is_dir() else log, out)))


@plot_app.command("landscape")
def plot_landscape(
    model: CheckpointPath,
    out: Annotated[Path, typer.Option("--out", "-o", help=".png, .pdf or .svg.")] = Path("landscape.png"),
    n: Annotated[int, typer.Option("--n", "-n", help="Number of samples.")] = 4096,
    trajectories: Annotated[int, typer.Option(help="How many of them to show with their paths.")] = 48,
    data_name: Annotated[
        str | None, typer.Option("--data", show_default="that of the run", help="Data to show beside the samples.")
    ] = None,
    rtol: RtolOption = 1e-5,
    t_end: TEndOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    debug: DebugFlag = False,
) -> None:
    """Samples, energy landscape and trajectories of a model of points in the plane."""
    with _reporting(debug):
        with _usage():
            where = config.build_device(device)
            _check_ending("--out", out, _FIGURES)
            _at_least(1, n=n)
            _at_least(0, trajectories=trajectories)
            name = data_name or _settings_beside(model).get("data")
            points = None
            if name is not None:
                points = _at_most(data.load(name), n).tensor()
        potential = _load_model(model, where)
        _check_writable("--out", out)
        plots.samples_2d(potential, out, data=points, n=n, trajectories=trajectories, t_end=t_end, seed=seed, rtol=rtol)
        typer.echo(str(out))


@plot_app.command("animation")
def plot_animation(
    model: CheckpointPath,
    out: Annotated[Path, typer.Option("--out", "-o", help="A .gif.")] = Path("flow.gif"),
    n: Annotated[int, typer.Option("--n", "-n", help="Number of samples.")] = 1500,
    frames: Annotated[int, typer.Option(help="Number of pictures.")] = 48,
    rtol: RtolOption = 1e-5,
    t_end: TEndOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    debug: DebugFlag = False,
) -> None:
    """The flow from noise to data of a model of points in the plane, as a GIF."""
    with _reporting(debug):
        with _usage():
            where = config.build_device(device)
        potential = _load_model(model, where)
        _check_writable("--out", out)
        plots.animation_2d(potential, out, n=n, frames=frames, t_end=t_end, seed=seed, rtol=rtol)
        typer.echo(str(out))


@plot_app.command("interpolation")
def plot_interpolation(
    model: CheckpointPath,
    out: Annotated[Path, typer.Option("--out", "-o", help=".png, .pdf or .svg.")] = Path("interpolation.png"),
    n: Annotated[int, typer.Option("--n", "-n", help="Number of images, both ends included.")] = 9,
    first: Annotated[int, typer.Option(help="Number of the first image: a sample, or with --data a data point.")] = 0,
    last: Annotated[int, typer.Option(help="Number of the last image.")] = 1,
    data_name: Annotated[
        str | None, typer.Option("--data", show_default=False, help="Interpolate between this set's test images.")
    ] = None,
    root: Annotated[
        str | None, typer.Option(show_default=False, help="Folder with the files of a named image set.")
    ] = None,
    rtol: RtolOption = 1e-5,
    t_end: TEndOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    debug: DebugFlag = False,
) -> None:
    """An interpolation between two images: back to the noise, around the sphere there, and forward again."""
    with _reporting(debug):
        with _usage():
            where = config.build_device(device)
            _check_ending("--out", out, _FIGURES)
            _at_least(0, first=first, last=last)
            _at_least(2, n=n)
        potential = _load_model(model, where)
        _check_writable("--out", out)
        like = potential.reference_tensor()
        if data_name is None:
            drawn = _solve(potential, max(first, last) + 1, rtol=rtol, t_end=t_end, seed=seed).x
            ends = drawn[[first, last]]
        else:
            with _usage():
                size = potential.event_shape[-1] if data_name not in data.names() else None
                events = data.load(data_name, root=root, split="test", image_size=size)
                shape, own = events.event_shape, potential.event_shape
                if shape != own:
                    raise ConfigError(f"{data_name} has events of shape {shape}, and the model of {own}")
                ends = events.batch([first, last])
        ends = ends if like is None else ends.to(like)
        images = interpolate_samples(potential, ends[0], ends[1], n, rtol=rtol, t_end=t_end)
        typer.echo(str(plots.interpolation_strip(images, out)))


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False, debug: DebugFlag = False
) -> None:
    """Versions, devices, and which engines can be used here, or why not."""
    with _reporting(debug):
        facts = _facts()
        if as_json:
            typer.echo(json.dumps(facts, indent=2))
            return
        console = Console(soft_wrap=True)
        for section, rows in facts.items():
            console.print(f"[bold]{section}[/bold]")
            for name, value in rows.items():
                console.print(f"  {name:<18}{escape(str(value))}", highlight=False)


@app.command()
def tune(
    model: CheckpointPath,
    precision: Annotated[str, typer.Option(help="float32, tf32 or bf16.")] = "float32",
    n: Annotated[int, typer.Option("-n", "--samples", help="Samples of the timed batch.")] = 16_384,
    device: DeviceOption = "auto",
    debug: DebugFlag = False,
) -> None:
    """Time the tiles of the Triton engine's kernels for a model on this GPU, and use the fastest from now on.

    Takes a few minutes, most of it for compiling. The choice is kept in tiles.json under $VAPO_FAST_CACHE
    (~/.cache/vapo_fast).
    """
    with _reporting(debug):
        with _usage():
            where = config.build_device(device)
        potential = _load_model(model, where)
        with _usage():
            times = tune_tiles(potential, precision, n)
        for tile, milliseconds in times.items():
            typer.echo(f"{milliseconds:9.3f} ms  {tile}")


def _facts() -> dict[str, dict[str, str]]:
    devices = {"cpu": f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors"}
    devices["threads"] = str(torch.get_num_threads())
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        devices[f"cuda:{i}"] = f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB"
    if not torch.cuda.is_available():
        build = "a CPU build" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
        devices["cuda"] = f"none found (this torch is {build})"
    usable = dict(engines())
    reason = extension.unavailable_reason()
    if reason is None:
        build_info = extension.build_info()
        native = {"state": "usable", "compiler": build_info["compiler"]}
        native["kernels"] = f"{_chosen_kernels()} (of {', '.join(extension.instruction_sets())})"
        native["processor"] = ", ".join(build_info["instruction_sets"])
    else:
        native = {"state": f"not usable: {reason.splitlines()[0]}"}
        usable["native"] = "not usable without the native extension"
    packages = ("vapo-fast", "torch", "numpy", "safetensors", "triton", "matplotlib", "scikit-learn")
    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in packages},
        "devices": devices,
        "native extension": native,
        "engines": usable,
    }


def _chosen_kernels() -> str:
    try:
        return extension.chosen_instruction_set()
    except ValueError as error:  # the environment names some that are not here; what runs them will say so too
        return f"none: {error}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _callbacks(run: TrainConfig, out: Path, steps: int, progress: bool) -> list[Callback]:
    # The checkpoint first: what comes after it may fail without losing the step.
    chosen: list[Callback] = [callbacks.Checkpointer(out, every=run.checkpoint_every)]
    chosen.append(callbacks.CSVLogger(out / _LOG))
    chosen.append(callbacks.ProgressBar() if progress else _Lines(steps))
    if run.tensorboard:
        chosen.append(callbacks.TensorBoardLogger(out / "tensorboard"))
    every = max(1, steps // 10) if run.sample_every is None else run.sample_every
    if every:
        chosen.append(callbacks.SampleGrid(out / "samples", every=every))
    return chosen


class _Lines(Callback):
    """About ten lines in all, for terminals that are files."""

    on_every_process = False

    def __init__(self, steps: int) -> None:
        self.every = max(1, steps // 10)

    def on_step_end(self, trainer: TrainingRun, step: int, metrics: Metrics | None) -> None:
        if metrics is not None and (step % self.every == 0 or step == trainer.end_step):
            _note(
                f"step {step}/{trainer.end_step}  loss {metrics.loss:.5g}  {metrics.samples_per_second:,.0f} samples/s"
            )


def _settings_of_run(folder: Path) -> dict[str, Any]:
    if not (folder / _RESOLVED).is_file():
        raise ConfigError(f"there is no run to resume in {folder}: it has no {_RESOLVED}")
    return config.read_file(folder / _RESOLVED)


def _settings_beside(path: Path) -> dict[str, Any]:
    """The settings of the run that ``path`` belongs to, or nothing."""
    folder = path if path.is_dir() else path.parent
    return config.read_file(folder / _RESOLVED) if (folder / _RESOLVED).is_file() else {}


def _load_model(path: Path, device: torch.device) -> Potential:
    if path.is_dir() and (path / "model.safetensors").is_file():
        path = path / "model.safetensors"
    return checkpoint.load(checkpoint.resolve(path), device=device)


def _solve(model: Potential, n: int, **options: Any) -> Solution:
    solution = distributed.sample(model, n, return_solution=True, **options)
    if not isinstance(solution, Solution):
        raise TypeError(f"sample returned {type(solution).__name__} although a Solution was asked for")
    return solution


def _print_report(report: dict[str, Any]) -> None:
    console = Console()
    title = f"{report['generated']} against {report['data']}: {report['n_fake']} samples, {report['n_real']} real"
    table = Table(title=escape(title), title_justify="left")
    for name in ("metric", "value", "floor", "value / floor"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for name, numbers in report["metrics"].items():
        value, floor, spread = numbers["value"], numbers["floor"], numbers["floor_sd"]
        ratio = f"{value / floor:.2f}" if floor > 0 else "-"
        table.add_row(name, f"{value:.4g}", f"{floor:.4g}" + (f" ± {spread:.1g}" if spread is not None else ""), ratio)
    console.print(table)
    if "class_shares" in report:
        shares = "  ".join(f"{label}: {100 * share:.1f} %" for label, share in report["class_shares"].items())
        console.print(f"classes of the samples  {shares}", highlight=False)
    for line in report["warnings"]:
        _note(f"note: {line}")


def _read_npy(path: Path) -> Tensor:
    try:
        with path.open("rb") as file:
            # numpy takes any other file for a pickle, and says how to load it unsafely.
            if file.read(6) != b"\x93NUMPY":
                raise ConfigError(f"{path} cannot be read as .npy: it does not begin as such a file does")
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise ConfigError(f"there are no samples at {path}") from None
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as .npy: {error}") from error
    if array.dtype.kind != "f" or array.ndim < 2:
        raise ConfigError(f"{path} must hold floating-point samples (n, *event), got {array.dtype} {array.shape}")
    return torch.from_numpy(array.astype(np.float32))


def _write_npy(path: Path, x: Tensor) -> None:
    with _replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, x.cpu().numpy(), allow_pickle=False)


def _write_text(path: Path, text: str) -> None:
    with _replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary file that takes the place of ``path`` once it is complete."""
    _make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _make_folder(folder: Path, option: str = "--out") -> None:
    """Make a folder to write to; ConfigError if something else is in the way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"{option}: {folder} cannot be made, a file is in the way; name another") from None


def _check_ending(option: str, path: Path | None, endings: tuple[str, ...]) -> None:
    """ConfigError if a file to write has a name that says nothing that can be written."""
    if path is not None and path.suffix.lower() not in endings:
        raise ConfigError(f"{option} must end in {' or '.join(endings)}, got {str(path)!r}")


def _check_writable(option: str, path: Path | None) -> None:
    """Before the work, not after it: an error if ``path`` cannot be written, or drawn. Makes its folder."""
    if path is None:
        return
    if path.suffix.lower() in (*_FIGURES, ".gif"):
        with _usage():
            plots.require()
    if path.is_dir():
        raise ConfigError(f"{option} must be a file, and {path} is a folder")
    try:
        _make_folder(path.parent, option)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ConfigError(
            f"{option}: nothing can be written to {path.parent} ({error.strerror}); name another"
        ) from None


def _at_least(least: int, **given: int | None) -> None:
    """ConfigError for the first option that was given as a smaller number."""
    for name, value in given.items():
        if value is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')} must be {least} or more, got {value}")


def _numbers(option: str, text: str | None) -> list[float] | None:
    """The numbers of a list such as 0.5,0.5; ConfigError for anything else."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} must be numbers with commas between them, such as 0.5,0.5, got {text!r}") from None


def _shown(progress: bool | None) -> bool:
    return sys.stderr.isatty() if progress is None else progress


def _tell(text: str) -> None:
    """What one of several processes says for all."""
    if processes.process_number() == 0:
        _note(text)


def _note(text: str) -> None:
    number = processes.process_number()
    typer.echo(text if number == 0 else f"process {number}: {text}", err=True)


@contextlib.contextmanager
def _usage() -> Iterator[None]:
    """What is wrong inside is the user's input: errors leave with the code for usage."""
    try:
        yield
    except (ValueError, TypeError, IndexError, FileNotFoundError, ImportError) as error:
        raise _UsageError(str(error)) from error


class _UsageError(Exception):
    pass


# Errors whose message says all that a user needs; others are told with their class.
_EXPECTED = (
    _UsageError,
    ValueError,
    TypeError,
    OSError,
    ImportError,
    RuntimeError,
    MemoryError,
    NonFiniteLossError,
)


def _is_usage(error: Exception) -> bool:
    """Whether the user's input is at fault: the library raises plain ValueError and TypeError for arguments only."""
    return isinstance(error, (_UsageError, ConfigError, UnsupportedJobError)) or type(error) in (ValueError, TypeError)


@contextlib.contextmanager
def _reporting(debug: bool) -> Iterator[None]:
    """Turn errors and warnings into one clear line each, and errors into exit codes."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *arguments, **options: _note(f"warning: {message}")
        try:
            yield
        except KeyboardInterrupt as error:
            _tell(f"interrupted: {error}" if str(error) else "interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if debug:
                traceback.print_exc()
            # A message of several lines (a compiler's, say) is told in one; --debug shows it as it is.
            text = " ".join(str(error).split()) or type(error).__name__
            expected = isinstance(error, _EXPECTED)
            # Of several processes all find the same step not finite.
            say = _tell if isinstance(error, NonFiniteLossError) else _note
            say(f"error: {text}" if expected else f"error: {type(error).__name__}: {text} (--debug shows where)")
            raise typer.Exit(USAGE if _is_usage(error) else FAILED) from None


DataOption = Annotated[
    str | None, typer.Option("--data", show_default="that of the run", help="Data set, as for train; its test split.")
]
RootOption = Annotated[str | None, typer.Option(show_default=False, help="Folder with the files of a named image set.")]
JsonOption = Annotated[Path | None, typer.Option("--json", show_default=False, help="Also write a .json file.")]
ProbesOption = Annotated[
    int | None, typer.Option(show_default="exact trace", help="Hutchinson probes for the Laplacian, for large events.")
]
StepSizeOption = Annotated[
    float | None,
    typer.Option(show_default="1.36 D^(-1/3)", help="Of Langevin steps, in units of the noise variance at that time."),
]


@app.command()
def likelihood(
    model: CheckpointPath,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", show_default=False, help="Picture of the most and the least likely images."),
    ] = None,
    data_name: DataOption = None,
    root: RootOption = None,
    n: Annotated[int, typer.Option("--n", "-n", help="How many events of the test split, at random.")] = 64,
    levels: Annotated[
        int | None, typer.Option(show_default="17 for digits, else 256", help="Grey levels of the data.")
    ] = None,
    probes: ProbesOption = None,
    rtol: RtolOption = 1e-4,
    seed: SeedOption = 0,
    json_file: JsonOption = None,
    device: DeviceOption = "auto",
    engine: EngineOption = "auto",
    debug: DebugFlag = False,
) -> None:
    """Likelihood of held-out quantised data (images) in bits per dimension.

    Data are dequantised by uniform noise of one step's width, so that the number bounds the bits of the quantised data
    from above (in expectation); the model's density is that of its samples, which carry the noise of the path's end.

    Examples:

      vapo-fast likelihood runs/digits --n 100 --out likelihood.png

      vapo-fast likelihood runs/fashion --probes 4 --json likelihood.json
    """
    with _reporting(debug):
        with _usage():
            where = config.build_device(device)
            _check_ending("--out", out, _FIGURES)
            _at_least(1, n=n, probes=probes)
            _at_least(2, levels=levels)
        potential = _load_model(model, where)
        _check_writable("--out", out)
        _check_writable("--json", json_file)
        with _usage():
            if out is not None and len(potential.event_shape) != 3:
                raise ConfigError(
                    f"--out is a picture of images, and the model's events have shape {potential.event_shape}"
                )
            events = _at_most(_known_events(model, potential, data_name, root), n)
            if levels is None:
                levels = 17 if (data_name or _settings_beside(model).get("data")) == "digits" else 256
        x = events.tensor().to(_like(potential))
        trace: dict[str, Any] = {} if probes is None else {"trace": "hutchinson", "probes": probes}
        found = bits_per_dim(potential, x, levels=levels, seed=seed, rtol=rtol, engine=engine, **trace)
        bits = found.values.double()
        error = float(bits.std() / math.sqrt(len(bits))) if len(bits) > 1 else math.nan
        report = {
            "model": str(model),
            "data": events.name,
            "n": len(x),
            "levels": levels,
            "trace": "exact" if probes is None else f"hutchinson, {probes} probes",
            "bits_per_dim": float(bits.mean()),
            "standard_error": None if math.isnan(error) else error,
        }
        spread = "" if math.isnan(error) else f" +- {error:.4f}"
        typer.echo(f"{report['bits_per_dim']:.4f}{spread} bits per dimension ({len(x)} events of {events.name})")
        if json_file is not None:
            _write_text(json_file, json.dumps(report, indent=2) + "\n")
            typer.echo(str(json_file))
        if out is not None:
            order = bits.argsort()
            shown = min(12, len(x) // 2 or 1)
            rows = {
                f"{float(bits[order[0]]):.2f} - {float(bits[order[shown - 1]]):.2f}": x[order[:shown]],
                f"{float(bits[order[-shown]]):.2f} - {float(bits[order[-1]]):.2f}": x[order[-shown:]],
            }
            title = f"most and least likely of {len(x)}, bits/dim"
            typer.echo(str(plots.image_rows(rows, out, title)))


@app.command()
def ood(
    model: CheckpointPath,
    outside: Annotated[
        list[str],
        typer.Option(
            "--outside",
            help="Foreign data, repeatable: a data set (resized to the model's images), noise (uniform), flip (the "
            "inside images upside down), or held-out (classes that the run was not trained on).",
        ),
    ],
    inside: Annotated[
        str | None, typer.Option(show_default="that of the run", help="Data set that the model was trained on.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", show_default=False, help="Picture of the scores' distributions.")
    ] = None,
    root: RootOption = None,
    n: Annotated[int, typer.Option("--n", "-n", help="Events of each set.")] = 1000,
    noise_levels: Annotated[
        str | None,
        typer.Option(
            "--noise-levels",
            show_default="the path's end",
            help="Of the read-outs, such as 0.02,0.1,0.5; one AUROC each.",
        ),
    ] = None,
    draws: Annotated[int, typer.Option(help="Noise draws that a read-out is the mean of.")] = 1,
    n_likelihood: Annotated[
        int, typer.Option(help="Score also the likelihood, an integration, of so many of them; 0 for none.")
    ] = 0,
    probes: ProbesOption = None,
    rtol: RtolOption = 1e-3,
    seed: SeedOption = 0,
    json_file: JsonOption = None,
    device: DeviceOption = "auto",
    debug: DebugFlag = False,
) -> None:
    """How well the model's density tells foreign data from the data it was trained on: AUROC, 0.5 being chance.

    Scores: the log-density read-out at the end of the path or at given noise levels, and the likelihood; each as it is
    (data should be likelier than foreign events) and by its distance to the median of training events (typicality).
    At the path's end the read-out cannot compare separated modes, such as classes: try higher noise levels too.

    Examples:

      vapo-fast ood runs/fashion --outside digits --outside noise --outside flip --noise-levels 0.02,0.1,0.5 -o ood.png

      vapo-fast ood runs/cifar-seven-classes --outside held-out --n 2000
    """
    with _reporting(debug):
        with _usage():
            where = config.build_device(device)
            _check_ending("--out", out, _FIGURES)
            _at_least(1, n=n, draws=draws, probes=probes)
            _at_least(0, n_likelihood=n_likelihood)
            levels = _numbers("--noise-levels", noise_levels)
        potential = _load_model(model, where)
        _check_writable("--out", out)
        _check_writable("--json", json_file)
        with _usage():
            for level in levels or ():
                time_of_noise(potential.homotopy, level, "each of --noise-levels")
            known = _at_most(_known_events(model, potential, inside, root), n)
            calibration = _at_most(_known_events(model, potential, inside, root, "train"), n)
            foreign_sets = {name: _foreign(name, model, potential, inside, root, known, n, seed) for name in outside}

        def score(name: str, x: Tensor) -> dict[str, Tensor]:
            _note(f"scoring {name}: {len(x)} events")
            x = x.to(_like(potential))
            read_outs = ood_scores(potential, x, noise_level=levels, draws=draws, seed=seed)
            columns = [read_outs] if levels is None else list(read_outs.unbind(1))
            names = ["read-out"] if levels is None else [f"read-out at {level:g}" for level in levels]
            found = dict(zip(names, columns, strict=True))
            if n_likelihood:
                trace: dict[str, Any] = {} if probes is None else {"trace": "hutchinson", "probes": probes}
                found["likelihood"] = ood_scores(
                    potential, x[:n_likelihood], "likelihood", rtol=rtol, seed=seed, **trace
                )
            return found

        inside_name = f"{known.name} (inside)"
        own, reference = score(inside_name, known.tensor()), score("training", calibration.tensor())
        scores = {name: score(name, x) for name, x in foreign_sets.items()}
        report: dict[str, Any] = {"model": str(model), "inside": known.name, "n": n, "n_likelihood": n_likelihood}
        report["auroc"] = {
            name: {
                kind + suffix: auroc(*pair)
                for kind, values in foreign.items()
                for suffix, pair in (
                    ("", (own[kind], values)),
                    (
                        ", typicality",
                        [typicality(part, reference[kind]) for part in (own[kind], values)],
                    ),
                )
            }
            for name, foreign in scores.items()
        }
        table = Table(title=f"AUROC, inside {escape(known.name)} ({len(known)} events)", title_justify="left")
        table.add_column("score")
        for name in scores:
            table.add_column(escape(name), justify="right")
        for kind in next(iter(report["auroc"].values())):
            table.add_row(kind, *(f"{report['auroc'][name][kind]:.3f}" for name in scores))
        Console().print(table)
        if json_file is not None:
            _write_text(json_file, json.dumps(report, indent=2) + "\n")
            typer.echo(str(json_file))
        if out is not None:
            kind = next(iter(own))
            drawn = {inside_name: own[kind], **{name: foreign[kind] for name, foreign in scores.items()}}
            typer.echo(str(plots.score_histograms(drawn, out, f"log-density {kind}, nats + constant")))


@app.command()
def interpolate(
    model: CheckpointPath,
    out: Annotated[Path, typer.Option("--out", "-o", help=".png, or .npy (pairs, n, *event).")] = Path(
        "interpolations.png"
    ),
    pairs: Annotated[int, typer.Option(help="How many interpolations, a row each.")] = 4,
    n: Annotated[int, typer.Option("--n", "-n", help="Number of images, both ends included.")] = 9,
    data_name: Annotated[
        str | None,
        typer.Option("--data", show_default=False, help="Between this set's test images; by default between samples."),
    ] = None,
    root: RootOption = None,
    rtol: RtolOption = 1e-4,
    t_end: TEndOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    debug: DebugFlag = False,
) -> None:
    """Interpolate between images: back to the noise, around the sphere there, and forward again.

    Examples:

      vapo-fast interpolate runs/digits --data digits --out interpolations.png
    """
    with _reporting(debug):
        with _usage():
            where = config.build_device(device)
            _check_ending("--out", out, _ARRAY_OR_PICTURE)
            _at_least(1, pairs=pairs)
            _at_least(2, n=n)
        potential = _load_model(model, where)
        _check_writable("--out", out)
        with _usage():
            _check_drawn(out, potential)
        if data_name is None:
            ends = _solve(potential, 2 * pairs, rtol=rtol, t_end=t_end, seed=seed).x
        else:
            with _usage():
                events = _known_events(model, potential, data_name, root)
                if 2 * pairs > len(events):
                    raise ConfigError(
                        f"--pairs must be at most {len(events) // 2}, {events.name} has {len(events)} test events"
                    )
                chosen = noise.permutation(seed, len(events), 0)[: 2 * pairs]
                ends = events.batch(chosen).to(_like(potential))
        frames = interpolate_samples(potential, ends[:pairs], ends[pairs : 2 * pairs], n, rtol=rtol, t_end=t_end)
        if out.suffix.lower() == ".npy":
            _write_npy(out, frames)
        else:
            plots.sample_grid(frames.flatten(0, 1), out, columns=n)
        typer.echo(str(out))


@app.command()
def compose(
    models: Annotated[list[Path], typer.Argument(show_default=False, help="Two or more checkpoints or runs.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help=".png: samples of each model, of their sum, and refined; or .npy, of the last."
        ),
    ] = Path("composed.png"),
    weights: Annotated[
        str | None, typer.Option(show_default="1 each", help="Exponents of the densities, such as 1,1 or 0.5,0.5.")
    ] = None,
    reference_scale: Annotated[
        float | None,
        typer.Option(show_default="the first model's data_scale", help="Of the Gaussian that weights are relative to."),
    ] = None,
    n: Annotated[int, typer.Option("--n", "-n", help="Samples of each.")] = 12,
    refine_steps: Annotated[int, typer.Option("--refine", help="MALA steps on the product's density; 0: none.")] = 0,
    step_size: StepSizeOption = None,
    save: Annotated[
        Path | None, typer.Option("--save", show_default=False, help="Also save the composed potential here.")
    ] = None,
    rtol: RtolOption = 1e-4,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    debug: DebugFlag = False,
) -> None:
    """Compose models of one path and shape: the sum of their potentials, the product of their densities.

    Log-density read-outs add exactly; the sum's flow reaches their product exactly only in special cases, and --refine
    runs MALA, which keeps that product, from there. See `vapo_fast.SumPotential` for what holds and what does not.

    Examples:

      vapo-fast compose runs/threes runs/eights --weights 0.5,0.5 --refine 200 --out both.png --save both.safetensors
    """
    with _reporting(debug):
        with _usage():
            where = config.build_device(device)
            _check_ending("--out", out, _ARRAY_OR_PICTURE)
            if len(models) < 2:
                raise ConfigError(f"two or more models are needed to compose, got {len(models)}")
            _check_ending("--save", save, (".safetensors",))
            _at_least(1, n=n)
            _at_least(0, refine=refine_steps)
            given = _numbers("--weights", weights)
        parts = [_load_model(path, where) for path in models]
        _check_writable("--out", out)
        _check_writable("--save", save)
        with _usage():
            _check_drawn(out, parts[0], points=True)
            scale = reference_scale if reference_scale is not None else float(getattr(parts[0], "data_scale", 1.0))
            both = SumPotential(parts, given, reference_scale=scale)
        names = _names(models, ("composed", "refined"))
        rows = {name: _solve(part, n, rtol=rtol, seed=seed).x for name, part in zip(names, parts, strict=True)}
        rows["composed"] = _solve(both, n, rtol=rtol, seed=seed).x
        if refine_steps:
            refined = refine_samples(both, rows["composed"], refine_steps, step_size=step_size, seed=seed)
            rows["refined"] = refined.x
            _note(f"acceptance {float(refined.acceptance.mean()):.3f} over {refine_steps} steps")
        if save is not None:
            checkpoint.save(both, save, notes={"composed of": [str(path) for path in models]})
            typer.echo(str(save))
        if out.suffix.lower() == ".npy":
            _write_npy(out, list(rows.values())[-1])
        else:
            draw = plots.image_rows if len(both.event_shape) == 3 else plots.point_sets
            draw(rows, out, f"weights {', '.join(f'{w:g}' for w in both.weights)}")
        typer.echo(str(out))


@app.command()
def refine(
    model: CheckpointPath,
    out: Annotated[Path, typer.Option("--out", "-o", help=".png: before and after; or .npy, after.")] = Path(
        "refined.png"
    ),
    n: Annotated[int, typer.Option("--n", "-n", help="How many samples.")] = 16,
    start: Annotated[
        Path | None, typer.Option("--from", show_default="the model's samples", help="Start from these samples, .npy.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Langevin steps.")] = 50,
    step_size: StepSizeOption = None,
    noise_level: Annotated[
        float | None,
        typer.Option(show_default="the path's end", help="Follow the density at this noise level of the path."),
    ] = None,
    unadjusted: Annotated[bool, typer.Option("--unadjusted", help="ULA: take every proposal.")] = False,
    adapt: Annotated[int, typer.Option(help="MALA steps before, in which step sizes are tuned.")] = 0,
    rtol: RtolOption = 1e-4,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    engine: EngineOption = "auto",
    debug: DebugFlag = False,
) -> None:
    """Refine samples by (Metropolis-adjusted) Langevin dynamics on the density that the potential reads out.

    Examples:

      vapo-fast refine runs/digits --steps 200 --out refined.png
    """
    with _reporting(debug):
        with _usage():
            where = config.build_device(device)
            _check_ending("--out", out, _ARRAY_OR_PICTURE)
            _at_least(1, n=n, steps=steps)
            _at_least(0, adapt=adapt)
        potential = _load_model(model, where)
        _check_writable("--out", out)
        with _usage():
            _check_drawn(out, potential, points=True)
            before = None if start is None else _read_npy(start)[:n].to(_like(potential))
            t = None if noise_level is None else time_of_noise(potential.homotopy, noise_level, "--noise-level")
        if before is None:
            before = _solve(potential, n, rtol=rtol, seed=seed, engine=engine).x
        result = refine_samples(
            potential,
            before,
            steps,
            t=t,
            step_size=step_size,
            adjusted=not unadjusted,
            adapt_steps=adapt,
            seed=seed,
            engine=engine,
        )
        was = read_out(potential, before, potential.homotopy.t1 if t is None else t).detach().double()
        gain, moved = result.log_density - was, (result.x - before).flatten(1).square().mean(1).sqrt()
        _note(
            f"acceptance {float(result.acceptance.mean()):.3f} over {steps} steps of size "
            f"{float(result.step_size.mean()):.3g}; log-density read-out {float(gain.mean()):+.3f} nats, moved by "
            f"{float(moved.mean()):.3g} a coordinate"
        )
        if out.suffix.lower() == ".npy":
            _write_npy(out, result.x)
        else:
            draw = plots.image_rows if len(potential.event_shape) == 3 else plots.point_sets
            draw({"before": before, "after": result.x}, out, f"{steps} Langevin steps")
        typer.echo(str(out))


def _check_drawn(out: Path, model: Potential, points: bool = False) -> None:
    """ConfigError if events of the model's shape cannot be drawn, and ``out`` is a picture."""
    shape = model.event_shape
    drawn = (len(shape) == 3 and shape[0] in (1, 3)) or (points and shape == (2,))
    if out.suffix.lower() != ".npy" and not drawn:
        raise ConfigError(f"--out must be a .npy for events of shape {shape}, got {str(out)!r}")


def _like(model: Potential) -> Tensor:
    """A tensor of the dtype and on the device that the model computes with."""
    reference = model.reference_tensor()
    return torch.zeros(()) if reference is None else reference


def _names(paths: list[Path], taken: tuple[str, ...]) -> list[str]:
    """A name for each model: its run's folder, or its file's; numbered if they are not all unlike."""
    full = [path.resolve() for path in paths]
    files = [path.is_file() for path in full]
    names = [
        path.parent.name if is_file and path.name == "model.safetensors" else path.stem if is_file else path.name
        for path, is_file in zip(full, files, strict=True)
    ]
    unlike = len({*names, *taken}) == len(names) + len(taken)
    return names if unlike else [f"{i + 1}: {name}" for i, name in enumerate(names)]


def _known_events(
    model_path: Path, model: Potential, name: str | None, root: str | None, split: str = "test"
) -> data.Dataset:
    """A split of the data that a run was trained on, of its classes only, or of the data set called ``name``."""
    known = _settings_beside(model_path)
    of_run = name in (None, known.get("data"))
    name = name or known.get("data")
    if not name:
        raise ConfigError("the data's name is needed: there is no resolved.yaml beside the model")
    size = known.get("image_size") if of_run else None
    events = data.load(name, root=root or (known.get("root") if of_run else None), split=split, image_size=size)
    if of_run and known.get("classes"):
        events = data.of_classes(events, known["classes"])
    if events.event_shape != model.event_shape:
        raise ConfigError(f"{name} has events of shape {events.event_shape}, and the model of {model.event_shape}")
    return events


def _foreign(
    name: str,
    model_path: Path,
    model: Potential,
    inside: str | None,
    root: str | None,
    known: data.Dataset,
    n: int,
    seed: int,
) -> Tensor:
    """n events that the model was not trained on, in its shape."""
    shape = model.event_shape
    if name == "noise":
        draws = noise.uniform(seed, range(n), shape, stream=noise.Stream.AUGMENT)
        return 2.0 * draws - 1.0
    if name == "flip":
        if len(shape) != 3:
            raise ConfigError(f"--outside flip is for images, and the model's events have shape {shape}")
        return known.tensor().flip(-2)
    if name == "held-out":
        settings = _settings_beside(model_path)
        trained = settings.get("classes")
        if not trained or inside not in (None, settings.get("data")):
            raise ConfigError(
                "--outside held-out is for a run that was trained with --classes, on the data of that run"
            )
        whole = data.load(
            settings["data"], root=root or settings.get("root"), split="test", image_size=settings.get("image_size")
        )
        labels = cast("Tensor", whole.labels)
        others = sorted(set(labels.tolist()) - set(trained))
        if not others:
            raise ConfigError(f"--outside held-out: the run was trained on every class of {whole.name}")
        return _at_most(data.of_classes(whole, others), n).tensor()
    events = data.load(name, root=root, split="test")
    if len(shape) != 3 or len(events.event_shape) != 3:
        if events.event_shape != shape:
            raise ConfigError(f"--outside {name} has events of shape {events.event_shape}, and the model of {shape}")
        return _at_most(events, n).tensor()
    if events.event_shape[1:] != shape[1:]:
        if shape[1] != shape[2]:
            raise ConfigError(f"--outside {name} cannot be resized to {shape[1]} x {shape[2]}: sides must be equal")
        events = data.load(name, root=root, split="test", image_size=shape[1])
    images = _at_most(events, n).tensor()
    if images.shape[1] == 1 and shape[0] == 3:
        images = images.expand(-1, 3, -1, -1).contiguous()
    if tuple(images.shape[1:]) != shape:
        raise ConfigError(f"--outside {name} has images of shape {tuple(images.shape[1:])}, and the model of {shape}")
    return images
