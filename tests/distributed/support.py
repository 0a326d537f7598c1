"""What the tests of several processes share."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import torch

TRAINING = ("plain", "by_the_reference_engine", "in_float32", "images", "deferred", "from_a_loader")


def difference(first: list[torch.Tensor], second: list[torch.Tensor]) -> float:
    assert len(first) == len(second) > 0
    gaps = [(a.detach().double() - b.detach().double()).abs() for a, b in zip(first, second, strict=True)]
    return max(float(gap.max()) for gap in gaps if gap.numel())


def same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    return bool(first == second)


@contextlib.contextmanager
def torchrun(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """``torchrun`` with two processes, which are ended with it."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [*launcher, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # As a shell starts a process in the background, which ignores Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=40)
            except subprocess.TimeoutExpired:
                process.kill()
