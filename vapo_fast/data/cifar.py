"""CIFAR-10 in its Python version, whose pickles are read without running code from them."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vapo_fast.data.base import ArrayDataset, DataFormatError, DataNotFoundError

_BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}


def load_cifar10(folders: list[Path], split: str, image_size: int | None) -> ArrayDataset:
    """CIFAR-10 as (3, 32, 32), held in memory as bytes (154 MB for "train").

    Raises: DataNotFoundError naming every folder searched; DataFormatError for a batch that is damaged or holds
        anything but arrays.
    """
    names = _BATCHES[split]
    for folder in folders:
        if all((folder / name).is_file() for name in names):
            break
    else:
        raise DataNotFoundError(
            f"data set 'cifar10' ({split}): {', '.join(names)} are in none of {', '.join(map(str, folders))}. Take "
            "cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html, unpack it, and pass the folder "
            "that holds cifar-10-batches-py as root= or in $VAPO_FAST_DATA"
        )
    batches = [_read_batch(folder / name) for name in names]
    images = np.concatenate([data for data, _ in batches]).reshape(-1, 3, 32, 32)
    labels = torch.from_numpy(np.concatenate([labels for _, labels in batches]))
    return ArrayDataset("cifar10", images, labels=labels, image_size=image_size)


def _read_batch(path: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    try:
        batch = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except DataFormatError as error:
        raise DataFormatError(f"{path}: {error}") from error
    # The unpickler may raise almost any exception on a damaged file.
    except Exception as error:
        raise DataFormatError(f"{path}: damaged or truncated ({error}); unpack the archive again") from error
    if not isinstance(batch, dict):
        raise DataFormatError(f"{path}: expected a dictionary with b'data' and b'labels', found {type(batch).__name__}")
    data = batch.get(b"data", batch.get("data"))
    labels = batch.get(b"labels", batch.get("labels"))
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise DataFormatError(f"{path}: b'data' must be a uint8 array of shape (n, 3072)")
    if not isinstance(labels, list) or len(labels) != len(data) or not all(type(label) is int for label in labels):
        raise DataFormatError(f"{path}: b'labels' must be a list of {len(data)} integers, one for each image")
    return data, np.array(labels, dtype=np.int64)


class _ArraysOnly(pickle.Unpickler):
    """Unpickles containers, numbers, bytes and numpy arrays, and refuses any other name before importing it."""

    def find_class(self, module: str, name: str) -> Any:
        top, _, rest = module.partition(".")
        # numpy renamed its private package from core to _core in version 2; files of both ages are read by either.
        if top == "numpy" and rest.removeprefix("_") == "core.multiarray" and name == "_reconstruct":
            return _empty_array
        if top == "numpy" and rest.removeprefix("_") == "core.numeric" and name == "_frombuffer":
            return _array_from_buffer
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if module == "_codecs" and name == "encode":
            return _latin1_bytes
        raise DataFormatError(
            f"holds {module}.{name}, which is neither an array nor a plain container; refused to load it"
        )


def _empty_array(kind: object, shape: tuple[int, ...], typecode: bytes) -> np.ndarray[Any, Any]:
    """Replace numpy's `_reconstruct`; the pickled state fills the array afterwards."""
    if kind is not np.ndarray:
        raise DataFormatError("holds an array of an unknown kind")
    return np.ndarray.__new__(np.ndarray, (0,), np.uint8)


def _array_from_buffer(
    buffer: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], order: str, *_: object
) -> np.ndarray[Any, Any]:
    """Replace numpy's `_frombuffer`, which pickles of protocol 5 call."""
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order="F" if order == "F" else "C")


def _latin1_bytes(text: str, encoding: object) -> bytes:
    """Replace `codecs.encode`, by which Python 3 writes bytes in protocol 2; only latin1 is allowed."""
    if encoding not in ("latin1", b"latin1"):
        raise DataFormatError(f"holds text in codec {encoding!r}, expected latin1")
    return text.encode("latin1")
