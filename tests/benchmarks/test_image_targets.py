"""The targets of images on a GPU: their cases, and made-up rows that are held against them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import cases, records, report, targets
from benchmarks.cases import COMPILED, EAGER, Case
from benchmarks.measure import CaseResult, Measured
from benchmarks.peers import arms_for, image_arms
from benchmarks.peers.base import Outcome
from benchmarks.records import Record
from benchmarks.spread import Error
from benchmarks.studies import explicit_passes
from benchmarks.targets import IMAGE_TARGETS, Target, findings


def test_every_target_has_its_cases() -> None:
    chosen = [*cases.gpu_sampling(2), *cases.gpu_training(2)]
    for target in IMAGE_TARGETS:
        peers = COMPILED if len(target.against) > 1 else EAGER
        wanted = target.workload, target.job, target.rtol, peers
        fitting = [c for c in chosen if (c.workload, c.job, c.rtol, c.peers) == wanted]
        if target.precision == "auto":
            assert fitting
        else:
            assert any(target.precision in case.precisions for case in fitting), target
    # What compiles for long is not begun without time for it.
    waits = {peers: {case.least_seconds for case in chosen if case.peers == peers} for peers in (COMPILED, EAGER)}
    assert min(waits[COMPILED]) > max(waits[EAGER]) > 0
    assert not any(case.least_seconds for case in cases.images(2))
    # Every arm of every case has a name that --arms knows.
    named = {arm.name.partition(", ")[0] for case in (*chosen, *cases.images(2)) for arm in arms_for(case)}
    assert named == set(image_arms.NAMES)


def row(arm: str, ms: float, error: float = 1e-4, **more: object) -> Record:
    """Of 32 images at 1e-3, on CUDA."""
    case = Case("solve", "unet_10m", 0, (), 32, 2, 1e-3, device="cpu", peers=EAGER, precisions=("bf16",))
    rounds = [1e-3 * ms * scale for scale in (1.0, 1.1, 0.9)]
    one = Measured(arm, True, "1.0", rounds, 1, 0.5, 1.0, Outcome(), Error(error, error, error))
    (made,) = records.records(CaseResult(case, {arm: one}), "2026-01-01T00:00:00Z", "9 passed")
    return replace(
        made, **({"device": "cuda", "accelerator": "H100", "driver": "580", "parameters": 16_400_000} | more)
    )


def target(precision: str, against: tuple[str, ...], peers: str, bound: float, **more: object) -> Target:
    what = {
        "job": "solve",
        "workload": "unet_10m",
        "dimension": 0,
        "hidden": "",
        "n": 0,
        "device": "cuda",
        "rtol": 1e-3,
    }
    given = {"bound": bound, "against": against, "precision": precision, "peer_precision": peers}
    return Target(**(what | given | more))


DIFFEQ = target("bf16", ("torchdiffeq",), "bf16", 2.0)
BEST = target("bf16", targets._BEST_COMPILED, "bf16", 1.25)
AUTHORS = target("auto", ("scipy",), "float32", 4.0)
STEP = target("tf32", ("eager",), "tf32", 2.0, job="loss", rtol=None)


def keyed(*groups: list[Record]) -> dict[tuple[object, ...], list[Record]]:
    return {(i,): rows for i, rows in enumerate(groups)}


def test_targets_are_held_against_rows_of_the_same_case() -> None:
    eager = [row("graph, auto", 10.0), row("graph, bf16", 11.0), row("torchdiffeq, bf16", 33.0)]
    eager += [row("torchdiffeq", 15.0), row("scipy", 50.0), row("scipy, tf32", 30.0)]
    eager += [row("torchdiffeq as a CUDA graph, bf16", 22.0)]
    compiled_rows = [row("graph, bf16", 10.0), row("torchode compiled, bf16", 12.0)]
    compiled_rows += [row("torchdiffeq compiled, bf16", 16.0)]
    other = [row("graph, bf16", 1.0, workload="unet_50m"), row("torchdiffeq, bf16", 1.0, workload="unet_50m")]
    on_cpu = [row("graph, bf16", 1.0, device="cpu"), row("torchdiffeq, bf16", 1.0, device="cpu")]
    found = findings(keyed(eager, compiled_rows, other, on_cpu, []), 2, [DIFFEQ, BEST, AUTHORS, STEP])
    diffeq, best, authors, step = found
    assert (diffeq.passed, diffeq.against, diffeq.n) == (True, "torchdiffeq, bf16", 32)
    assert diffeq.ratio == pytest.approx(3.0)
    assert (best.passed, best.against) == (False, "torchode compiled, bf16")  # the fastest, though in another case
    assert best.ratio == pytest.approx(1.2)
    assert authors.passed
    assert authors.ratio == pytest.approx(5.0)
    assert (step.passed, step.ratio, step.note) == (None, None, "not measured")
    told = report.targets_text(found)
    assert (
        "| unet_10m, sampling at 1e-03, bf16, 32 images | ≥ 2× | 3.00× (3.00 – 3.00) | – | torchdiffeq, bf16 |" in told
    )
    assert "pass |" in told
    assert "**miss**" in told
    assert "2 met, 1 missed, 1 not measured (unet_10m, training step, tf32 against eager)." in report.counts_text(found)
    assert f"{len(IMAGE_TARGETS)} not measured." in report.counts_text(findings({}, 2, IMAGE_TARGETS))


def test_each_number_of_images_is_held_apart() -> None:
    few = [row("graph, bf16", 10.0), row("torchdiffeq, bf16", 30.0)]
    many = [row("graph, bf16", 10.0, n=256), row("torchdiffeq, bf16", 15.0, n=256)]
    found = findings(keyed(many, few), 2, [DIFFEQ])
    assert [(one.n, one.passed) for one in found] == [(32, True), (256, False)]


@pytest.mark.parametrize(
    ("error", "peer_error", "failed", "passed"),
    [
        (1e-4, 1e-4, 0, True),
        (9e-4, 1e-6, 0, True),
        (3e-3, 2e-3, 0, True),
        (3e-3, 1e-3, 0, False),
        (1e-4, 1e-4, 1, False),
        (float("nan"), 1e-4, 0, False),
    ],
)
def test_a_speed_counts_only_at_equal_accuracy(error: float, peer_error: float, failed: int, passed: bool) -> None:
    rows = [row("graph, bf16", 10.0, error, failed=failed), row("torchdiffeq, bf16", 33.0, peer_error)]
    (found,) = findings(keyed(rows), 2, [DIFFEQ])
    assert found.passed is passed
    assert bool(found.note) is not passed


def test_ratios_are_paired_by_round() -> None:
    rows = [row("graph, bf16", 1.0, each_ms="10 20 30"), row("torchdiffeq, bf16", 1.0, each_ms="30 60 90")]
    (found,) = findings(keyed(rows), 2, [DIFFEQ])
    assert (found.low, found.ratio, found.high) == (3.0, 3.0, 3.0)


def test_rows_of_a_gpu_stay_out_of_the_cpus_page_and_make_their_own() -> None:
    rows = [row("graph, bf16", 9.0), row("graph, bf16", 10.0, run="2026-01-02T00:00:00Z")]
    rows += [row("torchdiffeq, bf16", 33.0, run="2026-01-02T00:00:00Z"), row("graph", 5.0, workload="unet_50m")]
    rows += [row("graph, bf16", 7.0, run="2026-01-03T00:00:00Z", device="cpu")]
    assert [one.median_ms for one in explicit_passes.newest(rows)] == [7.0]
    missing = replace(
        records.left_out(
            Case("solve", "unet_10m", 0, (), 32, 2, 1e-3, None, "cuda", EAGER, ("bf16",)), "", {"scipy": ""}
        )[0],
        run="2026-01-02T00:00:00Z",
        reason="it is not installed",
    )
    page = report.tables_text(report.Results(rows, [missing]))
    assert "3.30× (3.30 – 3.30)" in page
    assert "U-Net, 16,400,000 parameters, solves to a tolerance, 32 images, rtol = atol = 1e-03, CUDA" in page
    assert "Left out: scipy (it is not installed)." in page
    assert "<td>torchdiffeq, bf16</td><td>33</td>" in page
    assert "7.0" not in page
    assert "Targets of images:" in report.docs_text(report.Results(rows, [missing]))
