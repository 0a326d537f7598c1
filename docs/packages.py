"""Draws docs/images/packages.svg: the packages of vapo_fast and their imports, read from the source.

    python docs/packages.py            write the picture
    python docs/packages.py --check    exit with 1 if the picture in the tree differs

A row holds packages that import only from the rows below it. An arrow that other arrows imply is left out.
"""

from __future__ import annotations

import ast
import sys
import textwrap
from collections.abc import Iterator
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "packages.svg"

# Entry points and public names alone: everything below them is what the picture is about.
_LEFT_OUT = ("__init__", "__main__", "callbacks")
# The one import upwards: a draw on a GPU loads its kernel when it is first asked for.
_AT_RUN_TIME = {("noise", "kernels")}
_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _MARGIN = 164, 74, 18, 46, 16

Graph = dict[str, set[str]]


def imports() -> Graph:
    """The packages that each package of vapo_fast imports, at the top of a file or inside a function."""
    graph: Graph = {}
    for path in sorted((ROOT / "vapo_fast").rglob("*.py")) + sorted((ROOT / "kernels").glob("*.py")):
        package = _package(path)
        others = {other for other in _imported(path) if other != package and (package, other) not in _AT_RUN_TIME}
        graph.setdefault(package, set()).update(others)
    return graph


def ranks(graph: Graph) -> dict[str, int]:
    """The row of each package, 0 for one that imports no other; ValueError naming the packages of a circle."""
    found: dict[str, int] = {}

    def rank(package: str, path: tuple[str, ...]) -> int:
        if package in path:
            raise ValueError(f"packages import one another: {' -> '.join((*path[path.index(package) :], package))}")
        if package not in found:
            found[package] = 1 + max((rank(other, (*path, package)) for other in sorted(graph[package])), default=-1)
        return found[package]

    for package in graph:
        rank(package, ())
    return found


def picture() -> str:
    """The SVG as text; the same imports give the same text."""
    graph = {package: others - set(_LEFT_OUT) for package, others in imports().items() if package not in _LEFT_OUT}
    rows: list[list[str]] = []
    for package, rank in sorted(ranks(graph).items()):
        rows += [[] for _ in range(rank + 1 - len(rows))]
        rows[rank].append(package)
    width = max(map(len, rows)) * (_WIDTH + _GAP_X) - _GAP_X + 2 * _MARGIN
    height = len(rows) * (_HEIGHT + _GAP_Y) - _GAP_Y + 2 * _MARGIN
    places = {}
    for rank, row in enumerate(rows):
        left = (width - len(row) * (_WIDTH + _GAP_X) + _GAP_X) // 2
        for column, package in enumerate(row):
            top = height - _MARGIN - _HEIGHT - rank * (_HEIGHT + _GAP_Y)
            places[package] = (left + column * (_WIDTH + _GAP_X), top)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif">',
        '<defs><marker id="head" markerWidth="8" markerHeight="8" refX="7" refY="3" orient="auto">'
        '<path d="M0,0 L7,3 L0,6 z" fill="#5b6b7b"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        *(_arrow(places[package], places[other]) for package, other in _direct(graph)),
        *(_box(package, *places[package]) for package in sorted(places)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _package(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] == "kernels" else parts[1]


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            # The extension is not a package of Python's, and the top of the package has the version alone.
            if parts[0] == "vapo_fast" and len(parts) > 1 and not parts[1].startswith("_"):
                yield parts[1]


def _direct(graph: Graph) -> list[tuple[str, str]]:
    """The arrows that no longer path implies."""

    def reaches(package: str, other: str) -> bool:
        return other in graph[package] or any(reaches(between, other) for between in graph[package])

    return [
        (package, other)
        for package in sorted(graph)
        for other in sorted(graph[package])
        if not any(reaches(between, other) for between in graph[package] - {other})
    ]


def _arrow(start: tuple[int, int], end: tuple[int, int]) -> str:
    x1, y1, x2, y2 = start[0] + _WIDTH // 2, start[1] + _HEIGHT, end[0] + _WIDTH // 2, end[1]
    middle = (y1 + y2) // 2
    return (
        f'<path d="M{x1},{y1} C{x1},{middle} {x2},{middle} {x2},{y2 - 2}" fill="none" stroke="#5b6b7b" '
        'stroke-width="1.2" marker-end="url(#head)"/>'
    )


def _box(package: str, x: int, y: int) -> str:
    name = f"{package}/" if (ROOT / "vapo_fast" / package).is_dir() or package == "kernels" else f"{package}.py"
    lines = textwrap.wrap(_purpose(package), 27, max_lines=3, placeholder=" …")
    text = "".join(
        f'<text x="{x + 10}" y="{y + 36 + 13 * i}" font-size="10.5" fill="#33414e">{escape(line)}</text>'
        for i, line in enumerate(lines)
    )
    return (
        f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="6" fill="#eef3f8" stroke="#5b6b7b"/>'
        f'<text x="{x + 10}" y="{y + 19}" font-size="13" font-weight="bold" fill="#14202b">{name}</text>{text}'
    )


def _purpose(package: str) -> str:
    """The first sentence of the package's docstring."""
    folder = ROOT / "kernels" if package == "kernels" else ROOT / "vapo_fast" / package
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
    return first.replace("\n", " ").replace("`", "").split(". ")[0].removesuffix(".")


if __name__ == "__main__":
    drawn = picture()
    if "--check" in sys.argv[1:]:
        sys.exit(None if PICTURE.read_text(encoding="utf-8") == drawn else "write it anew: python docs/packages.py")
    PICTURE.write_text(drawn, encoding="utf-8")
