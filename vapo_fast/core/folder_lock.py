"""A folder that one process at a time writes to."""

from __future__ import annotations

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

_NAME = ".lock"


class FolderLock:
    """Holds a folder from `take` to `release`; a process that ends, however it ends, lets go of it.

    Args: folder: must exist when it is taken. Where the system has no ``flock`` nothing is held.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _NAME
        self._handle: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the folder, or nothing can be held on this system."""
        return fcntl is None or self._handle is not None

    def take(self) -> str | None:
        """None if this object holds the folder now, else who does."""
        if fcntl is None or self._handle is not None:
            return None
        while True:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The last holder may have removed the file that was opened: hold the one that others will find.
                if self._path.exists() and os.path.samestat(os.fstat(handle), self._path.stat()):
                    break
            except BlockingIOError:
                holder = os.read(handle, 20).decode(errors="replace")
                os.close(handle)
                return f"process {holder}" if holder else "another process"
            os.close(handle)
        os.ftruncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
        self._handle = handle
        return None

    def release(self) -> None:
        """Let go; does nothing if it is not held."""
        if self._handle is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = None
