"""What every test of the kit needs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """A measurement sets the number of threads; every test gets it back."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
