"""How much memory there is, what one sample's evaluation keeps of it, and computations that ran out of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from vapo_fast.potentials.base import Potential

Result = TypeVar("Result")

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
MEMORY_INFO = Path("/proc/meminfo")


def or_none_if_out_of_memory(compute: Callable[[], Result]) -> Result | None:
    """The result, or None if memory ran out; then nothing of the failed computation is held any more."""
    try:
        return compute()
    except (MemoryError, torch.OutOfMemoryError):
        pass
    except RuntimeError as error:
        # PyTorch's CPU allocator has no error class of its own.
        if not any(phrase in str(error) for phrase in _OUT_OF_MEMORY):
            raise
    # Outside the handler, so that the traceback no longer holds the failed computation's tensors.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def free_memory(device: torch.device) -> int | None:
    """Bytes free on a device; None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    # As many as a launcher has started on this machine want their part of its memory.
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    try:
        lines = MEMORY_INFO.read_text(encoding="ascii").splitlines()
    except OSError:
        lines = []
    # Free pages alone leave out the cache of files, which Linux gives back when asked: most of a busy machine's memory.
    for line in lines:
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1]) // processes
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // processes
    except (AttributeError, ValueError, OSError):  # not every system tells
        return None


def saved_bytes_per_sample(model: Potential, dtype: torch.dtype, device: torch.device) -> int:
    """What autograd keeps for two samples, less what it keeps for one: parameters drop out of the difference."""
    kept = [0, 0]
    for rows in (1, 2):

        def count(tensor: Tensor, rows: int = rows) -> Tensor:
            kept[rows - 1] += tensor.numel() * tensor.element_size()
            return tensor

        x = torch.zeros(rows, *model.event_shape, dtype=dtype, device=device)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model.field(x, model.homotopy.t1)
    return max(0, kept[1] - kept[0])
