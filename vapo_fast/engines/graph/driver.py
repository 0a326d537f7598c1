"""The CUDA driver, opened at run time: its library, its functions by name, its errors."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
"""The driver's own."""

_SUCCESS, _OUT_OF_MEMORY, _MISSING = 0, 2, -1


class DriverError(RuntimeError):
    """A call of the CUDA driver failed; ``name`` is the driver's name for ``code``, -1 if the call is not there."""

    def __init__(self, function: str, name: str, code: int) -> None:
        super().__init__(f"{function} failed: {name} ({code})")
        self.function, self.name, self.code = function, name, code


@contextmanager
def out_of_memory_as_pytorchs() -> Iterator[None]:
    """Raise torch.OutOfMemoryError where the driver has no memory left."""
    try:
        yield
    except DriverError as error:
        if error.code == _OUT_OF_MEMORY:
            raise torch.OutOfMemoryError(str(error)) from error
        raise


class Library:
    """A library with the driver's functions.

    Args:
        path: of the library.
    Raises:
        DriverError: it cannot be loaded.
    """

    def __init__(self, path: str) -> None:
        try:
            self._library = ctypes.CDLL(path)
        except OSError as error:
            raise DriverError(f"loading {path}", str(error), _MISSING) from error

    def function(self, name: str, *arguments: Any) -> Any:
        """A function that returns an error's number, by its name and the types of its arguments.

        Raises: DriverError if the library lacks it.
        """
        try:
            function = getattr(self._library, name)
        except AttributeError:
            raise DriverError(name, "not in the library", _MISSING) from None
        function.argtypes, function.restype = arguments, ctypes.c_int
        return function

    def check(self, function: str, code: int) -> None:
        """Raise DriverError if a function did not succeed."""
        if code == _SUCCESS:
            return
        raise DriverError(function, self._name_of(code), code)

    def _name_of(self, code: int) -> str:
        name = ctypes.c_char_p()
        tell = self.function("cuGetErrorName", ctypes.c_int, ctypes.POINTER(ctypes.c_char_p))
        known = tell(code, ctypes.byref(name)) == _SUCCESS and name.value
        return name.value.decode() if known and name.value else "unknown error"
