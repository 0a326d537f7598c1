"""The kit is a package at the root of the tree, which is not on the path of an installed pytest."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parent.parent.parent))


@pytest.fixture(autouse=True)
def _threads() -> object:
    """A measurement sets the number of threads; every test gets it back."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
