"""`pytest benchmarks --benchmark-only` itself, on one tiny case: what `make bench` runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import provenance
from benchmarks.peers.machine import PEAK
from benchmarks.provenance import ROOT
from benchmarks.records import LeftOut, Record, beside
from vapo_fast.core import extension

pytestmark = pytest.mark.skipif(extension.unavailable_reason() is not None, reason="needs the native extension")

# Loaded before the kit's conftest: a selection of one case for two arms and one that is missing, and a gate that says
# what the test wants. The rest is the kit.
PLUGIN = """
import dataclasses
from benchmarks import cases, conformance
from benchmarks.peers import ARMS

cases.SELECTIONS["tiny"] = lambda threads: [cases.Case("solve", "random", 3, (16, 16), 5, threads, rtol=1e-3)]
ARMS["scipy"] = dataclasses.replace(ARMS["scipy"], missing=lambda: "it is not installed")
for name in set(ARMS) - {"native", "reference", "scipy"}:
    del ARMS[name]

def require(cache, suite=None, gate=None):
    if RED:
        raise conformance.ConformanceError("the conformance suite is red, so no speed is printed: 1 failed")
    return "stub: 9 passed"

conformance.require = require
"""


def run(folder: Path, red: bool) -> subprocess.CompletedProcess[str]:
    (folder / "tiny_kit.py").write_text(f"RED = {red}\n{PLUGIN}")
    command = [sys.executable, "-m", "pytest", "-p", "tiny_kit", "benchmarks/test_kit.py", "--benchmark-only"]
    command += ["-p", "no:cacheprovider", "-rs", "--bench-select", "tiny", "--bench-threads", "1"]
    command += ["--bench-csv", str(folder / "bench.csv"), "--bench-cache", str(folder / "cache")]
    command += [f"--benchmark-json={folder / 'told.json'}"]
    environment = {"PYTHONPATH": f"{folder}:{ROOT}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_every_arm_of_a_case_is_a_benchmark_and_a_row(tmp_path: Path):
    done = run(tmp_path, red=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed, 1 skipped" in done.stdout
    rows = {row.arm: row for row in provenance.read(tmp_path / "bench.csv", Record)}
    assert set(rows) == {"native", "reference", PEAK}
    for row in rows.values():
        assert row.conformance == "stub: 9 passed"
        assert (row.n, row.threads, row.rounds, row.failed) == (5, 1, 5, 0)
    assert rows["native"].error_rms is not None
    assert rows["native"].error_rms < 1e-2
    assert rows[PEAK].gflops
    (missing,) = provenance.read(beside(tmp_path / "bench.csv", "left_out"), LeftOut)
    assert (missing.arm, missing.reason) == ("scipy", "it is not installed")
    # pytest-benchmark was shown the rounds that were measured, and not its own times of nothing.
    told = {one["params"]["arm"]: one for one in json.loads((tmp_path / "told.json").read_text())["benchmarks"]}
    for arm, row in rows.items():
        assert 1e3 * told[arm]["stats"]["median"] == pytest.approx(row.median_ms, rel=1e-4)
        assert told[arm]["stats"]["rounds"] == 5
    assert told["reference"]["extra_info"]["ratio"] == pytest.approx(rows["reference"].ratio, rel=1e-4)


def test_no_speed_is_shown_when_the_gate_is_red(tmp_path: Path):
    done = run(tmp_path, red=True)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "the conformance suite is red" in done.stdout + done.stderr
    assert not (tmp_path / "bench.csv").exists()
