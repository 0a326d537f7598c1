"""What the prior's noise costs, by the extension and by PyTorch; both give the same bits."""

from __future__ import annotations

from typing import Any

import pytest

from vapo_fast import native, noise


@pytest.mark.parametrize("source", ["torch", "native"])
def test_noise(benchmark: Any, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    if source == "native" and native.unavailable_reason():
        pytest.skip(f"no extension: {native.unavailable_reason()}")
    if source == "torch":
        monkeypatch.setattr(native, "unavailable_reason", lambda: "left out for comparison")
    benchmark(noise.normal, 0, range(8192), (64,))
