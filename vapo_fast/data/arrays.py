"""Arrays saved by numpy: .npy files are memory-mapped, .npz archives read into memory."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vapo_fast.data.base import ArrayDataset, DataFormatError

_CHUNK_BYTES = 2**26


def load_npy(path: Path, split: str, image_size: int | None) -> ArrayDataset:
    """Open a .npy file, memory-mapped.

    It holds uint8 images (n, H, W), (n, H, W, C) or (n, C, H, W), or floating-point events (n, ...), used as they are.
    A uint8 array counts as channels last if its last size is 1 or 3 and its second is not. Every event is checked once
    for NaN and infinity; the file is read in parts.

    Raises: ValueError for split "test", as one file has no splits; DataFormatError for an unsuitable file.
    """
    if split != "train":
        raise ValueError(f"split must be 'train' for the single file {path}; pass the path of the {split} file instead")
    _check_magic(path, b"\x93NUMPY", ".npy array")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataFormatError(f"{path}: is not a .npy array that can be read ({error})") from error
    return _dataset(path, array, None, image_size)


def load_npz(path: Path, split: str, image_size: int | None) -> ArrayDataset:
    """Read a .npz archive into memory.

    Events are under ``x_train`` or ``x_test``; for "train" also under ``x``, ``data``, ``images`` or ``arr_0``, or they
    are the only array. Class labels are under ``y_train`` or ``y_test``, or ``y`` or ``labels``. Arrays and errors are
    those of `load_npy`.
    """
    _check_magic(path, b"PK", ".npz archive")
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = list(archive.files)
            events, labels = _members(path, names, split)
            array = archive[events]
            classes = None if labels is None else archive[labels]
    except DataFormatError:
        raise
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataFormatError(f"{path}: is not a .npz archive that can be read ({error})") from error
    return _dataset(path, array, classes, image_size)


def _check_magic(path: Path, magic: bytes, kind: str) -> None:
    """DataFormatError unless the file begins with ``magic``: numpy would report any other file as a pickle."""
    with path.open("rb") as file:
        start = file.read(len(magic))
    if start != magic:
        raise DataFormatError(f"{path}: is not a {kind} that can be read (it starts with {start!r}, not {magic!r})")


def _members(path: Path, names: list[str], split: str) -> tuple[str, str | None]:
    wanted = [f"x_{split}"] + (["x", "data", "images", "arr_0"] if split == "train" else [])
    events = next((name for name in wanted if name in names), None)
    if events is None and split == "train" and len(names) == 1:
        events = names[0]
    if events is None:
        raise DataFormatError(
            f"{path}: no array for split {split!r} under {', '.join(wanted)}; it holds {', '.join(names) or 'nothing'}"
        )
    kinds = [f"y_{split}"] if events == f"x_{split}" else ["y", "labels"]
    return events, next((name for name in kinds if name in names), None)


def _dataset(
    path: Path, array: np.ndarray[Any, Any], classes: np.ndarray[Any, Any] | None, image_size: int | None
) -> ArrayDataset:
    labels = None
    if classes is not None:
        if classes.dtype.kind not in "iu":
            raise DataFormatError(f"{path}: labels must be integers, got {classes.dtype}")
        labels = torch.from_numpy(classes.reshape(-1).astype(np.int64))
    last = array.ndim == 4 and array.shape[-1] in (1, 3) and array.shape[1] not in (1, 3)
    dataset = ArrayDataset(str(path), array, labels=labels, channels_last=last, image_size=image_size)
    if array.dtype.kind == "f":
        rows = max(1, _CHUNK_BYTES // max(1, array.nbytes // len(array)))
        for start in range(0, len(array), rows):
            part = np.asarray(array[start : start + rows])
            bad = ~np.isfinite(part).reshape(len(part), -1).all(axis=1)
            if bad.any():
                raise DataFormatError(
                    f"{path}: event {start + int(bad.argmax())} has NaN or infinite entries; remove or repair it"
                )
    return dataset
