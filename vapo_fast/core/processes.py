"""Several processes at one job: who does what, and one answer for all.

All of it works on the default process group of `torch.distributed`; without one there is a single process, and every
function does what its name says at no cost.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch import distributed as dist

if dist.is_available() and not dist.is_initialized():
    # Its functions keep the default group of the time of their definition as a default argument. PyTorch imports it
    # with the first optimiser. If a group exists by then, the group's threads outlive it, ask for the lock of an
    # interpreter that is shutting down, and abort the process after its work is done.
    import torch.distributed.nn.functional

Result = TypeVar("Result")


class ProcessFailedError(RuntimeError):
    """Another process of the group failed; the message says which and, where that is known, why."""


@dataclass(frozen=True)
class World:
    """The processes of a job and this one's number among them.

    Attributes:
        rank: 0 <= rank < size.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is process 0, which writes the files."""
        return self.rank == 0

    def share(self, n: int, unit: int = 1) -> range:
        """This process's consecutive part of n things, in whole units; shares differ by one unit at most."""
        units = -(-n // unit)
        first, last = (units * rank // self.size for rank in (self.rank, self.rank + 1))
        return range(min(n, first * unit), min(n, last * unit))


def world() -> World:
    """The processes of the default group; a single one if there is no group."""
    if not (dist.is_available() and dist.is_initialized()):
        return World()
    return World(dist.get_rank(), dist.get_world_size())


def launched() -> bool:
    """Whether a launcher such as ``torchrun`` has started this process as one of a group."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def process_number() -> int:
    """This process's number in the group or, before there is one, as the launcher says."""
    return int(os.environ["RANK"]) if world().size == 1 and launched() else world().rank


@contextmanager
def process_group(device: torch.device) -> Iterator[World]:
    """The default group while inside: the one that exists, or one that is made as the launcher's environment says.

    On CUDA it is NCCL's (and gloo's, for what lies on the host), else gloo's. Without a launcher there is none.
    """
    if world().size > 1 or not launched():
        yield world()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl")
    else:
        dist.init_process_group("gloo")
    try:
        yield world()
    finally:
        dist.destroy_process_group()


def from_first(function: Callable[[], Result]) -> Result:
    """What ``function`` returns on process 0, which alone calls it, on every process; an error of it too."""
    here = world()
    if here.size == 1:
        return function()
    outcome: list[Any] = [None]
    own: Exception | None = None
    if here.is_first:
        try:
            outcome = [(True, function())]
        except Exception as error:
            own, outcome = error, [(False, _portable(error))]
    dist.broadcast_object_list(outcome, src=0)
    done, value = outcome[0]
    if not done:
        raise value if own is None else own
    return cast(Result, value)


def together(function: Callable[[], Result]) -> Result:
    """``function()`` on every process; if any of them fails all do, the others with `ProcessFailedError`."""
    here = world()
    if here.size == 1:
        return function()
    result: Any = None
    own: Exception | None = None
    try:
        result = function()
    except Exception as error:
        own = error
    raise_failures(own)
    return cast(Result, result)


def raise_failures(own: Exception | None) -> None:
    """Tell every process what failed on this one, or None; raises if anything did. All processes must call it."""
    failures = told_failures(own)
    if own is not None:
        raise own
    if failures:
        raise first_failure(failures)


def told_failures(own: BaseException | None) -> dict[int, str]:
    """What failed, on every process that says so, by its number. All processes must call it."""
    told: list[str | None] = [None] * world().size
    dist.all_gather_object(told, None if own is None else f"{type(own).__name__}: {own}".removesuffix(": "))
    return {rank: text for rank, text in enumerate(told) if text is not None}


def first_failure(failures: dict[int, str]) -> ProcessFailedError:
    """The error that names the first process of what `told_failures` gave."""
    rank, text = next(iter(failures.items()))
    return ProcessFailedError(f"process {rank} of {world().size} failed: {text}")


@torch.no_grad()
def copy_from_first(tensor: Tensor) -> None:
    """Give the tensor its values on process 0. All processes must call it, with tensors of one shape and dtype."""
    sent = communicable(tensor.detach())
    dist.broadcast(sent, src=0)
    if sent.data_ptr() != tensor.data_ptr():
        tensor.copy_(sent)


def communicable(tensor: Tensor) -> Tensor:
    """The tensor where the group can send it from."""
    backends = dict(pair.split(":") for pair in dist.get_backend_config().split(","))
    backend = backends.get(tensor.device.type)
    if backend is None or (backend == "gloo" and tensor.device.type != "cpu"):
        tensor = tensor.cpu() if "cpu" in backends else tensor.cuda()
    return tensor.contiguous()


def _portable(error: Exception) -> Exception:
    """The error, or one that says the same if it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return ProcessFailedError(f"process 0 failed: {type(error).__name__}: {error}")
    return error
