"""The devices that cases run on: whose time is the unit there, how time is taken, and what the hardware is called."""

from __future__ import annotations

import importlib.metadata
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

OURS = {"cpu": "native", "cuda": "triton"}
"""The devices, and on each the engine of ours that everybody is compared with."""


def usable(device: str) -> str | None:
    """None if cases can run on a device, or why not."""
    if device == "cuda" and not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device"
    return None


def timer(device: str) -> Callable[[Callable[[], object]], float]:
    """What times a call on a device, from an idle one to results that are ready."""
    return _event_seconds if device == "cuda" else _wall_seconds


def wait(device: str) -> None:
    """Until the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def _wall_seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _event_seconds(call: Callable[[], object]) -> float:
    # The device is idle when the first event is recorded, so what the host takes to launch counts too.
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return 1e-3 * begin.elapsed_time(end)


@dataclass(frozen=True)
class Accelerator:
    """A CUDA device as rows of results name it; all empty for the CPU."""

    accelerator: str = ""
    driver: str = ""
    triton: str = ""


@cache
def accelerator(device: str) -> Accelerator:
    """The device that cases on ``device`` run on."""
    if device != "cuda":
        return Accelerator()
    properties = torch.cuda.get_device_properties(0)
    name = f"{properties.name} ({properties.multi_processor_count} SMs, {properties.total_memory / 2**30:.0f} GiB)"
    return Accelerator(name, _driver(), _version("triton"))


def _driver() -> str:
    """The driver's version, and the CUDA version that torch was built for."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        told = []
    return f"{told[0] if told else 'unknown'}, CUDA {torch.version.cuda}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
