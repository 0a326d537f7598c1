"""``vapo-fast info`` and ``tune``: what this machine has, and the Triton engine's tiles for it."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.markup import escape

from vapo_fast.cli import config
from vapo_fast.cli.arguments import CheckpointPath, DebugFlag, DeviceOption
from vapo_fast.cli.inputs import load_model
from vapo_fast.cli.output import reporting, usage
from vapo_fast.core import extension
from vapo_fast.engines import engines
from vapo_fast.engines.triton import tune as tune_tiles


def info(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False, debug: DebugFlag = False
) -> None:
    """Versions, devices, and which engines can be used here, or why not."""
    with reporting(debug):
        facts = _facts()
        if as_json:
            typer.echo(json.dumps(facts, indent=2))
            return
        console = Console(soft_wrap=True)
        for section, rows in facts.items():
            console.print(f"[bold]{section}[/bold]")
            for name, value in rows.items():
                console.print(f"  {name:<18}{escape(str(value))}", highlight=False)


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
    with reporting(debug):
        with usage():
            where = config.build_device(device)
        potential = load_model(model, where)
        with usage():
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
