"""What the graph engine's losses do when memory is short: blocks are computed twice, which is decided once."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import vapo_fast as vf
from vapo_fast.engines import Job, ReferenceEngine, derivatives
from vapo_fast.engines.explicit import ExplicitPasses
from vapo_fast.engines.graph.engine import GRAPH
from vapo_fast.loss import Batch

PATH = vf.DataHomotopy(1.0, 0.1)
JOB = Job("loss_and_grads")
ROWS = 6


@pytest.fixture
def model() -> vf.UNetPotential:
    torch.manual_seed(0)
    made = vf.UNetPotential((1, 4, 4), PATH, channels=4, multipliers=(1, 2), blocks=1)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made.double()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether blocks were to be computed twice, for each loss."""
    found: list[bool] = []
    compute = ExplicitPasses.loss_and_grads

    def watched(self: ExplicitPasses, *arguments: Any, recompute: bool = False) -> Any:
        found.append(recompute)
        return compute(self, *arguments, recompute=recompute)

    monkeypatch.setattr(ExplicitPasses, "loss_and_grads", watched)
    return found


def batch(rows: int = ROWS) -> Batch:
    drawn = torch.randn(2, rows, 1, 4, 4, dtype=torch.float64)
    return Batch(drawn[0], torch.linspace(0.3, PATH.t1, rows, dtype=torch.float64), drawn[1])


def free(monkeypatch: pytest.MonkeyPatch, bytes_: int | None) -> None:
    monkeypatch.setattr(derivatives, "free_memory", lambda device: bytes_)


def need(model: vf.UNetPotential) -> int:
    passes = ExplicitPasses(model)
    return ROWS * passes.bytes_per_sample("loss_and_grads") + passes.bytes_of_weights()


def assert_exact(model: vf.UNetPotential, given: Batch) -> None:
    found, exact = GRAPH.loss_and_grads(model, given, JOB), ReferenceEngine().loss_and_grads(model, given, JOB)
    torch.testing.assert_close(found.loss, exact.loss, rtol=1e-11, atol=1e-11)
    for name, gradient in exact.grads.items():
        torch.testing.assert_close(found.grads[name], gradient, rtol=1e-9, atol=1e-9 * float(gradient.abs().max()))


@pytest.mark.parametrize(("share", "twice"), [(1.0, True), (2.0, False), (None, False)])
def test_blocks_are_computed_twice_where_activations_would_take_most_of_the_memory(
    share: float | None, twice: bool, model: vf.UNetPotential, asked: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, None if share is None else int(share * need(model)))
    assert_exact(model, batch())
    assert asked == [twice]


def test_a_run_stays_with_what_its_first_step_found(
    model: vf.UNetPotential, asked: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As memory comes and goes, or is kept by PyTorch between steps, gradients keep their last bits."""
    for memory in (2.0, 1.0, 0.1):
        free(monkeypatch, int(memory * need(model)))
        GRAPH.loss_and_grads(model, batch(), JOB)
    assert asked == [False] * 3
    GRAPH.loss_and_grads(model, batch(2 * ROWS), JOB)
    assert asked.pop()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("can't allocate memory: 1 byte"),
        RuntimeError("could not create a primitive"),
    ],
    ids=["pytorch", "python", "allocator", "onednn"],
)
def test_out_of_memory_computes_them_twice(
    error: Exception, model: vf.UNetPotential, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute, asked = ExplicitPasses.loss_and_grads, []

    def short(self: ExplicitPasses, *arguments: Any, recompute: bool = False) -> Any:
        asked.append(recompute)
        if not recompute:
            raise error
        return compute(self, *arguments, recompute=recompute)

    monkeypatch.setattr(ExplicitPasses, "loss_and_grads", short)
    free(monkeypatch, None)
    with pytest.warns(RuntimeWarning, match="out of memory for the gradients of 6 samples: .* larger accumulate"):
        assert_exact(model, batch())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GRAPH.loss_and_grads(model, batch(), JOB)
    assert asked == [False, True, True]


@pytest.mark.filterwarnings("ignore:out of memory for the gradients")
def test_even_that_is_too_much(model: vf.UNetPotential, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(self: ExplicitPasses, *arguments: Any, recompute: bool = False) -> Any:
        raise MemoryError

    monkeypatch.setattr(ExplicitPasses, "loss_and_grads", short)
    free(monkeypatch, None)
    for _ in range(2):
        with pytest.raises(MemoryError, match="use a larger accumulate"):
            GRAPH.loss_and_grads(model, batch(), JOB)


@pytest.mark.parametrize("text", ["no such thing", "could not create a primitive descriptor for the sum primitive"])
def test_other_errors_are_the_callers(model: vf.UNetPotential, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: ExplicitPasses, *arguments: Any, recompute: bool = False) -> Any:
        raise RuntimeError(text)

    monkeypatch.setattr(ExplicitPasses, "loss_and_grads", broken)
    with pytest.raises(RuntimeError, match=text):
        GRAPH.loss_and_grads(model, batch(), JOB)
