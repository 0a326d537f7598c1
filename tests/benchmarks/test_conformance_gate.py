"""No speed is printed when the conformance suite is red, or missing."""

from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import conformance

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
    code = command.main(["run", "--match", "n1", "--cache", str(tmp_path / "cache"), "--csv", str(csv)])
    out, err = capsys.readouterr()
    assert code == 1
    assert err.startswith("error: ")
    assert "no speed is printed" in err
    assert "ms" not in out
    assert not csv.exists()
