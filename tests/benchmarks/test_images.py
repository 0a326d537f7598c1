"""The image benchmarks: every arm on tiny networks on the CPU, counted memory, rounds, targets, files and pages."""

from __future__ import annotations

import csv
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import vapo_fast as vf
from benchmarks import __main__ as command
from benchmarks import (
    conformance,
    convolutions,
    image_arms,
    image_models,
    image_precision,
    image_selections,
    image_tables,
    image_targets,
    images,
    passes_report,
)
from benchmarks.image_arms import Arm, Problem, Seen
from benchmarks.image_models import ImageModel
from benchmarks.image_selections import COMPILED, EAGER, OURS, Case
from benchmarks.image_targets import Target, findings
from benchmarks.peak_memory import peak_bytes
from benchmarks.peers import compiled
from benchmarks.peers.base import DisagreementError
from vapo_fast.core import extension

TINY = {
    "tiny_unet": ImageModel("U-Net", vf.UNetPotential, (2, 4, 4), (4, (1, 2), 1), sigma=0.3, device="cpu"),
    "tiny_resnet": ImageModel("ResNet", vf.WideResNetPotential, (2, 4, 4), (4, (1, 2), 1), sigma=0.3, device="cpu"),
}
LIMITS = images.Limits(rounds=2)
# Largest errors: of end states in units of the tolerance, and of gradients relative to their norm.
LARGEST = {"sample": {"float32": 20.0, "auto": 20.0, "bf16": 400.0}, "train": {"float32": 1e-4, "bf16": 0.15}}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny networks beside the others."""
    for name, model in TINY.items():
        monkeypatch.setitem(image_models.MODELS, name, model)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Float64 solutions are kept from one test to the next."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def problem(tiny: None, cache: Path) -> Callable[..., Problem]:
    def make(name: str, job: str, peers: str, *precisions: str) -> Problem:
        case = Case(name, job, 5, 1e-3 if job == "sample" else None, peers, precisions)
        data = image_models.blobs(TINY[name].shape)
        return Problem(case, image_models.potential(name, data, cache).eval(), data, cache)

    return make


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled, run as it is: compiling takes half a minute."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A "CUDA graph" that is a plain call, which writes where its first run wrote."""
    modes: list[str] = []

    def captured(call, mode="global"):
        modes.append(mode)
        result = call()

        def replay() -> None:
            again = call()
            if isinstance(result, torch.Tensor):
                result.copy_(again)
            else:
                for name, value in again[1].items():
                    result[1][name].copy_(value)

        return SimpleNamespace(replay=replay), result

    monkeypatch.setattr(compiled, "captured", captured)
    return modes


def checked(arms: list[Arm], problem: Problem) -> dict[str, images.Measured]:
    """All arms, measured; every one that is not missing has run and is as exact as its arithmetic."""
    counts = problem.case.peers == OURS
    found, left_out = images.measure(arms, "cpu", LIMITS, counts, say=lambda line: None)
    missing = {arm.key: arm.missing() for arm in arms if arm.missing()}
    assert left_out == missing
    job, rtol = problem.case.job, problem.case.rtol or 1.0
    for one in found:
        assert len(one.rounds) == 2
        assert min(one.rounds) > 0.0
        if one.arm.name == image_arms.TRAINER:
            assert one.seen.error is None
            continue
        assert one.seen.error is not None
        largest = LARGEST[job][one.arm.precision]
        assert 0.0 < one.seen.error <= largest * (rtol if job == "sample" else 1.0), (one.arm.key, one.seen)
        assert one.seen.failed == 0
        if job == "sample":
            assert one.seen.nfe is not None
            assert one.seen.nfe >= 8
    return {one.arm.key: one for one in found}


def test_peak_memory_counts_what_lives_at_once() -> None:
    def chain() -> torch.Tensor:
        x = torch.zeros(1000)
        for _ in range(5):
            x = x + 1.0
        return x

    kept: list[torch.Tensor] = []
    weight = torch.ones(1000, requires_grad=True)
    assert peak_bytes(lambda: torch.zeros(1000) + torch.zeros(1000)) == 3 * 4000
    assert peak_bytes(chain) == 2 * 4000
    assert peak_bytes(lambda: weight.detach().view(10, 100).t()) == 0
    assert peak_bytes(lambda: [kept.append(torch.zeros(500)) for _ in range(4)]) == 4 * 2000
    graph = peak_bytes(lambda: weight.exp().sin().cos().sum().backward())
    assert graph >= 3 * 4000
    assert peak_bytes(chain) == 2 * 4000


