"""The interface of data sets: finite, indexable collections of float32 events, read a batch at a time."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vapo_fast.core import checks

IndexArray = np.ndarray[Any, np.dtype[np.int64]]
Indices = Tensor | range | Sequence[int] | IndexArray


class DataNotFoundError(FileNotFoundError):
    """The files of a data set were not found; the message lists the folders searched and how to get the files."""


class DataFormatError(ValueError):
    """A data file is unsuitable: wrong magic number, truncated, wrong shape, NaN or unsafe pickle."""


class Dataset(torch.utils.data.Dataset[Tensor], ABC):
    """``n`` events of one shape. Images are (channels, height, width) with values in [-1, 1].

    ``dataset[i]`` is one event, ``dataset.batch(indices)`` a stack of them, ``dataset.labels`` the class of each
    event, int64 (n,), or None. Subclasses implement `_read`, and keep events in memory only if they say so.
    """

    def __init__(self, name: str, n: int, event_shape: Sequence[int]) -> None:
        self.name = name
        self.event_shape = checks.event_shape(event_shape)
        self._n = n

    @abstractmethod
    def _read(self, indices: IndexArray) -> Tensor:
        """The events at ``indices`` (int64, inside [0, n)), float32 of shape (B, *event_shape)."""

    @property
    def labels(self) -> Tensor | None:
        """The class of each event, int64 (n,), or None where the data has no classes."""
        return None

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: int) -> Tensor:
        """Event ``index``, float32 of shape ``event_shape``; IndexError outside [-n, n)."""
        position = int(index)
        if not -self._n <= position < self._n:
            raise IndexError(f"index must be in [-{self._n}, {self._n}) for data set {self.name!r}, got {position}")
        return self._read(np.array([position % self._n], dtype=np.int64))[0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(self._n))

    def batch(self, indices: Indices) -> Tensor:
        """The events at ``indices``, float32 (B, *event_shape).

        Args: indices: (B,) integers in [0, n), in any order, repeats allowed.
        Raises: TypeError for indices that are not integers, IndexError for one outside [0, n).
        """
        wanted = _as_indices(indices)
        if wanted.size and (int(wanted.min()) < 0 or int(wanted.max()) >= self._n):
            worst = int(wanted.min()) if int(wanted.min()) < 0 else int(wanted.max())
            raise IndexError(f"indices must be in [0, {self._n}) for data set {self.name!r}, got {worst}")
        if not wanted.size:
            return torch.empty(0, *self.event_shape)
        return self._read(wanted)

    def tensor(self) -> Tensor:
        """All events as one float32 tensor (n, *event_shape); MemoryError when that exceeds this machine's memory."""
        size = 4 * self._n * int(np.prod(self.event_shape))
        memory = _physical_memory()
        if memory is not None and size > memory:
            raise MemoryError(
                f"data set {self.name!r} would take {size / 2**30:.1f} GiB as one tensor and this machine has "
                f"{memory / 2**30:.1f} GiB; read it in parts with batch(indices), or load fewer with n="
            )
        return self.batch(range(self._n))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, n={self._n}, event_shape={self.event_shape})"


class ArrayDataset(Dataset):
    """Events held in one array, in memory or memory-mapped.

    ``array`` is (n, ...): uint8 images as (n, H, W), (n, C, H, W) or, with ``channels_last``, (n, H, W, C), scaled
    from 0..255 to [-1, 1]; or floating-point events, used as they are. ``image_size`` resizes images to a square of
    that side (bilinear with anti-aliasing). A batch with NaN or infinite entries raises DataFormatError.
    """

    def __init__(
        self,
        name: str,
        array: np.ndarray[Any, Any],
        *,
        labels: Tensor | None = None,
        channels_last: bool = False,
        image_size: int | None = None,
    ) -> None:
        if array.ndim < 2 or 0 in array.shape:
            raise DataFormatError(f"{name}: needs an array of shape (n, ...) with n >= 1 events, got {array.shape}")
        self._is_image = array.dtype == np.uint8
        if not self._is_image and array.dtype.kind != "f":
            raise DataFormatError(
                f"{name}: dtype must be uint8 (images, 0..255) or floating point (used as it is), got {array.dtype}"
            )
        if self._is_image and array.ndim not in (3, 4):
            raise DataFormatError(
                f"{name}: uint8 means images of shape (n, H, W), (n, C, H, W) or (n, H, W, C), got {array.shape}; "
                "save other data as floating point"
            )
        if image_size is not None and not self._is_image:
            raise ValueError(
                f"image_size applies to uint8 images, and {name} holds {array.dtype}; resize it beforehand"
            )
        if labels is not None and labels.shape != (array.shape[0],):
            raise DataFormatError(f"{name}: {array.shape[0]} events but labels of shape {tuple(labels.shape)}")
        self._array = array
        self._channels_last = channels_last and array.ndim == 4
        self._image_size = None if image_size is None else checks.positive_int("image_size", image_size)
        self._labels = labels
        shape = array.shape[1:]
        if self._is_image:
            channels, height, width = (1, *shape) if len(shape) == 2 else shape
            if self._channels_last:
                height, width, channels = shape
            shape = (channels, height, width) if image_size is None else (channels, image_size, image_size)
        super().__init__(name, array.shape[0], shape)

    @property
    def labels(self) -> Tensor | None:
        return self._labels

    def _read(self, indices: IndexArray) -> Tensor:
        rows = np.ascontiguousarray(self._array[indices])
        if self._is_image:
            images = torch.from_numpy(rows)
            if self._channels_last:
                images = images.permute(0, 3, 1, 2).contiguous()
            images = images.reshape(len(indices), -1, *images.shape[-2:])
            return resize(scale_bytes(images), self._image_size)
        events = torch.from_numpy(rows.astype(np.float32))
        finite = torch.isfinite(events).reshape(len(indices), -1).all(dim=1)
        if not bool(finite.all()):
            row = int(indices[int((~finite).nonzero()[0])])
            raise DataFormatError(f"{self.name}: event {row} has NaN or infinite entries; remove or repair it")
        return events


