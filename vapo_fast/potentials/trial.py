"""The trial of a user's module: what sampling, training and likelihoods need of it, asked once when it is wrapped."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Value = Callable[[Tensor, Tensor], Tensor]

_COUPLING = 1e-3
_OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)


class Obstacles(NamedTuple):
    """Why a potential cannot be trained, or its likelihood not be computed; None where it can."""

    training: str | None = None
    likelihood: str | None = None


def check_value(value: Value, x: Tensor, t: Tensor, call: str) -> None:
    """TypeError or ValueError unless the module maps two points to two numbers of their type, each of its own point.

    Args:
        value: maps x (n, *event), t (n,) to (n,).
        x: (3, *event) points. t: (3,) times.
        call: how messages name the call.
    """
    try:
        with torch.no_grad():
            out: object = value(x[:2].clone(), t[:2].clone())
            first = None if not isinstance(out, Tensor) else value(x[[0, 2]], t[:2].clone())
    except Exception as error:  # the user's own code may raise anything; say in which call it did
        raise ValueError(f"{call} failed: {type(error).__name__}: {error}") from error
    if not isinstance(out, Tensor):
        raise TypeError(f"{call} must return a tensor of shape (2,), got {type(out).__name__}")
    if out.shape != (2,):
        raise ValueError(f"{call} must return shape (2,), one scalar a sample, got {tuple(out.shape)}")
    if out.dtype != x.dtype:
        raise TypeError(f"{call} must return dtype {x.dtype}, got {out.dtype}")
    if out.device != x.device:
        raise ValueError(f"{call} must return a tensor on {x.device}, got {out.device}")
    assert isinstance(first, Tensor)
    size = max(float(out.abs().max()), float(first.abs().max()))
    if abs(float(out[0] - first[0])) > _COUPLING * size:
        raise ValueError(
            f"{call} gives a sample another value beside another sample ({float(out[0]):.6g} and "
            f"{float(first[0]):.6g}): results would depend on the batch; look for means over the batch"
        )


def find_obstacles(value: Value, x: Tensor, t: Tensor, call: str) -> Obstacles:
    """What is missing of the second derivatives that training (through parameters) and likelihoods (twice in x) need.

    Args: as for `check_value`; x may have any number of points.
    Raises: ValueError if there is no gradient with respect to x at all.
    """
    # Inside somebody's inference_mode the copies are ordinary tensors, which autograd can follow.
    with torch.inference_mode(False), torch.enable_grad():
        x = x.clone().requires_grad_()
        try:
            out = value(x, t.clone())
            gradient = None
            if out.requires_grad:
                (gradient,) = torch.autograd.grad(out.sum(), x, create_graph=True, allow_unused=True)
        except _OUT_OF_MEMORY:
            return Obstacles()  # how much fits is for sampling to find out
        except Exception as error:
            raise ValueError(f"the gradient of {call} failed: {type(error).__name__}: {error}") from error
        if gradient is None:
            raise ValueError(
                f"{call} must be differentiable with respect to x, and its result does not depend on x through "
                "autograd; look for detach, no_grad, numpy or integer operations in the module"
            )
        try:
            return Obstacles(likelihood=_flatness(gradient, x))
        except _OUT_OF_MEMORY:
            return Obstacles()
        except RuntimeError as error:
            reason = f"it has no second derivatives ({str(error).splitlines()[0]})"
            return Obstacles(reason, reason)


def _flatness(gradient: Tensor, x: Tensor) -> str | None:
    """Why the Laplacian would be wrong: it is 0 wherever it is computed, although the gradient is not constant.

    So it is for piecewise linear networks, whose curvature lies in the kinks.
    """
    if gradient.requires_grad:
        (second,) = torch.autograd.grad(gradient.square().sum(), x, allow_unused=True)
        if second is not None and bool(second.any()):
            return None
    constant = bool((gradient == gradient[:1]).all())
    if constant:
        return None
    return (
        "it is piecewise linear (as networks of ReLU are): its Laplacian is 0 almost everywhere, and a likelihood "
        "would be wrong without a sign of it; use a smooth activation such as SiLU, softplus or tanh"
    )
