"""Every kernel compiles for every kind of device, and as well as it did: the limits are in limits.csv."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed: nothing to compile with")

_COMMAND = Path(__file__).with_name("offline.py")
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def _succeeds(*command: str) -> None:
    # In a process of its own: others interpret the kernels, and a process can do only one of the two.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    result = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    print(result.stdout)
    assert result.returncode == 0, result.stdout[result.stdout.rfind("\n\n") :] + result.stderr


def _compare(*arguments: str) -> None:
    missing = [name for name in ("ptxas", "cuobjdump") if not (_TOOLS / name).exists()]
    if missing:
        pytest.skip(f"this build of triton comes without {', '.join(missing)}")
    _succeeds(str(_COMMAND), "--jobs", str(min(2, os.cpu_count() or 1)), *arguments)


def test_launches_are_bound_as_they_are_compiled_and_once_for_all_batches() -> None:
    _succeeds(str(_COMMAND.with_name("binding.py")))


def test_the_limits_are_of_these_sources() -> None:
    """Lines that the other tests do not compile cannot have gone stale."""
    _succeeds(str(_COMMAND), "--current")


def test_a_choice_of_compilations_is_within_limits() -> None:
    """Every kernel, precision, target and shape at least once."""
    _compare("--quick")


@pytest.mark.slow
def test_all_compilations_are_within_limits() -> None:
    _compare()
