"""The fastest operations between convolutions that there are for a device and type."""

from __future__ import annotations

import functools

import torch

from vapo_fast.core import extension, triton_support
from vapo_fast.engines.explicit.pointwise import Pointwise, TorchPointwise


@functools.cache
def fastest_pointwise(device_type: str, dtype: torch.dtype) -> Pointwise:
    """The extension's on the CPU, Triton's on CUDA, PyTorch's where there is nothing faster.

    Args:
        dtype: the model's; Triton's operations are for float32.
    """
    if device_type == "cpu" and extension.unavailable_reason() is None:
        from vapo_fast.engines.explicit.pointwise_native import NativePointwise

        return NativePointwise()
    if device_type == "cuda" and dtype == torch.float32 and triton_support.unavailable_reason() is None:
        from vapo_fast.engines.explicit.pointwise_triton import TritonPointwise

        return TritonPointwise()
    return TorchPointwise()
