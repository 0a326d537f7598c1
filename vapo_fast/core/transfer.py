"""Asynchronous copies from the host to a device."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """Copy to a device without waiting. From pageable memory, CUDA would first finish all its queued work."""
    return pinned(host, device).to(device, non_blocking=device.type == "cuda" and host.device.type == "cpu")


def pinned(host: Tensor, device: torch.device) -> Tensor:
    """``host`` in pinned memory if ``device`` is CUDA, so that `to_device` needs no further copy."""
    return host.pin_memory() if device.type == "cuda" and host.device.type == "cpu" else host
