"""The fastest operations between convolutions that there are on a device."""

from __future__ import annotations

import functools

from vapo_fast import native
from vapo_fast.passes.pointwise import Pointwise, TorchPointwise


@functools.cache
def fastest_pointwise(device_type: str) -> Pointwise:
    """The extension's on the CPU, PyTorch's where there is nothing faster."""
    if device_type == "cpu" and native.unavailable_reason() is None:
        from vapo_fast.passes.pointwise_native import NativePointwise

        return NativePointwise()
    return TorchPointwise()
