"""What happens beside the arithmetic of training: progress, logs, sample grids, checkpoints.

A callback is any subclass of `Callback`; both trainers take the same ones.
"""

from __future__ import annotations

import csv
import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from torch import Tensor

from vapo_fast import checkpoint
from vapo_fast.core import checks
from vapo_fast.core.folder_lock import FolderLock
from vapo_fast.ode import SolveError
from vapo_fast.potentials.base import end_time
from vapo_fast.training.run import Callback, Metrics

if TYPE_CHECKING:
    from vapo_fast.training.run import TrainingRun

PathLike = str | os.PathLike[str]


class ProgressBar(Callback):
    """A line on the terminal: step, loss and its terms, samples a second, time left.

    Args: console: a ``rich.console.Console``; by default one on standard error.
    """

    on_every_process = False

    def __init__(self, console: Any = None) -> None:
        self._console = console
        self._progress: Any = None
        self._task: Any = None

    def on_fit_start(self, trainer: TrainingRun) -> None:
        try:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        except ImportError as error:
            raise ImportError("ProgressBar needs the package rich: pip install rich") from error
        self._progress = Progress(
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self._console or Console(stderr=True),
        )
        total = trainer.end_step - trainer.start_step
        self._task = self._progress.add_task("", total=total, completed=trainer.step - trainer.start_step, numbers="")
        self._progress.start()

    def on_step_end(self, trainer: TrainingRun, step: int, metrics: Metrics | None) -> None:
        fields = {}
        if metrics is not None:
            fields["numbers"] = (
                f"loss {metrics.loss:.4g} = {metrics.linear:.4g} + {metrics.quadratic:.4g}  "
                f"{metrics.samples_per_second:,.0f} samples/s"
            )
        self._progress.update(self._task, completed=step - trainer.start_step, **fields)

    def on_fit_end(self, trainer: TrainingRun) -> None:
        self._stop()

    def on_exception(self, trainer: TrainingRun, error: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class CSVLogger(Callback):
    """One row of `Metrics` per reading, under a header ``step,loss,...``; each row is flushed.

    When a fit begins, rows of steps that it is about to do again are dropped (a run that was killed has logged beyond
    its last checkpoint), so the file is what an unbroken run would have left; a fit from step 0 starts it afresh.
    ``seconds`` goes on from the last row kept.

    Args:
        path: the file; missing folders are made.
        every: write only steps divisible by this, and the last of the fit.
    Raises: ValueError at the start of a fit if the file exists and is not such a log.
    """

    on_every_process = False

    COLUMNS = ("step", *Metrics._fields)

    def __init__(self, path: PathLike, every: int = 1) -> None:
        self.path = Path(path)
        self.every = checks.positive_int("every", every)
        self._file: TextIO | None = None
        self._seconds = 0.0

    def on_fit_start(self, trainer: TrainingRun) -> None:
        kept = [row for row in self._read() if int(row[0]) <= trainer.step]
        self._seconds = float(kept[-1][-1]) if kept else 0.0
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows([self.COLUMNS, *kept])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="")
        temporary.replace(self.path)
        self._file = self.path.open("a", encoding="utf-8", newline="")

    def on_step_end(self, trainer: TrainingRun, step: int, metrics: Metrics | None) -> None:
        if metrics is None or self._file is None or (step % self.every and step != trainer.end_step):
            return
        values = metrics._replace(seconds=metrics.seconds + self._seconds)
        # repr keeps every digit, so that curves of two runs can be compared exactly.
        self._file.write(",".join([str(step), *map(repr, values)]) + "\n")
        self._file.flush()

    def on_fit_end(self, trainer: TrainingRun) -> None:
        self._close()

    def on_exception(self, trainer: TrainingRun, error: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self) -> list[list[str]]:
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").split("\n")
        header, *rows = (line.split(",") for line in lines)
        if lines == [""]:
            return []
        if tuple(header) != self.COLUMNS:
            raise ValueError(
                f"{self.path} is not a training log with the columns {','.join(self.COLUMNS)}; choose another path"
            )
        # A killed run leaves its last line unfinished: what follows the last line break is not a row.
        return [row for row in rows[:-1] if len(row) == len(self.COLUMNS)]


