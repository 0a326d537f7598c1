"""For all tests: Triton's interpreter where there is no CUDA device, and a Ctrl-C that arrives.

Triton looks at the variable when a kernel is defined, so it is set before anything imports `vapo_fast.kernels`. A shell
starts what it puts in the background with the signal ignored, and Python then leaves it so, here and in every process
that a test starts.
"""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _dot(builder: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
    """`tl.dot` with one order of summation for every entry; of float32, since the interpreter has no bfloat16."""
    from triton.runtime.interpreter import TensorHandle

    assert a.data.dtype == b.data.dtype == d.data.dtype == np.float32, (a.data.dtype, b.data.dtype, d.data.dtype)
    return TensorHandle(np.einsum("ik,kj->ij", a.data, b.data, optimize=False) + d.data, d.dtype.scalar)


@pytest.fixture(scope="session", autouse=True)
def _rows_do_not_see_one_another() -> Iterator[None]:
    """The interpreter multiplies by NumPy, whose library takes a block's last rows and columns through other code.

    On some processors a row's bits then depend on its place in the tile, which they do not on a device.
    """
    if importlib.util.find_spec("triton") is None or torch.cuda.is_available():
        yield
        return
    from triton.runtime.interpreter import InterpreterBuilder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_dot", _dot)
        yield
