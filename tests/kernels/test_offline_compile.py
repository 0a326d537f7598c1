"""Every kernel compiles for every kind of device, and as well as it did: the limits are in limits.csv."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed: nothing to compile with")

_ROOT = Path(__file__).resolve().parents[2]
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

pytestmark = pytest.mark.offline


def _succeeds(*arguments: str) -> None:
    # In a process of its own: others interpret the kernels, and a process can do only one of the two.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    command = [sys.executable, "-m", "tests.kernels.offline", *arguments]
    result = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True)
    print(result.stdout)
    assert result.returncode == 0, result.stdout[result.stdout.rfind("\n\n") :] + result.stderr


def _compare(config: pytest.Config, *arguments: str) -> None:
    missing = [name for name in ("ptxas", "cuobjdump") if not (_TOOLS / name).exists()]
    if missing:
        pytest.skip(f"this build of triton comes without {', '.join(missing)}")
    cache = ["--cache", str(config.cache.mkdir("offline"))] if config.cache else []
    _succeeds(*cache, *arguments)


def test_launches_are_compiled_once_for_all_batches() -> None:
    _succeeds("--batches")


def test_the_limits_are_of_these_sources() -> None:
    """Lines that the other tests do not compile cannot have gone stale."""
    _succeeds("--current")


def test_a_choice_of_compilations_is_within_limits(pytestconfig: pytest.Config) -> None:
    """Every kernel, precision, target and shape at least once."""
    _compare(pytestconfig, "--quick")


@pytest.mark.slow
def test_all_compilations_are_within_limits(pytestconfig: pytest.Config) -> None:
    _compare(pytestconfig)
