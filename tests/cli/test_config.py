"""Settings: types as YAML and flags give them, unknown keys, layers, and what is built from them."""

import json

import pytest
import torch
import yaml

from vapo_fast.cli import config
from vapo_fast.cli.config import ConfigError, TrainConfig
from vapo_fast.homotopy import DataHomotopy, LinearHomotopy


@pytest.mark.parametrize(
    ("key", "given", "value"),
    [
        ("lr", "1e-3", 1e-3),  # YAML 1.1 reads 1e-3 as text
        ("lr", 1, 1.0),
        ("widths", [8, 16], [8, 16]),
        ("widths", "8,16", [8, 16]),
        ("multipliers", "1,2.5", [1.0, 2.5]),
        ("batch-size", 4, 4),
        ("mirror", True, True),
        ("grad_clip", None, None),
        ("steps", "12", 12),
    ],
)
def test_values_are_converted(key, given, value):
    assert config.check({key: given}, "x") == {key.replace("-", "_"): value}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batchsize": 4}, "x: unknown key 'batchsize'; did you mean batch_size"),
        ({"learning_speed_of_it": 4}, "known keys: data, root"),
        ({"steps": 1.5}, "x: steps must be an integer or null, got 1.5"),
        ({"steps": True}, "steps must be an integer"),
        ({"lr": "fast"}, "lr must be a number or null, got 'fast'"),
        ({"sigma": None}, "sigma must be a number, got None"),
        ({"mirror": "yes"}, "mirror must be true or false, got 'yes'"),
        ({"widths": []}, r"widths must be a list such as \[128, 128\], got \[\]"),
        ({"widths": [8, "a"]}, "widths must be a list"),
        ({"data": 5}, "data must be text, got 5"),
    ],
)
def test_unsuitable_values(values, message):
    with pytest.raises(ConfigError, match=message):
        config.check(values, "x")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "lr = 1", "must end in .yaml, .yml or .json"),
        ("a.yaml", "lr: [1", "cannot be read"),
        ("a.json", "{", "cannot be read"),
        ("a.yaml", "- 1", "must hold keys and values.*got list"),
        ("a.yaml", "lrr: 1", "a.yaml: unknown key 'lrr'; did you mean lr"),
    ],
)
def test_unsuitable_files(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        config.read_file(tmp_path / name)


def test_yaml_and_json_say_the_same(tmp_path):
    values = {"data": "digits", "lr": 0.002, "widths": [4], "minutes": None}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "a.json").write_text(json.dumps(values))
    assert config.read_file(tmp_path / "a.yaml") == config.read_file(tmp_path / "a.json") == values
    (tmp_path / "empty.yml").write_text("")
    assert config.read_file(tmp_path / "empty.yml") == {}


def test_later_layers_win_and_a_budget_replaces_a_budget():
    run = config.merge({"data": "digits", "lr": 1.0, "steps": 7}, {"lr": 2.0, "minutes": 3.0})
    assert (run.lr, run.steps, run.minutes, run.out) == (2.0, None, 3.0, "runs/digits")
    run = config.merge({"data": "a/b.npy", "minutes": 3.0, "steps": None}, {"steps": 9})
    assert (run.steps, run.minutes, run.out) == (9, None, "runs/b")
    assert config.merge({"data": "digits"}).steps == 5000


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "data is needed"),
        ({"data": "digits", "steps": 1, "minutes": 1.0}, "give steps or minutes, not both"),
        ({"data": "digits", "homotopy": "cubic"}, "homotopy must be 'data' or 'linear', got 'cubic'"),
        ({"data": "digits", "model": "cnn"}, "model must be 'mlp', 'wide-resnet' or 'unet', got 'cnn'"),
    ],
)
def test_contradictions(values, message):
    with pytest.raises(ConfigError, match=message):
        config.merge(values)


def test_a_written_configuration_gives_itself(tmp_path):
    run = config.merge({"data": "digits", "widths": [3, 5], "grad_clip": 1.0})
    (tmp_path / "a.yaml").write_text(config.as_yaml(run))
    assert config.merge(config.read_file(tmp_path / "a.yaml")) == run


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"data": "8gaussians"}, "MLPPotential"),
        ({"data": "digits", "channels": 8, "blocks": 1}, "UNetPotential"),
        ({"data": "digits", "model": "wide-resnet", "channels": 8, "blocks": 1}, "WideResNetPotential"),
        ({"data": "digits", "model": "mlp", "widths": [8]}, "MLPPotential"),
    ],
)
def test_models_are_built_for_the_data_and_from_the_seed(values, kind):
    def build(seed: int) -> tuple[TrainConfig, torch.nn.Module]:
        run = config.merge(values, {"seed": seed, "homotopy": "linear", "t1": 0.9})
        return run, config.build_model(run, data)

    data = config.build_data(config.merge(values))
    state = torch.random.get_rng_state()
    run, model = build(1)
    assert torch.equal(state, torch.random.get_rng_state())
    assert type(model).__name__ == kind
    assert model.event_shape == data.event_shape
    assert model.homotopy == LinearHomotopy(1.0, 0.9)
    rms = data.batch(range(len(data))).square().mean().sqrt().item()
    assert run.data_scale == pytest.approx(rms, rel=0.05)
    again, other = build(1)[1], build(2)[1]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_the_data_homotopy_is_the_default():
    assert config.build_homotopy(TrainConfig(sigma=0.1)) == DataHomotopy(1.0, 0.1)


def test_mirror_doubles_the_training_split_only():
    run = config.merge({"data": "digits", "mirror": True, "n": 10})
    assert (len(config.build_data(run)), len(config.build_data(run, "test"))) == (20, 10)


def test_devices():
    assert config.build_device("cpu").type == "cpu"
    with pytest.raises(ConfigError, match="device 'abacus' cannot be used here"):
        config.build_device("abacus")
    if not torch.cuda.is_available():
        assert config.build_device("auto").type == "cpu"
        with pytest.raises(ConfigError, match="device 'cuda' cannot be used here"):
            config.build_device("cuda")
