"""Whether the Triton kernels can be used on this machine. Importing this module imports no kernel."""

from __future__ import annotations

import functools
import importlib.util

import torch

OLDEST, NEWEST = (3, 6), (3, 9)
"""Versions of Triton that the kernels are compiled and tested with."""
SMALLEST_CAPABILITY = (8, 0)


@functools.cache
def unavailable_reason(device: torch.device | str = "cuda") -> str | None:
    """None if the kernels run on this device, else the reason why not.

    Args:
        device: a CUDA device, with or without its number (without: any device will do); or "cpu", which only Triton's
            interpreter supports.
    """
    device = torch.device(device)
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; it comes with the CUDA builds of torch"
    import triton

    found = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if not OLDEST <= found <= NEWEST:
        bounds = " to ".join(".".join(map(str, version)) for version in (OLDEST, NEWEST))
        return f"triton {triton.__version__} is installed; the kernels are for {bounds}"
    if device.type == "cpu":
        return None if triton.knobs.runtime.interpret else "the kernels run on CUDA"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    asked = range(torch.cuda.device_count()) if device.index is None else (device.index,)
    capability = max(map(torch.cuda.get_device_capability, asked))
    if capability < SMALLEST_CAPABILITY:
        needed = ".".join(map(str, SMALLEST_CAPABILITY))
        return f"the device's compute capability is {capability[0]}.{capability[1]}; the kernels need {needed}"
    return None
