"""Keep every measured run: medians are appended to benchmarks/results/timings.csv."""

from __future__ import annotations

from typing import Any

import pytest
from provenance import RESULTS, append


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Append the session's benchmarks, if it measured any."""
    measured: Any = getattr(session.config, "_benchmarksession", None)
    rows = [
        {
            "benchmark": bench.name,
            "median_ms": 1e3 * bench.stats.median,
            "iqr_ms": 1e3 * bench.stats.iqr,
            "rounds": bench.stats.rounds,
            "nfe": bench.extra_info.get("nfe"),
        }
        for bench in (measured.benchmarks if measured else [])
        if bench.stats.data
    ]
    if rows:
        append(RESULTS / "timings.csv", ("benchmark", "median_ms", "iqr_ms", "rounds", "nfe"), rows)
