"""One training a folder, and settings that are written once they are accepted."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import vapo_fast as vf
from vapo_fast.callbacks import Callback, Checkpointer
from vapo_fast.cli.app import app
from vapo_fast.core.folder_lock import FolderLock

PATH = vf.DataHomotopy(sigma=0.1)


def trainer(seed: int = 0) -> vf.Trainer:
    return vf.Trainer(vf.MLPPotential((2,), PATH, widths=(8,)), batch_size=8, seed=seed)


class WithinStep(Callback):
    def __init__(self, call: object) -> None:
        self.call = call

    def on_step_end(self, trainer: object, step: int, metrics: object) -> None:
        if step == 1:
            self.call()  # type: ignore[operator]


@pytest.mark.skipif(os.name != "posix", reason="folders are held by flock")
def test_a_second_training_into_a_folder_is_refused(tmp_path: Path) -> None:
    data = torch.randn(16, 2)
    refused: list[str] = []

    def second() -> None:
        other = trainer(seed=1)
        with pytest.raises(vf.CheckpointError, match=f"is in use by another training \\(process {os.getpid()}\\)") as e:
            other.fit(data, 2, callbacks=[Checkpointer(tmp_path)])
        refused.append(str(e.value))
        assert other.step == 0

    trainer().fit(data, 3, callbacks=[Checkpointer(tmp_path), WithinStep(second)])
    assert len(refused) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "step-00000003.safetensors"]
    again = trainer()
    again.fit(data, 4, callbacks=[Checkpointer(tmp_path)], resume=tmp_path)
    assert again.step == 4


@pytest.mark.skipif(os.name != "posix", reason="folders are held by flock")
def test_a_killed_training_holds_nothing(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from vapo_fast.core.folder_lock import FolderLock\n"
        "lock = FolderLock(Path(sys.argv[1])); assert lock.take() is None; print('held', flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    own = FolderLock(tmp_path)
    assert own.take() == f"process {process.pid}"
    assert not own.held
    process.kill()
    process.wait()
    assert own.take() is None
    own.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="folders are held by flock")
def test_many_take_a_folder_one_after_another(tmp_path: Path) -> None:
    inside, most, taken = [0], [0], [0]
    count = threading.Lock()

    def work() -> None:
        lock = FolderLock(tmp_path)
        for _ in range(200):
            if lock.take() is None:
                with count:
                    inside[0] += 1
                    taken[0] += 1
                    most[0] = max(most[0], inside[0])
                with count:
                    inside[0] -= 1
                lock.release()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1
    assert taken[0] > 0


def test_a_failed_fit_lets_go(tmp_path: Path) -> None:
    data = torch.randn(16, 2)

    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trainer().fit(data, 3, callbacks=[Checkpointer(tmp_path), WithinStep(fail)])
    trainer().fit(data, 1, callbacks=[copy.deepcopy(Checkpointer(tmp_path))])


def test_a_refused_resume_leaves_the_runs_settings(tmp_path: Path) -> None:
    run, out = CliRunner(), tmp_path / "run"
    base = ["train", "--data", "8gaussians", "--widths", "8", "--sample-every", "0", "--no-progress"]
    first = run.invoke(app, [*base, "--steps", "3", "--batch-size", "8", "--out", str(out)])
    assert first.exit_code == 0, first.output
    settings = (out / "resolved.yaml").read_text()
    for wrong in (["--widths", "64,64"], ["--steps", "1"]):
        refused = run.invoke(app, ["train", "--resume", str(out), "--no-progress", *wrong])
        assert refused.exit_code != 0
        assert (out / "resolved.yaml").read_text() == settings
    on = run.invoke(app, ["train", "--resume", str(out), "--steps", "4", "--no-progress"])
    assert on.exit_code == 0, on.output
    assert "steps: 4" in (out / "resolved.yaml").read_text()
