"""The kernels on the device at hand: CUDA, or Triton's interpreter on CPU tensors (tests/conftest.py).

The interpreter takes its time for every operation whatever its size, so tiles are wide and cases are small.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy
import pytest
import torch

from vapo_fast.potentials import MLPPotential

if TYPE_CHECKING:
    from vapo_fast.kernels.launch import Program
    from vapo_fast.kernels.mlp import PackedMlp


class _WithoutTriton(pytest.Module):
    def collect(self) -> list[pytest.Item]:
        pytest.skip("triton is not installed", allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    missing = importlib.util.find_spec("triton") is None
    return _WithoutTriton.from_parent(parent, path=module_path) if missing else None


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """What is not a number is computed with on purpose; NumPy, which the interpreter is made of, would remark on it."""
    with numpy.errstate(all="ignore"):
        yield


@pytest.fixture
def packed(device) -> Callable[..., tuple[PackedMlp, Program]]:
    """A model on the device, as the kernels read it, and how to launch them: rows of a tile, and how many programs."""
    from vapo_fast.kernels.launch import Program
    from vapo_fast.kernels.mlp import PackedMlp
    from vapo_fast.kernels.shapes import Tile

    def pack(model: MLPPotential, rows: int = 16, programs: int = 2) -> tuple[PackedMlp, Program]:
        block_d = min(64, max(2, 1 << (model.event_shape[0] - 1).bit_length()))
        tile = Tile(rows, 64, 64, block_d, "ieee", 4, 1)
        return PackedMlp(model.to(device), tile), Program(tile, programs)

    return pack


@pytest.fixture
def poisoned(device) -> Iterator[None]:
    """New memory is filled with NaN, and with the largest integers, before it is used."""
    # Only warned of: cuBLAS wants an environment variable of its own for this setting.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert bool(torch.empty(3, device=device).isnan().all())
        yield
    finally:
        torch.use_deterministic_algorithms(False)
