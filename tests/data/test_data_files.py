"""idx and CIFAR-10 files, whole and damaged."""

import gzip
import os
import pickle
import struct

import numpy as np
import pytest
import torch

from vapo_fast import data
from vapo_fast.data import idx


def idx_bytes(array):
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def images(n=7, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 5, 4), dtype=np.uint8)


def write_fashion(folder, compressed, n=7):
    folder.mkdir(parents=True, exist_ok=True)
    for stem, seed in (("train", 0), ("t10k", 1)):
        for kind, array in (("images-idx3", images(n, seed)), ("labels-idx1", np.arange(n, dtype=np.uint8) % 3)):
            content = idx_bytes(array)
            name = f"{stem}-{kind}-ubyte"
            if compressed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("compressed", [False, True])
def test_fashion_mnist(tmp_path, compressed):
    write_fashion(tmp_path, compressed)
    train, test = (data.load("fashion-mnist", root=tmp_path, split=split) for split in ("train", "test"))
    assert train.event_shape == (1, 5, 4)
    assert torch.equal(train.tensor()[:, 0], torch.from_numpy(images()) / 127.5 - 1)
    assert torch.equal(test.tensor()[:, 0], torch.from_numpy(images(seed=1)) / 127.5 - 1)
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert isinstance(train._array, np.memmap) is not compressed


def test_places_are_looked_at_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(data.ROOT_VARIABLE, str(tmp_path / "mine"))
    write_fashion(tmp_path / "data" / "fashion-mnist", False, n=3)
    assert len(data.load("fashion-mnist")) == 3
    write_fashion(tmp_path / "mine" / "FashionMNIST" / "raw", False, n=4)
    assert len(data.load("fashion-mnist")) == 4
    write_fashion(tmp_path / "root", False, n=5)
    assert len(data.load("fashion-mnist", root=tmp_path / "root")) == 5


def test_missing_files_say_where_and_how(tmp_path, monkeypatch):
    monkeypatch.setenv(data.ROOT_VARIABLE, "/elsewhere")
    with pytest.raises(data.DataNotFoundError) as caught:
        data.load("fashion-mnist", root=tmp_path)
    assert str(tmp_path / "fashion-mnist") in str(caught.value)
    assert "/elsewhere" not in str(caught.value)
    if not os.path.exists("/usr/share/datasets/fashion-mnist"):  # noqa: PTH110
        with pytest.raises(data.DataNotFoundError, match=r"/elsewhere.*data.*/usr/share/datasets/fashion-mnist"):
            data.load("fashion-mnist")


def test_images_without_labels_are_not_taken(tmp_path):
    write_fashion(tmp_path, False)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(data.DataNotFoundError, match="train-labels-idx1-ubyte"):
        data.load("fashion-mnist", root=tmp_path)


def test_idx_path_finds_its_labels(tmp_path):
    write_fashion(tmp_path, True)
    dataset = data.load(tmp_path / "t10k-images-idx3-ubyte.gz")
    assert dataset.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    assert data.load(tmp_path / "t10k-images-idx3-ubyte.gz").labels is None
    with pytest.raises(ValueError, match="split must be 'train' for the single file"):
        data.load(tmp_path / "t10k-images-idx3-ubyte.gz", split="test")
    with pytest.raises(data.DataFormatError, match="expected images"):
        data.load(tmp_path / "train-labels-idx1-ubyte.gz")


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw[:-1], "is truncated: shape \\(7, 5, 4\\) needs 140 bytes"),
        (lambda raw: raw + b"x", "has bytes after its end"),
        (lambda raw: b"\x01" + raw[1:], "not an idx file"),
        (lambda raw: raw[:2] + b"\x0d" + raw[3:], "value type 0x0d is not supported"),
        (lambda raw: raw[:9], "truncated inside its header"),
        (lambda raw: raw[:3], "not an idx file"),
        (lambda raw: raw[:4] + b"\0\0\0\0" + raw[8:16], "declares no values"),
    ],
)
def test_damaged_idx(tmp_path, compressed, change, message):
    raw = change(idx_bytes(images()))
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(gzip.compress(raw) if compressed else raw)
    with pytest.raises(data.DataFormatError, match=message):
        idx.read_idx(path)


