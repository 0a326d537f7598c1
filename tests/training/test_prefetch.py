"""The thread that prepares batches: order, bounds, errors, and its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch

from vapo_fast.training import prefetch
from vapo_fast.training.batches import Source, as_source
from vapo_fast.training.prefetch import batches_ahead, prepared

CPU = torch.device("cpu")


def alive() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "vapo_fast prefetch"]


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()


@pytest.mark.parametrize("ahead", [0, 1, 2, 5, 100])
def test_items_come_in_order_and_once(ahead: int) -> None:
    asked: list[int] = []

    def draw(step: int) -> int:
        asked.append(step)
        return step * step

    with prepared(draw, range(3, 40), ahead, CPU) as take:
        assert [take(step) for step in range(3, 40)] == [step * step for step in range(3, 40)]
    assert asked == list(range(3, 40))
    assert not alive()


@pytest.mark.parametrize("ahead", [1, 3])
def test_no_more_is_prepared_than_was_asked_for(ahead: int) -> None:
    asked: list[int] = []
    with prepared(asked.append, range(50), ahead, CPU) as take:
        for step in range(20):
            assert eventually(lambda step=step: len(asked) == step + ahead)
            time.sleep(0.002)
            assert len(asked) == step + ahead
            take(step)
    assert not alive()


def test_the_next_item_is_prepared_while_the_last_is_in_use() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def draw(step: int) -> int:
        if step == 1:
            begun.set()
            assert go_on.wait(10)
        return step

    with prepared(draw, range(2), 1, CPU) as take:
        assert take(0) == 0
        assert begun.wait(10)  # nobody has asked for it yet
        go_on.set()
        assert take(1) == 1


@pytest.mark.parametrize("ahead", [1, 2, 30])
def test_an_error_is_raised_by_the_step_that_needed_the_item(ahead: int) -> None:
    def draw(step: int) -> int:
        if step == 7:
            raise OSError("unreadable")
        return step

    with prepared(draw, range(20), ahead, CPU) as take:
        assert [take(step) for step in range(7)] == list(range(7))
        for _ in range(2):
            with pytest.raises(OSError, match="unreadable"):
                take(7)
    assert not alive()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_leaving_early_ends_the_thread(error: type[BaseException]) -> None:
    def use_and_fail() -> None:
        with prepared(lambda step: torch.zeros(step), range(10**9), 4, CPU) as take:
            take(0)
            raise error

    with pytest.raises(error):
        use_and_fail()
    assert not alive()


def test_a_read_that_hangs_is_left_behind_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "_PATIENCE_SECONDS", 0.05)
    let_go = threading.Event()
    with (
        pytest.warns(UserWarning, match="the thread that prepares batches is still reading data"),
        prepared(lambda step: let_go.wait(20) if step else None, range(5), 2, CPU) as take,
    ):
        take(0)
    assert all(thread.daemon for thread in alive())
    let_go.set()
    assert eventually(lambda: not alive())


class Elsewhere(Source):
    def rows(self, step: int, batch_size: int, seed: int, part: range | None = None) -> torch.Tensor:
        raise AssertionError


def test_how_many_are_prepared_ahead() -> None:
    held, read, cuda = as_source(torch.zeros(3, 2), (2,)), Elsewhere(), torch.device("cuda")
    for source in (held, read):
        assert batches_ahead(None, source, CPU) == 0
        assert batches_ahead(None, source, cuda) == 2
        assert batches_ahead(0, source, cuda) == 0
        assert batches_ahead(5, source, CPU) == 5
    held.held_on = cuda  # another thread's work on the device could not be ordered with the trainer's
    assert batches_ahead(None, held, cuda) == batches_ahead(5, held, cuda) == 0
