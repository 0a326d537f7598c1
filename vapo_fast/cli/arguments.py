"""Arguments and flags that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
