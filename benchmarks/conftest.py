"""The kit's pytest session: which cases it measures, the conformance suite before any of them, the files they go to."""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from benchmarks import conformance, provenance, records
from benchmarks.cases import SELECTIONS, Case, on
from benchmarks.devices import OURS
from benchmarks.measure import CaseResult, Limits, default_cache, measure
from benchmarks.peers import arms_for
from benchmarks.provenance import RESULTS, append, now
from benchmarks.workloads import Workloads

_DETAILS = ("ratio", "share", "gflops", "evaluations_mean", "evaluations_max", "error_rms", "failed", "warmup_s")


class Kit:
    """Measures each case once, when its first arm is asked for, and appends it to the results file."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._results: dict[Case, CaseResult] = {}
        self._rows: dict[tuple[Case, str], records.Record] = {}
        self._run = now()

    def result(self, case: Case) -> CaseResult:
        """The measurements of a case."""
        if case not in self._results:
            said = self._conformance
            limits = Limits(int(self._config.getoption("--bench-rounds")))
            result = measure(case, self._workloads, limits, say=lambda line: None)
            rows = records.records(result, self._run, said)
            path = Path(self._config.getoption("--bench-csv"))
            provenance.write(rows, path)
            missing = records.left_out(case, self._run, result.skipped)
            provenance.write(missing, records.beside(path, "left_out"))
            self._rows |= {(case, row.arm): row for row in rows}
            self._results[case] = result
        return self._results[case]

    def details(self, case: Case, arm: str) -> dict[str, object]:
        """What stands beside an arm's time."""
        row = asdict(self._rows[case, arm])
        return {name: row[name] for name in _DETAILS if row[name] is not None}

    @cached_property
    def _conformance(self) -> str:
        try:
            option = self._config.getoption
            selection = "full" if option("--bench-full") else option("--bench-select")
            device = option("--bench-device")
            gate = conformance.gate_of("default" if selection == "quick" else selection, device)
            return conformance.require(self._cache, gate=gate)
        except conformance.ConformanceError as error:
            pytest.exit(f"error: {error}", returncode=1)

    @cached_property
    def _workloads(self) -> Workloads:
        return Workloads(self._cache)

    @property
    def _cache(self) -> Path:
        return Path(self._config.getoption("--bench-cache"))


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("benchmark kit")
    group.addoption("--bench-select", choices=list(SELECTIONS), default="default", help="which cases to measure")
    group.addoption("--bench-full", action="store_true", help="every axis: hours")
    group.addoption("--bench-threads", type=int, default=2, help="threads of the cases that do not vary them")
    group.addoption("--bench-device", choices=list(OURS), default="cpu", help="what the cases run on")
    group.addoption("--bench-rounds", type=int, default=5, help="interleaved rounds, at least 5")
    group.addoption("--bench-cache", default=str(default_cache()), help="trained potentials and float64 solutions")
    group.addoption("--bench-csv", default=str(records.CSV), help="the results file")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {"case", "arm"} <= set(metafunc.fixturenames):
        option = metafunc.config.getoption
        selection = "full" if option("--bench-full") else option("--bench-select")
        pairs = [
            pytest.param(case, arm.name, id=f"{case.name}-{arm.name}".replace(" ", "_"))
            for case in on(option("--bench-device"), SELECTIONS[selection](option("--bench-threads")))
            for arm in arms_for(case)
        ]
        metafunc.parametrize(("case", "arm"), pairs)


@pytest.fixture(scope="session")
def kit(request: pytest.FixtureRequest) -> Kit:
    return Kit(request.config)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Append what is not the kit's, such as the noise's timings, to timings.csv."""
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
        if bench.stats.data and not bench.name.startswith("test_arm[")
    ]
    if rows:
        append(RESULTS / "timings.csv", ("benchmark", "median_ms", "iqr_ms", "rounds", "nfe"), rows)
