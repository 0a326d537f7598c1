"""What the kit does on CUDA, as far as it shows without: cases, targets, counts, files, and the driver's steps."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import cases, devices, gpu, measure, pages, provenance, records, report
from benchmarks.cases import SHAPES, Case, on, solve
from benchmarks.devices import Accelerator
from benchmarks.flops import field_flops
from benchmarks.measure import CaseResult, Measured
from benchmarks.peers import arms_for, compiled, jax_client
from benchmarks.peers.base import Outcome, UnavailableError
from benchmarks.peers.machine import PRODUCT
from benchmarks.plain_field import PlainField
from benchmarks.records import Record
from benchmarks.spread import Error
from benchmarks.studies import roofline
from benchmarks.targets import GPU_TARGETS, findings, key_of
from benchmarks.workloads import Workloads
from tests.benchmarks.studies.test_roofline import H100, roof


def measured(arm: str, peer: bool, seconds: float, error: float | None = None, flops: int | None = None) -> Measured:
    rounds = [seconds * scale for scale in (1.0, 1.1, 0.9, 1.0, 1.2)]
    spread = None if error is None else Error(error, error, error)
    return Measured(arm, peer, f"{arm} 1.0", rounds, 3, 0.5, 1.0, Outcome(precision="tf32x3"), spread, flops)


def rows_of(case: Case, monkeypatch: pytest.MonkeyPatch, *arms: Measured) -> list[records.Record]:
    monkeypatch.setattr(records, "accelerator", lambda device: H100 if device == "cuda" else Accelerator())
    result = CaseResult(case, {one.arm: one for one in arms})
    return records.records(result, "2026-01-01T00:00:00Z", "cuda gate: 9 passed")


def read(path: Path) -> list[Record]:
    return provenance.read(path, Record)


def test_a_case_on_cuda_is_another_case():
    here = solve("random", 256, 2, 1e-5)
    (there,) = on("cuda", [here])
    assert there != here
    assert (here.ours, there.ours) == ("native", "triton")
    assert here.name == "solve random d2 128x3 n256 tol1e-05 2t"
    assert there.name == "solve random d2 128x3 n256 tol1e-05 cuda"


def test_arms_run_on_their_devices():
    case = solve("random", 64, 2, 1e-5)
    names = {device: {arm.name for arm in arms_for(on_one(device, case))} for device in ("cpu", "cuda")}
    assert {"native", "native tol/10", "reference", "scipy", "torchdiffeq", "diffrax"} <= names["cpu"]
    assert not {"triton", "torchdiffeq graphed"} & names["cpu"]
    wanted = {"triton", "triton tol/10", "triton vf.sample", "reference", "diffrax", "diffrax vmap"}
    wanted |= {f"{solver}{how}" for solver in ("torchdiffeq", "torchode") for how in ("", " compiled", " graphed")}
    assert wanted <= names["cuda"]
    assert not {"native", "scipy"} & names["cuda"]
    loss = [arm.name for arm in arms_for(on_one("cuda", Case("loss", "random", *SHAPES[0], 64, 2)))]
    assert loss == ["triton", "reference", "torch.compile", "torch.compile graphed", "jax jit"]
    field = [arm.name for arm in arms_for(on_one("cuda", Case("field", "random", *SHAPES[0], 64, 2)))]
    assert field[-1] == PRODUCT


def on_one(device: str, case: Case) -> Case:
    return on(device, [case])[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_nothing_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (case,) = on("cuda", [solve("random", 4, 1, 1e-3)])
    with pytest.raises(UnavailableError, match="no CUDA device"):
        measure.measure(case, Workloads(tmp_path), measure.Limits(), ["reference"])
    for arguments in (["run", "--device", "cuda", "--select", "gpu"], ["roofline", "--device", "cuda"]):
        assert command.main([*arguments, "--cache", str(tmp_path), "--results", str(tmp_path)]) == 1
        assert "no CUDA device" in capsys.readouterr().err
    assert command.main(["gate", "--gate", "cuda", "--cache", str(tmp_path)]) == 1
    assert command.main(["run", "--device", "cuda", "--select", "gpu", "--list"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "field random d64 256x3 n65536 cuda"


def test_events_time_a_call(monkeypatch: pytest.MonkeyPatch):
    """From an idle device to the end of what was launched, in seconds."""
    done: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            done.append("record")

        def synchronize(self) -> None:
            done.append("wait")

        def elapsed_time(self, end: "Event") -> float:
            return 2.5

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("idle"))
    assert devices.timer("cuda")(lambda: done.append("call")) == pytest.approx(2.5e-3)
    assert done == ["idle", "record", "call", "record", "wait"]
    assert 0.0 <= devices.timer("cpu")(lambda: None) < 1.0


def test_every_gpu_target_has_a_case():
    keys = {records.key_of(case) for case in on("cuda", cases.gpu(2))}
    assert {key_of(target, 2) for target in GPU_TARGETS} == keys


def test_gpu_targets_are_held_against_rows_of_the_gpu(monkeypatch: pytest.MonkeyPatch):
    (case,) = on("cuda", [solve("random", 256, 2, 1e-5)])
    arms = [measured("triton", False, 1e-4, 1e-6), measured("torchdiffeq", True, 6e-3, 1e-5)]
    rows = rows_of(case, monkeypatch, *arms, measured("torchdiffeq graphed", True, 7e-4, 1e-5))
    latest = records.latest(rows)
    eager, best, *others = findings(latest, 7, GPU_TARGETS)  # the host's threads do not matter
    assert (eager.passed, eager.against) == (True, "torchdiffeq")
    assert eager.ratio == pytest.approx(60.0)
    assert (best.passed, best.against) == (False, "torchdiffeq graphed")
    assert best.ratio == pytest.approx(7.0)
    assert all(one.passed is None for one in others)
    assert not any(one.ratio for one in findings(latest, 2))  # none of it is the CPU's


def test_rates_and_times_are_held_against_their_bounds(monkeypatch: pytest.MonkeyPatch):
    shape = SHAPES[1]
    field = on("cuda", [Case("field", "random", *shape, 65_536, 2)])[0]
    flops = field_flops(65_536, *shape)
    rate = [one for one in GPU_TARGETS if one.job == "field"]

    def held(seconds: float, error: float):
        arms = measured("triton", False, seconds, error, flops), measured(PRODUCT, False, flops / 50e12, None, flops)
        return findings(records.latest(rows_of(field, monkeypatch, *arms)), 2, rate)

    teraflops, share = held(flops / 66e12, 2e-6)
    assert teraflops.ratio == pytest.approx(66.0)
    assert share.ratio == pytest.approx(1.32)
    assert teraflops.passed
    assert share.passed
    assert [one.passed for one in held(flops / 55e12, 2e-6)] == [False, False]
    assert [one.passed for one in held(flops / 66e12, 4e-6)] == [False, False]  # too wrong
    sample = on("cuda", [Case("sample", "eight", *SHAPES[0], 100_000, 2)])[0]
    (target,) = [one for one in GPU_TARGETS if one.job == "sample"]
    for seconds, passed in ((0.02, True), (0.04, False)):
        rows = rows_of(sample, monkeypatch, measured("triton", False, seconds, 1e-6))
        (found,) = findings(records.latest(rows), 2, [target])
        assert found.passed is passed
        text = report.targets_text([found])
        assert "≤ 30 ms" in text
        assert f"{1e3 * seconds:.3g} ms" in text


def test_rows_name_the_device_and_files_from_before_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "bench.csv"
    before = solve("random", 64, 2, 1e-5)
    provenance.write(rows_of(before, monkeypatch, measured("native", False, 1e-3, 1e-6)), path)
    # As a file was when there were no columns for the device.
    names = [column.name for column in fields(Record)]
    new = names[names.index("device") :]
    lines = path.read_bytes().decode().split("\r\n")
    path.write_bytes("\r\n".join([",".join(line.split(",")[: -len(new)]) for line in lines[:-1]] + [""]).encode())
    old = path.read_bytes().decode().split("\r\n")[1]
    assert read(path)[0].device == "cpu"
    provenance.write(rows_of(on("cuda", [before])[0], monkeypatch, measured("triton", False, 1e-4, 1e-6)), path)
    after = path.read_bytes().decode().split("\r\n")
    assert after[0].endswith(",".join(new))
    assert after[1] == old  # nothing that was measured is touched
    first, second = read(path)
    assert (first.device, first.ours, first.accelerator) == ("cpu", "native", "")
    assert (second.device, second.ours, second.precision) == ("cuda", "triton", "tf32x3")
    assert (second.accelerator, second.driver, second.triton) == ("H100", "580.1, CUDA 13.0", "3.6.0")
    assert len(records.latest([first, second])) == 2
    with pytest.raises(ValueError, match="other columns"):
        provenance.append_rows(path, ("something", "else"), [])


def test_results_of_another_machine_are_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mine, theirs = tmp_path / "bench.csv", tmp_path / "out" / "bench.csv"
    case = solve("random", 64, 2, 1e-5)
    provenance.write(rows_of(case, monkeypatch, measured("native", False, 1e-3, 1e-6)), mine)
    monkeypatch.setenv("VAPO_FAST_COMMIT", "abc1234")
    provenance.commit.cache_clear()
    provenance.write(rows_of(on("cuda", [case])[0], monkeypatch, measured("triton", False, 1e-4, 1e-6)), theirs)
    monkeypatch.delenv("VAPO_FAST_COMMIT")
    provenance.commit.cache_clear()
    assert command.main(["merge", str(theirs), "--results", str(tmp_path)]) == 0
    first, second = read(mine)
    assert (first.device, second.device, second.commit) == ("cpu", "cuda", "abc1234")
    assert read(theirs) == [second]


def test_the_report_has_the_gpus_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = []
    for rtol in (1e-3, 1e-5):
        (case,) = on("cuda", [solve("random", 256, 2, rtol)])
        arms = measured("triton", False, 1e-4, 10 * rtol), measured("torchdiffeq", True, 8e-3, 20 * rtol)
        rows += rows_of(case, monkeypatch, *arms)
    monkeypatch.setattr(roofline, "accelerator", lambda device: H100)
    page = tmp_path / "benchmarks.md"
    page.write_text("\n".join(pages.marks("benchmarks")))
    written = report.write(report.Results(rows, roofs=[roof()]), page, None)
    text, tables = " ".join(page.read_text().split()), page.with_name(report.TABLES).read_text()
    for part in ("## Targets on a GPU", "80.00×", "H100, driver 580.1", "triton 3.6.0"):
        assert part in text
    for part in ("time / triton's", ", CUDA", "<h2>Rooflines</h2>", "<td>_field</td>"):
        assert part in tables
    assert [path.name for path in written if path.suffix == ".svg"] == ["benchmark_random_d2_128x3_n256_cuda.svg"]


@pytest.mark.parametrize("features", [0, 3])
def test_a_time_that_stays_on_the_device_gives_the_same_field(features: int):
    import vapo_fast as vf
    from benchmarks.plain_field import Weights

    torch.manual_seed(0)
    potential = vf.MLPPotential((3,), vf.DataHomotopy(), (16, 8), fourier_features=features)
    torch.nn.init.normal_(potential.output.weight)
    field = PlainField(Weights.of(potential))
    x, t = torch.randn(5, 3), torch.tensor(1.3)
    wanted = field(x, t)
    field.reads_time = False
    torch.testing.assert_close(field(x, t), wanted, rtol=1e-5, atol=1e-6)


def test_a_graphed_fields_results_are_its_callers_own(monkeypatch: pytest.MonkeyPatch):
    """With a graph that is a plain call: inputs are copied in, results copied out."""

    def captured(call):
        result = call()
        return SimpleNamespace(replay=lambda: result.copy_(call())), result

    monkeypatch.setattr(compiled, "captured", captured)
    field = compiled.GraphedField(lambda x, t: x * t, torch.zeros(2, 3), torch.tensor(0.0))
    x = torch.ones(2, 3)
    first, second = field(x, torch.tensor(2.0)), field(2 * x, 3.0)
    assert torch.equal(first, 2 * x)
    assert torch.equal(second, 6 * x)


def test_jax_on_cuda_leaves_memory_and_computes_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    there, here = (jax_client.environment_for(1, device) for device in ("cuda", "cpu"))
    assert there["JAX_PLATFORMS"] == "cuda"
    assert there["JAX_DEFAULT_MATMUL_PRECISION"] == "highest"
    assert there["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    assert here["JAX_PLATFORMS"] == "cpu"
    assert "multi_thread_eigen=false" in here["XLA_FLAGS"]
    monkeypatch.setenv(jax_client.ENVIRONMENT_VARIABLE, "/some/python")
    assert jax_client.python("cuda") == Path("/some/python")
    monkeypatch.delenv(jax_client.ENVIRONMENT_VARIABLE)
    monkeypatch.setattr(jax_client, "_ROOT", tmp_path)
    monkeypatch.setattr(jax_client.importlib.util, "find_spec", lambda name: None)
    for device, words in (("cuda", "make bench-jax-cuda, or name an interpreter"), ("cpu", "make bench-jax")):
        assert words in jax_client.missing(device)
        with pytest.raises(UnavailableError, match=words):
            jax_client.Worker(1, device)
    assert "make bench-jax" in jax_client._anywhere()
    own = tmp_path / ".venv-jax-cuda" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.touch()
    assert jax_client.python("cuda") == own
    assert jax_client.missing("cuda") is jax_client._anywhere() is None
    own.unlink()
    monkeypatch.setattr(jax_client.importlib.util, "find_spec", lambda name: object())
    assert jax_client.python("cuda") == Path(sys.executable)


def step(name: str, code: str = "", **more: object) -> gpu.Step:
    return gpu.Step(name, (sys.executable, "-c", code), 20.0, **more)


def test_steps_that_measure_wait_for_those_that_are_needed():
    todo = [step("device", needs=()), step("conformance", together=True), step("graph", together=True)]
    todo += [step("facts", together=True), step("sanitizer", together=True, missing="it is not on the PATH")]
    todo += [step("benchmarks", needs=("device", "conformance")), step("images", needs=("device", "graph"))]
    beside: list[list[str]] = []

    def run(failing: str) -> dict[str, str]:
        beside.clear()

        def do(planned: Sequence[gpu.Planned]) -> list[gpu.Result]:
            beside.append([step.name for step, _ in planned])
            assert all(0 < seconds <= 20.0 for _, seconds in planned)
            return [
                gpu.Result(step, gpu.FAILED if step.name == failing else gpu.PASSED, 1.0, "") for step, _ in planned
            ]

        ended = gpu.run_steps(todo, do, 100.0)
        assert [one.step.name for one in ended] == [one.name for one in todo]
        return {one.step.name: one.state for one in ended}

    good = {one.name: gpu.PASSED for one in todo} | {"sanitizer": gpu.LEFT_OUT}
    assert run("") == good
    assert beside == [["device"], ["conformance", "graph", "facts"], ["benchmarks"], ["images"]]
    assert run("facts") == good | {"facts": gpu.FAILED}
    assert run("conformance") == good | {"conformance": gpu.FAILED, "benchmarks": gpu.LEFT_OUT}
    assert run("graph") == good | {"graph": gpu.FAILED, "images": gpu.LEFT_OUT}
    assert set(run("device").values()) == {gpu.FAILED, gpu.LEFT_OUT}
    assert beside == [["device"]]
    ended = gpu.run_steps(todo, lambda planned: pytest.fail("there was no time"), 1.0)
    assert {one.state for one in ended} == {gpu.LEFT_OUT}
    assert "no time left" in gpu.summary(ended)


def test_a_step_gets_what_is_left_and_not_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whatever the tests and the benchmarks take, the later steps have what is kept for them, within 470 s."""
    now, seen = [0.0], {}
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now[0])
    found = [replace(one, missing="") for one in gpu.steps("python3", tmp_path, Path("c"), Path("d.md"), 1.0)]

    def run(took: dict[str, float]) -> None:
        now[0] = 0.0
        seen.clear()

        def do(planned: Sequence[gpu.Planned]) -> list[gpu.Result]:
            seen.update({step.name: (seconds, step.command) for step, seconds in planned})
            now[0] += max(min(took.get(step.name, seconds), seconds) for step, seconds in planned)
            return [gpu.Result(step, gpu.PASSED, 1.0, "") for step, _ in planned]

        assert {one.state for one in gpu.run_steps(found, do, gpu.TOTAL)} == {gpu.PASSED}
        assert now[0] <= gpu.TOTAL

    kept = sum(one.kept for one in found)
    tests = {one.name: 120.0 for one in found if one.together}
    run({"device": 20.0, **tests})
    left = gpu.TOTAL - 140.0
    assert seen["benchmarks"][0] == min(150, left - kept)
    for name, slack in (("benchmarks", 40), ("images-sampling", 20), ("images-training", 20)):
        seconds, command = seen[name]
        assert command[command.index("--budget-seconds") + 1] == f"{seconds - slack:.0f}"
    images = seen["images-sampling"][0] + seen["images-training"][0]
    assert images >= 115
    # Everything as slow as it may be: nothing is left out.
    run({})
    assert seen["benchmarks"][0] == pytest.approx(gpu.TOTAL - 210 - kept)
    assert seen["benchmarks"][0] > 90
    assert all(seen[one.name][0] >= one.kept for one in found)


