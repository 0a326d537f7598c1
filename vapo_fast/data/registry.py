"""`load`: one function from a name or a path to a data set."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from vapo_fast import noise
from vapo_fast.core import checks
from vapo_fast.data import arrays, cifar, digits, idx, images
from vapo_fast.data.base import DataNotFoundError, Dataset, Subset
from vapo_fast.data.toy import TOYS, Toy

ROOT_VARIABLE = "VAPO_FAST_DATA"
"""Environment variable with the folder that holds the users' data sets."""

_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_TOY_POINTS = 100_000

_SUBFOLDERS = {
    "fashion-mnist": (".", "fashion-mnist", "FashionMNIST/raw"),
    "cifar10": (".", "cifar-10-batches-py", "cifar10/cifar-10-batches-py"),
    "celeba": (".", "celeba"),
}
_READERS: dict[str, Callable[[list[Path], str, int | None], Dataset]] = {
    "fashion-mnist": idx.load_fashion_mnist,
    "cifar10": cifar.load_cifar10,
    "celeba": images.load_celeba,
}


def names() -> tuple[str, ...]:
    """Names that `load` accepts besides the path of an image folder or of a .npy, .npz or idx file."""
    return (*TOYS, "digits", *_READERS)


def load(
    name: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    split: str = "train",
    image_size: int | None = None,
    n: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Open a data set by its name, or by the path of its files. Nothing is downloaded.

    Names: ``8gaussians``, ``2moons``, ``checkerboard``, ``pinwheel``, ``swissroll`` (points (2,),
    `vapo_fast.data.toy`), ``digits``, ``fashion-mnist``, ``cifar10``, ``celeba``. Paths: a folder of images
    (`vapo_fast.data.images.load_folder`), a ``.npy`` or ``.npz`` file (`vapo_fast.data.arrays`), an idx file, plain
    or .gz, with its labels beside it. Images are (C, H, W) in [-1, 1].

    - ``root``: folder with the files of a named image set, or with a subfolder of its usual name. Default: the
      environment variable VAPO_FAST_DATA, then ``data`` in the current folder; for Fashion-MNIST also the folder of
      Debian's package.
    - ``split``: "train" or "test" ("valid" too for celeba).
    - ``image_size``: side of the square to which images are resized; None keeps them (celeba: 64).
    - ``n``: how many events: of files the first ``n`` of a shuffle by ``seed``, of a 2-D set the number generated
      (default 100 000).
    - ``seed``: of the shuffle for ``n``, or of the 2-D set.

    Raises: DataNotFoundError naming the folders searched and how to get the files; DataFormatError for damaged or
        unsuitable files; ValueError for an unknown name or split, or an ``n`` beyond the data's size.
    """
    wanted = os.fspath(name)
    splits = ("train", "valid", "test") if wanted == "celeba" else ("train", "test")
    checks.one_of("split", split, splits)
    checks.non_negative_int("seed", seed)
    if n is not None:
        checks.positive_int("n", n)
    if image_size is not None:
        checks.positive_int("image_size", image_size)
    if wanted in TOYS:
        if image_size is not None:
            raise ValueError(f"image_size applies to images, and {wanted!r} holds points in the plane; leave it out")
        return Toy(wanted, n=_TOY_POINTS if n is None else n, seed=seed, split=split)
    dataset = _open(wanted, root, split, image_size)
    if n is None:
        return dataset
    if n > len(dataset):
        raise ValueError(f"n must be at most {len(dataset)}, the size of {wanted!r} ({split}), got {n}")
    return Subset(dataset, noise.permutation(seed, len(dataset), 0)[:n])


def _open(name: str, root: str | os.PathLike[str] | None, split: str, image_size: int | None) -> Dataset:
    if name == "digits":
        return digits.load_digits(split, image_size)
    if name in _READERS:
        return _READERS[name](_places(name, root), split, image_size)
    path = Path(name).expanduser()
    if path.is_dir():
        return images.load_folder(path, split, image_size)
    if path.is_file():
        return _open_file(path, split, image_size)
    if path.suffix or os.sep in name:
        raise DataNotFoundError(
            f"no file or folder at {path.absolute()}; pass an existing image folder, .npy, .npz or idx file, "
            f"or one of the names {', '.join(names())}"
        )
    raise ValueError(
        f"name must be one of {', '.join(map(repr, names()))}, or the path of a folder or file; got {name!r}"
    )


def _open_file(path: Path, split: str, image_size: int | None) -> Dataset:
    if path.suffix == ".npy":
        return arrays.load_npy(path, split, image_size)
    if path.suffix == ".npz":
        return arrays.load_npz(path, split, image_size)
    if "idx" in path.name or "ubyte" in path.name:
        if split != "train":
            raise ValueError(
                f"split must be 'train' for the single file {path}; pass the path of the {split} file instead"
            )
        return idx.open_images(path, idx.labels_beside(path), str(path), image_size)
    raise ValueError(
        f"name must end in .npy, .npz, or be an idx file (like train-images-idx3-ubyte.gz) or a folder; got {path}"
    )


def _places(name: str, root: str | os.PathLike[str] | None) -> list[Path]:
    """Folders in which the files of a named set may lie, in the order of the search."""
    if root is not None:
        roots = [Path(root).expanduser()]
    else:
        variable = os.environ.get(ROOT_VARIABLE)
        roots = [Path(variable).expanduser()] if variable else []
        roots.append(Path("data"))
    places = [base / sub for base in roots for sub in _SUBFOLDERS[name]]
    return [*places, _DEBIAN] if name == "fashion-mnist" and root is None else places
