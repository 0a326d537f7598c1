"""The end of a residual block, ``branch + skip + bias``, in one pass over memory (`engines.explicit.pointwise`)."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import run
from .silu_map import load, store

_BLOCK = 1024


@triton.jit
def _residual(
    branch_ptr, skip_ptr, bias_ptr, out_ptr, channels, size: tl.int64, BIAS: tl.constexpr, BLOCK: tl.constexpr
):
    start = tl.program_id(0).to(tl.int64) * BLOCK
    at = start + tl.arange(0, BLOCK)
    inside = at < size
    total = load(branch_ptr, at, inside) + load(skip_ptr, at, inside)
    if BIAS:
        # One remainder in 64 bits for a program, the others in 32.
        first = (start % channels).to(tl.int32)
        total += load(bias_ptr, (first + tl.arange(0, BLOCK)) % channels, inside)
    store(out_ptr, at, total, inside)


def residual(branch: Tensor, skip: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """``out = branch + skip + bias`` for maps in channels-last memory, float32 or bfloat16, and a bias (C,) in float32.

    The naive twin is `engines.explicit.pointwise.TorchPointwise.residual`. ``out`` may be ``branch`` or ``skip``.
    """
    size = skip.numel()
    if size:
        inputs = (branch, skip, skip if bias is None else bias)
        sizes = (skip.shape[1], size)
        grid = (triton.cdiv(size, _BLOCK),)
        run(_residual, grid, skip.device, *inputs, out, *sizes, BIAS=bias is not None, BLOCK=_BLOCK)
