"""How many threads PyTorch's own operations use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

# Up to as many numbers, one thread goes over them about as fast as several, and leaves the others to what comes next.
_FEW = 1 << 18


def threads_for(tensors: Iterable[Tensor]) -> AbstractContextManager[None]:
    """`one_thread` if `fit_one_thread`; otherwise nothing changes."""
    return one_thread() if fit_one_thread(tensors) else nullcontext()


def fit_one_thread(tensors: Iterable[Tensor]) -> bool:
    """Whether all of them lie on the CPU and are small together."""
    all_of_them = list(tensors)
    small = sum(tensor.numel() for tensor in all_of_them) <= _FEW
    return small and all(tensor.device.type == "cpu" for tensor in all_of_them)


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, operations on the CPU that this thread starts run on it alone.

    For tensors so small that waking other threads takes longer than the operation. Those threads also go on spinning
    for a while after it, on the processors that whatever comes next would have, such as the native engine's threads.
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
