"""The pages say what the results files say: `make bench-report` was run after the last measurement."""

from pathlib import Path

import pytest

from benchmarks import images, kernels, left_out, records, report, roofline
from benchmarks.curves import curves


def generated(page: Path) -> str:
    return page.read_text(encoding="utf-8").split(report.BEGIN)[1].split(report.END)[0].strip()


@pytest.fixture(scope="module")
def results() -> report.Results:
    return report.Results(
        records.load(records.CSV),
        left_out.load(left_out.beside()),
        roofline.load(roofline.CSV),
        kernels.load(kernels.CSV),
        images.latest_cases(),
        images.load(images.beside()),
    )


def test_the_benchmarks_page_is_what_the_report_makes_of_the_files(results: report.Results):
    drawn = curves(results.rows)
    assert generated(report.DOCS) == report.docs_text(results, drawn).strip(), "make bench-report"
    assert all((report.DOCS.parent / "images" / curve.file_name).exists() for curve in drawn)


def test_the_readmes_table_is_what_the_report_makes_of_the_files(results: report.Results):
    assert generated(report.README) == report.readme_text(results.rows).strip(), "make bench-report"
