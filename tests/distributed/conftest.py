"""Groups of 2 and 3 processes that meet over gloo, each started once, and one process to compare with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import group
from tests.distributed.support import TRAINING

GROUP = Path(__file__).with_name("group.py")
# Seconds after which a group is ended. Within it, a wait for a process that does not come fails after 45.
LIMIT = 240
ENDS = ("interrupted_and_resumed", "all_interrupted_at_the_last_step", "stopped_by_a_callback", "not_finite")
SCENARIOS = (
    *TRAINING,
    "own_loop",
    "statistics",
    *ENDS,
    "not_finite_and_noticed_late",
    "a_process_that_fails",
    "unlike_processes",
    "samples",
    "joined",
)


def ended(processes: list[subprocess.Popen[str]]) -> list[str]:
    """What the processes said, once all are through; none is left behind."""
    deadline = time.monotonic() + LIMIT
    try:
        return [process.communicate(timeout=max(1.0, deadline - time.monotonic()))[0] for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()


@pytest.fixture(scope="session")
def groups(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, list[dict[str, Any]]]]:
    """By size: the folder of a group, and what each of its processes found."""
    started = {}
    for size, names in ((2, (*SCENARIOS, "command_line")), (3, (*SCENARIOS, "killed"))):
        folder = tmp_path_factory.mktemp(f"group{size}")
        started[size] = (
            folder,
            [
                subprocess.Popen(
                    [sys.executable, str(GROUP), str(rank), str(size), str(folder / "meeting"), str(folder), *names],
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
                for rank in range(size)
            ],
        )
    said = ended([process for _, processes in started.values() for process in processes])
    codes = [process.returncode for _, processes in started.values() for process in processes]
    assert codes == [0, 0, 0, 0, -signal.SIGKILL], said
    return {
        size: (folder, [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)])
        for size, (folder, _) in started.items()
    }


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a single process finds."""
    folder = tmp_path_factory.mktemp("alone")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {name: group.SCENARIOS[name](0, 1, folder) for name in (*TRAINING, "own_loop", "samples")}
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(params=[2, 3], ids="{} processes".format)
def found(request: pytest.FixtureRequest, groups: dict[int, tuple[Path, list[dict[str, Any]]]]) -> Any:
    """A function from a scenario's name to the results of the processes."""

    def results(name: str) -> list[Any]:
        values = [result[name] for result in groups[request.param][1]]
        assert not [value for value in values if isinstance(value, str)], values  # a traceback
        return values

    return results
