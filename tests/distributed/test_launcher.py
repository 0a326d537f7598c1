"""The command line in several processes, and the launcher itself."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed as dist
from typer.testing import CliRunner

import vapo_fast as vf
from tests.distributed import group
from tests.distributed.support import difference, torchrun
from vapo_fast.cli import config
from vapo_fast.cli.app import app
from vapo_fast.cli.config import ConfigError
from vapo_fast.cli.output import USAGE
from vapo_fast.core import processes

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")


def test_the_command_line_writes_once(groups: Any, tmp_path: Path) -> None:
    folder, (first, second) = groups[2]
    first, second = first["command_line"], second["command_line"]
    for name in ("train", "sample", "grid", "evaluate", "minutes"):
        assert (first[name][0], second[name]) == (0, (0, "", "")), (name, first[name], second[name])
    assert first["files"] == [
        "model.safetensors",
        "resolved.yaml",
        "samples/samples-00000003.png",
        "samples/samples-00000006.png",
        "step-00000006.safetensors",
        "training.csv",
        "training.png",
    ]
    assert "on cpu in 2 processes, into" in first["train"][2]
    run = config.read_file(folder / "command_line" / "cli" / "resolved.yaml")
    assert (run["augment"], run["accumulate"], run["batch_size"]) == ("flip", 2, 15)
    assert first["again"][0] == second["again"][0] == USAGE
    assert second["again"][2].startswith("process 1: error: ")
    # The same files from one process.
    command = ["train", "--config", str(folder / "command_line" / "cli" / "resolved.yaml"), "--no-progress"]
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "one"), "--sample-every", "0"])
    assert done.exit_code == 0, done.output
    one = list(vf.load(tmp_path / "one" / "model.safetensors").state_dict().values())
    assert difference(first["weights"], one) < 1e-6
    sampled = ["sample", str(folder / "command_line" / "cli"), "-n", "11", "--rtol", "1e-3", "--no-progress"]
    done = CliRunner().invoke(app, [*sampled, "-o", str(tmp_path / "samples.npy")])
    assert done.exit_code == 0, done.output
    drawn = torch.from_numpy(np.load(tmp_path / "samples.npy"))
    torch.testing.assert_close(first["samples"], drawn, rtol=0, atol=0)
    assert json.loads(first["scores"])["n_fake"] == 11
    assert "minutes hold about" in first["minutes"][2]


THREADS_LEFT = """
import importlib.util, os
import torch
import vapo_fast as vf
from vapo_fast.core.processes import process_group

specification = importlib.util.spec_from_file_location("distributed_loop", {example!r})
example = importlib.util.module_from_spec(specification)
specification.loader.exec_module(example)


def gloo():
    tasks = "/proc/self/task"
    names = [open(f"{{tasks}}/{{task}}/comm").read().strip() for task in os.listdir(tasks)]
    return [name for name in names if "gloo" in name]


with process_group(torch.device("cpu")):
    torch.manual_seed(0)
    model, data = vf.MLPPotential((2,), vf.DataHomotopy(), (8,)), torch.randn(64, 2)
    vf.Trainer(model, batch_size=16).fit(data, 3)
    loss = example.Loss(model)
    wrapped = example.DistributedDataParallel(loss)
    wrapped(data, torch.ones(64), torch.randn(64, 2)).backward()
    vf.distributed.sample(model, 5, rtol=1e-2)
    began = gloo()
    del wrapped
print(len(began), gloo())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="lists a process's threads as Linux does")
def test_a_group_is_gone_with_its_context() -> None:
    """Threads that it left would ask for the lock of an interpreter that is shutting down, and abort the process.

    In processes of their own, because what would keep the group is done at most once in each.
    """
    processes = []
    for _ in range(3):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launcher = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", THREADS_LEFT.format(example=str(group.EXAMPLE))],
                env={**os.environ, **launcher, "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for process in processes:
        said, errors = process.communicate(timeout=120)
        began, left = said.split(maxsplit=1)
        assert int(began) > 0, errors
        assert left.strip() == "[]"
        assert process.returncode == 0, errors


@pytest.mark.skipif(os.name != "posix", reason="sends Ctrl-C")
def test_torchrun_and_ctrl_c(tmp_path: Path) -> None:
    """Ctrl-C to the launcher ends all processes after one step; one process alone goes on from what was saved."""
    settings = ["--data", "8gaussians", "--steps", "4000", "--widths", "16,16", "--batch-size", "33"]
    settings += ["--sample-every", "0", "--no-progress", "--lr", "0.003", "--device", "cpu"]
    run, log = tmp_path / "run", tmp_path / "run" / "training.csv"
    with torchrun("-m", "vapo_fast", "train", *settings, "--out", str(run)) as process:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and process.poll() is None:
            if log.exists() and len(log.read_text().splitlines()) > 20:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "interrupted after step" in said, said
    assert f"Continue with: torchrun --nproc-per-node 2 -m vapo_fast train --resume {run}" in said
    (saved,) = run.glob("step-*.safetensors")
    step = int(saved.stem.removeprefix("step-"))
    assert 20 <= step < 4000
    assert len(log.read_text().splitlines()) == step + 1
    assert not (run / "model.safetensors").exists()
    options = {"lr": 0.003, "batch_size": 33, "weight": "inverse_variance"}
    settled = config.merge(config.read_file(run / "resolved.yaml"))
    data = config.build_data(settled)
    one = vf.Trainer(config.build_model(settled, data), **options)

    def stop(trainer: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        one.fit(data.tensor(), 4000, callbacks=[group.At(step, stop)])
    two = vf.Trainer(config.build_model(settled, data), **options)
    two.load_state(saved)
    # Rounding grows with the steps; whatever another batch would do is thousands of times larger.
    assert difference(list(two.model.parameters()), list(one.model.parameters())) < 1e-3


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    for name, value in {**launcher, "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    asked: list[torch.device] = []
    monkeypatch.setattr(config.torch, "empty", lambda *size, device: asked.append(device))
    monkeypatch.setattr(config.torch.cuda, "is_available", lambda: True)
    assert config.build_device("cuda") == config.build_device("auto") == torch.device("cuda", 1)
    assert config.build_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="device 'cuda:0' would put every process on one GPU"):
        config.build_device("cuda:0")
    assert processes.process_number() == 3
    monkeypatch.delenv("RANK")
    assert not processes.launched()
    assert processes.process_number() == 0
    assert config.build_device("cuda") == torch.device("cuda")
