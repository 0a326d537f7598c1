"""Where a real cuda.h is: a toolkit's, or the one that Triton brings."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


def folders() -> list[Path]:
    """Folders with a cuda.h."""
    found = [Path(os.environ[name]) / "include" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    found.append(Path("/usr/local/cuda/include"))
    if (nvcc := shutil.which("nvcc")) is not None:
        found.append(Path(nvcc).resolve().parent.parent / "include")
    triton = importlib.util.find_spec("triton")
    for place in (triton.submodule_search_locations or []) if triton is not None else []:
        found.append(Path(place) / "backends" / "nvidia" / "include")
    return list(dict.fromkeys(folder.resolve() for folder in found if (folder / "cuda.h").exists()))


def missing() -> str | None:
    """Why nothing can be compiled against one, or None."""
    if os.name == "nt" or COMPILER is None:
        return "needs a C++ compiler on a POSIX system"
    return None if folders() else "there is no cuda.h: neither a CUDA toolkit nor Triton is installed"
