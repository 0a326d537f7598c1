"""How much memory there is, what an evaluation takes of it, and computations that ran out of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

Result = TypeVar("Result")

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
# All that oneDNN says then; where it cannot do what is asked for, it names a primitive's descriptor.
_ONEDNN_OUT_OF_MEMORY = ("could not create a primitive", "could not execute a primitive")
MEMORY_INFO = Path("/proc/meminfo")
OWN_GROUPS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


class MemoryEstimate(NamedTuple):
    """Bytes that an evaluation takes: the activations of one sample, and copies of weights whatever the batch."""

    sample: int
    weights: int


def or_none_if_out_of_memory(compute: Callable[[], Result]) -> Result | None:
    """The result, or None if memory ran out; then nothing of the failed computation is held any more."""
    try:
        return compute()
    except (MemoryError, torch.OutOfMemoryError):
        pass
    except RuntimeError as error:
        # PyTorch's CPU allocator has no error class of its own.
        text = str(error)
        if text not in _ONEDNN_OUT_OF_MEMORY and not any(phrase in text for phrase in _OUT_OF_MEMORY):
            raise
    # Outside the handler, so that the traceback no longer holds the failed computation's tensors.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def free_memory(device: torch.device) -> int | None:
    """Bytes free on a device; None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + _kept_by_pytorch(device)
    # As many as a launcher has started on this machine want their part of its memory.
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    known = [room for room in (_free_on_the_machine(), _free_in_groups()) if room is not None]
    return min(known) // processes if known else None


def _free_on_the_machine() -> int | None:
    try:
        lines = MEMORY_INFO.read_text(encoding="ascii").splitlines()
    except OSError:
        lines = []
    # Free pages alone leave out the cache of files, which Linux gives back when asked: most of a busy machine's memory.
    for line in lines:
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not every system tells
        return None


def _free_in_groups() -> int | None:
    """Bytes that the control groups of this process, such as a container's, leave it; None where none has a limit.

    Linux ends a process that takes more, whatever the machine has free.
    """
    try:
        memberships = [line.split(":", 2) for line in OWN_GROUPS.read_text(encoding="ascii").splitlines()]
    except (OSError, UnicodeDecodeError):
        return None
    rooms: list[int] = []
    for _, controllers, path in memberships:
        if not controllers:  # version 2
            root, names = GROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, names = GROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # Limits hold for all groups inside; a container sees its own as the root, whatever it is called outside.
        own = root / path.strip("/")
        rooms += [room for group in (own, *own.parents) if group.is_relative_to(root) for room in _room(group, *names)]
    return min(rooms, default=None)


def _room(group: Path, limit: str, usage: str, cache: str) -> list[int]:
    """Bytes that one control group leaves, its cache of files counted as free; nothing if it has no limit."""
    try:
        most, used = int((group / limit).read_text()), int((group / usage).read_text())
        files = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such group or file, or the limit is "max"
        return []
    return [max(0, most - used + int(files.get(cache, 0)))]


def _kept_by_pytorch(device: torch.device) -> int:
    """Bytes that the driver counts as taken, and PyTorch gives back when there are no others.

    These are the segments of its ordinary pool in which nothing lies: all that, say, a training step used. The pools of
    recorded graphs keep theirs.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    segments = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
    ordinary = [s for s in segments if s["device"] == index and tuple(s["segment_pool_id"]) == (0, 0)]
    return sum(int(segment["total_size"]) for segment in ordinary if segment["active_size"] == 0)
