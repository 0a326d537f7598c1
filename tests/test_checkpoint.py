from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vapo_fast import checkpoint
from vapo_fast.checkpoint import CheckpointError, describe, load, save
from vapo_fast.core import tensor_file
from vapo_fast.homotopy import DataHomotopy, LinearHomotopy
from vapo_fast.potentials import GaussianMixturePotential, MLPPotential, Potential
from vapo_fast.training.trainer import Trainer

PATH = DataHomotopy(sigma=0.1)


def mlp(**options: Any) -> MLPPotential:
    torch.manual_seed(0)
    options = {"widths": (8, 8), "fourier_features": 3} | options
    model = MLPPotential((2,), PATH, **options)
    nn.init.normal_(model.output.weight)
    return model


def points() -> tuple[Tensor, Tensor]:
    return torch.randn(5, 2, generator=torch.Generator().manual_seed(1)), torch.linspace(0.1, 3.0, 5)


def names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


class Net(nn.Module):
    def __init__(self, width: int = 7) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, width), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x))).squeeze(1)


@pytest.mark.parametrize(
    "model",
    [
        mlp(),
        mlp(time_dependent=False, activation="tanh", data_scale=0.5),
        mlp().double(),
        GaussianMixturePotential(torch.ones(2), torch.eye(2), torch.eye(2).expand(2, 2, 2), LinearHomotopy(t1=0.9)),
    ],
    ids=["mlp", "time-independent", "float64", "mixture"],
)
def test_a_loaded_potential_is_the_saved_one(model: Potential, tmp_path: Path) -> None:
    save(model, tmp_path / "deep" / "m.safetensors", notes={"data": "2moons"})
    again = load(tmp_path / "deep" / "m.safetensors")
    assert type(again) is type(model)
    assert again.config() == model.config()
    assert same(state(again), state(model))
    x, t = points()
    x = x.to(next(iter(model.state_dict().values())).dtype)
    assert torch.equal(again(x, t), model(x, t))
    info = describe(tmp_path / "deep" / "m.safetensors")
    assert (info.kind, info.format_version, info.training) == ("model", 1, None)
    assert info.notes == {"data": "2moons"}
    assert info.parameters == sum(v.numel() for v in model.state_dict().values())
    assert names(tmp_path / "deep") == ["m.safetensors"]


