"""The interface every data set keeps, and the arrays and small wrappers built on it."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from vapo_fast import data
from vapo_fast.data import base


def grey(n=6, height=4, width=5):
    return np.random.default_rng(0).integers(0, 256, (n, height, width), dtype=np.uint8)


def test_bytes_become_minus_one_to_one():
    images = np.array([[[0, 255], [51, 204]]], dtype=np.uint8)
    dataset = data.ArrayDataset("x", images)
    assert dataset.event_shape == (1, 2, 2)
    assert torch.allclose(dataset[0], torch.tensor([[[-1.0, 1.0], [-0.6, 0.6]]]))
    assert dataset[0].dtype == torch.float32


def test_channels_last_is_moved_first():
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    dataset = data.ArrayDataset("x", images, channels_last=True)
    assert dataset.event_shape == (3, 4, 5)
    assert torch.allclose(dataset.tensor(), torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1)


def test_batch_tensor_items_and_loader_agree():
    dataset = data.ArrayDataset("x", grey(), labels=torch.arange(6))
    everything = dataset.tensor()
    assert everything.shape == (6, 1, 4, 5)
    for indices in ([4, 0, 4], torch.tensor([4, 0, 4]), np.array([4, 0, 4])):
        assert torch.equal(dataset.batch(indices), everything[[4, 0, 4]])
    assert torch.equal(dataset.batch(range(1, 5, 2)), everything[1:5:2])
    assert torch.equal(dataset[-1], everything[5])
    assert torch.equal(torch.stack(list(dataset)), everything)
    assert torch.equal(torch.cat(list(DataLoader(dataset, batch_size=4))), everything)
    assert dataset.batch([]).shape == (0, 1, 4, 5)


def test_indices_are_checked():
    dataset = data.ArrayDataset("x", grey())
    with pytest.raises(IndexError, match=r"index must be in \[-6, 6\) for data set 'x', got 6"):
        dataset[6]
    with pytest.raises(IndexError, match=r"indices must be in \[0, 6\) for data set 'x', got -1"):
        dataset.batch([0, -1])
    with pytest.raises(IndexError, match="got 9"):
        dataset.batch([0, 9])
    with pytest.raises(TypeError, match="one-dimensional integers"):
        dataset.batch(torch.tensor([0.0, 1.0]))
    with pytest.raises(TypeError, match="one-dimensional integers"):
        dataset.batch(torch.zeros(2, 2, dtype=torch.int64))


def test_resize_keeps_constants_and_means():
    flat = np.full((2, 4, 4), 51, dtype=np.uint8)
    assert torch.allclose(
        data.ArrayDataset("x", flat, image_size=7).tensor(), torch.full((2, 1, 7, 7), -0.6), atol=1e-6
    )
    dataset = data.ArrayDataset("x", grey(3, 8, 8), image_size=4)
    full = data.ArrayDataset("x", grey(3, 8, 8)).tensor()
    assert dataset.event_shape == (1, 4, 4)
    assert torch.allclose(dataset.tensor().mean(), full.mean(), atol=0.05)
    same = data.ArrayDataset("x", grey(3, 8, 8), image_size=8)
    assert torch.equal(same.tensor(), full)


def test_floats_are_used_as_they_are():
    events = np.random.default_rng(0).normal(size=(5, 3)) * 10
    dataset = data.ArrayDataset("x", events)
    assert torch.equal(dataset.tensor(), torch.from_numpy(events.astype(np.float32)))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(5), "shape \\(n, ...\\)"),
        (np.zeros((5, 3), dtype=np.uint8), "uint8 means images"),
    ],
)
def test_unsuitable_arrays(array, message):
    with pytest.raises(data.DataFormatError, match=message):
        data.ArrayDataset("x", array)


def test_unsuitable_options():
    with pytest.raises(ValueError, match="image_size applies to uint8 images"):
        data.ArrayDataset("x", np.zeros((5, 3)), image_size=4)
    with pytest.raises(data.DataFormatError, match="6 events but labels of shape"):
        data.ArrayDataset("x", grey(), labels=torch.arange(5))
    bad = np.zeros((5, 3))
    bad[3, 1] = np.inf
    dataset = data.ArrayDataset("x", bad)
    assert dataset.batch([0, 1]).shape == (2, 3)
    with pytest.raises(data.DataFormatError, match="event 3 has NaN or infinite"):
        dataset.batch([0, 3])


def test_subset_and_mirrored():
    dataset = data.ArrayDataset("x", grey(), labels=torch.arange(6))
    subset = data.Subset(dataset, [5, 1])
    assert torch.equal(subset.tensor(), dataset.tensor()[[5, 1]])
    assert subset.labels.tolist() == [5, 1]
    mirrored = data.Mirrored(subset)
    assert len(mirrored) == 4
    assert torch.equal(mirrored.tensor()[:2], subset.tensor())
    assert torch.equal(mirrored.batch([3, 0])[0], subset[1].flip(-1))
    assert mirrored.labels.tolist() == [5, 1, 5, 1]
    with pytest.raises(ValueError, match="indices must be one or more integers"):
        data.Subset(dataset, [])
    with pytest.raises(ValueError, match="Mirrored needs images"):
        data.Mirrored(data.load("8gaussians", n=4))


def test_tensor_refuses_what_memory_cannot_hold(monkeypatch):
    monkeypatch.setattr(base, "_physical_memory", lambda: 100)
    with pytest.raises(MemoryError, match=r"batch\(indices\)"):
        data.ArrayDataset("x", grey()).tensor()


def test_of_classes_keeps_order_and_labels():
    images, labels = grey(6), torch.tensor([2, 0, 1, 2, 0, 5])
    whole = data.ArrayDataset("x", images, labels=labels)
    chosen = data.of_classes(whole, [2, 5])
    assert chosen.labels.tolist() == [2, 2, 5]
    assert torch.equal(chosen.tensor(), whole.batch([0, 3, 5]))
    assert len(data.of_classes(whole, [0, 1, 2, 5])) == 6


def test_of_classes_refuses_classes_that_are_not_there():
    whole = data.ArrayDataset("x", grey(3), labels=torch.tensor([0, 1, 3]))
    for classes in ([2], [], [0, 7]):
        with pytest.raises(ValueError, match="classes must be one or more of 0, 1, 3, the labels of 'x'"):
            data.of_classes(whole, classes)
    with pytest.raises(ValueError, match="non-negative"):
        data.of_classes(whole, [-1])
    with pytest.raises(ValueError, match="which has no labels"):
        data.of_classes(data.ArrayDataset("y", grey(3)), [0])
