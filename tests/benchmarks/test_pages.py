"""The pages say what the results files say: they were written after the last measurement."""

from collections.abc import Callable

import pytest

from benchmarks import pages, provenance, records, report
from benchmarks.studies import (
    convolutions,
    estimator_variance,
    explicit_passes,
    image_precision,
    image_runs,
    potential_uses,
    sensitivity,
    toy_sets,
)
from benchmarks.studies.curves import curves
from benchmarks.studies.quality import report as quality
from benchmarks.studies.quality import results as quality_results
from benchmarks.studies.quality import study as quality_study


@pytest.fixture(scope="module")
def results() -> report.Results:
    return report.Results.load()


def test_the_benchmarks_pages_are_what_the_report_makes_of_the_files(results: report.Results):
    drawn = curves(results.rows)
    assert pages.written(report.DOCS) == report.docs_text(results, drawn).strip(), "make bench-report"
    everything = report.DOCS.with_name(report.TABLES).read_text(encoding="utf-8")
    assert everything == report.tables_text(results, drawn), "make bench-report"
    assert all((report.DOCS.parent / "images" / curve.file_name).exists() for curve in drawn)


def test_the_benchmarks_pages_are_short(results: report.Results):
    assert len(report.DOCS.read_text(encoding="utf-8").splitlines()) <= 250
    assert report.DOCS.with_name(report.TABLES).stat().st_size < 1.5e6


def test_the_readmes_table_is_what_the_report_makes_of_the_files(results: report.Results):
    assert pages.written(report.README) == report.readme_text(results.mlps).strip(), "make bench-report"


def test_the_explicit_passes_tables_are_what_the_files_say(results: report.Results):
    rows = explicit_passes.newest(results.rows)
    parts = explicit_passes.parts(rows, image_precision.latest(), convolutions.latest())
    for name, text in parts.items():
        assert pages.written(explicit_passes.PAGE, name) == text.strip(), "python -m benchmarks passes-report"


STUDIES: dict[str, tuple[object, Callable[[], object]]] = {
    "sensitivity": (sensitivity.DOCS, lambda: sensitivity.write_docs(provenance.load(sensitivity.RESULTS))),
    "toy sets": (toy_sets.DOCS, toy_sets.write_docs),
    "estimator variance": (estimator_variance.DOCS, estimator_variance.write_docs),
    "potential uses": (potential_uses.DOCS, lambda: potential_uses.write_docs(potential_uses.kept())),
    "image runs": (image_runs.DOCS, image_runs.write_docs),
    "quality": (quality.DOCS, lambda: quality.write(provenance.load(quality_results.CSV))),
    "quality study": (quality_study.DOCS, lambda: quality_study.write(provenance.load(quality_study.RESULTS))),
}


@pytest.mark.parametrize("name", STUDIES)
def test_a_studys_page_is_what_its_file_says(name: str, monkeypatch: pytest.MonkeyPatch):
    page, write = STUDIES[name]
    wanted: list[tuple[object, dict[str, str]]] = []
    monkeypatch.setattr(pages, "write", lambda path, parts: wanted.append((path, parts)))
    write()
    ((path, parts),) = wanted
    assert path == page
    for part, text in parts.items():
        assert pages.written(path, part) == text.strip(), f"the command of the study {name!r} with --report"


def test_a_page_without_marks_is_refused(tmp_path):
    page = tmp_path / "benchmarks.md"
    begin, end = pages.marks("benchmarks")
    for text in ("nothing", f"{begin}\n{begin}\n{end}\n", f"{end}\n{begin}\n"):
        page.write_text(text)
        with pytest.raises(ValueError, match="must hold the lines"):
            report.write(report.Results([]), page, None)
        assert page.read_text() == text


def test_small_print_and_commands_are_in_short_lines():
    said = pages.note("word " * 60, "", "another")
    assert max(map(len, said.splitlines())) <= 120
    assert said.count("<sub>") == said.count("</sub>") == 2
    command = "vapo-fast train " + " ".join(f"--option-{i} {i}" for i in range(20))
    assert pages.wrapped(command).replace(" \\\n   ", "") == command
    assert max(map(len, pages.wrapped(command).splitlines())) <= 120


def test_a_table_in_html_escapes_and_keeps_what_is_bold():
    text = pages.html_table([["a < b", "verdict"], ["1", "**miss**: less exact"]])
    assert "<th>a &lt; b</th>" in text
    assert "<td><b>miss</b>: less exact</td>" in text


def test_records_hold_every_row_of_the_images(results: report.Results):
    rows = [row for row in results.rows if row.peers]
    assert rows
    assert all(row.of_ours or row.name == "eager" for row in rows if row.job == "loss")
    assert all(records.paired(row, row) is None or row.each or row.arm == row.ours for row in rows)
