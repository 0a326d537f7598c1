"""The pages: lines of at most 120 columns, links that lead somewhere, and paths that exist."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COLUMNS = 120

ONLY_A_LINK = re.compile(r"!?\[[^\]]*\]\([^)]*\)")
RELATIVE_LINK = re.compile(r"\]\((?!https?://)([^)\s]+)\)")
CODE = re.compile(r"`([^`]+)`")
PATH = re.compile(r"(?<![\w./])(?:vapo_fast|csrc|kernels|tests|benchmarks|docs|examples)/[\w./*-]*")


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a page outside its code blocks."""
    inside = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if line.lstrip().startswith("```"):
            inside = not inside
        elif not inside:
            yield number, line


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = [line.lstrip("#") for _, line in prose(page) if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.fixture(params=PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def page(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_lines_are_short(page: Path) -> None:
    """Rows of tables and lines that are one link cannot be broken."""
    long = [
        f"line {number}: {len(line)} columns"
        for number, line in prose(page)
        if len(line) > COLUMNS and not line.startswith("|") and not ONLY_A_LINK.fullmatch(line.strip())
    ]
    assert long == []


def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for number, line in prose(page):
        for link in RELATIVE_LINK.findall(line):
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append(f"line {number}: {link}")
    assert broken == []


def test_paths_exist(page: Path) -> None:
    """A path of the repository inside backticks, in which ``*`` stands for anything."""
    missing = [
        f"line {number}: {path}"
        for number, line in prose(page)
        for code in CODE.findall(line)
        for path in PATH.findall(code)
        if not any(ROOT.glob(path.rstrip("./")))
    ]
    assert missing == []


def test_the_map_has_every_package() -> None:
    """Each module and package at the top of vapo_fast is in CONTRIBUTING.md."""
    names = {path.stem for path in (ROOT / "vapo_fast").iterdir() if path.is_dir() or path.suffix == ".py"}
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert [name for name in sorted(names) if not name.startswith("_") and f"`{name}`" not in text] == []
