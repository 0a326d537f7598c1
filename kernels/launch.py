"""Launching: how many programs, with which tile, in which scratch memory, compiled how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .shapes import Arrays, InKernel, Method, Net, Tile

OPTIONS = {"enable_fp_fusion": False}
"""Options of every compilation. A multiply and an add that the source writes apart stay apart: the float64 functions'
bits depend on it, Triton's default changes between versions, and the products, where fusing pays, are `tl.dot`."""


@dataclass(frozen=True)
class Program:
    """A tile, and how many programs run at once on the device."""

    tile: Tile
    count: int

    def launch(self, kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
        """Run a kernel on a grid of so many programs; constants are the shapes, and plain values."""
        constants = {
            name: InKernel(value) if isinstance(value, (Net, Tile, Arrays, Method)) else value
            for name, value in constants.items()
        }
        kernel[(programs,)](*arguments, **constants, num_warps=self.tile.warps, num_stages=self.tile.stages, **OPTIONS)


def scratch_for(programs: int, step: int, device: torch.device) -> Tensor:
    """float32 memory of ``step`` numbers for each program; nothing is known of its contents."""
    return torch.empty(programs * step, dtype=torch.float32, device=device)
