"""Damage to a checkpoint: every flipped bit, zeroed tail and lost byte is an error."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from vapo_fast import CheckpointError, DataHomotopy, MLPPotential, Potential, Trainer, UNetPotential, load, save

PATH = DataHomotopy(sigma=0.1)


def mlp(**options: object) -> MLPPotential:
    return MLPPotential(event_shape=(2,), homotopy=PATH, widths=(8, 8), **options)  # type: ignore[arg-type]


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("kind", ["model", "training"])
def test_no_flipped_bit_is_read_silently(kind: str, tmp_path: Path) -> None:
    trainer = Trainer(mlp(), batch_size=4)
    trainer.fit(torch.randn(8, 2), 1)
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    if kind == "model":
        save(trainer.model, good)
    else:
        trainer.save_state(good)
    data = good.read_bytes()
    before = load(good)
    config, state = before.config(), before.state_dict()
    harmless = 0
    for bit in random.sample(range(8 * len(data)), 300):
        bad.write_bytes(flipped(data, bit))
        try:
            after = load(bad)
        except CheckpointError:
            continue
        # White space of the header and the like: what was read is what was written.
        harmless += 1
        assert after.config() == config
        assert all(torch.equal(value, state[name]) for name, value in after.state_dict().items())
    assert harmless < 30


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.99])
def test_a_zeroed_tail_is_refused(kept: float, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    model = mlp()
    nn.init.normal_(model.output.weight)
    save(model, path)
    data = path.read_bytes()
    size = int(kept * len(data))
    path.write_bytes(data[:size] + bytes(len(data) - size))
    with pytest.raises(CheckpointError):
        load(path)


def test_a_training_file_with_a_flipped_moment_is_not_resumed(tmp_path: Path) -> None:
    trainer = Trainer(mlp(), batch_size=4)
    trainer.fit(torch.randn(8, 2), 1)
    path = tmp_path / "t.safetensors"
    trainer.save_state(path)
    path.write_bytes(flipped(path.read_bytes(), 8 * path.stat().st_size - 3))
    again = Trainer(mlp(), batch_size=4)
    with pytest.raises(CheckpointError, match="is damaged: its contents differ"):
        again.fit(torch.randn(8, 2), 2, resume=path)
    assert again.step == 0


def test_a_file_of_before_digests_is_read_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save(mlp(), path)
    rewrite(path, lambda header: header)
    with pytest.warns(UserWarning, match="was written without a digest"):
        load(path)


def rewrite(path: Path, change: object) -> None:
    """The file with another description, as a version without digests would have written it."""
    with safe_open(path, framework="pt") as handle:
        tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
        header = json.loads(handle.metadata()["vapo_fast"])
    del header["sha256"]
    save_file(tensors, path, {"vapo_fast": json.dumps(change(header))})  # type: ignore[operator]


@pytest.mark.filterwarnings("ignore:.*without a digest")
@pytest.mark.parametrize(
    ("name", "value"), [("fourier_features", 10**8), ("widths", [10**5, 10**5]), ("event_shape", [10**9])]
)
def test_a_hostile_description_takes_no_memory(name: str, value: object, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save(mlp(), path)
    rewrite(path, lambda header: {**header, "model": {**header["model"], name: value}})
    tracemalloc.start()
    with pytest.raises(CheckpointError):
        load(path)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


@pytest.mark.filterwarnings("ignore:.*without a digest")
@pytest.mark.parametrize("name", ["blocks", "channels"])
def test_a_hostile_image_network_is_refused_before_it_is_built(name: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save(UNetPotential((1, 8, 8), PATH, channels=8, multipliers=(1,), blocks=1), path)
    rewrite(path, lambda header: {**header, "model": {**header["model"], name: 10**7}})
    with pytest.raises(CheckpointError, match="has a size of 10000000"):
        load(path)


class Tied(nn.Module):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        if tied:
            self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -self.second(torch.tanh(self.first(x))).square().sum(1)


def wrapped(module: nn.Module) -> Potential:
    return Potential.from_module(module, (2,), PATH)


def test_two_weights_are_not_read_into_one(tmp_path: Path) -> None:
    save(wrapped(Tied(False)), tmp_path / "two.safetensors")
    with pytest.raises(CheckpointError, match="are one tensor in the model and two in the file"):
        load(tmp_path / "two.safetensors", Tied(True))
    save(wrapped(Tied(True)), tmp_path / "one.safetensors")
    one = load(tmp_path / "one.safetensors", Tied(False))
    x = torch.randn(3, 2)
    assert torch.equal(one(x), load(tmp_path / "one.safetensors", Tied(True))(x))


@pytest.mark.parametrize("tied", [True, False])
def test_weights_that_are_not_numbers_are_read_as_they_are(tied: bool, tmp_path: Path) -> None:
    model = wrapped(Tied(tied))
    nn.init.constant_(model.module.first.weight, float("nan"))
    save(model, tmp_path / "nan.safetensors")
    again = load(tmp_path / "nan.safetensors", Tied(tied))
    assert bool(again.module.first.weight.isnan().all())


class Own(MLPPotential):
    def network(self, z: torch.Tensor, position: torch.Tensor | None) -> torch.Tensor:
        return 2.0 * super().network(z, position)


def test_a_class_of_ones_own_is_read_into_a_potential_of_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Own((2,), PATH, widths=(8,))
    nn.init.normal_(model.output.weight)
    save(model, tmp_path / "own.safetensors")
    with pytest.raises(CheckpointError, match="pass module="):
        load(tmp_path / "own.safetensors")
    again = load(tmp_path / "own.safetensors", Own((2,), PATH, widths=(8,)))
    x = torch.randn(3, 2)
    assert isinstance(again, Own)
    assert torch.equal(again(x, 1.0), model(x, 1.0))
    with pytest.raises(CheckpointError, match="is of another potential than the one given: widths"):
        load(tmp_path / "own.safetensors", Own((2,), PATH, widths=(9,)))


def test_a_replaced_layer_is_read_into_a_potential_with_it(tmp_path: Path) -> None:
    def build() -> MLPPotential:
        model = mlp()
        torch.nn.utils.parametrizations.weight_norm(model.hidden[0])
        return model

    model = build()
    save(model, tmp_path / "normed.safetensors")
    with pytest.raises(CheckpointError, match="does not fit"):
        load(tmp_path / "normed.safetensors")
    assert load(tmp_path / "normed.safetensors", build()).state_dict().keys() == model.state_dict().keys()


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
@pytest.mark.parametrize(("umask", "mode"), [("022", 0o644), ("077", 0o600), ("002", 0o664)])
def test_a_file_has_the_rights_of_new_files(umask: str, mode: int, tmp_path: Path) -> None:
    code = (
        f"import os; os.umask(0o{umask}); import vapo_fast as vf; "
        "vf.save(vf.MLPPotential((2,), vf.DataHomotopy(), widths=(4,)), 'm.safetensors')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert (tmp_path / "m.safetensors").stat().st_mode & 0o777 == mode


def test_writers_of_one_target_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    models = [mlp(data_scale=1.0 + i) for i in range(4)]
    threads = [threading.Thread(target=lambda m=m: [save(m, path) for _ in range(10)]) for m in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert load(path).config() in [model.config() for model in models]
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    code = (
        "import os, vapo_fast as vf, vapo_fast.core.tensor_file as c\n"
        "c.os.fsync = lambda handle: os._exit(9)\n"
        "vf.save(vf.MLPPotential((2,), vf.DataHomotopy(), widths=(4,)), 'm.safetensors')"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 9
    assert len(list(tmp_path.iterdir())) == 1
    save(mlp(), tmp_path / "m.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