def test_rounding_to_tf32() -> None:
    def exact(value: float) -> float:
        bits = struct.unpack("<I", struct.pack("<f", value))[0]
        return struct.unpack("<f", struct.pack("<I", (bits + 0x1000) & 0xFFFFE000))[0]

    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    rounded = image_precision._tf32(x)
    assert rounded.stride() == x.stride()
    assert rounded.flatten().tolist() == [exact(value) for value in x.flatten().tolist()]
    assert 0 < float(((rounded - x) / x).abs().max()) <= 2.0**-11
    assert torch.equal(image_precision._tf32(rounded), rounded)


def test_rounds_take_turns_and_ratios_are_eagers_over_the_arms() -> None:
    order: list[str] = []

    def arm(name: str, size: int) -> Arm:
        call = lambda: order.append(name) or torch.zeros(size)  # noqa: E731
        return Arm(name, "float32", name == "ours", lambda: call, lambda result: Seen(0.25))

    found, left_out = images.measure([arm(images.REFERENCE, 100), arm("ours", 50)], "cpu", images.Limits(3))
    assert left_out == {}
    assert order[:4] == [images.REFERENCE] * 2 + ["ours"] * 2
    assert order[4:10] == [images.REFERENCE, "ours", "ours", images.REFERENCE, images.REFERENCE, "ours"]
    rows = images.rows_of(found)
    assert [row["arm"] for row in rows] == [images.REFERENCE, "ours"]
    assert float(str(rows[0]["ratio"])) == 1.0
    assert [row["memory_ratio"] for row in rows] == ["1", "0.5"]
    assert "| ours |" in images.table(rows)
    alone = images.rows_of(found[1:])
    assert (alone[0]["ratio"], alone[0]["memory_ratio"]) == ("", "")


@pytest.mark.parametrize("name", TINY)
def test_eager_peers_sample_the_same_potential(name: str, problem: Callable[..., Problem]) -> None:
    task = problem(name, "sample", EAGER, "float32", "bf16")
    exact = task.exact
    assert exact.dtype == torch.float64
    plain = task.model.homotopy.omega * exact.new_zeros(1)
    assert float((exact - plain).abs().max()) > 0.1
    arms = checked(image_arms.arms_of(task), task)
    names = {arm.key for arm in image_arms.arms_of(task)}
    assert names == {"graph, auto", "graph", "graph, bf16", "torchdiffeq", "torchdiffeq, bf16", "scipy"}
    assert arms["graph"].seen.precision == arms["graph, auto"].seen.precision == "float32"
    assert arms["graph, bf16"].seen.precision == "bf16"
    # The float64 solution is kept, and is that of these weights.
    assert torch.equal(problem(name, "sample", EAGER, "float32").exact, exact)
    other = problem(name, "sample", EAGER, "float32")
    with torch.no_grad():
        other.model.output.weight.mul_(1.5)
    assert not torch.equal(other.exact, exact)


def test_compiled_peers_sample_the_same_potential(problem: Callable[..., Problem], uncompiled: None) -> None:
    task = problem("tiny_unet", "sample", COMPILED, "float32", "bf16")
    arms = image_arms.arms_of(task)
    assert [arm.key for arm in arms[:2]] == ["graph", "graph, bf16"]
    assert {arm.key for arm in arms[2:]} == {
        *("torchdiffeq compiled", "torchode compiled", "torchdiffeq compiled, bf16", "torchode compiled, bf16")
    }
    checked(arms, task)


@pytest.mark.parametrize("how", ["eager", "compiled"])
def test_a_field_as_a_graph_is_the_field(
    how: str, problem: Callable[..., Problem], uncompiled: None, graphs: list[str]
) -> None:
    task = problem("tiny_resnet", "sample", EAGER, "float32")
    make = image_arms._eager_field if how == "eager" else image_arms._compiled_field
    field = image_arms._graphed(task, lambda: make(task, "float32"))
    for t in (0.5, torch.tensor(1.5), torch.linspace(0.2, 2.0, 5)):
        wanted = task.model.field(task.x0, t)[1]
        torch.testing.assert_close(field(task.x0, t), wanted, rtol=1e-5, atol=1e-5)
    arms = [
        image_arms._peer(name, name, "float32", lambda: field, task) for name in ("torchdiffeq", "torchode", "scipy")
    ]
    checked(arms, task)


