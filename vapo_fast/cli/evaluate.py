"""``vapo-fast evaluate``: scores of samples against real data."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from vapo_fast import data, metrics
from vapo_fast.cli import config
from vapo_fast.cli.arguments import (
    BatchOption,
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
from vapo_fast.cli.inputs import at_most, load_model, read_npy, settings_beside, solve
from vapo_fast.cli.output import (
    at_least,
    check_ending,
    check_writable,
    note,
    reporting,
    shows_progress,
    usage,
    write_text,
)
from vapo_fast.core import processes
from vapo_fast.ode.options import DEFAULT_MAX_STEPS

_CNN = "cnn"
_EVALUATED = 10_000


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
    with reporting(debug), contextlib.ExitStack() as stack:
        with usage():
            where = config.build_device(device)
            stack.enter_context(processes.process_group(where))
            check_ending("--out", out, (".json",))
            at_least(1, n=n)
            known = settings_beside(generated)
            name = data_name or known.get("data")
            if not name:
                raise ConfigError("--data is needed: there is no resolved.yaml beside what is evaluated")
            if data_name in (None, known.get("data")):
                root, image_size = root or known.get("root"), image_size or known.get("image_size")
            real = data.load(name, root=root, image_size=image_size)
            held_out = _test_data(name, test_data, root, image_size)
            if data_name in (None, known.get("data")) and known.get("classes"):
                real, held_out = (data.of_classes(part, known["classes"]) for part in (real, held_out))
            held_out = at_most(held_out, _EVALUATED)
        if len(real.event_shape) == 1:
            # Sets of points are generated, far more of them than the scores need.
            real = at_most(real, _EVALUATED)
        shown = shows_progress(progress)
        if generated.suffix.lower() == ".npy":
            fake = read_npy(generated)
            _check_shape(tuple(fake.shape[1:]), real)
            check_writable("--out", out)
        else:
            potential = load_model(generated, where)
            _check_shape(potential.event_shape, real)
            check_writable("--out", out)
            count = n if n is not None else len(held_out)
            options = {"rtol": rtol, "max_steps": max_steps, "t_end": t_end, "seed": seed, "batch_size": batch_size}
            fake = solve(potential, count, progress=shown, engine=engine, **options).x.float().cpu()
        if not processes.world().is_first:
            # The others have done their share of the samples.
            return
        labelled = len(real.event_shape) == 3 and real.labels is not None and min(real.event_shape[1:]) >= 8
        chosen: Any = extractor or (_CNN if labelled else "pixels")
        if chosen == _CNN:
            note(f"training a small classifier on {name} for its features")
            chosen = metrics.CNNExtractor.train(real)
        report = metrics.evaluate(fake, real, reference_split=held_out, extractor=chosen, seed=seed)
        report = {"data": str(name), "generated": str(generated), **report}
        if real.labels is not None and len(real.event_shape) == 3:
            examples = at_most(real, _EVALUATED)
            shares = metrics.class_shares(fake, examples.tensor(), cast("Tensor", examples.labels))
            report["class_shares"] = {str(k): v for k, v in shares.items()}
        _print_report(report)
        if out is not None:
            write_text(out, json.dumps(report, indent=2) + "\n")
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
        note(f"note: {line}")
