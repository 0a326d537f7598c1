"""The optional C++ extension ``vapo_fast._native``: its availability, and typed, checked access to its functions.

The package works without it; every function here has a pure-PyTorch twin that defines the result.
"""

from __future__ import annotations

import functools
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vapo_fast._native import BuildInfo

DTYPE_NAMES = {torch.float32: "float32", torch.float64: "float64"}
"""The dtypes that the extension computes in, by the names it knows them by."""

_BUILD_RECORD = Path(__file__).parents[1] / "_native_build.json"


class NativeUnavailableError(RuntimeError):
    """The extension was asked for and is not installed; the message says why."""


@functools.cache
def unavailable_reason() -> str | None:
    """None if the extension can be used, else the reason in one line, followed by the compiler's output if any."""
    return _load()[1]


def load() -> ModuleType:
    """The module itself, typed in ``_native.pyi``; NativeUnavailableError without it."""
    module, reason = _load()
    if module is None:
        raise NativeUnavailableError(f"the native extension is not available: {reason}")
    return module


def build_info() -> BuildInfo:
    """Compiler, C++ standard and architecture of the build, and the instruction sets of this processor.

    Raises: NativeUnavailableError.
    """
    return cast("BuildInfo", load().build_info())


def build_record() -> dict[str, object]:
    """What the package's build wrote about the extension: ``built``, ``error``, ...; empty if it never ran."""
    try:
        record = json.loads(_BUILD_RECORD.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def instruction_sets() -> list[str]:
    """Names of the kernels that this build has and this processor runs, least to most capable.

    Raises: NativeUnavailableError.
    """
    return list(load().instruction_sets())


def chosen_instruction_set() -> str:
    """The kernels in use: the most capable, or those that environment variable VAPO_FAST_INSTRUCTION_SET names.

    Raises: ValueError if that names none, or some that this processor or build lacks; NativeUnavailableError.
    """
    return str(load().chosen_instruction_set())


def normal_draws(seed: int, index: Tensor, size: int, stream: int, dtype: torch.dtype) -> Tensor:
    """Standard normal draws with the bits of `vapo_fast.noise.normal`.

    Args:
        seed: 0 <= seed < 2^64.
        index: (n,) int64 on the CPU, contiguous; a negative index is read as its two's-complement bits.
        size: numbers for each index, 1 <= size <= 2^34.
        stream: 0 <= stream < 2^32.
        dtype: float32 or float64.
    Returns: (n, size).
    Raises: TypeError or ValueError for other arguments; NativeUnavailableError.
    """
    return torch.from_numpy(load().normal_draws(seed, _index(index), size, stream, _dtype_name(dtype)))


def uniform_draws(seed: int, index: Tensor, size: int, stream: int, dtype: torch.dtype) -> Tensor:
    """Draws uniform in (0, 1), with the bits of `vapo_fast.noise.uniform`; otherwise as `normal_draws`."""
    return torch.from_numpy(load().uniform_draws(seed, _index(index), size, stream, _dtype_name(dtype)))


def permutation(seed: int, n: int, epoch: int, stream: int) -> Tensor:
    """The shuffle of 0 .. n - 1 that `vapo_fast.noise.permutation` gives: (n,) int64."""
    return torch.from_numpy(load().permutation(seed, stream, epoch, n))


def threads() -> int:
    """The threads that a call of the extension may use: PyTorch's number, up to the extension's limit."""
    return min(torch.get_num_threads(), int(load().MOST_THREADS))


def _index(index: Tensor) -> NDArray[np.int64]:
    if not isinstance(index, Tensor) or index.dtype != torch.int64 or index.dim() != 1:
        found = f"{tuple(index.shape)} {index.dtype}" if isinstance(index, Tensor) else type(index).__name__
        raise TypeError(f"index must be an int64 tensor of shape (n,), got {found}")
    if index.device.type != "cpu" or not index.is_contiguous():
        raise ValueError(f"index must be contiguous and on the CPU, got stride {index.stride()} on {index.device}")
    return index.numpy()


def _dtype_name(dtype: torch.dtype) -> str:
    if dtype not in DTYPE_NAMES:
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    return DTYPE_NAMES[dtype]


@functools.cache
def _load() -> tuple[ModuleType | None, str | None]:
    try:
        return importlib.import_module("vapo_fast._native"), None
    except ImportError as error:
        record = build_record()
        if record.get("built") is False:
            return None, f"it was not built: {record.get('error', 'no reason was recorded')}"
        if not record:
            return None, "it was not built; install the package with `pip install .` and a C++17 compiler"
        return None, f"it was built for Python {record.get('python')} but does not import: {error}"