@pytest.mark.parametrize("name", TINY)
def test_steps_have_the_same_gradients(
    name: str, problem: Callable[..., Problem], uncompiled: None, graphs: list[str]
) -> None:
    task = problem(name, "train", EAGER, "float32", "bf16")
    arms = checked(image_arms.arms_of(task), task)
    assert list(arms) == ["passes", "passes, bf16", "eager", "eager, bf16", "trainer"]
    task = problem(name, "train", COMPILED, "float32", "bf16")
    compiled_arms = image_arms.arms_of(task)
    step = image_arms._compiled_step(task, "float32")
    graphed = Arm("as a graph", "float32", False, lambda: image_arms._as_graph(step), image_arms._gradients(task))
    arms = checked([*compiled_arms, graphed], task)
    assert list(arms)[:4] == ["passes", "passes, bf16", image_arms.COMPILED_STEP, f"{image_arms.COMPILED_STEP}, bf16"]
    assert graphs == ["thread_local"]


@pytest.mark.parametrize("job", image_selections.JOBS)
def test_the_cpus_own_cases(job: str, problem: Callable[..., Problem], uncompiled: None) -> None:
    task = problem("tiny_unet", job, OURS, "float32", "bf16")
    arms = checked(image_arms.arms_of(task), task)
    assert image_arms.REFERENCE in arms
    rows = {row["arm"]: row for row in images.rows_of(list(arms.values()))}
    assert rows[image_arms.REFERENCE]["ratio"] == "1"
    assert all(float(str(row["ratio"])) > 0 for row in rows.values())
    if job == "train":
        assert float(str(rows["passes, recomputing"]["memory_ratio"])) < float(str(rows["passes"]["memory_ratio"])) < 1


@pytest.mark.slow
def test_what_is_compiled_computes_the_same(problem: Callable[..., Problem]) -> None:
    """With a compiler: a minute and more."""
    for job in image_selections.JOBS:
        task = problem("tiny_unet", job, COMPILED, "float32")
        checked(image_arms.arms_of(task), task)
        torch.compiler.reset()


def test_an_arm_that_fails_or_is_slow_costs_the_others_nothing() -> None:
    def arm(name: str, make: Callable[[], Callable[[], object]], missing: str | None = None) -> Arm:
        return Arm(name, "float32", True, make, lambda result: Seen(0.5), lambda: missing, countable=False)

    def broken() -> Callable[[], object]:
        raise torch.OutOfMemoryError("CUDA out of memory\nand so on")

    said: list[str] = []
    arms = [arm("good", lambda: lambda: 1), arm("broken", broken), arm("away", broken, "it is not installed")]
    arms.append(replace(arm("slow", lambda: lambda: 1), seconds=lambda call: 9.0))
    found, left_out = images.measure(arms, "cpu", images.Limits(3, 5.0, 60.0), say=said.append)
    assert [one.arm.name for one in found] == ["good"]
    assert left_out == {
        "broken": "OutOfMemoryError: CUDA out of memory",
        "away": "it is not installed",
        "slow": "one run took 9.0 s, over the limit of 5 s",
    }
    assert len(said) == 3
    found, left_out = images.measure(arms[:1], "cpu", images.Limits(3, 5.0, -1.0), say=said.append)
    assert (found, left_out) == ([], {"good": "the case's -1 s are up"})


def test_who_computes_something_else_is_not_measured(problem: Callable[..., Problem]) -> None:
    """A compiler's wrong gradient, or a solver that stopped too early; of ours it is an error."""
    task = problem("tiny_unet", "train", COMPILED, "float32")
    (ours, *_) = arms = image_arms.arms_of(task)
    assert {arm.largest_error for arm in arms} == {1e-3}
    wrong = {name: 1.01 * grad for name, grad in ours.make()()[1].items()}
    nothing = {name: torch.full_like(grad, torch.nan) for name, grad in wrong.items()}
    peers = [replace(ours, ours=False, name="wrong", make=lambda: lambda: (None, wrong))]
    peers += [replace(ours, ours=False, name="nothing", make=lambda: lambda: (None, nothing))]
    found, left_out = images.measure([ours, *peers], "cpu", LIMITS, False, say=lambda line: None)
    assert [one.arm.name for one in found] == ["passes"]
    assert left_out["wrong"].startswith("its result differs from float64's by 0.01, over 0.001")
    assert "by nan" in left_out["nothing"]
    with pytest.raises(DisagreementError, match=r"differs from float64's by 0\.01"):
        images.measure([replace(peers[0], ours=True)], "cpu", LIMITS, False)