def test_kernel_tests_that_are_named_exist():
    for name in (*gpu.KERNEL_TESTS, *gpu.GRAPH_TESTS):
        path, _, test = name.partition("::")
        assert f"def {test}(" in (gpu.ROOT / path).read_text() if test else (gpu.ROOT / path).exists()


def test_a_step_is_run_kept_and_ended(tmp_path: Path):
    import os

    def execute(*planned: gpu.Planned) -> list[gpu.Result]:
        return gpu.execute(planned, dict(os.environ), tmp_path)

    (one,) = execute((step("device", "print('an H100')"), 20.0))
    assert (one.state, one.said) == (gpu.PASSED, "an H100")
    assert (tmp_path / "device.log").read_text() == "an H100\n"
    (one,) = execute((step("device", "import sys; sys.exit('none')"), 20.0))
    assert (one.state, one.said) == (gpu.FAILED, "status 1; none")
    # Side by side, each with its own limit.
    slow, quick = execute((step("roofline", "import time; time.sleep(60)"), 0.5), (step("device", "print(7)"), 20.0))
    assert slow.state == gpu.FAILED
    assert "over its time" in slow.said
    assert slow.seconds < 15.0
    assert (quick.state, quick.said) == (gpu.PASSED, "7")


def test_a_run_that_is_broken_off_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import os

    started = []
    monkeypatch.setattr(
        gpu._Running, "look", lambda self: started.append(self._process) or (_ for _ in ()).throw(OSError)
    )
    with pytest.raises(OSError):  # noqa: PT011
        gpu.execute([(step("facts", "import time; time.sleep(60)"), 50.0)] * 2, dict(os.environ), tmp_path)
    assert started[0].poll() is not None


