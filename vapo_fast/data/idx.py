"""The idx format of MNIST and its relatives: a magic number, big-endian sizes, then raw values."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from vapo_fast.data.base import ArrayDataset, DataFormatError, DataNotFoundError

# Fashion-MNIST's training images are 45 MiB decompressed. Larger content is better memory-mapped from a raw file.
LARGEST_DECOMPRESSED = 2 * 2**30
"""Largest content, in bytes, of a .gz that `read_idx` decompresses into memory."""

_UNSIGNED_BYTE = 0x08


def read_idx(path: str | Path) -> np.ndarray[Any, Any]:
    """The uint8 array of an idx file: memory-mapped if plain, decompressed into memory if gzip.

    Raises: DataFormatError for a wrong magic number, a value type other than unsigned bytes, a truncated or overlong
        file, a damaged gzip stream, or a .gz whose header announces more than `LARGEST_DECOMPRESSED`;
        FileNotFoundError for a missing file.
    """
    path = Path(path)
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    if not compressed:
        with path.open("rb") as file:
            shape, offset = _header(file, path)
        size, expected = path.stat().st_size, offset + math.prod(shape)
        if size != expected:
            raise DataFormatError(_wrong_size(path, shape, size - offset))
        return np.memmap(path, dtype=np.uint8, mode="r", offset=offset, shape=shape)
    try:
        with gzip.open(path, "rb") as file:
            shape, _ = _header(file, path)
            count = math.prod(shape)
            if count > LARGEST_DECOMPRESSED:
                raise DataFormatError(
                    f"{path}: holds {count / 2**30:.1f} GiB decompressed, more than the "
                    f"{LARGEST_DECOMPRESSED / 2**30:.0f} GiB that are read into memory; decompress it with "
                    "gunzip and the raw file is memory-mapped"
                )
            content = file.read(count + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataFormatError(
            f"{path}: the gzip stream is truncated or damaged ({error}); fetch the file again"
        ) from error
    if len(content) != count:
        raise DataFormatError(_wrong_size(path, shape, len(content)))
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def open_images(images: Path, labels: Path | None, name: str, image_size: int | None = None) -> ArrayDataset:
    """A data set of (1, H, W) events from an idx file of images (n, H, W) and, if given, one of labels."""
    array = read_idx(images)
    if array.ndim != 3:
        raise DataFormatError(f"{images}: expected images, three sizes (n, H, W), found {array.shape}")
    return ArrayDataset(name, array, labels=None if labels is None else read_labels(labels), image_size=image_size)


def read_labels(path: Path) -> Tensor:
    """Labels (n,) int64 of an idx file; DataFormatError when it is not one-dimensional."""
    array = read_idx(path)
    if array.ndim != 1:
        raise DataFormatError(f"{path}: expected labels, one size (n,), found {array.shape}")
    return torch.from_numpy(array.astype(np.int64))


def find_pair(folder: Path, split: str) -> tuple[Path, Path] | None:
    """The files of a split's images and labels in ``folder``, plain before .gz; None unless both exist."""
    stem = "train" if split == "train" else "t10k"
    found = []
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        names = [f"{stem}-{kind}", f"{stem}-{kind.replace('-idx', '.idx')}"]
        matches = [folder / (name + ending) for ending in ("", ".gz") for name in names]
        matches = [path for path in matches if path.is_file()]
        if not matches:
            return None
        found.append(matches[0])
    return found[0], found[1]


def labels_beside(images: Path) -> Path | None:
    """The labels file of an images file by its name (``images-idx3`` to ``labels-idx1``, plain or .gz), or None."""
    stem = images.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    if stem == images.name.removesuffix(".gz"):
        return None
    return next((path for path in (images.parent / stem, images.parent / f"{stem}.gz") if path.is_file()), None)


def load_fashion_mnist(folders: list[Path], split: str, image_size: int | None) -> ArrayDataset:
    """Fashion-MNIST from the first of ``folders`` that has the split; DataNotFoundError naming them all otherwise."""
    for folder in folders:
        pair = find_pair(folder, split)
        if pair is not None:
            return open_images(*pair, name="fashion-mnist", image_size=image_size)
    stem = "train" if split == "train" else "t10k"
    raise DataNotFoundError(
        f"data set 'fashion-mnist' ({split}): {stem}-images-idx3-ubyte and {stem}-labels-idx1-ubyte (plain or .gz) "
        f"are in none of {', '.join(map(str, folders))}. On Debian and Ubuntu: apt-get install dataset-fashion-mnist. "
        "Elsewhere: take the four .gz files from https://github.com/zalandoresearch/fashion-mnist and pass their "
        "folder as root=, or put them into $VAPO_FAST_DATA/fashion-mnist"
    )


def _header(file: BinaryIO | gzip.GzipFile, path: Path) -> tuple[tuple[int, ...], int]:
    """Shape and length in bytes of the header: two zero bytes, value type, number of sizes, the sizes."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[3] == 0:
        raise DataFormatError(
            f"{path}: not an idx file: it starts with {magic!r} instead of two zero bytes, a type and a rank"
        )
    if magic[2] != _UNSIGNED_BYTE:
        raise DataFormatError(f"{path}: idx value type 0x{magic[2]:02x} is not supported, only unsigned bytes (0x08)")
    rank = magic[3]
    sizes = file.read(4 * rank)
    if len(sizes) < 4 * rank:
        raise DataFormatError(f"{path}: truncated inside its header of {rank} sizes")
    shape = struct.unpack(f">{rank}I", sizes)
    if 0 in shape:
        raise DataFormatError(f"{path}: declares no values, shape {shape}")
    return shape, 4 + 4 * rank


def _wrong_size(path: Path, shape: tuple[int, ...], found: int) -> str:
    expected = math.prod(shape)
    what = "is truncated" if found < expected else "has bytes after its end"
    return f"{path}: {what}: shape {shape} needs {expected} bytes, found {found if found < expected else 'more'}"
