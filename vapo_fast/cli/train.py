"""``vapo-fast train``: a flag for each setting, and the run that they describe."""

from __future__ import annotations

import contextlib
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from vapo_fast import checkpoint, plots
from vapo_fast.cli import config
from vapo_fast.cli.arguments import DebugFlag, ProgressFlag
from vapo_fast.cli.config import ConfigError, TrainConfig
from vapo_fast.cli.inputs import LOG, RESOLVED, settings_of_run
from vapo_fast.cli.output import make_folder, note, reporting, shows_progress, tell, usage, write_text
from vapo_fast.core import processes
from vapo_fast.training import callbacks
from vapo_fast.training.budget import steps_within
from vapo_fast.training.run import Callback, Metrics, TrainingInterrupted, TrainingRun
from vapo_fast.training.trainer import Trainer


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
    with reporting(debug), contextlib.ExitStack() as stack:
        with usage():
            given = config.check({k: v for k, v in settings.items() if v is not None}, "command line")
            layers = [config.read_file(config_file)] if config_file is not None else []
            if resume is not None:
                layers.insert(0, settings_of_run(resume))
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
            tell(f"{run.minutes:g} minutes hold about {steps} steps on this machine now")
            # From here on the run is one of that many steps: a resumed one must follow the same schedule.
            run.steps, run.minutes = steps, None
        steps = int(run.steps or 0)
        here = processes.world()
        if here.is_first:
            make_folder(out)
        parameters = sum(p.numel() for p in model.parameters())
        among = "" if here.size == 1 else f" in {here.size} processes"
        tell(
            f"{type(model).__name__} with {parameters:,} parameters on {run.data} ({len(dataset)} events of shape "
            f"{tuple(dataset.event_shape)}), {steps} steps of {run.batch_size} on {device}{among}, into {out}"
        )
        try:
            trainer.fit(events, steps, _callbacks(run, out, steps, shows_progress(progress)), resume=resume)
        except TrainingInterrupted as error:
            command = "vapo-fast" if here.size == 1 else f"torchrun --nproc-per-node {here.size} -m vapo_fast"
            message = f"{error.summary}\nContinue with: {command} train --resume {out}"
            raise TrainingInterrupted(message, signal=error.signal) from None
        if here.is_first:
            with contextlib.suppress(ImportError):
                plots.training_curve(out / LOG, out / "training.png", title=out.name)
            typer.echo(str(out / "model.safetensors"))


def _callbacks(run: TrainConfig, out: Path, steps: int, progress: bool) -> list[Callback]:
    # The checkpoint first: what comes after it may fail without losing the step.
    chosen: list[Callback] = [callbacks.Checkpointer(out, every=run.checkpoint_every), _Settings(out, run)]
    chosen.append(callbacks.CSVLogger(out / LOG))
    chosen.append(callbacks.ProgressBar() if progress else _Lines(steps))
    if run.tensorboard:
        chosen.append(callbacks.TensorBoardLogger(out / "tensorboard"))
    every = max(1, steps // 10) if run.sample_every is None else run.sample_every
    if every:
        chosen.append(callbacks.SampleGrid(out / "samples", every=every))
    return chosen


class _Settings(Callback):
    """Writes resolved.yaml once the fit has accepted its settings, so that a refused command changes no run."""

    on_every_process = False

    def __init__(self, out: Path, run: TrainConfig) -> None:
        self._path, self._text = out / RESOLVED, config.as_yaml(run)

    def on_fit_start(self, trainer: TrainingRun) -> None:
        write_text(self._path, self._text)


class _Lines(Callback):
    """About ten lines in all, for terminals that are files."""

    on_every_process = False

    def __init__(self, steps: int) -> None:
        self.every = max(1, steps // 10)

    def on_step_end(self, trainer: TrainingRun, step: int, metrics: Metrics | None) -> None:
        if metrics is not None and (step % self.every == 0 or step == trainer.end_step):
            note(
                f"step {step}/{trainer.end_step}  loss {metrics.loss:.5g}  {metrics.samples_per_second:,.0f} samples/s"
            )