def test_what_a_step_said_is_judged():
    assert gpu.judge(step("facts"), 0, "2 skipped in 1 s") == (gpu.FAILED, "nothing was tested: 2 skipped in 1 s")
    assert gpu.judge(step("facts"), 0, "=== 9 passed in 1 s ===") == (gpu.PASSED, "9 passed in 1 s")
    clean = "field: done\n========= ERROR SUMMARY: 0 errors\nlast"
    assert gpu.judge(step("sanitizer"), 0, clean) == (gpu.PASSED, "ERROR SUMMARY: 0 errors")
    assert gpu.judge(step("sanitizer"), gpu._SANITIZER_ERROR, clean.replace("0 e", "3 e"))[0] == gpu.FAILED
    assert gpu.judge(step("sanitizer"), 1, "Error: Device not supported")[0] == gpu.LEFT_OUT


def test_the_drivers_commands_exist(tmp_path: Path):
    found = gpu.steps("python3", tmp_path, tmp_path, tmp_path / "d.md", 1.0)
    names = [one.name for one in found]
    assert names.index("conformance") < names.index("sanitizer") < names.index("benchmarks") < names.index("report")
    for one in found:
        if "benchmarks" in one.command:
            given = ["100" if part == gpu.BUDGET else part for part in one.command[3:]]
            options = command._parser().parse_args(given)
            assert callable(options.command)
        for part in one.command:
            assert not part.endswith(".py") or (gpu.ROOT / part).exists()
    assert gpu.TOTAL < 480.0
    compile(gpu._DEVICE, "device", "exec")


def test_a_folder_of_links_stands_for_an_installed_package(tmp_path: Path):
    folder = gpu.linked(tmp_path / "linked")
    code = "import vapo_fast.kernels, vapo_fast; print(vapo_fast.kernels.__file__, vapo_fast.engines()['reference'])"
    environment = {"PYTHONPATH": f"{folder}:{gpu.ROOT}", "PYTHONSAFEPATH": "1", "PATH": "/usr/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=gpu.ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(folder))
    assert done.stdout.strip().endswith("usable")
    assert gpu.linked(tmp_path / "linked") == folder  # made anew


def test_a_fields_error_is_relative_to_its_largest_entry(tmp_path: Path):
    problem = Workloads(tmp_path).problem(Case("field", "random", 3, (16, 16), 8, 1))
    wrong = problem.exact_field.copy()
    wrong[2, 1] += 0.5 * np.abs(wrong).max()
    found = measure._error(Outcome(field=wrong), problem)
    assert found is not None
    assert found.largest == pytest.approx(0.5)
    assert found.median == 0.0
