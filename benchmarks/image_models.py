"""The image potentials that are measured: how each is built, and where its weights come from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import vapo_fast as vf
from vapo_fast import noise
from vapo_fast.data import DataNotFoundError
from vapo_fast.engines.explicit import explicit_passes
from vapo_fast.loss import Batch
from vapo_fast.potentials.blocks import ResidualBlock
from vapo_fast.potentials.image import ImagePotential
from vapo_fast.training.batches import Source, as_source, training_batch

SHAPE = (1, 28, 28)
# Enough for a field that is not the prior's: its samples are blurred garments.
TRAINING_STEPS = 200
# Of the weights that start at zero, drawn instead, in units of 1/sqrt(inputs): the residual branches, and the output,
# with which the network has about twice the quadratic part's share of the field in the middle of the path.
_BRANCH = 0.5
_OUTPUT: dict[type[ImagePotential], float] = {vf.UNetPotential: 1.0, vf.WideResNetPotential: 30.0}
_IMAGES = 2048


@dataclass(frozen=True)
class ImageModel:
    """One of the potentials.

    Attributes:
        title: in tables. kind, shape, backbone, patch_size, sigma, data_scale: what is built; ``backbone`` is channels,
            multipliers and blocks.
        trained: briefly, on Fashion-MNIST or blobs; else the weights that start at zero are drawn, so that every layer
            matters and the field is not that of Gaussian data.
        device: of the cases that it is for.
    """

    title: str
    kind: type[ImagePotential]
    shape: tuple[int, int, int]
    backbone: tuple[int, tuple[float, ...], int]
    patch_size: int = 1
    sigma: float = 0.01
    data_scale: float = 0.5
    trained: bool = False
    device: str = "cuda"

    def build(self) -> ImagePotential:
        """Untrained."""
        path = vf.DataHomotopy(omega=1.0, sigma=self.sigma)
        return self.kind(self.shape, path, *self.backbone, patch_size=self.patch_size, data_scale=self.data_scale)


_U_NET, _WIDE_RESNET = ("U-Net", vf.UNetPotential), ("Wide residual network", vf.WideResNetPotential)
_COLOURS = (3, 32, 32)
MODELS = {
    # That of docs/images.md.
    "unet": ImageModel(*_U_NET, SHAPE, (48, (1, 2), 1), 2, 0.02, 0.825, True, "cpu"),
    "wide_resnet": ImageModel(*_WIDE_RESNET, SHAPE, (32, (1, 2, 2), 2), 1, 0.02, 0.825, True, "cpu"),
    # The backbone of `python -m benchmarks.quality cifar10`.
    "unet_10m": ImageModel(*_U_NET, _COLOURS, (128, (1, 2, 2), 2)),
    "wide_resnet_10m": ImageModel(*_WIDE_RESNET, _COLOURS, (160, (1, 2, 2), 3)),
    "unet_50m": ImageModel(*_U_NET, _COLOURS, (256, (1, 2, 2), 2)),
    "wide_resnet_50m": ImageModel(*_WIDE_RESNET, _COLOURS, (288, (1, 2, 2), 4)),
}
"""The last four have at least as many parameters as their names say."""


def potential(name: str, data: Tensor, cache: Path) -> ImagePotential:
    """A model with its weights, on the CPU; what is trained is kept in the cache."""
    one = MODELS[name]
    torch.manual_seed(0)
    model = one.build()
    if not one.trained:
        draw_zeros(model)
        return model
    file = cache / f"images-{name}-{TRAINING_STEPS}.pt"
    if file.exists():
        model.load_state_dict(torch.load(file, weights_only=True))
        return model
    passes, source = explicit_passes(model), as_source(data, SHAPE)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.99))
    for step in range(TRAINING_STEPS):
        grads = passes.loss_and_grads(batch_of(model, source, step, 64))[1]
        for key, parameter in model.named_parameters():
            parameter.grad = grads[key]
        optimiser.step()
    cache.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), file)
    return model


def draw_zeros(model: ImagePotential) -> None:
    """Draw the weights that start at zero: the second convolution of each block, and the output."""
    last = (part.second for part in model.modules() if isinstance(part, ResidualBlock))
    with torch.no_grad():
        for layer, size in (*((branch, _BRANCH) for branch in last), (model.output, _OUTPUT[type(model)])):
            assert isinstance(layer, nn.Conv2d)
            nn.init.normal_(layer.weight, std=size / math.sqrt(layer.weight[0].numel()))


def batch_of(model: ImagePotential, source: Source, step: int, size: int) -> Batch:
    """A training batch on the CPU."""
    return training_batch(
        source,
        step,
        homotopy=model.homotopy,
        seed=0,
        batch_size=size,
        time_sampling="log_noise",
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


def load_images(root: Path | None) -> tuple[str, Tensor]:
    """Fashion-MNIST's images, or as many smooth random ones; (name, (n, 1, 28, 28))."""
    try:
        data = vf.data.load("fashion-mnist", root=root, n=_IMAGES)
        return "fashion-mnist", torch.stack([data[i] for i in range(len(data))])
    except DataNotFoundError:
        return "blobs", blobs(SHAPE)


def blobs(shape: tuple[int, int, int]) -> Tensor:
    """Smooth random images (n, C, H, W) in [-1, 1]."""
    channels, height, width = shape
    drawn = noise.normal(3, range(_IMAGES), (channels, height // 4, width // 4))
    return nn.functional.interpolate(drawn, (height, width), mode="bilinear").tanh()


def in_float64(model: ImagePotential) -> ImagePotential:
    """The same potential in float64."""
    double = vf.potentials.potential_from_config(model.config()).double()
    double.load_state_dict(model.state_dict())
    assert isinstance(double, ImagePotential)
    return double
