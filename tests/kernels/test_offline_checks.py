"""The checks of compilations can fail: sizes in 32 bits, figures beyond their limits, limits of other sources."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed: nothing to compile with")

offline = importlib.import_module("tests.kernels.offline.__main__")
figures = importlib.import_module("tests.kernels.offline.figures")
recall = importlib.import_module("tests.kernels.offline.recall")

_ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.offline

CASE = offline.Case("field", "d64", "tf32", 90)
FIGURES = offline.Figures(200, 16, 0, 65536, 0, 4, 80, 7000, 92)


def ir(*lines: str) -> str:
    return "\n".join(["tt.func public @k(%x: !tt.ptr<f32>, %n: i32, %m: i64) {", *(f"    {line}" for line in lines)])


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (("%0 = tt.get_program_id x : i32 loc(#loc1)", "%1 = arith.muli %0, %c64_i32 : i32 loc(#loc2)"), 1),
        (("%0 = arith.muli %n, %c4_i32 : i32",), 1),
        (("%0 = arith.muli %m, %c4_i64 : i64",), 0),
        (("%0 = arith.muli %c3_i32, %c4_i32 : i32",), 0),
        (("%0 = arith.extsi %n : i32 to i64", "%1 = arith.muli %0, %c4_i64 : i64"), 0),
        (("scf.for %i = %c0 to %n step %c1 : i32 {", "%1 = arith.muli %i, %c64_i32 : i32"), 1),
        (("scf.for %i = %c0 to %c9 step %c1 : i32 {", "%1 = arith.muli %i, %c64_i32 : i32"), 0),
        (("%0 = tt.splat %n : i32 -> tensor<64xi32>", "%1 = arith.muli %0, %cst : tensor<64xi32>"), 1),
        (("%0 = arith.addi %n, %c1_i32 : i32", "%1 = arith.muli %0, %0 : i32"), 1),
    ],
)
def test_sizes_in_32_bits_are_found(lines: tuple[str, ...], found: int) -> None:
    assert len(figures.narrow_products(ir(*lines))) == found


def limit(figures, **others: object) -> dict[str, str]:
    line = offline.row(CASE, offline.ruled(CASE), figures) | others
    return {name: str(value) for name, value in line.items()}


def test_figures_within_their_margins_pass() -> None:
    assert offline.worse(CASE, FIGURES, limit(FIGURES)) == []
    margins = {name: getattr(FIGURES, name) + value for name, value in asdict(offline.MARGINS).items()}
    assert offline.worse(CASE, replace(FIGURES, **margins), limit(FIGURES)) == []


@pytest.mark.parametrize("name", asdict(FIGURES))
def test_a_figure_beyond_its_limit_fails(name: str) -> None:
    more = getattr(FIGURES, name) + getattr(offline.MARGINS, name) + 1
    (told,) = offline.worse(CASE, replace(FIGURES, **{name: more}), limit(FIGURES))
    assert f"field d64 tf32 sm_90: {name} {more}, limit {getattr(FIGURES, name)}" in told


def test_other_matrix_instructions_fail_either_way() -> None:
    assert "matrix 3, limit 4" in offline.worse(CASE, replace(FIGURES, matrix=3), limit(FIGURES))[0]


def test_limits_that_are_missing_or_of_another_tile_fail() -> None:
    assert "not in limits.csv" in offline.worse(CASE, FIGURES, None)[0]
    assert "the limits are of another" in offline.worse(CASE, FIGURES, limit(FIGURES, block_k=16))[0]


def test_more_shared_memory_than_the_device_has_fails() -> None:
    too_much = replace(FIGURES, shared=227 * 1024 + 1)
    assert "the device has 232448" in offline.worse(CASE, too_much, limit(too_much))[0]


def test_figures_of_another_compiler_are_no_limits() -> None:
    assert offline.worse(CASE, replace(FIGURES, registers=999), limit(FIGURES, triton="3.0.0")) == []


def test_figures_are_recalled_only_for_the_same_sources_compiler_and_device(tmp_path, monkeypatch) -> None:
    measured, sources = [], ["a"]
    monkeypatch.setattr(recall, "fingerprint", lambda case, tile: sources[0])
    monkeypatch.setattr(recall, "measure", lambda case, tile: (measured.append(case), FIGURES)[1])
    for _ in range(2):
        assert recall.recalled(CASE, None, tmp_path) == FIGURES
    assert len(measured) == 1
    recall.recalled(replace(CASE, target=80), None, tmp_path)
    sources[0] = "b"
    recall.recalled(CASE, None, tmp_path)
    monkeypatch.setattr(recall.triton, "__version__", "3.0.0")
    recall.recalled(CASE, None, tmp_path)
    assert len(measured) == 4
    recall.recalled(CASE, None, None)
    assert len(measured) == 5


def test_lines_of_other_sources_are_named(tmp_path: Path) -> None:
    """One device function computes something else, another one only has another comment and docstring."""
    package = tmp_path / "vapo_fast"
    package.mkdir()
    for entry in (_ROOT / "vapo_fast").iterdir():
        if entry.name != "__pycache__":
            (package / entry.name).symlink_to(entry)
    (package / "kernels").mkdir()
    for entry in (_ROOT / "kernels").glob("*.py"):
        text = entry.read_text(encoding="utf-8")
        if entry.name == "activation.py":
            text = text.replace("h = z * s", "h = s * z")
        if entry.name == "noise.py":
            text = text.replace('"""Philox4x32-10:', '"""The generator Philox4x32-10:').replace(
                "    for _", "    #\n    for _"
            )
        assert (text != entry.read_text(encoding="utf-8")) == (entry.name in ("activation.py", "noise.py"))
        (package / "kernels" / entry.name).write_text(text, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    environment |= {"PYTHONPATH": f"{tmp_path}{os.pathsep}{_ROOT}", "PYTHONSAFEPATH": "1"}
    only = "^(normal_float32|shuffle_keys|field|train) d64 (-|tf32) "
    command = [sys.executable, "-m", "tests.kernels.offline", "--current", "--only", only]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    told = sorted(line.split(":")[0] for line in result.stdout.splitlines() if "of other sources" in line)
    expected = [f"{kernel} d64 tf32 sm_{target}" for kernel in ("field", "train") for target in (100, 80, 90)]
    assert (told, result.returncode) == (expected, 1), result.stdout + result.stderr
    assert "tests.kernels.offline --write --missing" in result.stdout