class Subset(Dataset):
    """The events of another data set at the given indices, in that order."""

    def __init__(self, parent: Dataset, indices: Indices) -> None:
        chosen = _as_indices(indices)
        if chosen.size == 0 or chosen.min() < 0 or chosen.max() >= len(parent):
            raise ValueError(f"indices must be one or more integers in [0, {len(parent)}), got {indices!r}")
        super().__init__(parent.name, len(chosen), parent.event_shape)
        self._parent = parent
        self._chosen = chosen

    @property
    def labels(self) -> Tensor | None:
        return None if self._parent.labels is None else self._parent.labels[torch.from_numpy(self._chosen)]

    def _read(self, indices: IndexArray) -> Tensor:
        return self._parent.batch(self._chosen[indices])


def of_classes(dataset: Dataset, classes: Sequence[int]) -> Subset:
    """The events of a labelled data set that are of the given classes, in their order; labels stay as they are.

    Raises ValueError for data without labels, no classes, or one that no event has.
    """
    if dataset.labels is None:
        raise ValueError(f"classes {list(classes)!r} cannot be chosen from {dataset.name!r}, which has no labels")
    wanted = [checks.non_negative_int("each class in classes", value) for value in classes]
    present = set(dataset.labels.tolist())
    missing = [value for value in wanted if value not in present]
    if missing or not wanted:
        known = ", ".join(map(str, sorted(present)))
        raise ValueError(f"classes must be one or more of {known}, the labels of {dataset.name!r}, got {wanted}")
    chosen = torch.isin(dataset.labels, torch.tensor(wanted))
    return Subset(dataset, chosen.nonzero().flatten())


class Mirrored(Dataset):
    """An image data set and its left-right mirror images: item ``i + n`` is item ``i`` mirrored.

    This is flip augmentation without hidden state: an index always gives the same event, so training stays
    reproducible and can be resumed.
    """

    def __init__(self, parent: Dataset) -> None:
        if len(parent.event_shape) != 3:
            raise ValueError(f"Mirrored needs images of shape (C, H, W), got event_shape {parent.event_shape}")
        super().__init__(parent.name, 2 * len(parent), parent.event_shape)
        self._parent = parent

    @property
    def labels(self) -> Tensor | None:
        return None if self._parent.labels is None else self._parent.labels.repeat(2)

    def _read(self, indices: IndexArray) -> Tensor:
        images = self._parent.batch(indices % len(self._parent))
        mirrored = torch.from_numpy(indices >= len(self._parent))
        return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def scale_bytes(images: Tensor) -> Tensor:
    """uint8 0..255 to float32 [-1, 1]: ``x / 127.5 - 1``, so that 0 and 255 reach the ends exactly."""
    return images.to(torch.float32).div_(127.5).sub_(1.0)


def resize(images: Tensor, image_size: int | None) -> Tensor:
    """(B, C, H, W) to (B, C, image_size, image_size), bilinear with anti-aliasing; None leaves the size."""
    if image_size is None or tuple(images.shape[-2:]) == (image_size, image_size):
        return images
    return torch.nn.functional.interpolate(images, (image_size, image_size), mode="bilinear", antialias=True).clamp_(
        -1, 1
    )


def _as_indices(indices: object) -> IndexArray:
    if isinstance(indices, Tensor):
        indices = indices.detach().cpu().numpy()
    array = np.asarray(indices)
    if array.size == 0:
        return np.empty(0, dtype=np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TypeError(f"indices must be one-dimensional integers, got shape {array.shape} and dtype {array.dtype}")
    return array.astype(np.int64)


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