def test_missing_peers_are_named(problem: Callable[..., Problem], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_arms, "_package_missing", lambda name: f"{name} is not installed")
    monkeypatch.setattr(image_arms, "_compiler_missing", lambda: "torch.compile needs a C++ compiler")
    for peers, names in ((EAGER, {"torchdiffeq", "scipy"}), (COMPILED, {"torchdiffeq compiled", "torchode compiled"})):
        task = problem("tiny_unet", "sample", peers, "float32")
        found, left_out = images.measure(image_arms.arms_of(task), "cpu", LIMITS, False, say=lambda line: None)
        assert {one.arm.name for one in found} == {"graph"}
        assert set(left_out) == names
        assert all("is not installed" in reason for reason in left_out.values())
    task = problem("tiny_unet", "train", COMPILED, "float32")
    _, left_out = images.measure(image_arms.arms_of(task), "cpu", LIMITS, False, say=lambda line: None)
    assert left_out == {image_arms.COMPILED_STEP: "torch.compile needs a C++ compiler"}


def test_large_models_are_as_large_as_they_say() -> None:
    for name, model in image_models.MODELS.items():
        if model.device == "cuda":
            with torch.device("meta"):
                count = sum(p.numel() for p in model.build().parameters())
            least = 1e6 * float(name.split("_")[-1].rstrip("m"))
            assert least <= count < 1.75 * least, (name, count)


def test_every_target_has_its_cases() -> None:
    cases = image_selections.cuda()
    assert len(set(cases)) == len({case.name for case in cases}) == len(cases)
    for target in image_targets.TARGETS:
        peers = COMPILED if len(target.against) > 1 else EAGER
        fitting = [
            c for c in cases if (c.model, c.job, c.rtol, c.peers) == (target.model, target.job, target.rtol, peers)
        ]
        if target.precision == image_targets.AUTO:
            assert fitting
        else:
            assert any(target.precision in case.precisions for case in fitting), target
    first = image_selections.cuda(["sample"], ["wide_resnet_50m"])
    assert {case.model for case in first} == {"wide_resnet_50m"}
    assert {case.job for case in first} == {"sample"}
    # What compiles for long is not begun without time for it.
    waits = {peers: {case.least_seconds for case in cases if case.peers == peers} for peers in (COMPILED, EAGER)}
    assert min(waits[COMPILED]) > max(waits[EAGER]) > 0
    assert not any(case.least_seconds for case in image_selections.cpu(["unet"], ["train"], 4, 4))


# Targets: made-up rows ------------------------------------------------------------------------------------------------


def row(name: str, precision: str, ms: float, error: float = 1e-4, **more: object) -> dict[str, str]:
    arm = name if precision == "float32" else f"{name}, {precision}"
    rounds = [ms * scale for scale in (1.0, 1.1, 0.9)]
    row = {
        "model": "unet_10m", "job": "sample", "batch": 32, "rtol": "0.001", "arm": arm, "name": name, "error": error,
        "precision": precision, "each_ms": " ".join(map(str, rounds)), "failed": 0, **more,
    }  # fmt: skip
    return {key: str(value) for key, value in row.items()}


DIFFEQ = Target("unet_10m", "sample", 1e-3, "bf16", ("torchdiffeq",), "bf16", 2.0)
BEST = Target("unet_10m", "sample", 1e-3, "bf16", image_targets.BEST_COMPILED, "bf16", 1.25)
AUTHORS = Target("unet_10m", "sample", 1e-3, "auto", ("scipy",), "float32", 4.0)
STEP = Target("unet_10m", "train", None, "tf32", ("eager",), "tf32", 2.0)


