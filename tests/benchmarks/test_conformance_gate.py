"""No speed is printed when the conformance suite is red, or missing."""

import subprocess
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import conformance, devices

GREEN = "def test_one():\n    assert True\n"
RED = "def test_one():\n    assert False\n"


def suite(tmp_path: Path, text: str) -> Path:
    folder = tmp_path / "suite"
    folder.mkdir()
    (folder / "test_suite.py").write_text(text)
    return folder


def test_a_green_suite_is_run_once_for_a_state_of_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, cache = suite(tmp_path, GREEN), tmp_path / "cache"
    assert "1 passed" in conformance.require(cache, folder)
    (folder / "test_suite.py").write_text(RED)  # not one of the sources, so that what is remembered shows
    assert "1 passed" in conformance.require(cache, folder)
    monkeypatch.setattr(conformance, "_sources_hash", lambda: "another")
    with pytest.raises(conformance.ConformanceError, match="no speed is printed: 1 failed"):
        conformance.require(cache, folder)
    monkeypatch.undo()
    assert "1 passed" in conformance.require(cache, folder)  # a red result is not remembered


@pytest.mark.parametrize("text", [RED, None])
def test_the_command_prints_no_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str | None
):
    folder = tmp_path / "none" if text is None else suite(tmp_path, text)
    monkeypatch.setattr(conformance, "SUITE", folder)
    csv = tmp_path / "bench.csv"
    places = ["--cache", str(tmp_path / "cache"), "--results", str(tmp_path)]
    code = command.main(["run", "--match", "n1", "--gate", "full", *places])
    out, err = capsys.readouterr()
    assert code == 1
    assert err.startswith("error: ")
    assert "no speed is printed" in err
    assert "ms" not in out
    assert not csv.exists()


def test_a_gate_runs_its_part_and_remembers_it_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, cache = suite(tmp_path, GREEN + "\n\ndef test_two():\n    assert False\n"), tmp_path / "cache"
    monkeypatch.setattr(conformance, "_sources_hash", lambda: "these")
    gate = conformance.Gate("part", "test_one")
    said = conformance.require(cache, folder, gate)
    assert said.startswith("part gate: 1 passed")
    with pytest.raises(conformance.ConformanceError, match="test_two") as caught:
        conformance.require(cache, folder)  # the whole suite is more than what is remembered
    assert "def test_two" in caught.value.output
    with pytest.raises(conformance.ConformanceError, match="no speed is printed: other gate"):
        conformance.require(cache, folder, conformance.Gate("other", "test_none"))  # nothing run is nothing shown
    (folder / "test_suite.py").write_text(RED)
    assert conformance.require(cache, folder, gate) == said
    # Another device's engines were not tried.
    monkeypatch.setattr(conformance, "accelerator", lambda device: devices.Accelerator("another"))
    with pytest.raises(conformance.ConformanceError):
        conformance.require(cache, folder, gate)


def test_the_whole_suite_is_good_for_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        conformance, "accelerator", lambda device: devices.Accelerator("a device" if device == "cuda" else "")
    )
    folder, cache = suite(tmp_path, GREEN), tmp_path / "cache"
    said = conformance.require(cache, folder)
    assert conformance.require(cache, folder, conformance.QUICK) == said
    with pytest.raises(conformance.ConformanceError, match="cuda gate"):
        conformance.require(cache, folder, conformance.Gate("cuda", "test_none", "cuda"))


@pytest.mark.parametrize("name", ["quick", "cuda"])
def test_a_gate_covers_every_job(name: str):
    gate = conformance.GATES[name]
    # Where there is no CUDA device, the native engine's tests stand for those of triton: they have the same names.
    expression = gate.expression.replace("triton", "native")
    command = [*conformance.command(conformance.SUITE, conformance.Gate(name, expression)), "--collect-only"]
    told = subprocess.run(command, cwd=conformance.ROOT, capture_output=True, text=True, check=False).stdout
    for part in ("field", "solve", "likelihood", "loss"):
        chosen = [line for line in told.splitlines() if f"test_{part}.py" in line]
        assert chosen, (part, told[-300:])
        assert any("native" in line for line in chosen)
        if name == "quick":
            assert any("reference" in line for line in chosen)


def test_the_graph_gate_is_of_images_and_of_solves_in_float32():
    # Where there is no CUDA device, the reference engine's tests of MLPs stand for those of graph.
    expression = conformance.GRAPH.expression.replace("graph", "reference")
    command = [*conformance.command(conformance.SUITE, conformance.Gate("graph", expression)), "--collect-only"]
    told = subprocess.run(command, cwd=conformance.ROOT, capture_output=True, text=True, check=False).stdout
    chosen = [line for line in told.splitlines() if "::" in line]
    for name in ("test_field", "test_methods", "test_failing", "test_repetition", "test_new_weights"):
        assert any(f"test_images.py::{name}" in line for line in chosen), name
    assert any("test_solve.py::test_failing" in line for line in chosen)
    assert not any("float64" in line for line in chosen)
    assert {line.split("::")[0].split("/")[-1] for line in chosen} == {"test_images.py", "test_solve.py"}
