"""``vapo-fast sample``: samples of a trained model into a file."""

from __future__ import annotations

import contextlib
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vapo_fast import plots
from vapo_fast.cli import config
from vapo_fast.cli.arguments import (
    BatchOption,
    CheckpointPath,
    DebugFlag,
    DeviceOption,
    EngineOption,
    MaxStepsOption,
    ProgressFlag,
    RtolOption,
    SeedOption,
    TEndOption,
)
from vapo_fast.cli.config import ConfigError
from vapo_fast.cli.inputs import load_model, solve
from vapo_fast.cli.output import (
    ARRAY_OR_PICTURE,
    check_ending,
    check_writable,
    note,
    reporting,
    shows_progress,
    usage,
    write_npy,
)
from vapo_fast.core import processes
from vapo_fast.ode.options import DEFAULT_MAX_STEPS
from vapo_fast.ode.tableaus import TABLEAUS

Method = StrEnum("Method", {name: name for name, tableau in TABLEAUS.items() if tableau.adaptive})  # type: ignore[misc]
_DEFAULT = Method("dopri5")


def sample(
    model: CheckpointPath,
    out: Annotated[
        Path, typer.Option("--out", "-o", help=".npy for the numbers, .png for a picture (of images or points).")
    ] = Path("samples.npy"),
    n: Annotated[int, typer.Option("--n", "-n", help="How many samples.")] = 64,
    rtol: RtolOption = 1e-5,
    atol: Annotated[float | None, typer.Option(show_default="rtol", help="Absolute tolerance.")] = None,
    method: Annotated[Method, typer.Option(help="Runge-Kutta method.")] = _DEFAULT,
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
    with reporting(debug), contextlib.ExitStack() as stack:
        with usage():
            check_ending("--out", out, ARRAY_OR_PICTURE)
            where = config.build_device(device)
            stack.enter_context(processes.process_group(where))
        potential = load_model(model, where)
        check_writable("--out", out)
        if out.suffix.lower() == ".png" and potential.event_shape == (2,):
            with usage():
                _refuse_for_points(
                    atol=atol is not None,
                    method=method != _DEFAULT,
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
        solution = solve(
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
            progress=shows_progress(progress),
        )
        if not processes.world().is_first:
            return
        nfe = solution.nfe
        note(
            f"{n} samples by engine {solution.engine} in {solution.precision}, "
            f"{nfe.double().mean():.1f} evaluations of the field each (most: {int(nfe.max())})"
        )
        if out.suffix.lower() == ".npy":
            write_npy(out, solution.x)
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
