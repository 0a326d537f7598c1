"""``vapo-fast plot``: a training log, a model on the plane, an interpolation between images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vapo_fast import data, plots
from vapo_fast.cli import config
from vapo_fast.cli.arguments import CheckpointPath, DebugFlag, DeviceOption, RtolOption, SeedOption, TEndOption
from vapo_fast.cli.config import ConfigError
from vapo_fast.cli.inputs import LOG, at_most, load_model, settings_beside, solve
from vapo_fast.cli.output import FIGURES, at_least, check_ending, check_writable, reporting, usage
from vapo_fast.sampling.sample import interpolate as interpolate_samples

plot_app = typer.Typer(
    help="Draw a training log, or a model on the plane, or an interpolation between images.", no_args_is_help=True
)


@plot_app.command("curve")
def plot_curve(
    log: Annotated[Path, typer.Argument(show_default=False, help="A training.csv, or the folder of a run.")],
    out: Annotated[Path, typer.Option("--out", "-o", help=".png, .pdf or .svg.")] = Path("training.png"),
    debug: DebugFlag = False,
) -> None:
    """Loss, its two terms and the gradient norm of a training run."""
    with reporting(debug):
        typer.echo(str(plots.training_curve(log / LOG if log.is_dir() else log, out)))


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
    with reporting(debug):
        with usage():
            where = config.build_device(device)
            check_ending("--out", out, FIGURES)
            at_least(1, n=n)
            at_least(0, trajectories=trajectories)
            name = data_name or settings_beside(model).get("data")
            points = None
            if name is not None:
                points = at_most(data.load(name), n).tensor()
        potential = load_model(model, where)
        check_writable("--out", out)
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
    with reporting(debug):
        with usage():
            where = config.build_device(device)
        potential = load_model(model, where)
        check_writable("--out", out)
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
    with reporting(debug):
        with usage():
            where = config.build_device(device)
            check_ending("--out", out, FIGURES)
            at_least(0, first=first, last=last)
            at_least(2, n=n)
        potential = load_model(model, where)
        check_writable("--out", out)
        like = potential.reference_tensor()
        if data_name is None:
            drawn = solve(potential, max(first, last) + 1, rtol=rtol, t_end=t_end, seed=seed).x
            ends = drawn[[first, last]]
        else:
            with usage():
                size = potential.event_shape[-1] if data_name not in data.names() else None
                events = data.load(data_name, root=root, split="test", image_size=size)
                shape, own = events.event_shape, potential.event_shape
                if shape != own:
                    raise ConfigError(f"{data_name} has events of shape {shape}, and the model of {own}")
                ends = events.batch([first, last])
        ends = ends if like is None else ends.to(like)
        images = interpolate_samples(potential, ends[0], ends[1], n, rtol=rtol, t_end=t_end)
        typer.echo(str(plots.interpolation_strip(images, out)))
