"""For the tests of the benchmarks."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _threads() -> object:
    """A measurement sets the number of threads; every test gets it back."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
