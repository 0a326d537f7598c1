from __future__ import annotations

import builtins
import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from vapo_fast import checkpoint, plots
from vapo_fast.checkpoint import CheckpointError
from vapo_fast.core import tensor_file
from vapo_fast.homotopy import DataHomotopy
from vapo_fast.potentials import MLPPotential
from vapo_fast.training.callbacks import Checkpointer, CSVLogger, ProgressBar, SampleGrid, TensorBoardLogger
from vapo_fast.training.run import Callback, Metrics, TrainingInterrupted
from vapo_fast.training.trainer import Trainer

DATA = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))


def trainer(**options: Any) -> Trainer:
    torch.manual_seed(0)
    model = MLPPotential((2,), DataHomotopy(sigma=0.1), widths=(4,), fourier_features=2)
    return Trainer(model, **{"batch_size": 8, "warmup_steps": 0} | options)


class Recorder(Callback):
    def __init__(self) -> None:
        self.calls: list[object] = []

    def on_fit_start(self, trainer: Any) -> None:
        self.calls.append(("start", trainer.step))

    def on_step_end(self, trainer: Any, step: int, metrics: Metrics | None) -> None:
        assert step == trainer.step
        self.calls.append((step, metrics is not None))

    def on_fit_end(self, trainer: Any) -> None:
        self.calls.append(("end", trainer.step))

    def on_exception(self, trainer: Any, error: BaseException) -> None:
        self.calls.append(("exception", type(error)))


class Stop(Callback):
    """Raises at a step."""

    def __init__(self, at: int, error: BaseException) -> None:
        self.at = at
        self.error = error

    def on_step_end(self, trainer: Any, step: int, metrics: Metrics | None) -> None:
        if step == self.at:
            raise self.error


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_every_hook_is_called_once_a_step() -> None:
    recorder = Recorder()
    trainer(log_every=2).fit(DATA, 3, callbacks=[recorder])
    assert recorder.calls == [("start", 0), (1, False), (2, True), (3, True), ("end", 3)]


def test_an_error_ends_the_fit_with_on_exception_for_all() -> None:
    recorder = Recorder()
    with pytest.raises(OSError, match="gone"):
        trainer().fit(DATA, 5, callbacks=[Stop(2, OSError("gone")), recorder])
    assert recorder.calls == [("start", 0), (1, True), ("exception", OSError)]


def test_an_error_while_handling_an_error_is_noted() -> None:
    class Worse(Callback):
        def on_exception(self, trainer: Any, error: BaseException) -> None:
            raise ValueError("disk on fire")

    with pytest.raises(OSError, match="gone") as caught:
        trainer().fit(DATA, 5, callbacks=[Worse(), Stop(2, OSError("gone"))])
    assert caught.value.__notes__ == ["Worse: disk on fire"]


def test_something_else_than_a_callback_is_refused() -> None:
    with pytest.raises(TypeError, match="callbacks must be vapo_fast callbacks, got function"):
        trainer().fit(DATA, 1, callbacks=[lambda *a: None])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"callbacks must be a sequence, such as \(Callback\(\.\.\.\),\)"):
        trainer().fit(DATA, 1, callbacks=Callback())  # type: ignore[arg-type]


def test_csv_holds_every_reading_in_full(tmp_path: Path) -> None:
    run, path = trainer(), tmp_path / "new" / "log.csv"

    class Last(Callback):
        def on_step_end(self, trainer: Any, step: int, metrics: Metrics | None) -> None:
            self.metrics = metrics

    last = Last()
    run.fit(DATA, 5, callbacks=[CSVLogger(path), last])
    header, *rows = [line.split(",") for line in path.read_text().splitlines()]
    assert header == ["step", *Metrics._fields]
    assert [row[0] for row in rows] == ["1", "2", "3", "4", "5"]
    assert last.metrics is not None
    assert [float(v) for v in rows[-1][1:]] == list(last.metrics)
    loss, linear, quadratic = (float(v) for v in rows[-1][1:4])
    assert loss == pytest.approx(linear + quadratic, abs=1e-6)


def test_csv_can_be_thinned_and_keeps_the_last_row(tmp_path: Path) -> None:
    trainer().fit(DATA, 7, callbacks=[CSVLogger(tmp_path / "log.csv", every=3)])
    assert [line.split(",")[0] for line in (tmp_path / "log.csv").read_text().splitlines()] == ["step", "3", "6", "7"]


