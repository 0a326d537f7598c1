"""Images in the kit: every arm on tiny networks on the CPU, counted memory, targets, files and pages."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import vapo_fast as vf
from benchmarks import __main__ as command
from benchmarks import conformance, potentials, provenance, records, tables
from benchmarks.cases import COMPILED, EAGER, OURS_ALONE, SELECTIONS, Case
from benchmarks.measure import CaseResult, Limits, Measured, measure
from benchmarks.peak_memory import peak_bytes
from benchmarks.peers import arms_for, compiled, image_arms
from benchmarks.peers.base import Arm, DisagreementError, LocalRunner, Outcome, Runner
from benchmarks.potentials import ImageModel
from benchmarks.records import EVERY_ARM, LeftOut, Record, beside
from benchmarks.spread import Error
from benchmarks.studies import convolutions, explicit_passes, image_precision
from benchmarks.workloads import ImageProblem, Workloads
from vapo_fast.core import extension

TINY = {
    "tiny_unet": ImageModel("U-Net", vf.UNetPotential, (2, 4, 4), (4, (1, 2), 1), sigma=0.3, device="cpu"),
    "tiny_resnet": ImageModel("ResNet", vf.WideResNetPotential, (2, 4, 4), (4, (1, 2), 1), sigma=0.3, device="cpu"),
}
LIMITS = Limits(rounds=5, round_seconds=0.0)
# Largest errors: of end states in units of the tolerance, and of gradients relative to their norm.
LARGEST = {"solve": {"float32": 20.0, "auto": 20.0, "bf16": 400.0}, "loss": {"float32": 1e-4, "bf16": 0.15}}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny networks beside the others."""
    for name, model in TINY.items():
        monkeypatch.setitem(potentials.MODELS, name, model)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Float64 solutions are kept from one test to the next."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def problem(tiny: None, cache: Path) -> Callable[..., ImageProblem]:
    return lambda *what: Workloads(cache).problem(case_of(*what))


def case_of(name: str, job: str, peers: str, *precisions: str) -> Case:
    rtol = 1e-3 if job == "solve" else None
    return Case(job, name, 0, (), 5, 1, rtol, peers=peers, precisions=precisions)


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


def checked(case: Case, cache: Path) -> dict[str, Measured]:
    """All arms, measured; every one that is not missing has run and is as exact as its arithmetic."""
    result = measure(case, Workloads(cache), LIMITS, say=lambda line: None)
    assert result.skipped == {arm.name: arm.missing() for arm in arms_for(case) if arm.missing()}
    assert (result.data, result.parameters) == ("blobs", sum(p.numel() for p in model_of(case).parameters()))
    for name, one in result.arms.items():
        assert len(one.rounds) == 5
        assert min(one.rounds) > 0.0
        kind, _, precision = name.partition(", ")
        if kind == image_arms.TRAINER:
            assert one.error is None
            continue
        assert one.error is not None
        largest = LARGEST[case.job][precision if precision in LARGEST[case.job] else "float32"] * (case.rtol or 1.0)
        assert 0.0 < one.error.rms <= largest, (name, one.error)
        assert one.outcome.failed == 0
        if case.job == "solve":
            assert one.outcome.evaluations is not None
            assert one.outcome.evaluations.mean() >= 8
    return result.arms


def model_of(case: Case) -> torch.nn.Module:
    return TINY[case.workload].build()


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


@pytest.mark.parametrize("name", TINY)
def test_eager_peers_sample_the_same_potential(name: str, problem: Callable[..., ImageProblem], cache: Path) -> None:
    what = name, "solve", EAGER, "float32", "bf16"
    exact = problem(*what).reference
    assert exact.dtype == torch.float64
    assert float(exact.abs().max()) > 0.1
    found = checked(case_of(*what), cache)
    assert set(found) == {"graph, auto", "graph", "graph, bf16", "torchdiffeq", "torchdiffeq, bf16", "scipy"} & set(
        found
    )
    assert {"graph, auto", "graph", "graph, bf16"} <= set(found)
    assert found["graph"].outcome.precision == found["graph, auto"].outcome.precision == "float32"
    assert found["graph, bf16"].outcome.precision == "bf16"
    # The float64 solution is kept, and is that of these weights.
    assert torch.equal(problem(*what).reference, exact)
    other = problem(*what)
    with torch.no_grad():
        other.model.output.weight.mul_(1.5)
    assert not torch.equal(other.reference, exact)


