"""Folders of image files, decoded a batch at a time; only their names are kept in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vapo_fast.core import checks
from vapo_fast.data.base import DataFormatError, DataNotFoundError, Dataset, IndexArray, scale_bytes

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
"""File name endings that count as images, in upper or lower case."""

# Enough files to tell a grey folder or mixed sizes without opening all files. Decoding checks each file again.
_PROBED = 64
_GREY_MODES = ("1", "L")


class ImageFolder(Dataset):
    """Image files as (C, H, W) in [-1, 1], decoded on demand.

    Rotation marks of cameras are applied, and transparency is dropped.

    Args:
        paths: the files, in the order of the indices.
        name: of the data set.
        image_size: the shorter side is resized to it and the centre cut out; None asks for images of one size.
        labels: (n,) int64 classes, or None.
        crop: side in pixels of a central square that is taken first.
        channels: 1 or 3; None is 1 if the first images and a sample of the others are all grey, else 3.
    Raises: DataFormatError naming a file that cannot be decoded or does not fit; ValueError for no paths or a bad size.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        name: str,
        image_size: int | None = None,
        labels: Tensor | None = None,
        crop: int | None = None,
        channels: int | None = None,
    ) -> None:
        if not paths:
            raise ValueError("paths must name at least one image, got none")
        if channels not in (None, 1, 3):
            raise ValueError(f"channels must be 1, 3 or None, got {channels!r}")
        self._paths = [str(path) for path in paths]
        self._labels = labels
        self._image_size = None if image_size is None else checks.positive_int("image_size", image_size)
        self._crop = None if crop is None else checks.positive_int("crop", crop)
        # The first batch's files and an even spread over the rest.
        probed = dict.fromkeys([*self._paths[:8], *self._paths[:: max(1, len(self._paths) // _PROBED)]])
        opened = {path: _open(path) for path in probed}
        grey = all(image.mode in _GREY_MODES for image in opened.values())
        self._channels = channels if channels is not None else (1 if grey else 3)
        self._channels_given = channels is not None
        width, height = next(iter(opened.values())).size
        self._size = (self._image_size or self._crop or height, self._image_size or self._crop or width)
        for path, image in opened.items():
            self._check_size(path, image.size)
        super().__init__(name, len(self._paths), (self._channels, *self._size))

    @property
    def labels(self) -> Tensor | None:
        return self._labels

    def _read(self, indices: IndexArray) -> Tensor:
        files = [self._paths[i] for i in indices]
        workers = min(torch.get_num_threads(), len(files) // 8)
        if workers < 2:
            decoded = [self._decode(file) for file in files]
        else:
            with ThreadPoolExecutor(workers) as pool:
                decoded = list(pool.map(self._decode, files))
        pixels = torch.from_numpy(np.stack(decoded))
        return scale_bytes(pixels.permute(0, 3, 1, 2).contiguous())

    def _decode(self, path: str) -> np.ndarray[Any, Any]:
        """One image, uint8 (H, W, C)."""
        from PIL import Image

        image = _open(path)
        self._check_size(path, image.size)
        if self._channels == 1 and not self._channels_given and image.mode not in _GREY_MODES:
            raise DataFormatError(
                f"{path}: has colours (mode {image.mode}), while the images looked at first are all grey; convert "
                "the folder to one mode, or make an ImageFolder with channels=1 or channels=3"
            )
        try:
            image = image.convert("L" if self._channels == 1 else "RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise DataFormatError(f"{path}: cannot be read as an image ({error}); remove or repair the file") from error
        if self._crop is not None:
            image = _centre(image, self._crop, self._crop)
        if self._image_size is not None:
            scale = self._image_size / min(image.size)
            size = (
                max(self._image_size, round(image.width * scale)),
                max(self._image_size, round(image.height * scale)),
            )
            image = image.resize(size, Image.Resampling.BILINEAR) if size != image.size else image
            image = _centre(image, self._image_size, self._image_size)
        return np.asarray(image, dtype=np.uint8).reshape(*self._size, self._channels)

    def _check_size(self, path: str, size: tuple[int, int]) -> None:
        if self._crop is not None:
            if min(size) < self._crop:
                raise DataFormatError(f"{path}: is {size[0]} x {size[1]}, too small for a central crop of {self._crop}")
        elif self._image_size is None and size != (self._size[1], self._size[0]):
            raise DataFormatError(
                f"{path}: is {size[0]} x {size[1]} while {self._paths[0]} is {self._size[1]} x {self._size[0]}; "
                "pass image_size= to bring all to one size"
            )


def load_folder(folder: Path, split: str, image_size: int | None) -> ImageFolder:
    """All images under ``folder/split`` if that folder exists, else, for split "train", under ``folder`` itself.

    Subfolders are classes, numbered in alphabetic order; without subfolders there are no labels.

    Raises: DataNotFoundError if there are no images or no "test" folder; DataFormatError if images lie both in the
        top folder and in subfolders.
    """
    root = folder / split if (folder / split).is_dir() else folder
    if root is folder and split != "train":
        raise DataNotFoundError(f"image folder {folder}: has no subfolder {split!r} to serve split={split!r}")
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    top = _images_in(root)
    members = {name: _images_below(root / name) for name in classes}
    members = {name: paths for name, paths in members.items() if paths}
    if top and members:
        raise DataFormatError(
            f"image folder {root}: has images both beside and inside its subfolders ({', '.join(list(members)[:3])}); "
            "keep either one folder of images or one subfolder for each class"
        )
    if not top and not members:
        raise DataNotFoundError(
            f"image folder {root}: has no images (looked for {', '.join(SUFFIXES)}, in it and its subfolders)"
        )
    paths = top or [path for name in members for path in members[name]]
    labels = None if top else torch.cat([torch.full((len(found),), i) for i, found in enumerate(members.values())])
    return ImageFolder(paths, name=folder.name, image_size=image_size, labels=labels)


def load_celeba(folders: list[Path], split: str, image_size: int | None) -> ImageFolder:
    """CelebA's aligned images: the central 140 x 140 pixels resized to ``image_size`` (default 64).

    Splits are "train", "valid" and "test".

    Raises: DataNotFoundError naming every folder searched, or the first missing image; DataFormatError for a malformed
        partition list.
    """
    number = {"train": "0", "valid": "1", "test": "2"}[split]
    for folder in folders:
        partition = folder / "list_eval_partition.txt"
        if partition.is_file() and (folder / "img_align_celeba").is_dir():
            break
    else:
        raise DataNotFoundError(
            "data set 'celeba': img_align_celeba/ and list_eval_partition.txt are in none of "
            f"{', '.join(map(str, folders))}. Take 'Align&Cropped Images' and 'Train/Val/Test Partitions' from "
            "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html, unpack them into one folder, and pass it as root= or "
            "as $VAPO_FAST_DATA/celeba"
        )
    names = []
    for row, line in enumerate(partition.read_text(encoding="ascii", errors="replace").splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2 or fields[1] not in ("0", "1", "2") or Path(fields[0]).name != fields[0]:
            raise DataFormatError(f"{partition}: line {row} must be 'FILE 0|1|2', got {line[:80]!r}")
        if fields[1] == number:
            names.append(fields[0])
    if not names:
        raise DataFormatError(f"{partition}: lists no image of split {split!r} (number {number})")
    images = folder / "img_align_celeba"
    with os.scandir(images) as entries:
        present = {entry.name for entry in entries}
    missing = [name for name in names if name not in present]
    if missing:
        raise DataNotFoundError(
            f"data set 'celeba' ({split}): {len(missing)} of {len(names)} images are not in {images}, "
            f"the first {missing[0]}; unpack again"
        )
    return ImageFolder(
        [images / name for name in names],
        name="celeba",
        image_size=64 if image_size is None else image_size,
        crop=140,
        channels=3,
    )


def _images_in(folder: Path) -> list[Path]:
    return sorted(Path(entry.path) for entry in os.scandir(folder) if _is_image(entry.name) and entry.is_file())


def _images_below(folder: Path) -> list[Path]:
    return sorted(Path(place) / file for place, _, files in os.walk(folder) for file in files if _is_image(file))


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _open(path: str) -> Any:
    """An upright PIL image whose pixels may not have been read yet."""
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise DataNotFoundError("image files need Pillow: pip install pillow") from error
    try:
        # The file stays open until its pixels are read. Closing it here would make every probe a full decode.
        image = Image.open(path)
        ImageOps.exif_transpose(image, in_place=True)
    except FileNotFoundError as error:
        raise DataNotFoundError(f"{path}: no such image; was it removed while the data set was in use?") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DataFormatError(f"{path}: cannot be read as an image ({error}); remove or repair the file") from error
    return image


def _centre(image: Any, width: int, height: int) -> Any:
    left, upper = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, upper, left + width, upper + height))
