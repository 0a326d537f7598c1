"""In which arithmetic PyTorch's matrix products and convolutions are done: a precision's name as a context."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def arithmetic(precision: str, device_type: str) -> Iterator[None]:
    """Products on the device in "float64", "float32", "tf32" or "bf16", whatever the program around asks for.

    PyTorch lets convolutions of float32 numbers use TF32 unless told otherwise; a field in "float32" must not. "bf16"
    is autocast, whose casts of weights are kept until the context ends.
    """
    if not torch.amp.is_autocast_available(device_type):
        yield
        return
    with torch.autocast(device_type, torch.bfloat16, enabled=precision == "bf16"):
        if device_type != "cuda":
            yield
            return
        with _tf32(precision == "tf32"):
            yield


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    cudnn: Any = torch.backends.cudnn  # its parts are made at import, where type checkers do not see them
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
    kept = [backend.fp32_precision for backend in backends]
    try:
        older = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    except RuntimeError:  # the newer names were set alone, which makes the older ones ambiguous
        older = None
    # By their older names first, which set both: compilers and modules may still read them.
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    cudnn.allow_tf32 = allowed
    for backend in backends:
        backend.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        if older is not None:
            torch.set_float32_matmul_precision(older[0])
            cudnn.allow_tf32 = older[1]
        for backend, value in zip(backends, kept, strict=True):
            backend.fp32_precision = value