def test_damaged_gzip(tmp_path):
    whole = gzip.compress(idx_bytes(images(50)))
    path = tmp_path / "a-idx3-ubyte.gz"
    for damaged in (whole[: len(whole) // 2], whole[:40] + bytes(20) + whole[60:]):
        path.write_bytes(damaged)
        with pytest.raises(data.DataFormatError, match="truncated or damaged"):
            idx.read_idx(path)


def test_oversized_gzip_is_refused_before_decompression(tmp_path):
    header = b"\0\0\x08\x03" + struct.pack(">3I", 2**20, 2**10, 2**10)
    (tmp_path / "big-idx3-ubyte.gz").write_bytes(gzip.compress(header))
    with pytest.raises(data.DataFormatError, match=r"1024\.0 GiB decompressed.*gunzip"):
        idx.read_idx(tmp_path / "big-idx3-ubyte.gz")


def test_labels_of_another_length(tmp_path):
    write_fashion(tmp_path, False)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(6, dtype=np.uint8)))
    with pytest.raises(data.DataFormatError, match="7 events but labels of shape"):
        data.load("fashion-mnist", root=tmp_path)


def write_cifar(folder, protocol=2, n=4):
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (6, n, 3072), dtype=np.uint8)
    for i, name in enumerate([f"data_batch_{j}" for j in range(1, 6)] + ["test_batch"]):
        batch = {
            b"data": pixels[i],
            b"labels": [(i + j) % 10 for j in range(n)],
            b"batch_label": b"x",
            b"filenames": [b"a"] * n,
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol=protocol))
    return pixels


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_cifar10(tmp_path, protocol):
    pixels = write_cifar(tmp_path / "cifar-10-batches-py", protocol)
    train, test = (data.load("cifar10", root=tmp_path, split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (20, 4)
    assert torch.equal(train.tensor(), torch.from_numpy(pixels[:5].reshape(20, 3, 32, 32)) / 127.5 - 1)
    assert torch.equal(test.tensor()[1], torch.from_numpy(pixels[5, 1].reshape(3, 32, 32)) / 127.5 - 1)
    assert train.labels.tolist()[:6] == [0, 1, 2, 3, 1, 2]


def test_cifar10_as_python_2_wrote_it(tmp_path):
    """Protocol 2 with byte strings (opcode U) and numpy's module under its old name, as in the published archive."""
    write_cifar(tmp_path)
    for path in tmp_path.iterdir():
        batch = pickle.loads(path.read_bytes())
        array = batch[b"data"].tobytes()
        shape = b"(K" + bytes([4]) + b"M" + struct.pack("<H", 3072) + b"t"
        dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        data_pickle = (
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01" + shape + dtype
            + b"\x89T" + struct.pack("<I", len(array)) + array + b"tb"
        )  # fmt: skip
        labels = b"(" + b"".join(b"K" + bytes([label]) for label in batch[b"labels"]) + b"l"
        path.write_bytes(b"\x80\x02}(U\x04data" + data_pickle + b"U\x06labels" + labels + b"u.")
    expected = np.frombuffer(array, dtype=np.uint8)
    dataset = data.load("cifar10", root=tmp_path, split="test")
    assert len(dataset) == 4
    assert dataset.labels.tolist() == [5, 6, 7, 8]
    assert expected.size == 4 * 3072


class Attack:
    def __reduce__(self):
        return os.mkdir, ("pickle-was-run",)


def test_cifar10_pickles_are_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_cifar(tmp_path)
    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": Attack(), b"labels": [1]}, protocol=2))
    with pytest.raises(data.DataFormatError, match=r"test_batch: holds posix\.mkdir.*refused"):
        data.load("cifar10", root=tmp_path, split="test")
    assert not (tmp_path / "pickle-was-run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps([1, 2]), "expected a dictionary"),
        (pickle.dumps({b"labels": [1]}), "b'data' must be a uint8 array"),
        (pickle.dumps({b"data": np.zeros((2, 3071), np.uint8), b"labels": [1, 2]}), "b'data' must be a uint8 array"),
        (pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}), "list of 2 integers"),
        (pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, "a"]}), "list of 2 integers"),
        (pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 2]})[:-500], "damaged or truncated"),
        (b"", "damaged or truncated"),
        (b"hello", "damaged or truncated"),
    ],
)
def test_damaged_cifar10(tmp_path, content, message):
    write_cifar(tmp_path)
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(data.DataFormatError, match=message):
        data.load("cifar10", root=tmp_path, split="test")


def test_missing_cifar10(tmp_path):
    write_cifar(tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    assert len(data.load("cifar10", root=tmp_path, split="test")) == 4
    with pytest.raises(data.DataNotFoundError, match=r"cifar-10-python\.tar\.gz"):
        data.load("cifar10", root=tmp_path)
