"""How many threads PyTorch's own operations use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

# Up to this many numbers, one thread is about as fast as several, and the other processors stay free.
_FEW = 1 << 18


def threads_for(tensors: Iterable[Tensor]) -> AbstractContextManager[None]:
    """`one_thread` if `fit_one_thread`; otherwise a context that changes nothing."""
    return one_thread() if fit_one_thread(tensors) else nullcontext()


def fit_one_thread(tensors: Iterable[Tensor]) -> bool:
    """Whether all tensors lie on the CPU and hold few numbers together."""
    listed = list(tensors)
    few = sum(tensor.numel() for tensor in listed) <= _FEW
    return few and all(tensor.device.type == "cpu" for tensor in listed)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run the CPU operations of this thread on one thread while the context is open.

    It is for tensors so small that waking other threads takes longer than the operation. Woken threads also keep
    spinning for a while, and take processors from the next operation, such as a solve of the native engine.
    """
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
