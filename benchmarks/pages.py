"""What pages are written with: tables in Markdown and HTML, numbers, notes, and the marks between which they go."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

Table = Sequence[Sequence[str]]
"""Lines of cells, the titles first."""
_WIDTH = 120


def marks(name: str) -> tuple[str, str]:
    """The lines that stand before and after what the kit writes."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def written(page: Path, name: str = "benchmarks") -> str:
    """What stands between the marks of a page.

    Raises: ValueError if the page does not have both marks, once each.
    """
    begin, end = marks(name)
    whole = page.read_text(encoding="utf-8") if page.exists() else ""
    if whole.count(begin) != 1 or whole.count(end) != 1 or whole.index(begin) > whole.index(end):
        raise ValueError(f"{page} must hold the lines {begin} and {end}, once each, between which the tables go")
    return whole.split(begin)[1].split(end)[0].strip()


def write(page: Path, parts: dict[str, str]) -> Path:
    """Put each part between the marks of its name; the rest of the page stays.

    Raises: ValueError if the page lacks marks; nothing is written then.
    """
    whole = page.read_text(encoding="utf-8") if page.exists() else ""
    for name, text in parts.items():
        written(page, name)
        begin, end = marks(name)
        before, rest = whole.split(begin)
        whole = f"{before}{begin}\n\n{text.strip()}\n\n{end}{rest.split(end)[1]}"
    page.write_text(whole, encoding="utf-8")
    return page


def markdown(table: Table) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(line) + " |" for line in table]
    return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]])


def html_table(table: Table) -> str:
    """A table in HTML; ``**`` around a cell makes it bold."""
    rows = []
    for line, kind in zip(table, ["th", *["td"] * (len(table) - 1)], strict=True):
        rows.append("<tr>" + "".join(f"<{kind}>{_html_cell(text)}</{kind}>" for text in line) + "</tr>")
    return "\n".join(["<table>", *rows, "</table>"])


def _html_cell(text: str) -> str:
    parts = html.escape(text, quote=False).split("**")
    return f"{parts[0]}<b>{parts[1]}</b>{parts[2]}" if len(parts) == 3 else "".join(parts)


def note(*texts: str) -> str:
    """Small print, in lines that are not too long; empty if there is none."""
    return "\n".join(filled(f"<sub>{text}</sub>") for text in texts if text)


def filled(text: str, indent: str = "") -> str:
    """A paragraph in lines that are not too long."""
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False, subsequent_indent=indent)


def wrapped(command: str) -> str:
    """A command in lines that are not too long, for a shell."""
    lines = textwrap.wrap(command, 116, break_long_words=False, break_on_hyphens=False, subsequent_indent="    ")
    return " \\\n".join(lines)


def number(value: float | None) -> str:
    """With three digits; – for None and NaN."""
    if value is None or math.isnan(value):
        return "–"
    if value == 0.0:
        return "0"
    if not 1e-3 <= abs(value) < 1e5:
        return f"{value:.1e}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def count(value: int) -> str:
    """With thin groups of thousands: ``65 536``."""
    return f"{value:,}".replace(",", " ")


def times(ratio: float | None) -> str:
    """``2.81×``."""
    return "–" if ratio is None else f"{ratio:.2f}×"


def share(value: float | None) -> str:
    """In per cent."""
    return "–" if value is None else f"{100 * value:.0f} %"


def spread(median: float | None, low: float | None, high: float | None, percent: bool = False) -> str:
    """``2.81 (2.78 – 2.82)``, or in per cent; – where they are not known."""
    if median is None or low is None or high is None:
        return "–"
    if percent:
        return f"{100 * median:.0f} % ({100 * low:.0f} – {100 * high:.0f})"
    return f"{median:.2f} ({low:.2f} – {high:.2f})"


def paragraph(*lines: str) -> str:
    """Of HTML."""
    return f"<p>{html.escape(' '.join(lines), quote=False)}</p>"


def details(title: str, *parts: str) -> str:
    """Of HTML: parts that open at a click."""
    shown = [part for part in parts if part]
    return "\n".join([f"<details><summary>{html.escape(title, quote=False)}</summary>", *shown, "</details>"])
