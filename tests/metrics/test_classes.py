"""Class shares on digits and mode shares on mixtures."""

import math

import pytest
import torch

from vapo_fast import data
from vapo_fast.metrics import class_shares, mode_shares


@pytest.fixture(scope="module")
def digits():
    return data.load("digits"), data.load("digits", split="test")


def test_shares_of_held_out_digits_are_their_true_shares(digits):
    train, test = digits
    shares = class_shares(test.tensor(), train.tensor(), train.labels)
    truth = torch.bincount(test.labels, minlength=10).double() / len(test)
    assert list(shares) == list(range(10))
    assert sum(shares.values()) == pytest.approx(1)
    assert max(abs(shares[c] - float(truth[c])) for c in range(10)) < 0.02


def test_missing_classes_are_seen(digits):
    train, test = digits
    only = test.tensor()[test.labels < 5]
    shares = class_shares(only, train.tensor(), train.labels)
    assert sum(shares[c] for c in range(5, 10)) < 0.04
    assert min(shares[c] for c in range(5)) > 0.15


def test_the_documented_accuracy(digits):
    train, test = digits
    right = sum(
        class_shares(test.tensor()[test.labels == c], train.tensor(), train.labels)[c] * int((test.labels == c).sum())
        for c in range(10)
    )
    assert right / len(test) == pytest.approx(0.981, abs=0.001)


def test_class_shares_bad_inputs(digits):
    x, labels = digits[0].tensor(), digits[0].labels
    with pytest.raises(ValueError, match=r"labels must be an integer tensor of shape \(1437,\)"):
        class_shares(x, x, labels[:-1])
    with pytest.raises(ValueError, match="labels must be an integer tensor"):
        class_shares(x, x, labels.float())
    with pytest.raises(ValueError, match=r"events of one shape, got \(1, 8, 8\) and \(1, 4, 8\)"):
        class_shares(x[:, :, :4], x, labels)
    with pytest.raises(ValueError, match="samples has NaN"):
        class_shares(x * math.nan, x, labels)
    with pytest.raises(ValueError, match="real must have at least k = 3 events, got 2"):
        class_shares(x, x[:2], labels[:2])


def test_mode_shares_of_the_true_mixture():
    x = data.load("8gaussians", n=20_000).tensor()
    found = mode_shares(x, data.eight_gaussians_mixture().means)
    # A 2-D normal leaves a circle of four standard deviations with probability e^-8.
    assert found.near == pytest.approx(1 - math.exp(-8), abs=5e-4)
    assert torch.allclose(found.shares, torch.full((8,), 0.125).double(), atol=0.01)
    assert float(found.shares.sum()) == pytest.approx(1)


def test_mode_shares_by_hand():
    means = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    samples = torch.tensor([[0.1, 0.0], [0.0, 0.19], [1.1, 0.0], [0.0, 0.21]])
    found = mode_shares(samples, means)
    assert found.near == 0.75
    assert found.shares.tolist() == pytest.approx([2 / 3, 1 / 3])
    assert mode_shares(samples + 50, means) == (0.0, pytest.approx(torch.zeros(2).double()))
    with pytest.raises(ValueError, match="radius must be a finite number > 0"):
        mode_shares(samples, means, radius=-1)