def test_targets_are_held_against_rows_of_the_same_case() -> None:
    eager = [row("graph", "auto", 10.0), row("graph", "bf16", 11.0), row("torchdiffeq", "bf16", 33.0)]
    eager += [row("torchdiffeq", "float32", 15.0), row("scipy", "float32", 50.0), row("scipy", "tf32", 30.0)]
    eager += [row("torchdiffeq as a CUDA graph", "bf16", 22.0)]
    compiled_rows = [row("graph", "bf16", 10.0), row("torchode compiled", "bf16", 12.0)]
    compiled_rows += [row("torchdiffeq compiled", "bf16", 16.0)]
    other = [row("graph", "bf16", 1.0, model="unet_50m"), row("torchdiffeq", "bf16", 1.0, model="unet_50m")]
    cases = {"a": eager, "b": compiled_rows, "c": other, "d": []}
    diffeq, best, authors, step = findings(cases, [DIFFEQ, BEST, AUTHORS, STEP])
    assert diffeq.ratio is not None
    assert (diffeq.passed, diffeq.against, diffeq.n) == (True, "torchdiffeq, bf16", 32)
    assert diffeq.ratio.median == pytest.approx(3.0)
    assert best.ratio is not None
    assert (best.passed, best.against) == (False, "torchode compiled, bf16")  # the fastest, though in another case
    assert best.ratio.median == pytest.approx(1.2)
    assert authors.ratio is not None
    assert authors.passed
    assert authors.ratio.median == pytest.approx(5.0)
    assert (step.passed, step.ratio, step.note) == (None, None, "not measured")
    told = image_targets.text([diffeq, best, authors, step])
    assert "| unet_10m, sampling at 1e-03, bf16 | 32 | ≥ 2× | 3.00× (3.00 – 3.00) | torchdiffeq, bf16 |" in told
    assert "met |" in told
    assert "**missed**" in told
    assert "2 met, 1 missed, 1 not measured (unet_10m, training step, tf32 against eager)." in told
    nothing = image_targets.text(findings({}))
    assert "| case |" not in nothing
    assert f"0 met, 0 missed, {len(image_targets.TARGETS)} not measured" in nothing


def test_each_number_of_images_is_held_apart() -> None:
    few = [row("graph", "bf16", 10.0), row("torchdiffeq", "bf16", 30.0)]
    many = [row("graph", "bf16", 10.0, batch=256), row("torchdiffeq", "bf16", 15.0, batch=256)]
    found = findings({"a": many, "b": few}, [DIFFEQ])
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
    rows = [row("graph", "bf16", 10.0, error, failed=failed), row("torchdiffeq", "bf16", 33.0, peer_error)]
    (found,) = findings({"a": rows}, [DIFFEQ])
    assert found.passed is passed
    assert bool(found.note) is not passed


def test_ratios_are_paired_by_round() -> None:
    ours, peer = row("graph", "bf16", 1.0), row("torchdiffeq", "bf16", 1.0)
    ours["each_ms"], peer["each_ms"] = "10 20 30", "30 60 90"
    (found,) = findings({"a": [ours, peer]}, [DIFFEQ])
    assert found.ratio is not None
    assert (found.ratio.low, found.ratio.median, found.ratio.high) == (3.0, 3.0, 3.0)


# The command ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def ungated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    monkeypatch.setattr(conformance, "require", lambda cache, suite, gate: f"{gate.name} gate: 9 passed")
    yield
    torch.set_num_threads(threads)


def test_the_command_appends_rows_and_what_was_left_out(
    tiny: None, ungated: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The CUDA selection's kinds of cases, on the CPU."""
    cases = [
        Case("tiny_unet", "sample", 4, 1e-3, EAGER, ("float32",)),
        Case("tiny_resnet", "train", 4, None, EAGER, ("float32",)),
    ]
    monkeypatch.setattr(image_selections, "cpu", lambda *arguments: cases)
    monkeypatch.setattr(image_arms, "_package_missing", lambda name: f"{name} is not installed")
    path = tmp_path / "images.csv"
    arguments = ["images", "--threads", "1", "--rounds", "2", "--csv", str(path), "--cache", str(tmp_path)]
    assert command.main([*arguments, "--models", "tiny_unet", "tiny_resnet"]) == 0
    rows = images.load(path)
    assert {(row["case"], row["device"]) for row in rows} == {(case.name, "cpu") for case in cases}
    assert {row["tests"] for row in rows} == {"passes gate: 9 passed"}
    assert all(len(row["each_ms"].split()) == int(row["rounds"]) == 2 for row in rows)
    assert {row["arm"] for row in rows if row["job"] == "train"} == {"passes", "eager", "trainer"}
    missing = images.load(images.beside(path))
    assert ("scipy", "scipy is not installed") in {(row["arm"], row["reason"]) for row in missing}
    capsys.readouterr()
    assert command.main([*arguments, "--models", "tiny_unet", "--budget-seconds", "0"]) == 0
    assert "not measured: sample tiny_unet" in capsys.readouterr().out
    assert len(images.load(path)) == len(rows)
    missing = images.load(images.beside(path))
    assert [row["arm"] for row in missing[-2:]] == [images.EVERY_ARM] * 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_nothing_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["images", "--device", "cuda", "--csv", str(tmp_path / "i.csv")]) == 1
    assert "no CUDA device" in capsys.readouterr().out
    assert not (tmp_path / "i.csv").exists()


