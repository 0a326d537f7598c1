"""For all tests: Triton's interpreter without a CUDA device, a Ctrl-C that arrives, an extension that must be there.

Triton looks at the variable when a kernel is defined, so it is set before anything imports `vapo_fast.kernels`. A shell
starts what it puts in the background with the signal ignored, and Python then leaves it so, here and in every process
that a test starts.

VAPO_FAST_REQUIRE_NATIVE=1 (in .ci/run and `make sanitize`) makes it an error to skip tests for want of the native
extension or of a compiler. VAPO_FAST_NATIVE_FROM names the folder that the extension must have been built in,
with the sanitizers of `make sanitize`: another one would pass all tests and prove nothing.
"""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
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


_REQUIRED = os.environ.get("VAPO_FAST_REQUIRE_NATIVE") == "1"
_SANITIZERS = (b"__asan_", b"__ubsan_")


# Every test of these folders has the mark; see pyproject.toml.
_MARKS = {"native": "native", "kernels": "triton", "distributed": "distributed"}


def pytest_itemcollected(item: pytest.Item) -> None:
    folder = item.path.parent.name
    if folder in _MARKS:
        item.add_marker(_MARKS[folder])


def pytest_sessionstart(session: pytest.Session) -> None:
    from vapo_fast.core import extension

    reason = extension.unavailable_reason()
    folder = os.environ.get("VAPO_FAST_NATIVE_FROM")
    if reason is not None and (_REQUIRED or folder):
        pytest.exit(f"the native extension is required, but {reason}", returncode=1)
    if folder:
        library = Path(str(extension.load().__file__))
        if not library.is_relative_to(folder):
            pytest.exit(f"the native extension was to come from {folder}, but it is {library}", returncode=1)
        missing = [mark.decode() for mark in _SANITIZERS if mark not in library.read_bytes()]
        if missing:
            pytest.exit(
                f"{library} was built without the sanitizers whose functions begin with {missing}", returncode=1
            )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report = yield
    if _REQUIRED and report.skipped and "needs g++" in str(report.longrepr):
        report.outcome = "failed"
        report.longrepr = f"skipped, where VAPO_FAST_REQUIRE_NATIVE=1 allows none of this: {report.longrepr}"
    return report
