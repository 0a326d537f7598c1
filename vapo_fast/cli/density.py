"""``vapo-fast likelihood`` and ``ood``: what a model's density says of data."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from vapo_fast import data, noise, plots
from vapo_fast.cli import config
from vapo_fast.cli.arguments import (
    CheckpointPath,
    DataOption,
    DebugFlag,
    DeviceOption,
    EngineOption,
    JsonOption,
    ProbesOption,
    RootOption,
    RtolOption,
    SeedOption,
)
from vapo_fast.cli.config import ConfigError
from vapo_fast.cli.inputs import at_most, known_events, like_model, load_model, settings_beside
from vapo_fast.cli.output import (
    FIGURES,
    at_least,
    check_ending,
    check_writable,
    note,
    numbers,
    reporting,
    usage,
    write_text,
)
from vapo_fast.potentials.base import Potential
from vapo_fast.sampling.bits_per_dim import bits_per_dim
from vapo_fast.sampling.ood import auroc, ood_scores, time_of_noise, typicality


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
    with reporting(debug):
        with usage():
            where = config.build_device(device)
            check_ending("--out", out, FIGURES)
            at_least(1, n=n, probes=probes)
            at_least(2, levels=levels)
        potential = load_model(model, where)
        check_writable("--out", out)
        check_writable("--json", json_file)
        with usage():
            if out is not None and len(potential.event_shape) != 3:
                raise ConfigError(
                    f"--out is a picture of images, and the model's events have shape {potential.event_shape}"
                )
            events = at_most(known_events(model, potential, data_name, root), n)
            if levels is None:
                levels = 17 if (data_name or settings_beside(model).get("data")) == "digits" else 256
        x = events.tensor().to(like_model(potential))
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
            write_text(json_file, json.dumps(report, indent=2) + "\n")
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
    with reporting(debug):
        with usage():
            where = config.build_device(device)
            check_ending("--out", out, FIGURES)
            at_least(1, n=n, draws=draws, probes=probes)
            at_least(0, n_likelihood=n_likelihood)
            levels = numbers("--noise-levels", noise_levels)
        potential = load_model(model, where)
        check_writable("--out", out)
        check_writable("--json", json_file)
        with usage():
            for level in levels or ():
                time_of_noise(potential.homotopy, level, "each of --noise-levels")
            known = at_most(known_events(model, potential, inside, root), n)
            calibration = at_most(known_events(model, potential, inside, root, "train"), n)
            foreign_sets = {name: _foreign(name, model, potential, inside, root, known, n, seed) for name in outside}

        def score(name: str, x: Tensor) -> dict[str, Tensor]:
            note(f"scoring {name}: {len(x)} events")
            x = x.to(like_model(potential))
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
            write_text(json_file, json.dumps(report, indent=2) + "\n")
            typer.echo(str(json_file))
        if out is not None:
            kind = next(iter(own))
            drawn = {inside_name: own[kind], **{name: foreign[kind] for name, foreign in scores.items()}}
            typer.echo(str(plots.score_histograms(drawn, out, f"log-density {kind}, nats + constant")))


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
        settings = settings_beside(model_path)
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
        return at_most(data.of_classes(whole, others), n).tensor()
    events = data.load(name, root=root, split="test")
    if len(shape) != 3 or len(events.event_shape) != 3:
        if events.event_shape != shape:
            raise ConfigError(f"--outside {name} has events of shape {events.event_shape}, and the model of {shape}")
        return at_most(events, n).tensor()
    if events.event_shape[1:] != shape[1:]:
        if shape[1] != shape[2]:
            raise ConfigError(f"--outside {name} cannot be resized to {shape[1]} x {shape[2]}: sides must be equal")
        events = data.load(name, root=root, split="test", image_size=shape[1])
    images = at_most(events, n).tensor()
    if images.shape[1] == 1 and shape[0] == 3:
        images = images.expand(-1, 3, -1, -1).contiguous()
    if tuple(images.shape[1:]) != shape:
        raise ConfigError(f"--outside {name} has images of shape {tuple(images.shape[1:])}, and the model of {shape}")
    return images
