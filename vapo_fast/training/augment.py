"""Random changes of training images, made where the images are: a function of (seed, sample number) alone."""

from __future__ import annotations

import torch
from torch import Tensor

from vapo_fast import noise
from vapo_fast.core import checks
from vapo_fast.noise import Stream

AUGMENTATIONS = ("flip",)


def check_augment(name: object, event_shape: tuple[int, ...]) -> None:
    """ValueError unless ``name`` is None, or one of `AUGMENTATIONS` and events are images (C, H, W)."""
    if name is None:
        return
    checks.one_of("augment", name, AUGMENTATIONS)
    if len(event_shape) != 3:
        raise ValueError(
            f"augment={name!r} is for images, events of shape (C, H, W); this model has event_shape {event_shape}"
        )


def augmented(images: Tensor, name: str | None, seed: int, samples: range) -> Tensor:
    """The images (B, C, H, W), changed as ``name`` says.

    "flip": image i is mirrored left to right if draw ``samples[i]`` of the stream AUGMENT is below 1/2.

    Args:
        images: one for each number in ``samples``.
        name: one of `AUGMENTATIONS`, or None for the images as they are.
        seed: as for `vapo_fast.noise.uniform`.
        samples: numbers of the images in the run.
    """
    if name is None:
        return images
    # In float64 the draw is exact, so that the choice does not depend on a dtype.
    draws = noise.uniform(seed, samples, (1, 1, 1), stream=Stream.AUGMENT, dtype=torch.float64, device=images.device)
    return torch.where(draws < 0.5, images.flip(-1), images)
