"""Several processes against one: groups of 2 and 3 that meet over gloo, and the launcher itself.

What the processes do is in distributed/group.py; a group is started once, and each test looks at one of its scenarios.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed as dist
from typer.testing import CliRunner

import vapo_fast as vf
from vapo_fast import distributed
from vapo_fast.cli import app as cli
from vapo_fast.cli import config
from vapo_fast.cli.config import ConfigError
from vapo_fast.core import memory, processes
from vapo_fast.core.processes import World
from vapo_fast.training.batches import as_source
from vapo_fast.training.parallel import DataParallel

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")

GROUP = Path(__file__).with_name("group.py")
# Seconds after which a group is ended. Within it, a wait for a process that does not come fails after 45.
LIMIT = 240
TRAINING = ("plain", "by_the_reference_engine", "in_float32", "images", "deferred", "from_a_loader")
ENDS = ("interrupted_and_resumed", "all_interrupted_at_the_last_step", "stopped_by_a_callback", "not_finite")
SCENARIOS = (
    *TRAINING,
    "own_loop",
    "statistics",
    *ENDS,
    "not_finite_and_noticed_late",
    "a_process_that_fails",
    "unlike_processes",
    "samples",
    "joined",
)


def _group_module() -> Any:
    specification = importlib.util.spec_from_file_location("distributed_group", GROUP)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


group = _group_module()


def ended(processes: list[subprocess.Popen[str]]) -> list[str]:
    """What the processes said, once all are through; none is left behind."""
    deadline = time.monotonic() + LIMIT
    try:
        return [process.communicate(timeout=max(1.0, deadline - time.monotonic()))[0] for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, list[dict[str, Any]]]]:
    """By size: the folder of a group, and what each of its processes found."""
    started = {}
    for size, names in ((2, (*SCENARIOS, "command_line")), (3, (*SCENARIOS, "killed"))):
        folder = tmp_path_factory.mktemp(f"group{size}")
        started[size] = (
            folder,
            [
                subprocess.Popen(
                    [sys.executable, str(GROUP), str(rank), str(size), str(folder / "meeting"), str(folder), *names],
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
                for rank in range(size)
            ],
        )
    said = ended([process for _, processes in started.values() for process in processes])
    codes = [process.returncode for _, processes in started.values() for process in processes]
    assert codes == [0, 0, 0, 0, -signal.SIGKILL], said
    return {
        size: (folder, [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)])
        for size, (folder, _) in started.items()
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a single process finds."""
    folder = tmp_path_factory.mktemp("alone")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {name: group.SCENARIOS[name](0, 1, folder) for name in (*TRAINING, "own_loop", "samples")}
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(params=[2, 3], ids="{} processes".format)
def found(request: pytest.FixtureRequest, groups: dict[int, tuple[Path, list[dict[str, Any]]]]) -> Any:
    """A function from a scenario's name to the results of the processes."""

    def results(name: str) -> list[Any]:
        values = [result[name] for result in groups[request.param][1]]
        assert not [value for value in values if isinstance(value, str)], values  # a traceback
        return values

    return results


def difference(first: list[torch.Tensor], second: list[torch.Tensor]) -> float:
    assert len(first) == len(second) > 0
    gaps = [(a.detach().double() - b.detach().double()).abs() for a, b in zip(first, second, strict=True)]
    return max(float(gap.max()) for gap in gaps if gap.numel())


# Training


@pytest.mark.parametrize("name", TRAINING)
def test_the_result_is_that_of_one_process(found: Any, alone: dict[str, Any], name: str) -> None:
    # Sums in another order: a few units in the last place a step, here of 40 steps in float32.
    bound = 2e-6 if name == "in_float32" else 1e-13
    expected, results = alone[name], found(name)
    for result in results:
        assert result["step"] == expected["step"]
        assert len(result["curve"]) == len(expected["curve"]) > 1
        torch.testing.assert_close(result["curve"], expected["curve"], rtol=bound, atol=bound)
        for kind in ("weights", "average", "moments"):
            assert difference(result[kind], expected[kind]) < bound
            # Among themselves they have one result, to the last bit.
            assert difference(result[kind], results[0][kind]) == 0.0
        assert torch.equal(result["curve"], results[0]["curve"])
    moved = difference(expected["weights"], [p.detach() for p in first_model(name).parameters()])
    assert moved > 1e-3