class TensorBoardLogger(Callback):
    """Each number of `Metrics` as a TensorBoard scalar ``train/NAME``; a resumed run hides later points of the old.

    Args:
        directory: the log directory.
        every: write only steps divisible by this, and the last of the fit.
    Raises: ImportError if the package tensorboard is missing.
    """

    on_every_process = False

    def __init__(self, directory: PathLike, every: int = 1) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("TensorBoardLogger needs the package tensorboard: pip install tensorboard") from error
        self.directory = Path(directory)
        self.every = checks.positive_int("every", every)
        self._make: Callable[..., Any] = SummaryWriter
        self._writer: Any = None

    def on_fit_start(self, trainer: TrainingRun) -> None:
        self._writer = self._make(str(self.directory), purge_step=trainer.step + 1)

    def on_step_end(self, trainer: TrainingRun, step: int, metrics: Metrics | None) -> None:
        if metrics is not None and (step % self.every == 0 or step == trainer.end_step):
            for name, value in metrics._asdict().items():
                self._writer.add_scalar(f"train/{name}", value, step)

    def on_fit_end(self, trainer: TrainingRun) -> None:
        self._close()

    def on_exception(self, trainer: TrainingRun, error: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


# Of the landscapes that are drawn during training, a side: a quarter of the points of a picture of its own.
_CELLS = 48


class SampleGrid(Callback):
    """A picture ``samples-NNNNNNNN.png`` of samples of the averaged model now and then, always of the same prior draws.

    Images (C, H, W) give a grid (`vapo_fast.plots.sample_grid`), points of the plane a scatter with the landscape
    (`vapo_fast.plots.samples_2d`). An image that could not be integrated, early in training, is shown where it stopped;
    a picture that fails altogether is left out with a warning.

    Args:
        directory: made if missing.
        every: steps between two pictures; there is one at the end too.
        n: number of samples.
        seed, rtol, t_end: as for `vapo_fast.sample`.
    Raises: ValueError at the start of a fit for other event shapes or a t_end off the path; ImportError without
        matplotlib.
    """

    on_every_process = False

    def __init__(
        self,
        directory: PathLike,
        every: int = 1000,
        n: int = 64,
        *,
        seed: int = 0,
        rtol: float = 1e-3,
        t_end: float | None = None,
    ) -> None:
        self.directory = Path(directory)
        self.every = checks.positive_int("every", every)
        self.n = checks.positive_int("n", n)
        self.seed = checks.non_negative_int("seed", seed)
        self.rtol = checks.positive_float("rtol", rtol)
        self.t_end = t_end

    def on_fit_start(self, trainer: TrainingRun) -> None:
        shape = trainer.model.event_shape
        if shape != (2,) and not (len(shape) == 3 and shape[0] in (1, 3)):
            raise ValueError(f"SampleGrid draws images (1 or 3, H, W) and points (2,), not events of shape {shape}")
        end_time(trainer.model, self.t_end)
        try:
            import matplotlib  # noqa: F401 (asked for before training rather than after)
        except ImportError as error:
            raise ImportError("SampleGrid needs the package matplotlib: pip install matplotlib") from error

    def on_step_end(self, trainer: TrainingRun, step: int, metrics: Metrics | None) -> None:
        if step % self.every == 0 and step != trainer.end_step:
            self._draw(trainer)

    def on_fit_end(self, trainer: TrainingRun) -> None:
        self._draw(trainer)

    def _draw(self, trainer: TrainingRun) -> None:
        from vapo_fast import plots
        from vapo_fast.sampling.sample import sample

        model, path = trainer.ema_model, self.directory / f"samples-{trainer.step:08d}.png"
        self.directory.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {"t_end": self.t_end, "seed": self.seed, "rtol": self.rtol}
        try:
            if model.event_shape == (2,):
                plots.samples_2d(model, path, n=self.n, cells=_CELLS, **options)
            else:
                images = sample(model, self.n, throw=False, **options)
                plots.sample_grid(cast(Tensor, images), path, title=f"step {trainer.step}")
        except (SolveError, ValueError) as error:
            warnings.warn(f"no picture at step {trainer.step}: {error}", stacklevel=2)


class Checkpointer(Callback):
    """Training files ``step-NNNNNNNN.safetensors`` in a directory; at the end also ``model.safetensors``, the average.

    Saves every ``every`` steps, at the end, and on Ctrl-C; resume with ``fit(..., resume=directory)``. If a periodic
    save fails (disk full), the run goes on with a warning and older files stay; at the end, and on Ctrl-C, the failure
    is reported as `CheckpointError`. After a non-finite loss nothing is written. During a fit the
    directory is this training's alone (where the system has ``flock``); another's is refused with `CheckpointError`.

    Args:
        directory: made if missing.
        every: steps between two saves, >= 1.
        keep: how many training files to keep, >= 1; older ones are removed after a newer one is complete.
    """

    on_every_process = False

    def __init__(self, directory: PathLike, every: int = 1000, keep: int = 2) -> None:
        self.directory = Path(directory)
        self._lock = FolderLock(self.directory)
        self.every = checks.positive_int("every", every)
        self.keep = checks.positive_int("keep", keep)

    @property
    def model_path(self) -> Path:
        """The file of the averaged model."""
        return self.directory / "model.safetensors"

    def on_fit_start(self, trainer: TrainingRun) -> None:
        if self.directory.exists() and not self.directory.is_dir():
            raise checkpoint.CheckpointError(f"{self.directory} is a file; Checkpointer needs a directory")
        self._take_folder()
        later = [
            path
            for path in checkpoint.step_paths(self.directory)
            if path > checkpoint.step_path(self.directory, trainer.step)
        ]
        if later:
            # Mixed with those of this run, they would be what a resume from the directory finds.
            raise checkpoint.CheckpointError(
                f"{self.directory} holds checkpoints of later steps or of another run (up to {later[-1].name}), but "
                f"this fit begins at step {trainer.step}: resume from them, move them away, or choose another directory"
            )

    def on_step_end(self, trainer: TrainingRun, step: int, metrics: Metrics | None) -> None:
        if step % self.every or step == trainer.end_step:
            return
        try:
            self._save(trainer)
        except checkpoint.CheckpointError as error:
            warnings.warn(f"training goes on without this checkpoint: {error}", stacklevel=2)

    def on_fit_end(self, trainer: TrainingRun) -> None:
        self._save(trainer)
        checkpoint.save(trainer.ema_model, self.model_path)
        self._lock.release()

    def on_exception(self, trainer: TrainingRun, error: BaseException) -> None:
        try:
            if isinstance(error, KeyboardInterrupt) and self._lock.held:
                self._save(trainer)
        finally:
            self._lock.release()

    def _take_folder(self) -> None:
        """CheckpointError if another training writes to the directory: their files would mix."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            holder = self._lock.take()
        except OSError as error:
            raise checkpoint.CheckpointError(f"{self.directory} cannot be written to: {error}") from error
        if holder is not None:
            raise checkpoint.CheckpointError(
                f"{self.directory} is in use by another training ({holder}); wait for it, or choose another directory"
            )

    def _save(self, trainer: TrainingRun) -> None:
        path = checkpoint.step_path(self.directory, trainer.step)
        trainer.save_state(path)
        for old in checkpoint.step_paths(self.directory)[: -self.keep]:
            old.unlink(missing_ok=True)
