"""`vapo_fast.tune`: times a field and a solve with every tile, and keeps the fastest."""

import pytest
import torch
from typer.testing import CliRunner
from vapo_fast.kernels import launch, tuning
from vapo_fast.kernels.shapes import Tile

import vapo_fast as vf
from tests.support.zoo import Network
from vapo_fast.cli.app import app
from vapo_fast.engines import UnsupportedJobError
from vapo_fast.engines import triton as engine

TILES = [Tile(rows, 64, 64, 2, "ieee", 4, 1) for rows in (16, 64)]


def test_a_field_and_a_solve_are_timed_with_each_tile(device, tmp_path, monkeypatch):
    ran, network = [], Network(2, (5,), "tanh", 0, True, "linear")

    def milliseconds(run, tile, device):
        before = len(ran)
        run(tile)
        assert ran[before:] == [("_field", tile.rows), ("_solve", tile.rows)]
        return float(tile.rows)

    monkeypatch.setenv("VAPO_FAST_CACHE", str(tmp_path))
    monkeypatch.setattr(engine, "choose", lambda *_: None)
    monkeypatch.setattr(tuning, "candidates", lambda network, precision: TILES)
    monkeypatch.setattr(tuning, "_milliseconds", milliseconds)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    launched = lambda self, kernel, *_, **__: ran.append((kernel.fn.__name__, self.tile.rows))  # noqa: E731
    monkeypatch.setattr(launch.Program, "launch", launched)
    times = vf.tune(network.build(torch.float32).to(device), n=2)
    assert times == {repr(tile): float(tile.rows) for tile in TILES}
    assert list(times) == [repr(tile) for tile in TILES]
    key = tuning._key("Some GPU", (2, (5,), 0), "tf32x3")
    assert tuning._remembered()[key]["rows"] == 16


def test_bad_arguments_are_named():
    model = Network(2, (5,)).build(torch.float32)
    with pytest.raises(ValueError, match="precision must be one of 'float32', 'tf32', 'bf16', got 'float64'"):
        vf.tune(model, precision="float64")
    with pytest.raises(ValueError, match="n must be a positive integer, got 0"):
        vf.tune(model, n=0)
    with pytest.raises(TypeError, match="model must be a Potential, got Linear"):
        vf.tune(torch.nn.Linear(2, 1))


def test_a_model_on_the_cpu_is_refused_with_the_reason(tmp_path):
    model = Network(2, (5,)).build(torch.float32)
    with pytest.raises(UnsupportedJobError, match="engine='triton' cannot do this 'solve' job"):
        vf.tune(model)
    vf.save(model, tmp_path / "model.safetensors")
    result = CliRunner().invoke(app, ["tune", str(tmp_path / "model.safetensors"), "--device", "cpu"])
    assert result.exit_code == 2
    assert "engine='triton' cannot do this 'solve' job" in result.output
