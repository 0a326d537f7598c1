"""Copies from the host to a device that nobody waits for."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """A copy on a device that nobody waits for: from ordinary memory, CUDA would first finish all its work."""
    return pinned(host, device).to(device, non_blocking=device.type == "cuda" and host.device.type == "cpu")


def pinned(host: Tensor, device: torch.device) -> Tensor:
    """``host`` where `to_device` will take it from without another copy."""
    return host.pin_memory() if device.type == "cuda" and host.device.type == "cpu" else host