def test_csv_of_a_resumed_run_is_that_of_an_unbroken_one(tmp_path: Path) -> None:
    def curve(path: Path) -> list[list[str]]:
        return [line.split(",")[:7] for line in path.read_text().splitlines()]

    trainer().fit(DATA, 10, callbacks=[CSVLogger(tmp_path / "whole.csv")])
    path, keeper = tmp_path / "log.csv", Checkpointer(tmp_path / "c", every=4)
    with pytest.raises(OSError, match="gone"):
        trainer().fit(DATA, 10, callbacks=[CSVLogger(path), keeper, Stop(7, OSError("gone"))])
    with path.open("a") as file:
        file.write("2,-0.1")  # a killed process leaves half a line, of any step that a number cut short may show
    assert len(curve(path)) == 9
    trainer().fit(DATA, 10, callbacks=[CSVLogger(path), keeper], resume=tmp_path / "c")
    assert curve(path) == curve(tmp_path / "whole.csv")
    seconds = [float(line.split(",")[-1]) for line in path.read_text().splitlines()[1:]]
    assert seconds == sorted(seconds)


def test_csv_goes_on_in_a_second_fit_and_starts_afresh_in_a_new_run(tmp_path: Path) -> None:
    run, logger = trainer(), CSVLogger(tmp_path / "log.csv")
    run.fit(DATA, 2, callbacks=[logger])
    run.fit(DATA, 2, callbacks=[logger])
    assert [line.split(",")[0] for line in logger.path.read_text().splitlines()] == ["step", "1", "2", "3", "4"]
    trainer().fit(DATA, 1, callbacks=[logger])
    assert [line.split(",")[0] for line in logger.path.read_text().splitlines()] == ["step", "1"]


def test_csv_does_not_overwrite_another_file(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("name,value\na,1\n")
    with pytest.raises(ValueError, match="is not a training log with the columns step,loss"):
        trainer().fit(DATA, 1, callbacks=[CSVLogger(path)])
    assert path.read_text() == "name,value\na,1\n"


def test_an_empty_file_becomes_a_log(tmp_path: Path) -> None:
    (tmp_path / "log.csv").touch()
    trainer().fit(DATA, 1, callbacks=[CSVLogger(tmp_path / "log.csv")])
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 2


def test_tensorboard_has_the_metrics_and_hides_steps_done_again(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    keeper = Checkpointer(tmp_path / "c", every=2)
    with pytest.raises(OSError, match="gone"):
        trainer().fit(DATA, 6, callbacks=[TensorBoardLogger(tmp_path / "tb"), keeper, Stop(4, OSError("gone"))])
    (tmp_path / "c" / "step-00000004.safetensors").unlink()
    trainer().fit(DATA, 6, callbacks=[TensorBoardLogger(tmp_path / "tb"), keeper], resume=tmp_path / "c")
    events = accumulator.EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {f"train/{name}" for name in Metrics._fields}
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith(("rich", "torch.utils.tensorboard")):
            raise ImportError(f"no module {name}")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="TensorBoardLogger needs the package tensorboard: pip install tensorboard"):
        TensorBoardLogger(tmp_path)
    with pytest.raises(ImportError, match="ProgressBar needs the package rich: pip install rich"):
        trainer().fit(DATA, 1, callbacks=[ProgressBar()])


def test_the_progress_bar_shows_terms_speed_and_steps() -> None:
    console = pytest.importorskip("rich.console")
    text = io.StringIO()
    terminal = console.Console(file=text, force_terminal=True, width=140)
    trainer().fit(DATA, 20, callbacks=[ProgressBar(terminal)])
    shown = text.getvalue()
    for part in ("20/20", "loss ", " = ", "samples/s"):
        assert part in shown


def test_the_progress_bar_is_taken_down_after_an_error() -> None:
    console = pytest.importorskip("rich.console")
    bar = ProgressBar(console.Console(file=io.StringIO(), force_terminal=True))
    for _ in range(2):  # a bar left running would refuse to start a second time
        with pytest.raises(OSError, match="gone"):
            trainer().fit(DATA, 5, callbacks=[bar, Stop(2, OSError("gone"))])


def test_checkpoints_are_kept_and_the_model_is_the_average(tmp_path: Path) -> None:
    run = trainer()
    run.fit(DATA, 10, callbacks=[Checkpointer(tmp_path, every=3, keep=2)])
    assert names(tmp_path) == ["model.safetensors", "step-00000009.safetensors", "step-00000010.safetensors"]
    for a, b in zip(
        checkpoint.load(tmp_path / "model.safetensors").parameters(), run.ema_model.parameters(), strict=True
    ):
        assert torch.equal(a, b)
    assert run.last_checkpoint == tmp_path / "step-00000010.safetensors"


def test_a_full_disk_during_training_warns_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tensor_file.save_file

    def full_at_six(tensors: Any, path: Path, metadata: Any) -> None:
        if "step-00000006" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(tensors, path, metadata)

    monkeypatch.setattr(tensor_file, "save_file", full_at_six)
    with pytest.warns(UserWarning, match="training goes on without this checkpoint: could not write .*No space left"):
        trainer().fit(DATA, 8, callbacks=[Checkpointer(tmp_path, every=3, keep=5)])
    assert names(tmp_path) == ["model.safetensors", "step-00000003.safetensors", "step-00000008.safetensors"]


def test_a_full_disk_at_the_end_is_an_error_and_the_model_stays_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer()
    run.fit(DATA, 2, callbacks=[Checkpointer(tmp_path)])

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tensor_file, "save_file", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        run.fit(DATA, 2, callbacks=[Checkpointer(tmp_path)])
    assert run.step == 4
    assert names(tmp_path) == ["model.safetensors", "step-00000002.safetensors"]


def test_an_interruption_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    run = trainer()
    with pytest.raises(
        TrainingInterrupted, match=r"after step 3 of 9; .*Continue with fit\(data, steps=9, resume="
    ) as caught:
        run.fit(DATA, 9, callbacks=[Checkpointer(tmp_path), Stop(3, KeyboardInterrupt())])
    assert str(tmp_path / "step-00000003.safetensors") in str(caught.value)
    assert names(tmp_path) == ["step-00000003.safetensors"]


def test_an_interruption_that_cannot_be_saved_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tensor_file, "save_file", full)
    message = r"after step 3 of 9 \(Checkpointer: could not write .*No space left.*\); no checkpoint was written"
    with pytest.raises(TrainingInterrupted, match=message):
        trainer().fit(DATA, 9, callbacks=[Checkpointer(tmp_path), Stop(3, KeyboardInterrupt())])


