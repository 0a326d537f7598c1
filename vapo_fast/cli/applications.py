"""``vapo-fast interpolate``, ``compose`` and ``refine``: new samples from trained models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vapo_fast import checkpoint, noise, plots
from vapo_fast.cli import config
from vapo_fast.cli.arguments import (
    CheckpointPath,
    DebugFlag,
    DeviceOption,
    EngineOption,
    RootOption,
    RtolOption,
    SeedOption,
    StepSizeOption,
    TEndOption,
)
from vapo_fast.cli.config import ConfigError
from vapo_fast.cli.inputs import known_events, like_model, load_model, read_npy, solve
from vapo_fast.cli.output import (
    ARRAY_OR_PICTURE,
    at_least,
    check_ending,
    check_writable,
    note,
    numbers,
    reporting,
    usage,
    write_npy,
)
from vapo_fast.potentials import SumPotential
from vapo_fast.potentials.base import Potential
from vapo_fast.sampling.density import log_density as read_out
from vapo_fast.sampling.langevin import refine as refine_samples
from vapo_fast.sampling.ood import time_of_noise
from vapo_fast.sampling.sample import interpolate as interpolate_samples


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
    with reporting(debug):
        with usage():
            where = config.build_device(device)
            check_ending("--out", out, ARRAY_OR_PICTURE)
            at_least(1, pairs=pairs)
            at_least(2, n=n)
        potential = load_model(model, where)
        check_writable("--out", out)
        with usage():
            _check_drawn(out, potential)
        if data_name is None:
            ends = solve(potential, 2 * pairs, rtol=rtol, t_end=t_end, seed=seed).x
        else:
            with usage():
                events = known_events(model, potential, data_name, root)
                if 2 * pairs > len(events):
                    raise ConfigError(
                        f"--pairs must be at most {len(events) // 2}, {events.name} has {len(events)} test events"
                    )
                chosen = noise.permutation(seed, len(events), 0)[: 2 * pairs]
                ends = events.batch(chosen).to(like_model(potential))
        frames = interpolate_samples(potential, ends[:pairs], ends[pairs : 2 * pairs], n, rtol=rtol, t_end=t_end)
        if out.suffix.lower() == ".npy":
            write_npy(out, frames)
        else:
            plots.sample_grid(frames.flatten(0, 1), out, columns=n)
        typer.echo(str(out))


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
    with reporting(debug):
        with usage():
            where = config.build_device(device)
            check_ending("--out", out, ARRAY_OR_PICTURE)
            if len(models) < 2:
                raise ConfigError(f"two or more models are needed to compose, got {len(models)}")
            check_ending("--save", save, (".safetensors",))
            at_least(1, n=n)
            at_least(0, refine=refine_steps)
            given = numbers("--weights", weights)
        parts = [load_model(path, where) for path in models]
        check_writable("--out", out)
        check_writable("--save", save)
        with usage():
            _check_drawn(out, parts[0], points=True)
            scale = reference_scale if reference_scale is not None else float(getattr(parts[0], "data_scale", 1.0))
            both = SumPotential(parts, given, reference_scale=scale)
        names = _names(models, ("composed", "refined"))
        rows = {name: solve(part, n, rtol=rtol, seed=seed).x for name, part in zip(names, parts, strict=True)}
        rows["composed"] = solve(both, n, rtol=rtol, seed=seed).x
        if refine_steps:
            refined = refine_samples(both, rows["composed"], refine_steps, step_size=step_size, seed=seed)
            rows["refined"] = refined.x
            note(f"acceptance {float(refined.acceptance.mean()):.3f} over {refine_steps} steps")
        if save is not None:
            checkpoint.save(both, save, notes={"composed of": [str(path) for path in models]})
            typer.echo(str(save))
        if out.suffix.lower() == ".npy":
            write_npy(out, list(rows.values())[-1])
        else:
            draw = plots.image_rows if len(both.event_shape) == 3 else plots.point_sets
            draw(rows, out, f"weights {', '.join(f'{w:g}' for w in both.weights)}")
        typer.echo(str(out))


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
    with reporting(debug):
        with usage():
            where = config.build_device(device)
            check_ending("--out", out, ARRAY_OR_PICTURE)
            at_least(1, n=n, steps=steps)
            at_least(0, adapt=adapt)
        potential = load_model(model, where)
        check_writable("--out", out)
        with usage():
            _check_drawn(out, potential, points=True)
            before = None if start is None else read_npy(start)[:n].to(like_model(potential))
            t = None if noise_level is None else time_of_noise(potential.homotopy, noise_level, "--noise-level")
        if before is None:
            before = solve(potential, n, rtol=rtol, seed=seed, engine=engine).x
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
        note(
            f"acceptance {float(result.acceptance.mean()):.3f} over {steps} steps of size "
            f"{float(result.step_size.mean()):.3g}; log-density read-out {float(gain.mean()):+.3f} nats, moved by "
            f"{float(moved.mean()):.3g} a coordinate"
        )
        if out.suffix.lower() == ".npy":
            write_npy(out, result.x)
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
