"""Every way in which a fit of several processes ends before its last step: all end, with a clear error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import distributed as dist

import vapo_fast as vf
from tests.distributed import group
from tests.distributed.support import difference

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")


def test_ctrl_c_on_one_process_stops_all_and_the_run_goes_on(found: Any, alone: dict[str, Any]) -> None:
    results = found("interrupted_and_resumed")
    for rank, result in enumerate(results):
        kind, message = result["error"]
        assert kind == "TrainingInterrupted"
        assert "interrupted after step 7 of 25" in message
        assert ("step-00000007.safetensors" if rank == 0 else "process 0 writes the checkpoints") in message
        assert result["steps"] == 7
        # Nobody leaves before process 0 has saved.
        assert result["files"] == ["log.csv", "step-00000004.safetensors", "step-00000007.safetensors"]
        assert [line.split(",")[0] for line in result["log"]] == ["step", *map(str, range(1, 26))]
        for kind in ("weights", "average", "moments"):
            assert difference(result[kind], alone["plain"][kind]) < 1e-12
        torch.testing.assert_close(result["curve"], alone["plain"]["curve"][7:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [2, 3])
def test_a_run_goes_on_with_another_number_of_processes(groups: Any, alone: dict[str, Any], size: int) -> None:
    folder = groups[size][0] / "interrupted_and_resumed" / "run"
    trainer = vf.Trainer(group.mlp(seed=9), **group.OPTIONS)
    trainer.load_state(folder)
    assert trainer.step == 25
    trainer.fit(group.POINTS, 5)
    whole = vf.Trainer(group.mlp(), **group.OPTIONS)
    whole.fit(group.POINTS, 25)
    whole.fit(group.POINTS, 5)
    assert difference(list(trainer.model.parameters()), list(whole.model.parameters())) < 1e-12


def test_ctrl_c_in_the_last_step_still_counts_and_loses_nothing(found: Any) -> None:
    for result in found("all_interrupted_at_the_last_step"):
        assert result["error"][0] == "TrainingInterrupted"
        assert result["steps"] == 5
        assert result["files"] == ["step-00000005.safetensors"]


def test_a_callback_that_stops_every_process_saves_once(found: Any) -> None:
    for result in found("stopped_by_a_callback"):
        assert result["error"][0] == "TrainingInterrupted"
        assert result["files"] == ["step-00000003.safetensors"]


@pytest.mark.parametrize("name", ["not_finite", "not_finite_and_noticed_late"])
def test_a_step_that_is_not_finite_ends_all_alike(found: Any, name: str) -> None:
    results = found(name)
    for result in results:
        kind, message = result["error"]
        assert kind == "NonFiniteLossError"
        assert message.startswith("step 6: the linear term is not finite. The model is left as it was after step 5.")
        assert result["steps"] == 5
        assert difference(result["weights"], results[0]["weights"]) == 0.0
    assert torch.isfinite(torch.cat([w.flatten() for w in results[0]["weights"]])).all()


def test_when_one_process_fails_all_are_told_why(found: Any) -> None:
    results = found("a_process_that_fails")
    last = len(results) - 1
    told = f"process {last} of {len(results)} failed: RuntimeError: no paper"
    for rank, result in enumerate(results):
        for name in ("callback", "last callback", "late", "early"):
            expected = ("RuntimeError", "no paper") if rank == last else ("ProcessFailedError", told)
            assert result[name] == expected, name
        assert result["start"][0] == ("CheckpointError" if rank == 0 else "ProcessFailedError")
        assert "is a file; Checkpointer needs a directory" in result["start"][1]
        assert result["late steps"] == 7
    readers = [result["read"] for result in results]
    assert readers.count(("OSError", "row 41 cannot be read")) == 1
    assert [kind for kind, _ in readers].count("ProcessFailedError") == last
    assert all("OSError: row 41 cannot be read" in message for kind, message in readers if kind != "OSError")


def test_a_process_that_is_killed_is_missed_at_once(groups: Any) -> None:
    for result in groups[3][1][:2]:
        kind, message = result["killed"]["error"]
        assert kind == "ProcessFailedError"
        assert message.startswith("another process has ended, or cannot be reached; what it reported says why")
        assert result["killed"]["steps"] == 4
        assert result["killed"]["seconds"] < 20
    assert "killed" not in groups[3][1][2]


def test_processes_that_do_not_fit_are_told_what_differs(found: Any) -> None:
    results = found("unlike_processes")
    last = len(results) - 1
    for rank, result in enumerate(results):
        assert result["after all that"] == ("", "")
        for name, words in {
            "shape": r"torch.float64 of shape (16, 16) on process 0 and torch.float64 of shape (8, 16)",
            "seed": f"must be given the same: seed is 0 on process 0 and 1 on process {last}",
            "steps": f"steps is 4 on process 0 and 5 on process {last}",
            "rows": "data is 96 rows with the checksum",
            "data": "data is 96 rows with the checksum",
            "unseeded": "step 1: processes that train together read different batches from the DataLoader",
            "sampler": "pass the loader without it",
            "small": f"batch_size must be at least the number of processes, {len(results)}",
        }.items():
            assert result[name][0] == "ValueError", (name, result[name])
            assert words in result[name][1]
        assert result["resume"] == ("CheckpointError", results[0]["resume"][1])
        assert "there is no checkpoint at" in result["resume"][1]
        assert result["no data"][0] == ("TypeError" if rank == last else "ProcessFailedError")
        assert "data must be a tensor" in result["no data"][1]
