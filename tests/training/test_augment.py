"""Flips: which images, by what numbers, and what is refused."""

from __future__ import annotations

import pytest
import torch

from vapo_fast import noise
from vapo_fast.noise import Stream
from vapo_fast.training.augment import augmented, check_augment


def flipped(images: torch.Tensor, seed: int, samples: range) -> torch.Tensor:
    """Which images were mirrored; the others must be as they were."""
    result = augmented(images, "flip", seed, samples)
    mirrored = (result == images.flip(-1)).flatten(1).all(1)
    assert torch.equal(mirrored, ~(result == images).flatten(1).all(1))
    assert result.dtype == images.dtype
    return mirrored


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_image_is_mirrored_by_the_draw_of_its_sample_number(dtype: torch.dtype) -> None:
    images = torch.randn(64, 3, 4, 6).to(dtype)
    kept = images.clone()
    samples = range(1000, 1064)
    which = flipped(images, 7, samples)
    assert torch.equal(images, kept)
    draws = noise.uniform(7, samples, (), stream=Stream.AUGMENT, dtype=torch.float64)
    assert torch.equal(which, draws < 0.5)
    # The same samples in other batches, in parts, and at another place in memory.
    assert torch.equal(flipped(images[20:50].clone(), 7, range(1020, 1050)), which[20:50])
    assert torch.equal(flipped(images.to(memory_format=torch.channels_last), 7, samples), which)
    assert not torch.equal(flipped(images, 8, samples), which)
    assert not torch.equal(flipped(images, 7, range(1064, 1128)), which)


def test_half_of_all_images_are_mirrored_independently() -> None:
    which = flipped(torch.randn(20_000, 1, 1, 2), 0, range(20_000)).double()
    # Four standard errors of a fair coin, of its value and of its correlation with the next one.
    assert abs(float(which.mean()) - 0.5) < 4 * 0.5 / 20_000**0.5
    centred = which - 0.5
    assert abs(float((centred[1:] * centred[:-1]).mean())) < 4 * 0.25 / 20_000**0.5
    # A draw of its own: not that of a sample's time.
    times = noise.uniform(0, range(20_000), (), stream=Stream.TRAIN_TIME, dtype=torch.float64) - 0.5
    assert abs(float((centred * times).mean())) < 4 * 0.5 * 12**-0.5 / 20_000**0.5


def test_without_augmentation_images_are_handed_on() -> None:
    images = torch.randn(3, 1, 2, 2)
    assert augmented(images, None, 0, range(3)) is images


def test_what_is_not_an_image_is_refused() -> None:
    check_augment("flip", (3, 8, 8))
    check_augment(None, (2,))
    with pytest.raises(ValueError, match=r"augment='flip' is for images, events of shape \(C, H, W\); .* \(2,\)"):
        check_augment("flip", (2,))
    with pytest.raises(ValueError, match="augment must be one of 'flip', got 'crop'"):
        check_augment("crop", (3, 8, 8))
