"""What lies between two convolutions, for each of the four sweeps: the definition, in PyTorch.

Notation: x is a layer's input, s = silu(x); a dot marks a derivative along the direction of the tangent sweep; a_v is
df/dv and b_v is d(f_dot + q f)/dv for the network's value f and its derivative f_dot. FiLM is
``h = gain c + offset`` with a gain and an offset (B, C), for each sample and channel.

Feature maps are (B, C, H, W) in channels-last memory. A convolution may compute in a narrower type than the rest:
arguments are converted to the type of the stream (x, and FiLM's coefficients) before anything is done to them, and what
is returned for a convolution to read is in the type that the caller names.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class Pairs(NamedTuple):
    """Both halves of a weight's gradient, each (2B, C, H, W).

    ``adjoints`` is [b; a] and ``values`` is [s; s_dot].
    """

    adjoints: Tensor
    values: Tensor


class FilmPairs(NamedTuple):
    """`Pairs` of a FiLM layer, [b_c; a_c] and [s; s_dot], with the gradients of gain and offset (B, C)."""

    adjoints: Tensor
    values: Tensor
    gain: Tensor
    offset: Tensor


class Pointwise(Protocol):
    """The operations; `TorchPointwise` defines them, others compute the same faster."""

    def silu(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The activation of the stream."""

    def silu_derivative(self, x: Tensor, v: Tensor, skip: Tensor | None, dtype: torch.dtype) -> Tensor:
        """``silu'(x) v + skip``: a_x of v = a_s, or s_dot of v = x_dot."""

    def silu_second(
        self, x: Tensor, x_dot: Tensor, a_s: Tensor, b_s: Tensor, skip: Tensor | None, dtype: torch.dtype
    ) -> Pairs:
        """``a = a_s silu'`` and ``b = b_s silu' + a_s silu'' x_dot``, added to ``skip`` (2B, ...) in its place.

        The adjoints are in x's type, the values in ``dtype``.
        """

    def film_silu(self, c: Tensor, gain: Tensor, offset: Tensor, dtype: torch.dtype) -> Tensor:
        """``silu(h)``."""

    def film_silu_derivative(self, c: Tensor, v: Tensor, gain: Tensor, offset: Tensor, dtype: torch.dtype) -> Tensor:
        """``gain silu'(h) v``: a_c of v = a_s, or s_dot of v = c_dot."""

    def film_silu_second(
        self, c: Tensor, c_dot: Tensor, a_s: Tensor, b_s: Tensor, gain: Tensor, offset: Tensor, dtype: torch.dtype
    ) -> FilmPairs:
        """``a_h = a_s silu'(h)``, ``b_h = b_s silu'(h) + a_s silu''(h) gain c_dot``; a_c and b_c are gain times these.

        The gain's gradient is the sum of ``b_h c + a_h c_dot`` over the image, the offset's that of ``b_h``.
        """

    def residual(self, branch: Tensor, skip: Tensor, bias: Tensor | None) -> Tensor:
        """``branch + skip + bias`` in skip's type; ``branch`` may be overwritten. bias: (C,)."""


class TorchPointwise(Pointwise):
    """The operations in PyTorch, on any device and in any type."""

    def silu(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return F.silu(x).to(dtype)

    def silu_derivative(self, x: Tensor, v: Tensor, skip: Tensor | None, dtype: torch.dtype) -> Tensor:
        result = _first(x).mul_(v)
        return (result if skip is None else result.add_(skip)).to(dtype)

    def silu_second(
        self, x: Tensor, x_dot: Tensor, a_s: Tensor, b_s: Tensor, skip: Tensor | None, dtype: torch.dtype
    ) -> Pairs:
        n = len(x)
        adjoints = pair_like(x, x.dtype).zero_() if skip is None else skip
        adjoints[:n] += _second(x).mul_(x_dot).mul_(a_s)
        first = _first(x)
        adjoints[:n].addcmul_(first, b_s.to(x.dtype))
        adjoints[n:].addcmul_(first, a_s.to(x.dtype))
        values = pair_like(x, dtype)
        values[n:] = first.mul_(x_dot)
        del first
        values[:n] = F.silu(x)
        return Pairs(adjoints, values)

    def film_silu(self, c: Tensor, gain: Tensor, offset: Tensor, dtype: torch.dtype) -> Tensor:
        return F.silu(_film(c, gain, offset)).to(dtype)

    def film_silu_derivative(self, c: Tensor, v: Tensor, gain: Tensor, offset: Tensor, dtype: torch.dtype) -> Tensor:
        return _first(_film(c, gain, offset)).mul_(_image(gain)).mul_(v).to(dtype)

    def film_silu_second(
        self, c: Tensor, c_dot: Tensor, a_s: Tensor, b_s: Tensor, gain: Tensor, offset: Tensor, dtype: torch.dtype
    ) -> FilmPairs:
        h, n, wide = _film(c, gain, offset), len(c), _image(gain)
        first = _first(h)
        b_h = _second(h).mul_(wide).mul_(c_dot).mul_(a_s).addcmul_(first, b_s.to(h.dtype))
        values = pair_like(h, dtype)
        values[:n] = F.silu(h)
        del h
        values[n:] = wide * first * c_dot
        of_offset, of_gain = b_h.sum((2, 3)), (b_h * c).sum((2, 3))
        adjoints = pair_like(first, dtype)
        adjoints[:n] = b_h.mul_(wide)
        del b_h
        a_h = first.mul_(a_s)
        of_gain += (a_h * c_dot).sum((2, 3))
        adjoints[n:] = a_h.mul_(wide)
        return FilmPairs(adjoints, values, of_gain, of_offset)

    def residual(self, branch: Tensor, skip: Tensor, bias: Tensor | None) -> Tensor:
        total = skip + branch
        return total if bias is None else total.add_(bias[:, None, None])


def pair_like(map_: Tensor, dtype: torch.dtype) -> Tensor:
    """Memory for two maps of this shape, one after the other."""
    n, channels, height, width = map_.shape
    return torch.empty(
        (2 * n, channels, height, width), dtype=dtype, device=map_.device, memory_format=torch.channels_last
    )


def _image(coefficient: Tensor) -> Tensor:
    return coefficient[:, :, None, None]


def _film(c: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    return torch.addcmul(_image(offset), c.to(gain.dtype), _image(gain))


def _first(z: Tensor) -> Tensor:
    # sigmoid(-z), not 1 - sigmoid(z), which cancels for large z.
    return torch.sigmoid(-z).mul_(z).add_(1.0).mul_(torch.sigmoid(z))


def _second(z: Tensor) -> Tensor:
    # 1 - 2 sigmoid(z) is -tanh(z/2).
    return (z * 0.5).tanh_().mul_(-z).add_(2.0).mul_(torch.sigmoid(z)).mul_(torch.sigmoid(-z))
