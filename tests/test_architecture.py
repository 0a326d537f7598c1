"""The packages: imports run one way, foundations import nothing above them, and the picture shows what is there."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
LONGEST_FILE = 450


@pytest.fixture(scope="module")
def packages() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "packages.py"))


def test_packages_do_not_import_one_another(packages: dict[str, Any]) -> None:
    packages["ranks"](packages["imports"]())  # ValueError naming a circle
    circle = {"a": {"b"}, "b": {"c"}, "c": {"a"}}
    with pytest.raises(ValueError, match="packages import one another: a -> b -> c -> a"):
        packages["ranks"](circle)


def test_each_layer_imports_from_those_below(packages: dict[str, Any]) -> None:
    graph = packages["imports"]()
    assert graph["core"] == set()
    rank = packages["ranks"](graph)
    order = ("core", "ode", "potentials", "loss", "engines", "sampling", "training", "cli")
    assert sorted(order, key=rank.__getitem__) == list(order)


def test_the_picture_shows_the_imports(packages: dict[str, Any]) -> None:
    assert packages["PICTURE"].read_text(encoding="utf-8") == packages["picture"](), "python docs/packages.py"


def test_no_file_is_long() -> None:
    folders = ("vapo_fast", "kernels", "csrc", "benchmarks", "tests", "examples", "docs")
    sources = [
        path for folder in folders for suffix in ("py", "cpp", "h") for path in (ROOT / folder).rglob(f"*.{suffix}")
    ]
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text("utf-8").splitlines()) for path in sources}
    assert len(lengths) > 300
    assert {path: length for path, length in lengths.items() if length > LONGEST_FILE} == {}
