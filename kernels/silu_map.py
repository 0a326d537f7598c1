"""SiLU of feature maps in the four sweeps of a convolutional potential (`engines.explicit.pointwise`), in float32.

Maps are plain runs of numbers here. A map that a convolution reads or writes may be in bfloat16: it is widened when it
is loaded and rounded when it is stored. The naive twin of every function is that of
`engines.explicit.pointwise.TorchPointwise`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .activation import activate
from .launch import run

_BLOCK = 1024

# Sizes are 64 bits wide, and specialised: that they are multiples of 16, as they are for any batch of a usual network,
# is what lets the compiler load several numbers at once up to the end.


@triton.jit
def load(pointer, at, inside):
    """In float32."""
    return tl.load(pointer + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def store(pointer, at, value, inside):
    """In the array's own type."""
    tl.store(pointer + at, value.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def _place(size, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return at, at < size


@triton.jit
def _silu(x_ptr, out_ptr, size: tl.int64, BLOCK: tl.constexpr):
    at, inside = _place(size, BLOCK)
    value, _first, _second = activate(load(x_ptr, at, inside), "silu", False)
    store(out_ptr, at, value, inside)


@triton.jit
def _silu_derivative(x_ptr, v_ptr, skip_ptr, out_ptr, size: tl.int64, SKIP: tl.constexpr, BLOCK: tl.constexpr):
    at, inside = _place(size, BLOCK)
    _value, first, _second = activate(load(x_ptr, at, inside), "silu", False)
    result = first * load(v_ptr, at, inside)
    if SKIP:
        result += load(skip_ptr, at, inside)
    store(out_ptr, at, result, inside)


@triton.jit
def _silu_second(
    x_ptr, x_dot_ptr, a_ptr, b_ptr, skip_ptr, adjoints, values, size: tl.int64, SKIP: tl.constexpr, BLOCK: tl.constexpr
):
    at, inside = _place(size, BLOCK)
    other = at + size  # the second half of a pair; a sum in 64 bits
    value, first, second = activate(load(x_ptr, at, inside), "silu", True)
    x_dot, a_s = load(x_dot_ptr, at, inside), load(a_ptr, at, inside)
    b = load(b_ptr, at, inside) * first + a_s * second * x_dot
    a = a_s * first
    if SKIP:
        b += load(skip_ptr, at, inside)
        a += load(skip_ptr, other, inside)
    store(adjoints, at, b, inside)
    store(adjoints, other, a, inside)
    store(values, at, value, inside)
    store(values, other, first * x_dot, inside)


def silu(x: Tensor, out: Tensor) -> None:
    """``out = silu(x)``; both contiguous in the same order, float32 or bfloat16."""
    if x.numel():
        run(_silu, _grid(x), x.device, x, out, x.numel(), BLOCK=_BLOCK)


def silu_derivative(x: Tensor, v: Tensor, skip: Tensor | None, out: Tensor) -> None:
    """``out = silu'(x) v + skip``; all contiguous in the same order. ``out`` may be any of the others."""
    if x.numel():
        others = (v, v if skip is None else skip, out, x.numel())
        run(_silu_derivative, _grid(x), x.device, x, *others, SKIP=skip is not None, BLOCK=_BLOCK)


def silu_second(
    x: Tensor, x_dot: Tensor, a_s: Tensor, b_s: Tensor, skip: Tensor | None, adjoints: Tensor, values: Tensor
) -> None:
    """``adjoints = [b; a] + skip`` and ``values = [silu(x); silu'(x) x_dot]``.

    See `engines.explicit.pointwise.Pointwise`. All contiguous in the same order; skip, adjoints and values are of twice
    the size. ``adjoints`` may be ``skip``.
    """
    if x.numel():
        arrays = (x, x_dot, a_s, b_s, adjoints if skip is None else skip, adjoints, values)
        run(_silu_second, _grid(x), x.device, *arrays, x.numel(), SKIP=skip is not None, BLOCK=_BLOCK)


def _grid(x: Tensor) -> tuple[int]:
    return (int(triton.cdiv(x.numel(), _BLOCK)),)
