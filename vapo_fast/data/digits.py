"""scikit-learn's 1 797 handwritten digits, 8 x 8, which need no download."""

from __future__ import annotations

import numpy as np
import torch

from vapo_fast.data.base import ArrayDataset, DataNotFoundError, resize


def load_digits(split: str, image_size: int | None = None) -> ArrayDataset:
    """Digits as (1, 8, 8) in [-1, 1] with labels 0..9; 1 437 of "train" and 360 of "test".

    The split is fixed and needs no random generator: of the images, stably sorted by label, the first and every fifth
    after it are for testing. Each class keeps its share to within one image. ``image_size`` resizes, bilinear.
    """
    try:
        from sklearn.datasets import load_digits as read
    except ImportError as error:
        raise DataNotFoundError("data set 'digits' comes with scikit-learn: pip install scikit-learn") from error
    bunch = read()
    order = np.argsort(bunch.target, kind="stable")
    in_test = np.arange(len(order)) % 5 == 0
    rows = np.sort(order[in_test if split == "test" else ~in_test])
    images = torch.from_numpy(bunch.images[rows].astype(np.float32) / 8 - 1)[:, None]
    labels = torch.from_numpy(bunch.target[rows].astype(np.int64))
    return ArrayDataset("digits", resize(images, image_size).numpy(), labels=labels)
