"""The potentials that cases run on: how each is built, and where its weights come from."""

from __future__ import annotations

import hashlib
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


def start(potential: vf.MLPPotential, n: int) -> Tensor:
    """(n, d) float32 draws of the prior."""
    return potential.homotopy.omega * noise.normal(0, range(n), potential.event_shape)


def fingerprint(potential: vf.Potential) -> str:
    """A hash of a potential's configuration and weights."""
    digest = hashlib.sha256(repr(potential.config()).encode())
    for name, value in potential.state_dict().items():
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def random_potential(dimension: int, widths: tuple[int, ...]) -> vf.MLPPotential:
    """Weights as drawn, with an output layer that is not zero, so that the field has structure."""
    torch.manual_seed(0)
    potential = vf.MLPPotential((dimension,), vf.DataHomotopy(), widths)
    torch.nn.init.normal_(potential.output.weight, std=0.1)
    return potential.eval()


# The synthetic heterogeneous potential, in its network's coordinates z, which the flow of f = 0 leaves where they are.
_EDGE = -1.6449  # 5 % of a normal's draws are below
_CENTRE = -2.2
_PUSH = 1.5
_STEEPNESS = 100.0
_LINEAR = 24.0  # silu(y + 24) - 24 is y to float32's last bit for |y| of a few


def stiff_potential(dimension: int, widths: tuple[int, ...]) -> vf.MLPPotential:
    """A potential whose field is stiff for the 5 % of the prior with ``z_1 < -1.645``, and that of `random_potential`
    elsewhere.

    Added to the random f is ``F(z_1)`` with ``F'`` = push to the right of -2.2 and of minus push to the left: between
    -2.2 and -1.645 as well, and 0 above. So samples of that strip gather at -2.2, where the field contracts at the rate
    ``push x steepness`` times the gauge's factor, many times the speed at which anything moves: an explicit method's
    steps are then held short by stability. F is ``push z_1`` plus two SiLU ramps, computed by three units of the first
    layer, and carried through the later layers by one unit of each, held where SiLU is linear.
    """
    potential = random_potential(dimension, widths)
    with torch.no_grad():
        first, *later = potential.hidden
        # Units 0 - 2 of the first layer, then unit 0, belong to F: the random part neither reads nor writes them.
        first.weight[:3] = 0.0
        first.weight[0, 0], first.bias[0] = 1.0, _LINEAR
        first.weight[1, 0], first.bias[1] = _STEEPNESS, -_STEEPNESS * _CENTRE
        first.weight[2, 0], first.bias[2] = _STEEPNESS, -_STEEPNESS * _EDGE
        into = torch.tensor([_PUSH, -2.0 * _PUSH / _STEEPNESS, _PUSH / _STEEPNESS])
        offset = -_PUSH * _LINEAR
        for layer in later:
            used = len(into)
            layer.weight[:, :used] = 0.0
            layer.weight[0] = 0.0
            layer.weight[0, :used] = into
            layer.bias[0] = offset + _LINEAR
            into, offset = torch.ones(1), -_LINEAR
        potential.output.weight[0, 0] = 1.0
    return potential


# Image potentials ----------------------------------------------------------------------------------------------------

IMAGE_SHAPE = (1, 28, 28)
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
    "unet": ImageModel(*_U_NET, IMAGE_SHAPE, (48, (1, 2), 1), 2, 0.02, 0.825, True, "cpu"),
    "wide_resnet": ImageModel(*_WIDE_RESNET, IMAGE_SHAPE, (32, (1, 2, 2), 2), 1, 0.02, 0.825, True, "cpu"),
    # The backbone of `python -m benchmarks.studies.quality cifar10`.
    "unet_10m": ImageModel(*_U_NET, _COLOURS, (128, (1, 2, 2), 2)),
    "wide_resnet_10m": ImageModel(*_WIDE_RESNET, _COLOURS, (160, (1, 2, 2), 3)),
    "unet_50m": ImageModel(*_U_NET, _COLOURS, (256, (1, 2, 2), 2)),
    "wide_resnet_50m": ImageModel(*_WIDE_RESNET, _COLOURS, (288, (1, 2, 2), 4)),
}
"""The last four have at least as many parameters as their names say."""


def image_potential(name: str, data: Tensor, cache: Path) -> ImagePotential:
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
    passes, source = explicit_passes(model), as_source(data, IMAGE_SHAPE)
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


def batch_of(model: vf.Potential, source: Source, step: int, size: int, device: torch.device | str = "cpu") -> Batch:
    """A training batch."""
    return training_batch(
        source,
        step,
        homotopy=model.homotopy,
        seed=0,
        batch_size=size,
        time_sampling="log_noise",
        device=torch.device(device),
        dtype=torch.float32,
    )


def load_images(root: Path | None) -> tuple[str, Tensor]:
    """Fashion-MNIST's images, or as many smooth random ones; (name, (n, 1, 28, 28))."""
    try:
        data = vf.data.load("fashion-mnist", root=root, n=_IMAGES)
        return "fashion-mnist", torch.stack([data[i] for i in range(len(data))])
    except DataNotFoundError:
        return "blobs", blobs(IMAGE_SHAPE)


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
