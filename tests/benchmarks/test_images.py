"""The image benchmarks' own arithmetic: counted memory, interleaved rounds, TF32's rounding, and the page."""

from __future__ import annotations

import struct

import pytest
import torch

from benchmarks import convolutions, image_precision, images, passes_report
from benchmarks.peak_memory import peak_bytes
from vapo_fast import native


def test_peak_memory_counts_what_lives_at_once() -> None:
    def chain() -> torch.Tensor:
        x = torch.zeros(1000)
        for _ in range(5):
            x = x + 1.0
        return x

    kept: list[torch.Tensor] = []
    weight = torch.ones(1000, requires_grad=True)
    assert peak_bytes(lambda: torch.zeros(1000) + torch.zeros(1000)) == 3 * 4000
    assert peak_bytes(chain) == 2 * 4000
    assert peak_bytes(lambda: weight.detach().view(10, 100).t()) == 0
    assert peak_bytes(lambda: [kept.append(torch.zeros(500)) for _ in range(4)]) == 4 * 2000
    graph = peak_bytes(lambda: weight.exp().sin().cos().sum().backward())
    assert graph >= 3 * 4000
    assert peak_bytes(chain) == 2 * 4000


def test_rounding_to_tf32() -> None:
    def exact(value: float) -> float:
        bits = struct.unpack("<I", struct.pack("<f", value))[0]
        return struct.unpack("<f", struct.pack("<I", (bits + 0x1000) & 0xFFFFE000))[0]

    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    rounded = image_precision._tf32(x)
    assert rounded.stride() == x.stride()
    assert rounded.flatten().tolist() == [exact(value) for value in x.flatten().tolist()]
    assert 0 < float(((rounded - x) / x).abs().max()) <= 2.0**-11
    assert torch.equal(image_precision._tf32(rounded), rounded)


def test_rounds_take_turns_and_ratios_are_eagers_over_the_arms() -> None:
    order: list[str] = []
    arms = {
        name: images.Arm(lambda name=name, size=size: order.append(name) or torch.zeros(size), lambda result: 0.25)
        for name, size in ((images.EAGER, 100), ("ours", 50))
    }
    rows = images.rows_of(arms, 3)
    warm, rest = order[:2], order[2:8]
    assert warm == [images.EAGER, "ours"]
    assert rest == [images.EAGER, "ours", "ours", images.EAGER, images.EAGER, "ours"]
    assert [row["arm"] for row in rows] == [images.EAGER, "ours"]
    assert float(str(rows[0]["ratio"])) == 1.0
    assert [row["memory_ratio"] for row in rows] == ["1", "0.5"]
    assert "| ours |" in images.table(rows)


@pytest.mark.parametrize("name", images.MODELS)
def test_arms_compute_the_same(name: str) -> None:
    """On a fresh model and few images: gradients by every arm, and a solve by two."""
    torch.manual_seed(0)
    data = torch.rand(8, *images.SHAPE)
    model = images.MODELS[name]()
    torch.nn.init.normal_(model.output.weight, std=0.02)
    batch = images._batch(model, images.as_source(data, images.SHAPE), 0, 2)
    for arm, one in images.training_arms(model, batch, compiled=False).items():
        assert one.error(one.call()) < (0.1 if "bf16" in arm else 1e-4)


def test_page() -> None:
    measured = images.latest()
    precision = image_precision.latest()
    text = passes_report.page(measured, precision, [])
    assert "## Convolutions" not in text
    for row in measured:
        assert f"| {row['arm']} | {float(row['median_ms']):.0f} |" in text


@pytest.mark.skipif(native.unavailable_reason() is not None, reason="needs the native extension")
def test_single_convolutions() -> None:
    """A row for each arm, errors of float32, what is chosen marked, and a line of the page."""
    shapes = {(16, 20, 3): "tiles of 4", (16, 16, 6): "tiles of 2", (3, 16, 4): "library"}
    rows = []
    for shape, chosen in shapes.items():
        arms = {str(row["arm"]): row for row in convolutions.measure(shape, 2, 3, 1e-4)}
        assert list(arms) == ["library", "tiles of 2", "tiles of 4"]
        assert [name for name, row in arms.items() if row["chosen"]] == [chosen]
        assert all(0.0 < float(str(row["error_rms"])) < 3e-6 for row in arms.values())
        assert float(str(arms["library"]["ratio"])) == 1.0
        assert [convolutions._products(name, 6) for name in arms] == [324, 144, 144]
        where = {"machine": "m", "threads": "1", "torch": "t", "date": "d", "commit": "c"}
        rows += [{key: str(value) for key, value in (row | where).items()} for row in arms.values()]
    text = passes_report.page([], [], rows)
    assert all(f"| {inputs} to {outputs} | {side}×{side} |" in text for inputs, outputs, side in shapes)
    assert text.count("| **") == 2