def test_a_new_run_does_not_mix_with_another_runs_checkpoints(tmp_path: Path) -> None:
    trainer().fit(DATA, 4, callbacks=[Checkpointer(tmp_path)])
    before = names(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"holds checkpoints of later steps or of another run \(up to step-00000004"
    ):
        trainer().fit(DATA, 2, callbacks=[Checkpointer(tmp_path)])
    assert names(tmp_path) == before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: Checkpointer(d, every=0), "every must be a positive integer, got 0"),
        (lambda d: Checkpointer(d, keep=0), "keep must be a positive integer, got 0"),
        (lambda d: CSVLogger(d, every=-1), "every must be a positive integer, got -1"),
        (lambda d: TensorBoardLogger(d, every=0), "every must be a positive integer, got 0"),
    ],
)
def test_bad_intervals_are_named(make: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make(tmp_path)


def test_a_file_in_place_of_the_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "c").touch()
    with pytest.raises(CheckpointError, match="is a file; Checkpointer needs a directory"):
        trainer().fit(DATA, 1, callbacks=[Checkpointer(tmp_path / "c")])


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 4, 4), (2,)])
def test_pictures_are_drawn_now_and_then_and_at_the_end(shape: tuple[int, ...], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    model = MLPPotential(shape, DataHomotopy(sigma=0.1), widths=(4,), fourier_features=2)
    Trainer(model, batch_size=8).fit(torch.randn(20, *shape), 5, callbacks=[SampleGrid(tmp_path / "g", every=2, n=9)])
    assert names(tmp_path / "g") == ["samples-00000002.png", "samples-00000004.png", "samples-00000005.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (tmp_path / "g").iterdir())


def test_pictures_do_not_change_the_training(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plain, watched = trainer(), trainer()
    plain.fit(DATA, 6)
    watched.fit(DATA, 6, callbacks=[SampleGrid(tmp_path, every=2, n=4)])
    for a, b in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert all(not p.requires_grad for p in watched.ema_model.parameters())


def test_what_cannot_be_drawn_is_named(tmp_path: Path) -> None:
    model = MLPPotential((5,), DataHomotopy(sigma=0.1), widths=(4,))
    with pytest.raises(ValueError, match=r"SampleGrid draws images .* not events of shape \(5,\)"):
        Trainer(model).fit(torch.randn(20, 5), 1, callbacks=[SampleGrid(tmp_path)])
    with pytest.raises(ValueError, match="t_end must be at most"):
        trainer().fit(DATA, 1, callbacks=[SampleGrid(tmp_path, t_end=99.0)])


def test_a_picture_that_fails_does_not_end_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    run = trainer()

    def fail(*args: object, **options: object) -> None:
        raise ValueError("not a number in sight")

    monkeypatch.setattr(plots, "samples_2d", fail)
    with pytest.warns(UserWarning, match="no picture at step 2: not a number in sight"):
        run.fit(DATA, 2, callbacks=[SampleGrid(tmp_path, every=2, n=4)])
    assert run.step == 2
