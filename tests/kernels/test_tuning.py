"""Which tile a network gets: by rule, or what a tuning run remembered."""

import json
from dataclasses import asdict
from itertools import product

import pytest
import torch
from vapo_fast.kernels import tuning
from vapo_fast.kernels.shapes import PRECISIONS, Tile

NARROW, WIDE = (2, (128, 128, 128), 0), (64, (256, 256, 256), 0)
CUDA = torch.device("cuda")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A device that is not there, and a folder of its own for what is remembered."""
    monkeypatch.setenv("VAPO_FAST_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    return tmp_path / "tiles.json"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_every_device_and_precision_has_a_rule(capability, precision):
    for network in (NARROW, WIDE, (512, (16,), 64), (1, (1,), 0)):
        tile = tuning.rule(network, precision, capability)
        assert tile.precision == precision
        assert tile.block_n % tile.block_k == 0
        assert tile.block_d <= max(2, 2 * network[0])
        assert tile.block_d & (tile.block_d - 1) == 0


def test_only_devices_with_warpgroup_instructions_get_their_tiles():
    wide = {capability: tuning.rule(WIDE, "tf32x3", capability) for capability in ((8, 9), (9, 0), (10, 0), (12, 0))}
    assert wide[9, 0] == wide[10, 0]
    assert wide[8, 9] == wide[12, 0]
    assert wide[9, 0].rows > wide[8, 9].rows


def test_the_tile_does_not_depend_on_the_batch():
    """It decides the order of sums, so one for each size of batch would break the bits' independence of it."""
    assert "n" not in tuning.tile_for.__code__.co_varnames[: tuning.tile_for.__code__.co_argcount]


def test_the_fastest_is_remembered(cache, monkeypatch):
    tried = []

    def milliseconds(run, tile, device):
        run(tile)
        return 1.0 if (tile.rows, tile.block_n, tile.stages) == (128, 64, 3) else 2.0 + tile.block_k

    def run(tile):
        if tile.block_k == 16:
            raise RuntimeError("out of shared memory")
        tried.append(tile)

    monkeypatch.setattr(tuning, "_milliseconds", milliseconds)
    before = tuning.tile_for(NARROW, "tf32", CUDA)
    best, times = tuning.tune(NARROW, "tf32", CUDA, run)
    assert (best.rows, best.block_n, best.stages, best.block_k) == (128, 64, 3, 32)
    assert all(tile.block_k == 32 for tile in times)
    assert set(times) == set(tried)
    assert tuning.tile_for(NARROW, "tf32", CUDA) == best != before
    assert tuning.tile_for(WIDE, "tf32", CUDA) == tuning.rule(WIDE, "tf32", (9, 0))
    assert tuning.tile_for(NARROW, "bf16", CUDA) == tuning.rule(NARROW, "bf16", (9, 0))
    tuning.tune(WIDE, "tf32", CUDA, run)
    assert len(json.loads(cache.read_text())) == 2


def test_no_tile_that_runs_is_an_error(cache):
    def run(tile):
        raise RuntimeError("out of shared memory")

    with pytest.raises(RuntimeError, match="no tile runs for the network"):
        tuning.tune(NARROW, "tf32", CUDA, run)


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_spoilt_file_is_as_good_as_none(cache, text):
    cache.write_text(text)
    assert tuning.tile_for(NARROW, "tf32", CUDA) == tuning.rule(NARROW, "tf32", (9, 0))


GOOD = asdict(Tile(64, 64, 32, 2, "tf32", 4, 2))


@pytest.mark.parametrize(
    "entry",
    [
        5,
        None,
        {"rows": 64},
        GOOD | {"extra": 1},
        GOOD | {"rows": "x"},
        GOOD | {"rows": 48},
        GOOD | {"rows": 0},
        GOOD | {"rows": 8},
        GOOD | {"block_k": 128},
        GOOD | {"stages": 2.0},
        GOOD | {"warps": True},
        GOOD | {"warps": 4096},
        GOOD | {"precision": "ieee"},
    ],
    ids=str,
)
def test_a_spoilt_entry_is_as_good_as_none(cache, entry):
    key = tuning._key("Some GPU", NARROW, "tf32")
    cache.write_text(json.dumps({key: entry}))
    assert tuning.tile_for(NARROW, "tf32", CUDA) == tuning.rule(NARROW, "tf32", (9, 0))
    cache.write_text(json.dumps({key: GOOD | {"stages": 3}}))
    assert tuning.tile_for(NARROW, "tf32", CUDA) == Tile(64, 64, 32, 2, "tf32", 4, 3)


def test_an_interrupted_write_leaves_the_old_file(cache, monkeypatch):
    monkeypatch.setattr(tuning, "_milliseconds", lambda run, tile, device: float(tile.rows))
    tuning.tune(NARROW, "tf32", CUDA, lambda tile: None)
    before = cache.read_text()

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(tuning.Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tuning.tune(WIDE, "tf32", CUDA, lambda tile: None)
    assert cache.read_text() == before
    assert list(cache.parent.iterdir()) == [cache]


def test_interpreted_tiles_are_for_the_cpu():
    for network, precision in product((NARROW, WIDE), PRECISIONS):
        tile = tuning.tile_for(network, precision, torch.device("cpu"))
        assert isinstance(tile, Tile)
        assert tile.precision == "ieee"