def test_rows_of_a_gpu_stay_out_of_the_cpus_page_and_make_their_own(tmp_path: Path) -> None:
    path = tmp_path / "images.csv"
    blank = dict.fromkeys(("date", "commit", "machine", "threads", "torch", *images.COLUMNS), "")

    def put(run: str, device: str, name: str, ms: float, case: str = "a case") -> dict[str, str]:
        own = row(name, "bf16", ms, run=run, device=device, case=case, median_ms=ms, low_ms=ms, high_ms=ms, rounds=3)
        own |= {"parameters": "16400000", "accelerator": "H100", "driver": "580", "ours": str(name == "graph")}
        return blank | own

    rows = [put("1", "cuda", "graph", 9.0), put("2", "cuda", "graph", 10.0), put("2", "cuda", "torchdiffeq", 33.0)]
    rows += [put("1", "cuda", "graph", 5.0, "another"), put("3", "cpu", "graph", 7.0)]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(blank))
        writer.writeheader()
        writer.writerows(rows)
    assert [one["median_ms"] for one in images.latest(path)] == ["7.0"]
    cases = images.latest_cases(path)
    assert {name: [one["median_ms"] for one in its] for name, its in cases.items()} == {
        "a case": ["10.0", "33.0"],
        "another": ["5.0"],
    }
    left_out = [{"run": "2", "case": "a case", "arm": "scipy", "reason": "it is not installed"}]
    page = "\n".join(image_tables.section(cases, left_out))
    assert "3.30× (3.30 – 3.30)" in page
    assert "**U-Net, 16,400,000 parameters, sampling 32 images at 1e-03**" in page
    assert "H100, driver 580" in page
    assert "Left out: scipy (it is not installed)." in page
    assert "| torchdiffeq, bf16 | 33 |" in page


def test_page() -> None:
    measured = images.latest()
    precision = image_precision.latest()
    text = passes_report.page(measured, precision, [])
    assert "## Convolutions" not in text
    for row in measured:
        assert f"| {row['arm']} | {float(row['median_ms']):.0f} |" in text


@pytest.mark.skipif(extension.unavailable_reason() is not None, reason="needs the native extension")
def test_single_convolutions() -> None:
    """A row for each arm, errors of float32, what is chosen marked, and a line of the page."""
    shapes = {(16, 20, 3): "tiles of 4", (16, 16, 6): "tiles of 2", (3, 16, 4): "library"}
    rows = []
    for shape, chosen in shapes.items():
        arms = {str(row["arm"]): row for row in convolutions.measure(shape, 2, 3, 1e-4)}
        assert list(arms) == ["library", "tiles of 2", "tiles of 4"]
        assert [name for name, row in arms.items() if row["chosen"]] == [chosen]
        assert all(0.0 < float(str(row["error_rms"])) < 3e-6 for row in arms.values())
        assert float(str(arms["library"]["ratio"])) == 1.0
        assert [convolutions._products(name, 6) for name in arms] == [324, 144, 144]
        where = {"machine": "m", "threads": "1", "torch": "t", "date": "d", "commit": "c"}
        rows += [{key: str(value) for key, value in (row | where).items()} for row in arms.values()]
    text = passes_report.page([], [], rows)
    assert all(f"| {inputs} to {outputs} | {side}×{side} |" in text for inputs, outputs, side in shapes)
    assert text.count("| **") == 2
