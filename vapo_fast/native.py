"""The optional C++ extension ``vapo_fast._native``: whether it is there, and typed, checked access to what it does.

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

from vapo_fast import _checks

if TYPE_CHECKING:
    from vapo_fast._native import BuildInfo

_BUILD_RECORD = Path(__file__).with_name("_native_build.json")


class NativeUnavailableError(RuntimeError):
    """The extension was asked for and is not installed; the message says why."""


@functools.cache
def unavailable_reason() -> str | None:
    """None if the extension can be used, else why not, in one line (with the build's own words where it left any)."""
    return _load()[1]


def build_info() -> BuildInfo:
    """Compiler, C++ standard and architecture of the build, and the instruction sets of this processor.

    Raises: NativeUnavailableError.
    """
    return cast("BuildInfo", _module().build_info())


def build_record() -> dict[str, object]:
    """What the package's build wrote about the extension: ``built``, ``error``, ...; empty if it never ran."""
    try:
        record = json.loads(_BUILD_RECORD.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def philox_words(seed: int, index: Tensor, blocks: int, stream: int) -> Tensor:
    """Philox4x32-10 words of the counters (block, index low, index high, stream) under the key ``seed``.

    Args:
        seed: 0 <= seed < 2^64.
        index: (n,) int64 on the CPU, contiguous; a negative index is read as its two's-complement bits.
        blocks: blocks of four words for each index, 0 <= blocks < 2^32.
        stream: 0 <= stream < 2^32.
    Returns: (n, 4 * blocks) int32, the 32-bit words as bit patterns.
    Raises: TypeError or ValueError for other arguments; NativeUnavailableError.
    """
    seed = _word("seed", seed, 64)
    blocks = _word("blocks", blocks, 32)
    stream = _word("stream", stream, 32)
    if not isinstance(index, Tensor) or index.dtype != torch.int64 or index.dim() != 1:
        found = f"{tuple(index.shape)} {index.dtype}" if isinstance(index, Tensor) else type(index).__name__
        raise TypeError(f"index must be an int64 tensor of shape (n,), got {found}")
    if index.device.type != "cpu" or not index.is_contiguous():
        raise ValueError(f"index must be contiguous and on the CPU, got stride {index.stride()} on {index.device}")
    out = torch.empty((index.shape[0], 4 * blocks), dtype=torch.int32)
    _module().philox_words(seed, index.data_ptr(), index.shape[0], blocks, stream, out.data_ptr())
    return out


def _word(name: str, value: int, bits: int) -> int:
    value = _checks.non_negative_int(name, value)
    if value >= 1 << bits:
        raise ValueError(f"{name} must be below 2^{bits}, got {value}")
    return value


def _module() -> ModuleType:
    module, reason = _load()
    if module is None:
        raise NativeUnavailableError(f"the native extension is not available: {reason}")
    return module


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
