"""Launching: how many programs, with which tile, in which scratch memory, compiled how."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .shapes import InKernel, Tile

OPTIONS = {"enable_fp_fusion": False}
"""Options of every compilation. A multiply and an add that the source writes apart stay apart: the float64 functions'
bits depend on it, Triton's default changes between versions, and the products, where fusing pays, are `tl.dot`."""


# A multiprocessor has registers for this many warps whose threads use all 255 that there are, as most of ours do.
_WARPS = 8
_FLOAT = 4
# Scratch memory up to here (bytes) is asked for without looking at what is free, which takes its time.
_NEVER_ASKED = 2**28
_SCRATCH_SHARE = 0.5


# What differs from call to call (sizes of batches, keys, streams) is annotated as 64 bits wide and not specialised in
# every kernel: Triton would compile anew for a 1, a multiple of 16, or a number beyond 32 bits.


def on(device: torch.device) -> AbstractContextManager[object]:
    """Makes a device the current one, which is where kernels are launched, wherever their arguments lie."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def run(kernel: Any, grid: tuple[int, ...], device: torch.device, *arguments: Any, **constants: Any) -> None:
    """Run a kernel on a grid of programs on a device; constants are shapes (`shapes`), plain values, and options."""
    constants = {name: InKernel(value) if is_dataclass(value) else value for name, value in constants.items()}
    with on(device):
        kernel[grid](*arguments, **constants, **OPTIONS)


class Scratch(NamedTuple):
    """float32 memory of a launch, ``step`` numbers for each program; nothing is known of its contents."""

    memory: Any
    step: Any


@dataclass(frozen=True)
class Program:
    """A tile, and how many programs run at once on the device."""

    tile: Tile
    count: int

    @classmethod
    def filling(cls, tile: Tile, device: torch.device) -> Program:
        """As many as run at once: more would wait for the first to end, each with scratch memory of its own."""
        if device.type != "cuda":
            return cls(tile, 2)
        multiprocessors = int(torch.cuda.get_device_properties(device).multi_processor_count)
        return cls(tile, max(1, _WARPS // tile.warps) * multiprocessors)

    def programs(self, n: int, step: int, device: torch.device) -> int:
        """How many to launch for a batch of n: a tile each, and no more than free memory has scratch for.

        ``step`` is the numbers of scratch memory that each needs. Results do not depend on how many there are.
        """
        wanted = min(-(-n // self.tile.rows), self.count)
        if device.type != "cuda" or wanted * step * _FLOAT <= _NEVER_ASKED:
            return wanted
        # What PyTorch holds back for later is free to it as well.
        free = torch.cuda.mem_get_info(device)[0]
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return max(1, min(wanted, int(_SCRATCH_SHARE * free) // (step * _FLOAT)))

    def launch(self, kernel: Any, programs: int, device: torch.device, *arguments: Any, **constants: Any) -> None:
        """`run` a kernel with this tile."""
        options = {"num_warps": self.tile.warps, "num_stages": self.tile.stages}
        run(kernel, (programs,), device, *arguments, TILE=self.tile, **constants, **options)


def refuse_derivatives(**arguments: Tensor | None) -> None:
    """ValueError for an argument that autograd would want a derivative by, which the caller's kernel does not make."""
    if not torch.is_grad_enabled():
        return
    for name, value in arguments.items():
        if value is not None and value.requires_grad:
            raise ValueError(
                f"{name} requires grad, and this kernel makes no derivatives by it: pass {name}.detach(), or use the "
                "potential itself"
            )


def scratch_for(programs: int, step: int, device: torch.device) -> Tensor:
    """float32 memory of ``step`` numbers for each program; nothing is known of its contents."""
    return torch.empty(programs * step, dtype=torch.float32, device=device)
