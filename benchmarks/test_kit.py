"""The kit through pytest-benchmark: one group a case, one benchmark an arm.

    pytest benchmarks --benchmark-only                  # the middle of every axis
    pytest benchmarks --benchmark-only --bench-select quick
    pytest benchmarks --benchmark-only --bench-full     # every axis: hours
    pytest benchmarks --benchmark-only -k "solve and stiff5"

The arms of a case are measured together, in interleaved rounds (`benchmarks.measure`); pytest-benchmark is then shown
each arm's rounds by a clock that replays them, so that its tables, files and comparisons work on these numbers.
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.cases import Case


class Replay:
    """A clock that advances by the next of the measured times whenever the benchmarked function is called."""

    def __init__(self) -> None:
        self.now, self.times = 0.0, iter(())

    def __call__(self) -> float:
        return self.now

    def advance(self) -> None:
        """Take the time of the next round."""
        self.now += next(self.times)


REPLAY = Replay()


def clock() -> float:
    """The replayed clock, as a function with a name: pytest-benchmark records which timer it used."""
    return REPLAY()


@pytest.mark.benchmark(timer=clock)
def test_arm(benchmark: Any, kit: Any, case: Case, arm: str) -> None:
    result = kit.result(case)
    if arm in result.skipped:
        pytest.skip(result.skipped[arm])
    one = result.arms[arm]
    REPLAY.times = iter(one.rounds)
    benchmark.group = case.name
    benchmark.extra_info.update(kit.details(case, arm))
    benchmark.pedantic(REPLAY.advance, rounds=len(one.rounds), iterations=1)