def test_compiled_peers_sample_the_same_potential(uncompiled: None, cache: Path) -> None:
    case = case_of("tiny_unet", "solve", COMPILED, "float32", "bf16")
    names = [arm.name for arm in arms_for(case)]
    assert names[:2] == ["graph", "graph, bf16"]
    assert set(names[2:]) == {
        *("torchdiffeq compiled", "torchode compiled", "torchdiffeq compiled, bf16", "torchode compiled, bf16")
    }
    checked(case, cache)


@pytest.mark.parametrize("how", ["eager", "compiled"])
def test_a_field_as_a_graph_is_the_field(
    how: str, problem: Callable[..., ImageProblem], uncompiled: None, graphs: list[str]
) -> None:
    task = problem("tiny_resnet", "solve", EAGER, "float32")
    make = image_arms.eager_field if how == "eager" else image_arms.compiled_field
    field = image_arms.graphed(how, make, "float32")(task)
    for t in (0.5, torch.tensor(1.5), torch.linspace(0.2, 2.0, 5)):
        wanted = task.model.field(task.x0, t)[1]
        torch.testing.assert_close(field(task.x0, t), wanted, rtol=1e-5, atol=1e-5)
    assert image_arms.graphed(how, make, "float32")(task) is field  # solvers share it


@pytest.mark.parametrize("name", TINY)
def test_steps_have_the_same_gradients(
    name: str, problem: Callable[..., ImageProblem], uncompiled: None, graphs: list[str], cache: Path
) -> None:
    found = checked(case_of(name, "loss", EAGER, "float32", "bf16"), cache)
    assert list(found) == ["passes", "passes, bf16", "eager", "eager, bf16", "trainer"]
    case = case_of(name, "loss", COMPILED, "float32", "bf16")
    found = checked(case, cache)
    assert list(found)[:4] == ["passes", "passes, bf16", image_arms.COMPILED_STEP, f"{image_arms.COMPILED_STEP}, bf16"]
    task = problem(name, "loss", COMPILED, "float32")
    step = image_arms.compiled_step("float32", task)
    plain, replayed = step()[1], image_arms.as_graph(step)()[1]
    assert all(torch.equal(plain[key], replayed[key]) for key in plain)
    assert graphs == ["thread_local"]


@pytest.mark.parametrize("job", ["solve", "loss"])
def test_the_cpus_own_cases(job: str, uncompiled: None, cache: Path) -> None:
    case = case_of("tiny_unet", job, OURS_ALONE, "float32", "bf16")
    result = measure(case, Workloads(cache), LIMITS, say=lambda line: None)
    rows = {row.arm: row for row in records.records(result, "a run", "9 passed")}
    eager, ours = rows[image_arms.EAGER_ARM], rows[case.ours]
    assert eager.speedup == 1.0
    assert eager.memory_ratio == 1.0
    assert ours.ratio == 1.0
    assert all(row.speedup is not None and row.speedup > 0 for row in rows.values())
    assert all(len(row.each) == row.rounds for row in rows.values())
    assert "| passes |" in tables.case_text(list(rows.values())) or job == "solve"
    if job == "loss":
        assert rows["passes, recomputing"].memory_ratio < rows["passes"].memory_ratio < 1


@pytest.mark.slow
def test_what_is_compiled_computes_the_same(cache: Path) -> None:
    """With a compiler: a minute and more."""
    for job in ("solve", "loss"):
        checked(case_of("tiny_unet", job, COMPILED, "float32"), cache)


