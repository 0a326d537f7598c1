"""How many threads PyTorch's own operations use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
