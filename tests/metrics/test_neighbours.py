"""Precision, recall, density, coverage and the kernel distance against independent computations."""

import pytest
import torch
from prdc import compute_prdc

from vapo_fast.metrics import kernel_distance, neighbours, prdc


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize(("n", "m", "size", "scale"), [(300, 200, 4, 1.0), (150, 400, 16, 0.7), (200, 200, 2, 2.0)])
def test_equals_the_prdc_package(n, m, size, scale, k):
    real, fake = normal(n, size) + 100, scale * normal(m, size, seed=1) + 100.1
    expected = compute_prdc(real.double().numpy(), fake.double().numpy(), k)
    assert prdc(real, fake, k) == pytest.approx({name: float(value) for name, value in expected.items()}, abs=1e-12)


def test_blocks_change_nothing(monkeypatch):
    real, fake = normal(130, 3), normal(90, 3, seed=1)
    whole = prdc(real, fake)
    monkeypatch.setattr(neighbours, "_BLOCK", 700)
    assert prdc(real, fake) == whole


def test_extremes():
    real = normal(200, 3)
    far = prdc(real, real + 1_000)
    assert far == {"precision": 0.0, "recall": 0.0, "density": 0.0, "coverage": 0.0}
    collapsed = prdc(real, real[:1] + 1e-3 * normal(200, 3, seed=2))
    assert collapsed["precision"] == 1.0
    assert collapsed["recall"] < 0.1
    assert collapsed["coverage"] < 0.1
    same = prdc(real, real)
    assert (same["precision"], same["recall"], same["coverage"]) == (1.0, 1.0, 1.0)


def test_four_points_by_hand():
    """Real 0, 1, 3; fake .4, 10, 11; k = 1: real radii 1, 1, 2, fake radii 9.6, 1, 1."""
    found = prdc(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.4], [10.0], [11.0]]), k=1)
    assert found == pytest.approx({"precision": 1 / 3, "recall": 1.0, "density": 2 / 3, "coverage": 2 / 3})


def test_bad_inputs():
    x = normal(10, 2)
    with pytest.raises(ValueError, match="k must be a positive integer, got 0"):
        prdc(x, x, k=0)
    with pytest.raises(ValueError, match="events of one shape"):
        prdc(x, normal(10, 3))


def by_loops(x, y):
    kernel = lambda a, b: float((a @ b / len(a) + 1) ** 3)  # noqa: E731
    xx = [kernel(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j]
    yy = [kernel(y[i], y[j]) for i in range(len(y)) for j in range(len(y)) if i != j]
    xy = [kernel(a, b) for a in x for b in y]
    return sum(xx) / len(xx) + sum(yy) / len(yy) - 2 * sum(xy) / len(xy)


def test_kernel_distance_equals_its_definition(monkeypatch):
    real, fake = normal(15, 4).double() * 3 + 1, normal(12, 4, seed=1).double()
    assert kernel_distance(fake, real, standardise=False) == pytest.approx(by_loops(real, fake), rel=1e-9)
    centre, scale = real.mean(dim=0), real.std(dim=0)
    expected = by_loops((real - centre) / scale, (fake - centre) / scale)
    assert kernel_distance(fake, real) == pytest.approx(expected, rel=1e-9)
    monkeypatch.setattr("vapo_fast.metrics.kernel._BLOCK", 30)
    assert kernel_distance(fake, real) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_is_unbiased_and_sees_differences():
    equal = [kernel_distance(normal(60, 3, seed=2 * i), normal(60, 3, seed=2 * i + 1)) for i in range(80)]
    mean, error = torch.tensor(equal).mean(), torch.tensor(equal).std() / 80**0.5
    assert abs(float(mean)) < 4 * float(error)
    assert min(equal) < 0 < max(equal)
    assert kernel_distance(normal(200, 3) + 1, normal(200, 3, seed=1)) > 10 * float(torch.tensor(equal).std())


def test_kernel_distance_ignores_units_and_constants():
    real, fake = normal(50, 3), normal(40, 3, seed=1)
    unit = torch.tensor([1e-3, 1.0, 1e4])
    assert kernel_distance(fake * unit, real * unit) == pytest.approx(kernel_distance(fake, real), rel=1e-3)
    flat = torch.cat((real, torch.ones(50, 1)), dim=1)
    assert torch.isfinite(torch.tensor(kernel_distance(flat[:20], flat)))
    with pytest.raises(ValueError, match="fake must have at least 2 rows"):
        kernel_distance(fake[:1], real)
