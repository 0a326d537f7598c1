"""`load` by name and by path: digits, arrays, where files are looked for, and what is said when they are not there."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from vapo_fast import data


def save(path, array):
    np.save(path, array)
    return path


def test_digits_split():
    train, test = data.load("digits"), data.load("digits", split="test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.event_shape == (1, 8, 8)
    bunch = load_digits()
    assert train.labels[:8].tolist() == [1, 3, 5, 6, 7, 8, 9, 0]  # scikit-learn's own order, not sorted by class
    whole = {tuple(row) for row in (bunch.images.reshape(-1, 64) / 8 - 1).tolist()}
    parts = [tuple(row) for row in torch.cat((train.tensor(), test.tensor())).flatten(1).double().tolist()]
    assert set(parts) == whole
    assert sorted(torch.cat((train.labels, test.labels)).tolist()) == sorted(bunch.target.tolist())
    share = torch.bincount(test.labels) / torch.bincount(torch.from_numpy(bunch.target))
    assert ((share - 0.2).abs() < 0.006).all()


def test_digits_keep_label_with_image():
    bunch = load_digits()
    known = {
        tuple(image): int(label)
        for image, label in zip(bunch.images.reshape(-1, 64).tolist(), bunch.target, strict=True)
    }
    test = data.load("digits", split="test")
    for image, label in zip(((test.tensor() + 1) * 8).flatten(1).tolist(), test.labels.tolist(), strict=True):
        assert known[tuple(image)] == label


def test_n_takes_a_seeded_shuffle():
    some = data.load("digits", n=200, seed=5)
    assert len(some) == 200
    assert torch.equal(some.tensor(), data.load("digits", n=300, seed=5).batch(range(200)))
    assert not torch.equal(some.tensor(), data.load("digits", n=200, seed=6).tensor())
    assert (torch.bincount(some.labels, minlength=10) > 5).all()


def test_image_size_resizes():
    assert data.load("digits", image_size=16).event_shape == (1, 16, 16)
    with pytest.raises(ValueError, match="image_size must be a positive integer"):
        data.load("digits", image_size=0)


def test_a_missing_file_is_a_file_not_found_error():
    with pytest.raises(FileNotFoundError):
        data.load("nowhere.npy")


@pytest.mark.parametrize("name", data.names())
def test_every_name_loads_or_says_where_it_looked(name, tmp_path, monkeypatch):
    monkeypatch.setenv(data.ROOT_VARIABLE, str(tmp_path))
    if name in ("fashion-mnist", "cifar10", "celeba"):
        with pytest.raises(data.DataNotFoundError, match=f"'{name}'.*{tmp_path}.*http"):
            data.load(name, root=tmp_path)
    else:
        assert len(data.load(name)) > 1000


def test_npy_is_memory_mapped(tmp_path):
    events = np.random.default_rng(0).normal(size=(7, 2, 3)).astype(np.float32)
    dataset = data.load(save(tmp_path / "a.npy", events))
    assert isinstance(dataset._array, np.memmap)
    assert torch.equal(dataset.tensor(), torch.from_numpy(events))
    assert dataset.labels is None


@pytest.mark.parametrize(
    ("shape", "event_shape"),
    [((5, 9, 8), (1, 9, 8)), ((5, 9, 8, 3), (3, 9, 8)), ((5, 3, 9, 8), (3, 9, 8)), ((5, 9, 8, 1), (1, 9, 8))],
)
def test_npy_images(tmp_path, shape, event_shape):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    dataset = data.load(str(save(tmp_path / "a.npy", images)))
    assert dataset.event_shape == event_shape
    assert float(dataset.tensor().mean()) == pytest.approx(images.mean() / 127.5 - 1, abs=1e-5)


def test_npy_errors(tmp_path):
    with pytest.raises(ValueError, match="pass the path of the test file"):
        data.load(save(tmp_path / "ok.npy", np.ones((2, 2))), split="test")
    truncated = tmp_path / "short.npy"
    truncated.write_bytes((tmp_path / "ok.npy").read_bytes()[:-8])
    with pytest.raises(data.DataFormatError, match=r"is not a \.npy array"):
        data.load(truncated)


def test_npz_splits_and_labels(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4), dtype=np.uint8)
    path = tmp_path / "a.npz"
    np.savez(path, x_train=images[:4], y_train=np.arange(4), x_test=images[4:], y_test=np.array([8, 9]))
    train, test = data.load(path), data.load(path, split="test")
    assert train.labels.tolist() == [0, 1, 2, 3]
    assert test.labels.tolist() == [8, 9]
    assert torch.equal(test.tensor(), torch.from_numpy(images[4:, None]) / 127.5 - 1)
    np.savez(tmp_path / "single.npz", anything=images)
    assert len(data.load(tmp_path / "single.npz")) == 6
    with pytest.raises(data.DataFormatError, match="no array for split 'test' under x_test; it holds anything"):
        data.load(tmp_path / "single.npz", split="test")
    np.savez(tmp_path / "labels.npz", x=images, y=np.ones(6))
    with pytest.raises(data.DataFormatError, match="labels must be integers"):
        data.load(tmp_path / "labels.npz")
    (tmp_path / "broken.npz").write_bytes(path.read_bytes()[:100])
    with pytest.raises(data.DataFormatError, match=r"is not a \.npz archive"):
        data.load(tmp_path / "broken.npz")