# An arm of images that is made up: who fails, is slow or computes something else -------------------------------------


def made_up(name: str, runner: Callable[[ImageProblem], Runner], peer: bool = True, missing: str | None = None) -> Arm:
    return Arm(name, peer, ("loss",), "torch", runner, lambda: missing, lambda: "torch 2")


def steady(problem: ImageProblem) -> Runner:
    return LocalRunner(lambda: 1, lambda: Outcome(error=Error(0.5, 0.5, 0.5)))


def test_an_arm_that_fails_or_is_slow_costs_the_others_nothing(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def broken(problem: ImageProblem) -> Runner:
        raise torch.OutOfMemoryError("CUDA out of memory\nand so on")

    def slow(problem: ImageProblem) -> Runner:
        runner = steady(problem)
        runner._seconds = lambda call: 9.0
        return runner

    arms = [made_up("good", steady), made_up("broken", broken), made_up("away", broken, missing="it is not installed")]
    monkeypatch.setattr("benchmarks.measure.arms_for", lambda case, names: [*arms, made_up("slow", slow)])
    said: list[str] = []
    case = case_of("tiny_unet", "loss", EAGER, "float32")
    result = measure(case, Workloads(cache), replace(LIMITS, run_seconds=5.0), say=said.append)
    assert list(result.arms) == ["good"]
    assert result.skipped == {
        "broken": "OutOfMemoryError: CUDA out of memory",
        "away": "it is not installed",
        "slow": "one run took 9 s, over the limit of 5 s",
    }
    assert len(said) == 3
    result = measure(case, Workloads(cache), replace(LIMITS, case_seconds=-1.0), say=said.append)
    assert result.skipped["good"] == "the case's -1 s are up"


def test_who_computes_something_else_is_not_measured(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """A compiler's wrong gradient, or a solver that stopped too early; of ours it is an error."""
    case = case_of("tiny_unet", "loss", COMPILED, "float32")
    assert image_arms.largest_error(case, "float32") == 1e-3

    def wrong(factor: float, package: str = "torch") -> Arm:
        def make(problem: ImageProblem) -> Callable[[], object]:
            names = sorted(name for name, _ in problem.model.named_parameters())
            sizes = [dict(problem.model.named_parameters())[name].numel() for name in names]
            parts = problem.exact_gradient.split(sizes)
            return lambda: (None, {name: factor * part for name, part in zip(names, parts, strict=True)})

        return image_arms._arm(case, f"times {factor}", "float32", make, image_arms._gradients, package=package)

    arms = [wrong(1.0), wrong(1.01), wrong(float("nan"))]
    monkeypatch.setattr("benchmarks.measure.arms_for", lambda case, names: arms)
    result = measure(case, Workloads(cache), LIMITS, say=lambda line: None)
    assert list(result.arms) == ["times 1.0"]
    assert "its result differs from float64's by 0.01, over 0.001" in result.skipped["times 1.01"]
    assert "by nan" in result.skipped["times nan"]
    arms.append(wrong(1.01, "vapo_fast"))
    with pytest.raises(DisagreementError, match=r"differs from float64's by 0\.01"):
        measure(case, Workloads(cache), LIMITS, say=lambda line: None)


def test_missing_peers_are_named(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(image_arms, "package_missing", lambda name: lambda: f"{name} is not installed")
    monkeypatch.setattr(image_arms, "compiler_missing", lambda: "torch.compile needs a C++ compiler")
    for peers, names in ((EAGER, {"torchdiffeq", "scipy"}), (COMPILED, {"torchdiffeq compiled", "torchode compiled"})):
        case = case_of("tiny_unet", "solve", peers, "float32")
        result = measure(case, Workloads(cache), LIMITS, say=lambda line: None)
        assert {name.partition(", ")[0] for name in result.arms} == {"graph"}
        assert set(result.skipped) == names
        assert all("is not installed" in reason for reason in result.skipped.values())
    result = measure(case_of("tiny_unet", "loss", COMPILED, "float32"), Workloads(cache), LIMITS, say=lambda line: None)
    assert result.skipped == {image_arms.COMPILED_STEP: "torch.compile needs a C++ compiler"}


def test_large_models_are_as_large_as_they_say() -> None:
    for name, model in potentials.MODELS.items():
        if model.device == "cuda":
            with torch.device("meta"):
                count = sum(p.numel() for p in model.build().parameters())
            least = 1e6 * float(name.split("_")[-1].rstrip("m"))
            assert least <= count < 1.75 * least, (name, count)


# The command ----------------------------------------------------------------------------------------------------------


def test_the_command_appends_rows_and_what_was_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The CUDA selection's kinds of cases, on the CPU."""
    chosen = [case_of("tiny_unet", "solve", EAGER, "float32"), case_of("tiny_resnet", "loss", EAGER, "float32")]
    monkeypatch.setitem(SELECTIONS, "images", lambda threads: chosen)
    monkeypatch.setattr(conformance, "require", lambda cache, suite=None, gate=None: f"{gate.name} gate: 9 passed")
    monkeypatch.setattr(image_arms, "package_missing", lambda name: lambda: f"{name} is not installed")
    path = tmp_path / "bench.csv"
    arguments = ["images", "--threads", "1", "--rounds", "5", "--round-seconds", "0", "--results", str(tmp_path)]
    arguments += ["--cache", str(tmp_path)]
    assert command.main(arguments) == 0
    rows = provenance.read(path, Record)
    assert {row.workload for row in rows} == set(TINY)
    assert {(row.device, row.conformance) for row in rows} == {("cpu", "passes gate: 9 passed")}
    assert all(len(row.each) == row.rounds == 5 for row in rows)
    assert {row.arm for row in rows if row.job == "loss"} == {"passes", "eager", "trainer"}
    missing = provenance.read(beside(path, "left_out"), LeftOut)
    assert ("scipy", "scipy is not installed") in {(row.arm, row.reason) for row in missing}
    capsys.readouterr()
    assert command.main([*arguments, "--match", "tiny_unet", "--budget-seconds", "0"]) == 0
    assert "not measured: solve tiny_unet" in capsys.readouterr().out
    assert len(provenance.read(path, Record)) == len(rows)
    missing = provenance.read(beside(path, "left_out"), LeftOut)
    assert [row.arm for row in missing if row.arm == EVERY_ARM] == [EVERY_ARM]


def test_one_wrong_case_leaves_the_others_and_ends_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = [case_of(name, "loss", OURS_ALONE, "float32") for name in TINY]
    monkeypatch.setitem(SELECTIONS, "images", lambda threads: chosen)
    monkeypatch.setattr(conformance, "require", lambda cache, suite=None, gate=None: "9 passed")

    def measured(case: Case, *rest: object) -> CaseResult:
        if case.workload == "tiny_unet":
            raise DisagreementError("passes: it differs")
        return CaseResult(case, {})

    monkeypatch.setattr(command, "measure", measured)
    assert command.main(["images", "--results", str(tmp_path), "--cache", str(tmp_path)]) == 1
    assert "error: passes: it differs" in capsys.readouterr().err
    left = provenance.read(tmp_path / "bench_left_out.csv", LeftOut)
    assert [(row.workload, row.reason) for row in left if row.arm == EVERY_ARM] == [("tiny_unet", "passes: it differs")]


def test_page() -> None:
    rows = explicit_passes.newest(provenance.read(records.CSV, Record))
    parts = explicit_passes.parts(rows, image_precision.latest(), [])
    assert parts["convolutions"] == "Not measured."
    assert rows
    for one in rows:
        assert f"| {one.arm} | {one.median_ms:.0f} |" in parts["measured"]


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
    text = explicit_passes.parts([], [], rows)["convolutions"]
    assert all(f"| {inputs} to {outputs} | {side}×{side} |" in text for inputs, outputs, side in shapes)
    assert text.count("| **") == 2