def test_a_wrapped_module_needs_its_code(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Potential.from_module(Net(), (2,), PATH)
    path = tmp_path / "m.safetensors"
    save(model, path)
    again = load(path, Net())
    assert torch.equal(again(points()[0]), model(points()[0]))
    with pytest.raises(
        CheckpointError, match=r"does not fit the model's architecture: 'module.first.bias' has shape \(7,\)"
    ):
        load(path, Net(9))
    with pytest.raises(CheckpointError, match=r"'module.bias' is missing"):
        load(path, Flat())


class Flat(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze(1)


def test_tied_and_transposed_tensors_are_saved(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(2, 2)
            self.b = nn.Linear(2, 2)
            self.b.weight = self.a.weight
            self.register_buffer("c", torch.arange(6.0).reshape(2, 3).T)
            self.register_buffer("d", torch.ones(1).expand(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x))).sum(1)

    model = Potential.from_module(Tied(), (2,), PATH)
    save(model, tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", framework="pt") as handle:
        for name, value in model.state_dict().items():
            assert torch.equal(handle.get_tensor("model." + name), value)


def test_a_training_file_loads_as_its_average(tmp_path: Path) -> None:
    trainer = Trainer(mlp(), batch_size=8)
    trainer.fit(torch.randn(20, 2), 5)
    trainer.save_state(tmp_path / "t.safetensors")
    assert same(state(load(tmp_path / "t.safetensors")), state(trainer.ema_model))
    info = describe(tmp_path / "t.safetensors")
    assert info.kind == "training"
    assert info.training is not None
    assert info.training["step"] == 5
    assert info.training["options"]["batch_size"] == 8


def damaged(name: str, good: Path, path: Path) -> Path:
    """A file that is wrong in a named way."""
    data = good.read_bytes()
    with safe_open(good, framework="pt") as handle:
        tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
        header = json.loads(handle.metadata()["vapo_fast"])
    if name == "missing":
        return path
    if name == "empty":
        path.write_bytes(b"")
    elif name == "truncated tensors":
        path.write_bytes(data[:-10])
    elif name == "truncated header":
        path.write_bytes(data[:40])
    elif name == "pickle":
        torch.save({"a": torch.zeros(1)}, path)
    elif name == "foreign":
        save_file(tensors, path, {"format": "pt"})
    elif name == "foreign, no metadata":
        save_file(tensors, path)
    else:
        if name == "newer":
            header["format_version"] = 99
        elif name == "damaged description":
            del header["kind"]
        text = "{" if name == "not json" else json.dumps(header)
        save_file(tensors, path, {"vapo_fast": text})
    return path


BAD = {
    "missing": "there is no checkpoint at",
    "empty": "truncated or of another format",
    "truncated tensors": "truncated or of another format",
    "truncated header": "truncated or of another format",
    "pickle": "truncated or of another format",
    "foreign": "is a safetensors file, but not a vapo_fast checkpoint",
    "foreign, no metadata": "is a safetensors file, but not a vapo_fast checkpoint",
    "newer": "has checkpoint format 99, written by a newer vapo_fast; this one reads up to 1",
    "damaged description": "the description in .* is damaged: KeyError: 'kind'",
    "not json": "the description in .* is damaged",
}


@pytest.mark.parametrize("name", BAD)
def test_a_failed_resume_changes_nothing(name: str, tmp_path: Path) -> None:
    data = torch.randn(20, 2)
    other = Trainer(mlp(), batch_size=8, seed=1)
    other.fit(data, 3)
    other.save_state(tmp_path / "good.safetensors")
    path = damaged(name, tmp_path / "good.safetensors", tmp_path / "bad.safetensors")
    trainer = Trainer(mlp(), batch_size=8)
    trainer.fit(data, 2)
    raw, average = state(trainer.model), state(trainer.ema_model)
    moments = [v["exp_avg"].clone() for v in trainer.optimizer.state.values()]
    with pytest.raises(CheckpointError, match=BAD[name]) as caught:
        trainer.fit(data, 5, resume=path)
    assert str(path) in str(caught.value)
    assert trainer.step == 2
    assert same(state(trainer.model), raw)
    assert same(state(trainer.ema_model), average)
    kept = [v["exp_avg"] for v in trainer.optimizer.state.values()]
    assert all(torch.equal(a, b) for a, b in zip(moments, kept, strict=True))


def test_resume_refuses_another_potential(tmp_path: Path) -> None:
    data = torch.randn(20, 2)
    trainer = Trainer(mlp(), batch_size=8)
    trainer.fit(data, 2)
    trainer.save_state(tmp_path / "t.safetensors")
    with pytest.raises(CheckpointError, match="is of another potential"):
        Trainer(mlp(widths=(8, 9)), batch_size=8).fit(data, 3, resume=tmp_path / "t.safetensors")
    with pytest.raises(CheckpointError, match=r"has dtype torch.float32, the model has torch.float64"):
        Trainer(mlp().double(), batch_size=8).fit(data, 3, resume=tmp_path / "t.safetensors")
    wrapped = Trainer(Potential.from_module(Net(7), (2,), PATH), batch_size=8)
    wrapped.fit(data, 2)
    wrapped.save_state(tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="does not fit"):
        Trainer(Potential.from_module(Net(9), (2,), PATH), batch_size=8).fit(data, 3, resume=tmp_path / "w.safetensors")


@pytest.mark.parametrize("where", ["save_file", "fsync", "replace"])
def test_a_failing_disk_leaves_the_older_file(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    save(mlp(), path)
    before = path.read_bytes()

    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    owner = {"save_file": tensor_file, "fsync": tensor_file.os, "replace": Path}[where]
    monkeypatch.setattr(owner, where, full)
    with pytest.raises(
        CheckpointError, match=r"could not write .*No space left on device; the older file of that name is intact"
    ):
        save(mlp(), path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert names(tmp_path) == ["m.safetensors"]


def test_a_really_full_disk_leaves_the_older_file(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system can be mounted by root on Linux only")
    try:
        path = tmp_path / "m.safetensors"
        save(mlp(), path)
        with pytest.raises(CheckpointError, match=r"No space left on device.* the older file of that name is intact"):
            save(mlp(widths=(256, 256)), path)
        assert load(path).config()["widths"] == [8, 8]
        assert names(tmp_path) == ["m.safetensors"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_what_a_killed_writer_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".m.safetensors.tmp").write_bytes(b"half a file")
    save(mlp(), tmp_path / "m.safetensors")
    assert names(tmp_path) == ["m.safetensors"]


def test_step_files_are_found_in_the_order_of_steps(tmp_path: Path) -> None:
    ordered = [f"step-{step}.safetensors" for step in ("00000200", "00001000", "100000000")]
    for name in (*ordered[::-1], "model.safetensors", ".x"):
        (tmp_path / name).touch()
    assert [p.name for p in checkpoint.step_paths(tmp_path)] == ordered
    assert checkpoint.resolve(tmp_path).name == ordered[-1]
    assert checkpoint.step_paths(tmp_path / "none") == []
    assert checkpoint.step_path(tmp_path, 200) == checkpoint.step_paths(tmp_path)[0]
