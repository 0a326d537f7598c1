"""Several processes that train together against one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import distributed as dist

import vapo_fast as vf
from tests.distributed import group
from tests.distributed.support import TRAINING, difference
from vapo_fast.core.processes import World
from vapo_fast.training.batches import as_source
from vapo_fast.training.parallel import DataParallel

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")


@pytest.mark.parametrize("name", TRAINING)
def test_the_result_is_that_of_one_process(found: Any, alone: dict[str, Any], name: str) -> None:
    # Sums in another order: a few units in the last place a step, here of 40 steps in float32.
    bound = 2e-6 if name == "in_float32" else 1e-13
    expected, results = alone[name], found(name)
    for result in results:
        assert result["step"] == expected["step"]
        assert len(result["curve"]) == len(expected["curve"]) > 1
        torch.testing.assert_close(result["curve"], expected["curve"], rtol=bound, atol=bound)
        for kind in ("weights", "average", "moments"):
            assert difference(result[kind], expected[kind]) < bound
            # Among themselves they have one result, to the last bit.
            assert difference(result[kind], results[0][kind]) == 0.0
        assert torch.equal(result["curve"], results[0]["curve"])
    moved = difference(expected["weights"], [p.detach() for p in first_model(name).parameters()])
    assert moved > 1e-3


def first_model(name: str) -> vf.Potential:
    return group.unet() if name == "images" else group.mlp(torch.float32 if name == "in_float32" else torch.float64)


def test_statistics_of_a_network_are_those_of_the_first_process(found: Any) -> None:
    """So that what is sampled or saved next is one model, as its weights are."""
    results = found("statistics")
    first = results[0]
    for own, *ends in results[1:]:
        assert not torch.equal(own, first[0])
        for end in ends:
            assert torch.equal(end, first[0])


def test_a_loop_of_ones_own_through_distributed_data_parallel(found: Any, alone: dict[str, Any]) -> None:
    start = [p.detach() for p in group.mlp().parameters()]
    for result in found("own_loop"):
        assert set(result) == set(alone["own_loop"])
        for name, weights in result.items():
            assert difference(weights, alone["own_loop"][name]) < 1e-12
            assert difference(weights, start) > 1e-3


def test_the_checksum_of_data_does_not_depend_on_the_process() -> None:
    data = torch.arange(40.0).reshape(20, 2)
    words = {as_source(data.clone(), (2,)).describe() for _ in range(2)}
    assert len(words) == 1
    assert as_source(data + 1, (2,)).describe() not in words


def test_only_what_launches_work_alone_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step with gloo's exchange, which runs on the host, must not become a CUDA graph; with NCCL's it may."""
    monkeypatch.setattr("vapo_fast.training.parallel.world", lambda: World(0, 2))
    parallel = DataParallel(list(group.mlp().parameters()), 8, 0)
    for backends, on_cuda, expected in (
        ("cpu:gloo,cuda:nccl", True, True),
        ("cpu:gloo,cuda:gloo", True, False),
        ("cpu:gloo,cuda:nccl", False, False),
    ):
        monkeypatch.setattr(dist, "get_backend_config", lambda backends=backends: backends)
        buffer = SimpleNamespace(is_cuda=on_cuda, device=torch.device("cuda" if on_cuda else "cpu"))
        monkeypatch.setattr(parallel, "_buffer", buffer)
        assert parallel.capturable is expected
