"""Samples drawn in shares against those of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import distributed as dist

import vapo_fast as vf
from tests.distributed import group
from tests.distributed.support import same
from vapo_fast import distributed
from vapo_fast.core import memory
from vapo_fast.core.processes import World

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")


def test_samples_are_those_of_one_process_to_the_last_bit(found: Any, alone: dict[str, Any]) -> None:
    expected = alone["samples"]
    for result in found("samples"):
        assert result.keys() == expected.keys()
        for name, value in expected.items():
            if name == "broken":
                continue
            other = result[name]
            if name == "reference solution":
                # Without a batch size libraries choose kernels by shape, and steps follow the rounding within rtol.
                torch.testing.assert_close(other["x"], value["x"], rtol=0, atol=5e-3)
            elif isinstance(value, dict):
                assert [key for key in value if not same(value[key], other[key])] == []
            else:
                assert same(value, other), name


def test_a_process_whose_samples_cannot_be_drawn_is_named(found: Any) -> None:
    results = found("samples")
    last = len(results) - 1
    for rank, result in enumerate(results):
        assert result["broken"][0] == ("ValueError" if rank == last else "ProcessFailedError")
        assert "model parameter 'output.weight' has NaN" in result["broken"][1]
        assert result["failing"][0] == "SolveError"
        assert result["failing"][1].startswith("9 of 9 samples did not reach the end time")


def test_the_states_on_the_way_are_joined_too(found: Any) -> None:
    for result in found("joined"):
        assert result["x"].tolist() == [[0.0], [1.0], [2.0], [3.0], [4.0]]
        assert result["ys"][:, :, 0].tolist() == [[i + 10.0 * k for i in range(5)] for k in range(3)]
        assert (result["nfe"].tolist(), result["engine"]) == ([1, 2, 3, 4, 5], "native")


def test_processes_on_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    whole = memory.free_memory(cpu)
    if whole is None:
        pytest.skip("this system does not say how much memory is free")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    part = memory.free_memory(cpu)
    assert part is not None
    assert 0.1 * whole < part < 0.5 * whole


def test_without_a_group_sampling_is_sampling() -> None:
    model = group.mlp(torch.float32)
    ours, usual = (function(model, 5, rtol=1e-3, seed=2) for function in (distributed.sample, vf.sample))
    assert torch.equal(ours, usual)


def test_the_signatures_of_both_samplers_are_one() -> None:
    import inspect

    assert inspect.signature(distributed.sample) == inspect.signature(vf.sample)


@pytest.mark.parametrize(("n", "size", "unit"), [(10, 3, 1), (2, 3, 1), (10, 3, 4), (12, 5, 4), (1, 1, 1), (7, 2, 9)])
def test_shares_are_consecutive_and_leave_nothing_out(n: int, size: int, unit: int) -> None:
    shares = [World(rank, size).share(n, unit) for rank in range(size)]
    assert [i for share in shares for i in share] == list(range(n))
    assert all(share.start % unit == 0 for share in shares if share)
    whole = [-(-len(share) // unit) for share in shares]
    assert max(whole) - min(whole) <= 1
