"""Data sets with the backbone and the optimiser's settings that every arm shares on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.studies.quality.flow_matching import VelocityUNet
from benchmarks.studies.quality.group_norm import normalise
from vapo_fast.homotopy import DataHomotopy, Homotopy, LinearHomotopy
from vapo_fast.loss import Weight
from vapo_fast.potentials import UNetPotential, WideResNetPotential
from vapo_fast.potentials.image import ImagePotential
from vapo_fast.training.options import TrainingOptions

ARMS = ("potential", "flow matching", "flow matching, plain", "potential, wide ResNet")
"""The project's potential; a velocity in its gauge; one as usually written, without.

The last is a potential with another backbone, the family of the paper: one number pooled from an encoder's features.
"""


@dataclass(frozen=True)
class Setting:
    """What is the same for every arm.

    Attributes:
        data: a name or path for `vapo_fast.data.load`; ``image_size`` as for `vapo-fast train`.
        mirror: flip images at random, on the device.
        channels, multipliers, blocks, patch_size, data_scale: of the U-Net.
        wide_blocks: of the wide residual network; its channels and multipliers are the U-Net's.
        sigma: noise left at the path's end.
        batch_size, lr, ema_decay, warmup_steps: of the optimiser.
        rates: learning rates of arms that need another.
        samples, rtol: how many samples are scored, and how exactly they are integrated.
        extractor: features of the Frechet distance; "cnn" is trained on the data.
        cnn_epochs: of that classifier.
        weight: of the loss of the arms in the gauge; None for the path's balanced one.
        linear: all arms are on the linear path, with its uniform times; else only the plain one is, and the others are
            on `DataHomotopy`, with times uniform in the noise's logarithm.
        potential: the potential's class, a `UNetPotential`.
        group_norm: the U-Nets' blocks are normalised (`group_norm`), which leaves no explicit passes to a potential.
    """

    data: str
    channels: int
    multipliers: tuple[float, ...]
    blocks: int
    batch_size: int
    lr: float
    ema_decay: float
    sigma: float
    data_scale: float
    samples: int
    patch_size: int = 1
    image_size: int | None = None
    mirror: bool = False
    rtol: float = 1e-3
    extractor: str = "cnn"
    cnn_epochs: int = 3
    warmup_steps: int = 100
    wide_blocks: int = 3
    rates: Mapping[str, float] = field(default_factory=dict)
    weight: Weight | None = None
    linear: bool = True
    potential: type[UNetPotential] = UNetPotential
    group_norm: bool = False


SETTINGS: dict[str, Setting] = {
    "digits": Setting(
        "digits", 32, (1, 2), 1, 16, 2e-3, 0.998, sigma=0.02, data_scale=0.75, samples=360, rtol=1e-4, cnn_epochs=10
    ),
    "fashion-mnist": Setting(
        "fashion-mnist",
        48,
        (1, 2),
        1,
        16,
        2e-3,
        0.999,
        sigma=0.02,
        data_scale=0.825,
        samples=2000,
        patch_size=2,
        # At 2e-3 one seed of two was lost.
        rates={ARMS[2]: 1e-3},
    ),
    "cifar10": Setting(
        "cifar10",
        128,
        (1, 2, 2),
        2,
        128,
        4e-4,
        0.9995,
        sigma=0.01,
        data_scale=0.5,
        samples=10_000,
        mirror=True,
        extractor="efficientnet-lite0",
    ),
    "celeba": Setting(
        "celeba",
        96,
        (1, 2, 2, 2),
        2,
        64,
        4e-4,
        0.9995,
        sigma=0.01,
        data_scale=0.55,
        samples=10_000,
        image_size=64,
        mirror=True,
        extractor="efficientnet-lite0",
    ),
}


def path_of(arm: str, setting: Setting) -> Homotopy:
    """The probability path of an arm."""
    linear = setting.linear or arm == ARMS[2]
    return LinearHomotopy(t1=1.0 - setting.sigma) if linear else DataHomotopy(sigma=setting.sigma)


def network_of(arm: str, setting: Setting, event_shape: tuple[int, ...]) -> ImagePotential | VelocityUNet:
    """The untrained network of an arm; all but the wide residual network have the same layers."""
    path, backbone = path_of(arm, setting), (setting.channels, setting.multipliers, setting.blocks)
    sizes = {"patch_size": setting.patch_size, "data_scale": setting.data_scale}
    if arm == ARMS[3]:
        wide = (setting.channels, setting.multipliers, setting.wide_blocks)
        return WideResNetPotential(event_shape, path, *wide, **sizes)
    network: UNetPotential | VelocityUNet
    if arm == ARMS[0]:
        network = setting.potential(event_shape, path, *backbone, **sizes)
    else:
        network = VelocityUNet(event_shape, path, *backbone, gauge=arm == ARMS[1], **sizes)
    if setting.group_norm:
        normalise(network)
    return network


def options_of(arm: str, setting: Setting, seed: int) -> TrainingOptions:
    """The optimiser's options: alike for all, but for `Setting.rates`, and the weight and times that suit a path."""
    path = path_of(arm, setting)
    weight = path.balanced_weight if setting.weight is None or arm == ARMS[2] else setting.weight
    return TrainingOptions(
        lr=setting.rates.get(arm, setting.lr),
        batch_size=setting.batch_size,
        ema_decay=setting.ema_decay,
        warmup_steps=setting.warmup_steps,
        weight=weight,
        time_sampling="uniform" if isinstance(path, LinearHomotopy) else "log_noise",
        seed=seed,
        augment="flip" if setting.mirror else None,
    )