def first_model(name: str) -> vf.Potential:
    return group.unet() if name == "images" else group.mlp(torch.float32 if name == "in_float32" else torch.float64)


def test_statistics_of_a_network_are_those_of_the_first_process(found: Any) -> None:
    """So that what is sampled or saved next is one model, as its weights are."""
    results = found("statistics")
    first = results[0]
    for own, *ends in results[1:]:
        assert not torch.equal(own, first[0])
        for end in ends:
            assert torch.equal(end, first[0])


def test_a_loop_of_ones_own_through_distributed_data_parallel(found: Any, alone: dict[str, Any]) -> None:
    start = [p.detach() for p in group.mlp().parameters()]
    for result in found("own_loop"):
        assert set(result) == set(alone["own_loop"])
        for name, weights in result.items():
            assert difference(weights, alone["own_loop"][name]) < 1e-12
            assert difference(weights, start) > 1e-3


def test_ctrl_c_on_one_process_stops_all_and_the_run_goes_on(found: Any, alone: dict[str, Any]) -> None:
    results = found("interrupted_and_resumed")
    for rank, result in enumerate(results):
        kind, message = result["error"]
        assert kind == "TrainingInterrupted"
        assert "interrupted after step 7 of 25" in message
        assert ("step-00000007.safetensors" if rank == 0 else "process 0 writes the checkpoints") in message
        assert result["steps"] == 7
        # Nobody leaves before process 0 has saved.
        assert result["files"] == ["log.csv", "step-00000004.safetensors", "step-00000007.safetensors"]
        assert [line.split(",")[0] for line in result["log"]] == ["step", *map(str, range(1, 26))]
        for kind in ("weights", "average", "moments"):
            assert difference(result[kind], alone["plain"][kind]) < 1e-12
        torch.testing.assert_close(result["curve"], alone["plain"]["curve"][7:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [2, 3])
def test_a_run_goes_on_with_another_number_of_processes(groups: Any, alone: dict[str, Any], size: int) -> None:
    folder = groups[size][0] / "interrupted_and_resumed" / "run"
    trainer = vf.Trainer(group.mlp(seed=9), **group.OPTIONS)
    trainer.load_state(folder)
    assert trainer.step == 25
    trainer.fit(group.POINTS, 5)
    whole = vf.Trainer(group.mlp(), **group.OPTIONS)
    whole.fit(group.POINTS, 25)
    whole.fit(group.POINTS, 5)
    assert difference(list(trainer.model.parameters()), list(whole.model.parameters())) < 1e-12


def test_ctrl_c_in_the_last_step_still_counts_and_loses_nothing(found: Any) -> None:
    for result in found("all_interrupted_at_the_last_step"):
        assert result["error"][0] == "TrainingInterrupted"
        assert result["steps"] == 5
        assert result["files"] == ["step-00000005.safetensors"]


def test_a_callback_that_stops_every_process_saves_once(found: Any) -> None:
    for result in found("stopped_by_a_callback"):
        assert result["error"][0] == "TrainingInterrupted"
        assert result["files"] == ["step-00000003.safetensors"]


@pytest.mark.parametrize("name", ["not_finite", "not_finite_and_noticed_late"])
def test_a_step_that_is_not_finite_ends_all_alike(found: Any, name: str) -> None:
    results = found(name)
    for result in results:
        kind, message = result["error"]
        assert kind == "NonFiniteLossError"
        assert message.startswith("step 6: the linear term is not finite. The model is left as it was after step 5.")
        assert result["steps"] == 5
        assert difference(result["weights"], results[0]["weights"]) == 0.0
    assert torch.isfinite(torch.cat([w.flatten() for w in results[0]["weights"]])).all()


def test_when_one_process_fails_all_are_told_why(found: Any) -> None:
    results = found("a_process_that_fails")
    last = len(results) - 1
    told = f"process {last} of {len(results)} failed: RuntimeError: no paper"
    for rank, result in enumerate(results):
        for name in ("callback", "last callback", "late"):
            expected = ("RuntimeError", "no paper") if rank == last else ("ProcessFailedError", told)
            assert result[name] == expected, name
        assert result["start"][0] == ("CheckpointError" if rank == 0 else "ProcessFailedError")
        assert "is a file; Checkpointer needs a directory" in result["start"][1]
        assert result["late steps"] == 7
    readers = [result["read"] for result in results]
    assert readers.count(("OSError", "row 41 cannot be read")) == 1
    assert [kind for kind, _ in readers].count("ProcessFailedError") == last
    assert all("OSError: row 41 cannot be read" in message for kind, message in readers if kind != "OSError")


def test_a_process_that_is_killed_is_missed_at_once(groups: Any) -> None:
    for result in groups[3][1][:2]:
        kind, message = result["killed"]["error"]
        assert kind == "ProcessFailedError"
        assert message.startswith("another process has ended, or cannot be reached; what it reported says why")
        assert result["killed"]["steps"] == 4
        assert result["killed"]["seconds"] < 20
    assert "killed" not in groups[3][1][2]


def test_processes_that_do_not_fit_are_told_what_differs(found: Any) -> None:
    results = found("unlike_processes")
    last = len(results) - 1
    for rank, result in enumerate(results):
        assert result["after all that"] == ("", "")
        for name, words in {
            "shape": r"torch.float64 of shape (16, 16) on process 0 and torch.float64 of shape (8, 16)",
            "seed": f"must be given the same: seed is 0 on process 0 and 1 on process {last}",
            "steps": f"steps is 4 on process 0 and 5 on process {last}",
            "rows": "data is 96 rows with the checksum",
            "data": "data is 96 rows with the checksum",
            "unseeded": "step 1: processes that train together read different batches from the DataLoader",
            "sampler": "pass the loader without it",
            "small": f"batch_size must be at least the number of processes, {len(results)}",
        }.items():
            assert result[name][0] == "ValueError", (name, result[name])
            assert words in result[name][1]
        assert result["resume"] == ("CheckpointError", results[0]["resume"][1])
        assert "there is no checkpoint at" in result["resume"][1]
        assert result["no data"][0] == ("TypeError" if rank == last else "ProcessFailedError")
        assert "data must be a tensor" in result["no data"][1]


def test_the_checksum_of_data_does_not_depend_on_the_process() -> None:
    data = torch.arange(40.0).reshape(20, 2)
    words = {as_source(data.clone(), (2,)).describe() for _ in range(2)}
    assert len(words) == 1
    assert as_source(data + 1, (2,)).describe() not in words


# Samples


def test_samples_are_those_of_one_process_to_the_last_bit(found: Any, alone: dict[str, Any]) -> None:
    expected = alone["samples"]
    for result in found("samples"):
        assert result.keys() == expected.keys()
        for name, value in expected.items():
            if name == "broken":
                continue
            other = result[name]
            if name == "reference solution":
                # Without a batch size libraries choose kernels by shape, and steps follow the rounding within rtol.
                torch.testing.assert_close(other["x"], value["x"], rtol=0, atol=5e-3)
            elif isinstance(value, dict):
                assert [key for key in value if not same(value[key], other[key])] == []
            else:
                assert same(value, other), name


def same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    return bool(first == second)


def test_a_process_whose_samples_cannot_be_drawn_is_named(found: Any) -> None:
    results = found("samples")
    last = len(results) - 1
    for rank, result in enumerate(results):
        assert result["broken"][0] == ("ValueError" if rank == last else "ProcessFailedError")
        assert "model parameter 'output.weight' has NaN" in result["broken"][1]
        assert result["failing"][0] == "SolveError"
        assert result["failing"][1].startswith("9 of 9 samples did not reach the end time")


def test_the_states_on_the_way_are_joined_too(found: Any) -> None:
    for result in found("joined"):
        assert result["x"].tolist() == [[0.0], [1.0], [2.0], [3.0], [4.0]]
        assert result["ys"][:, :, 0].tolist() == [[i + 10.0 * k for i in range(5)] for k in range(3)]
        assert (result["nfe"].tolist(), result["engine"]) == ([1, 2, 3, 4, 5], "native")


def test_processes_on_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    whole = memory.free_memory(cpu)
    if whole is None:
        pytest.skip("this system does not say how much memory is free")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    part = memory.free_memory(cpu)
    assert part is not None
    assert 0.1 * whole < part < 0.5 * whole


def test_without_a_group_sampling_is_sampling() -> None:
    model = group.mlp(torch.float32)
    ours, usual = (function(model, 5, rtol=1e-3, seed=2) for function in (distributed.sample, vf.sample))
    assert torch.equal(ours, usual)


def test_the_signatures_of_both_samplers_are_one() -> None:
    import inspect

    assert inspect.signature(distributed.sample) == inspect.signature(vf.sample)


@pytest.mark.parametrize(("n", "size", "unit"), [(10, 3, 1), (2, 3, 1), (10, 3, 4), (12, 5, 4), (1, 1, 1), (7, 2, 9)])
def test_shares_are_consecutive_and_leave_nothing_out(n: int, size: int, unit: int) -> None:
    shares = [World(rank, size).share(n, unit) for rank in range(size)]
    assert [i for share in shares for i in share] == list(range(n))
    assert all(share.start % unit == 0 for share in shares if share)
    whole = [-(-len(share) // unit) for share in shares]
    assert max(whole) - min(whole) <= 1


# The command line


def test_the_command_line_writes_once(groups: Any, tmp_path: Path) -> None:
    folder, (first, second) = groups[2]
    first, second = first["command_line"], second["command_line"]
    for name in ("train", "sample", "grid", "evaluate", "minutes"):
        assert (first[name][0], second[name]) == (0, (0, "", "")), (name, first[name], second[name])
    assert first["files"] == [
        "model.safetensors",
        "resolved.yaml",
        "samples/samples-00000003.png",
        "samples/samples-00000006.png",
        "step-00000006.safetensors",
        "training.csv",
        "training.png",
    ]
    assert "on cpu in 2 processes, into" in first["train"][2]
    run = config.read_file(folder / "command_line" / "cli" / "resolved.yaml")
    assert (run["augment"], run["accumulate"], run["batch_size"]) == ("flip", 2, 15)
    assert first["again"][0] == second["again"][0] == cli.USAGE
    assert second["again"][2].startswith("process 1: error: ")
    # The same files from one process.
    command = ["train", "--config", str(folder / "command_line" / "cli" / "resolved.yaml"), "--no-progress"]
    done = CliRunner().invoke(cli.app, [*command, "--out", str(tmp_path / "one"), "--sample-every", "0"])
    assert done.exit_code == 0, done.output
    one = list(vf.load(tmp_path / "one" / "model.safetensors").state_dict().values())
    assert difference(first["weights"], one) < 1e-6
    sampled = ["sample", str(folder / "command_line" / "cli"), "-n", "11", "--rtol", "1e-3", "--no-progress"]
    done = CliRunner().invoke(cli.app, [*sampled, "-o", str(tmp_path / "samples.npy")])
    assert done.exit_code == 0, done.output
    drawn = torch.from_numpy(np.load(tmp_path / "samples.npy"))
    torch.testing.assert_close(first["samples"], drawn, rtol=0, atol=0)
    assert json.loads(first["scores"])["n_fake"] == 11
    assert "minutes hold about" in first["minutes"][2]


THREADS_LEFT = """
import importlib.util, os
import torch
import vapo_fast as vf
from vapo_fast.core.processes import process_group

specification = importlib.util.spec_from_file_location("distributed_loop", {example!r})
example = importlib.util.module_from_spec(specification)
specification.loader.exec_module(example)


def gloo():
    tasks = "/proc/self/task"
    names = [open(f"{{tasks}}/{{task}}/comm").read().strip() for task in os.listdir(tasks)]
    return [name for name in names if "gloo" in name]


with process_group(torch.device("cpu")):
    torch.manual_seed(0)
    model, data = vf.MLPPotential((2,), vf.DataHomotopy(), (8,)), torch.randn(64, 2)
    vf.Trainer(model, batch_size=16).fit(data, 3)
    loss = example.Loss(model)
    wrapped = example.DistributedDataParallel(loss)
    wrapped(data, torch.ones(64), torch.randn(64, 2)).backward()
    vf.distributed.sample(model, 5, rtol=1e-2)
    began = gloo()
    del wrapped
print(len(began), gloo())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="lists a process's threads as Linux does")
def test_a_group_is_gone_with_its_context() -> None:
    """Threads that it left would ask for the lock of an interpreter that is shutting down, and abort the process.

    In processes of their own, because what would keep the group is done at most once in each.
    """
    processes = []
    for _ in range(3):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launcher = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", THREADS_LEFT.format(example=str(group.EXAMPLE))],
                env={**os.environ, **launcher, "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for process in processes:
        said, errors = process.communicate(timeout=120)
        began, left = said.split(maxsplit=1)
        assert int(began) > 0, errors
        assert left.strip() == "[]"
        assert process.returncode == 0, errors


@contextlib.contextmanager
def torchrun(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """``torchrun`` with two processes, which are ended with it."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [*launcher, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # As a shell starts a process in the background, which ignores Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=40)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.mark.skipif(os.name != "posix", reason="sends Ctrl-C")
def test_torchrun_and_ctrl_c(tmp_path: Path) -> None:
    """Ctrl-C to the launcher ends all processes after one step; one process alone goes on from what was saved."""
    settings = ["--data", "8gaussians", "--steps", "4000", "--widths", "16,16", "--batch-size", "33"]
    settings += ["--sample-every", "0", "--no-progress", "--lr", "0.003", "--device", "cpu"]
    run, log = tmp_path / "run", tmp_path / "run" / "training.csv"
    with torchrun("-m", "vapo_fast", "train", *settings, "--out", str(run)) as process:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and process.poll() is None:
            if log.exists() and len(log.read_text().splitlines()) > 20:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "interrupted after step" in said, said
    assert f"Continue with: torchrun --nproc-per-node 2 -m vapo_fast train --resume {run}" in said
    (saved,) = run.glob("step-*.safetensors")
    step = int(saved.stem.removeprefix("step-"))
    assert 20 <= step < 4000
    assert len(log.read_text().splitlines()) == step + 1
    assert not (run / "model.safetensors").exists()
    options = {"lr": 0.003, "batch_size": 33, "weight": "inverse_variance"}
    settled = config.merge(config.read_file(run / "resolved.yaml"))
    data = config.build_data(settled)
    one = vf.Trainer(config.build_model(settled, data), **options)

    def stop(trainer: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        one.fit(data.tensor(), 4000, callbacks=[group.At(step, stop)])
    two = vf.Trainer(config.build_model(settled, data), **options)
    two.load_state(saved)
    # Rounding grows with the steps; whatever another batch would do is thousands of times larger.
    assert difference(list(two.model.parameters()), list(one.model.parameters())) < 1e-3


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    for name, value in {**launcher, "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    asked: list[torch.device] = []
    monkeypatch.setattr(config.torch, "empty", lambda *size, device: asked.append(device))
    monkeypatch.setattr(config.torch.cuda, "is_available", lambda: True)
    assert config.build_device("cuda") == config.build_device("auto") == torch.device("cuda", 1)
    assert config.build_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="device 'cuda:0' would put every process on one GPU"):
        config.build_device("cuda:0")
    assert processes.process_number() == 3
    monkeypatch.delenv("RANK")
    assert not processes.launched()
    assert processes.process_number() == 0
    assert config.build_device("cuda") == torch.device("cuda")


def test_only_what_launches_work_alone_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step with gloo's exchange, which runs on the host, must not become a CUDA graph; with NCCL's it may."""
    monkeypatch.setattr("vapo_fast.training.parallel.world", lambda: World(0, 2))
    parallel = DataParallel(list(group.mlp().parameters()), 8, 0)
    for backends, on_cuda, expected in (
        ("cpu:gloo,cuda:nccl", True, True),
        ("cpu:gloo,cuda:gloo", True, False),
        ("cpu:gloo,cuda:nccl", False, False),
    ):
        monkeypatch.setattr(dist, "get_backend_config", lambda backends=backends: backends)
        buffer = SimpleNamespace(is_cuda=on_cuda, device=torch.device("cuda" if on_cuda else "cpu"))
        monkeypatch.setattr(parallel, "_buffer", buffer)
        assert parallel.capturable is expected
