"""What the prior's noise costs, by the extension and by PyTorch; both give the same bits."""

from __future__ import annotations

from typing import Any

import pytest

from vapo_fast import noise
from vapo_fast.core import extension


@pytest.mark.parametrize("source", ["torch", "native"])
def test_noise(benchmark: Any, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    if source == "native" and extension.unavailable_reason():
        pytest.skip(f"no extension: {extension.unavailable_reason()}")
    if source == "torch":
        monkeypatch.setattr(extension, "unavailable_reason", lambda: "left out for comparison")
    benchmark(noise.normal, 0, range(8192), (64,))
