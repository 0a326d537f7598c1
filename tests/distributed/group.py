"""One of the processes of a group that does scenarios: arguments RANK SIZE MEETING_FILE FOLDER SCENARIO...

A scenario is a function of the process's number and the number of processes whose result, tensors and plain values, is
kept for the tests to look at. Each group is started once, as starting Python and PyTorch takes longer than all of them.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, TensorDataset

import vapo_fast as vf
from vapo_fast import distributed
from vapo_fast.cli.app import app
from vapo_fast.core import processes
from vapo_fast.training import trainer as trainer_module
from vapo_fast.training.callbacks import Checkpointer, CSVLogger
from vapo_fast.training.run import Callback

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "distributed_loop.py"
PATH = vf.DataHomotopy(sigma=0.1)
POINTS = torch.randn(96, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).abs()
IMAGES = torch.randn(40, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).clamp(-1, 1)
# Shares of 14 rows are of different sizes in every group.
OPTIONS: dict[str, Any] = {"lr": 3e-3, "batch_size": 14, "warmup_steps": 5, "grad_clip": 1.0, "seed": 11}

Scenario = Callable[[int, int, Path], Any]
SCENARIOS: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    SCENARIOS[function.__name__] = function
    return function


class Readings(Callback):
    def __init__(self) -> None:
        self.rows: list[list[float]] = []

    def on_step_end(self, trainer: Any, step: int, metrics: Any) -> None:
        if metrics is not None:
            self.rows.append(list(metrics[:6]))


class At(Callback):
    def __init__(self, step: int, action: Callable[[Any], None]) -> None:
        self.step, self.action = step, action

    def on_step_end(self, trainer: Any, step: int, metrics: Any) -> None:
        if step == self.step:
            self.action(trainer)


def mlp(dtype: torch.dtype = torch.float64, seed: int = 0, **options: Any) -> vf.MLPPotential:
    torch.manual_seed(seed)
    model = vf.MLPPotential((2,), PATH, **{"widths": (16, 16), "fourier_features": 2} | options)
    nn.init.normal_(model.output.weight, std=0.2)
    return model.to(dtype)


def unet() -> vf.Potential:
    torch.manual_seed(0)
    return vf.UNetPotential((1, 8, 8), PATH, 8, (1, 2), 1).double()


def outcome(trainer: vf.Trainer, readings: Readings) -> dict[str, Any]:
    moments = [v for p in trainer.parameters.values() for v in trainer.optimizer.state[p].values()]
    return {
        "curve": torch.tensor(readings.rows, dtype=torch.float64),
        "weights": [p.detach().clone() for p in trainer.model.parameters()],
        "average": [p.detach().clone() for p in trainer.ema_model.parameters()],
        "moments": [m.clone() for m in moments],
        "step": trainer.step,
    }


def trained(model: vf.Potential, data: Any, steps: int = 25, **options: Any) -> dict[str, Any]:
    trainer, readings = vf.Trainer(model, **OPTIONS | options), Readings()
    trainer.fit(data, steps, callbacks=[readings])
    return outcome(trainer, readings)


def error_of(action: Callable[[], Any]) -> tuple[str, str]:
    """Class and message of what is raised."""
    try:
        action()
    except BaseException as error:
        return type(error).__name__, str(error)
    return "", ""


def deferred_steps() -> Any:
    """As on CUDA: the host does not wait for each step."""
    return patch.object(trainer_module, "_defers", lambda model: True)


@scenario
def plain(rank: int, size: int, folder: Path) -> Any:
    # Weights that differ before the fit become those of process 0.
    return trained(mlp(seed=rank), POINTS)


@scenario
def by_the_reference_engine(rank: int, size: int, folder: Path) -> Any:
    return trained(mlp(), POINTS, engine="reference")


@scenario
def in_float32(rank: int, size: int, folder: Path) -> Any:
    return trained(mlp(torch.float32), POINTS.float(), steps=40)


@scenario
def images(rank: int, size: int, folder: Path) -> Any:
    return trained(unet(), IMAGES, steps=8, augment="flip", accumulate=3, prefetch=2)


class Statistics(nn.Module):
    """A network that keeps a mean of what it sees, and uses it when it is not trained."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 1)
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mean.lerp_(x.detach().mean(0), 0.1)
        return torch.sin(self.layer(x - self.mean))[:, 0]


@scenario
def statistics(rank: int, size: int, folder: Path) -> Any:
    """Buffers after the last step, before the processes meet, and at the end."""
    model = vf.Potential.from_module(Statistics().double(), (2,), PATH)
    before: list[torch.Tensor] = []
    keep = At(4, lambda trainer: before.append(trainer.model.module.mean.clone()))
    trainer = vf.Trainer(model, **OPTIONS)
    trainer.fit(POINTS, 4, callbacks=[keep])
    ends = [network.module.mean.clone() for network in (trainer.model, trainer.ema_model)]  # type: ignore[union-attr]
    return [*before, *ends]


@scenario
def deferred(rank: int, size: int, folder: Path) -> Any:
    """As on CUDA: the host reads only every fourth step."""
    with deferred_steps():
        return trained(mlp(), POINTS, log_every=4)


@scenario
def from_a_loader(rank: int, size: int, folder: Path) -> Any:
    """A shuffled loader, seeded alike, read ahead in smaller pieces than the batch."""
    generator = torch.Generator().manual_seed(8)
    loader = DataLoader(TensorDataset(POINTS), batch_size=5, shuffle=True, generator=generator)
    return trained(mlp(), loader, prefetch=3)


@scenario
def own_loop(rank: int, size: int, folder: Path) -> Any:
    """DistributedDataParallel around the loss, ours and an engine's, as the example does it."""
    from vapo_fast.engines.native import energy_loss as native_energy_loss

    specification = importlib.util.spec_from_file_location("distributed_loop", EXAMPLE)
    assert specification is not None
    assert specification.loader is not None
    example = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(example)
    results = {}
    functions = {"reference": vf.energy_loss}
    if vf.engines()["native"] == "usable":
        functions["native"] = native_energy_loss
    for name, function in functions.items():
        model = mlp()
        example.train(example.Loss(model, function), POINTS, steps=10, batch_size=14, seed=11)
        results[name] = [p.detach().clone() for p in model.parameters()]
    return results


@scenario
def interrupted_and_resumed(rank: int, size: int, folder: Path) -> Any:
    """Ctrl-C comes to the last process alone; all stop after one more step, and process 0 saves."""
    press = At(6, lambda t: os.kill(os.getpid(), signal.SIGINT) if rank == size - 1 else None)
    trainer, readings = vf.Trainer(mlp(), **OPTIONS, accumulate=2, prefetch=2), Readings()
    loud = [Checkpointer(folder / "run", every=4), CSVLogger(folder / "run" / "log.csv")]
    error = error_of(lambda: trainer.fit(POINTS, 25, callbacks=[press, readings, *loud]))
    files = sorted(path.name for path in (folder / "run").iterdir())
    dist.barrier()
    # Everything comes from process 0's file, whatever the others begin with.
    again = vf.Trainer(mlp(seed=rank + 1), **OPTIONS, accumulate=2, prefetch=2)
    rest = Readings()
    # Processes on other machines see no file of process 0's.
    again.fit(POINTS, 25, callbacks=[rest, *loud], resume=folder / ("run" if rank == 0 else "not-here"))
    log = (folder / "run" / "log.csv").read_text().splitlines()
    return {"error": error, "steps": trainer.step, "files": files, "log": log, **outcome(again, rest)}


@scenario
def all_interrupted_at_the_last_step(rank: int, size: int, folder: Path) -> Any:
    trainer = vf.Trainer(mlp(), **OPTIONS)
    press = At(5, lambda t: os.kill(os.getpid(), signal.SIGINT))
    error = error_of(lambda: trainer.fit(POINTS, 5, callbacks=[press, Checkpointer(folder / "last")]))
    return {"error": error, "steps": trainer.step, "files": sorted(p.name for p in (folder / "last").iterdir())}


@scenario
def stopped_by_a_callback(rank: int, size: int, folder: Path) -> Any:
    def stop(trainer: Any) -> None:
        raise KeyboardInterrupt

    trainer = vf.Trainer(mlp(), **OPTIONS)
    error = error_of(lambda: trainer.fit(POINTS, 25, callbacks=[At(3, stop), Checkpointer(folder / "stopped")]))
    return {"error": error, "files": sorted(p.name for p in (folder / "stopped").iterdir())}


@scenario
def not_finite(rank: int, size: int, folder: Path) -> Any:
    """One row of one process's share is bad."""
    bad = POINTS.clone()
    bad[70] = torch.nan
    loader: DataLoader[Any] = DataLoader(TensorDataset(bad), batch_size=14)
    trainer = vf.Trainer(mlp(), **OPTIONS)
    error = error_of(lambda: trainer.fit(loader, 10, callbacks=[Checkpointer(folder / "bad", every=2)]))
    return {"error": error, "steps": trainer.step, "weights": [p.detach().clone() for p in trainer.model.parameters()]}


@scenario
def not_finite_and_noticed_late(rank: int, size: int, folder: Path) -> Any:
    """Process 0 sees it first, at a checkpoint between two readings."""
    bad = POINTS.clone()
    bad[70] = torch.nan
    loader: DataLoader[Any] = DataLoader(TensorDataset(bad), batch_size=14)
    with deferred_steps():
        trainer = vf.Trainer(mlp(), **OPTIONS, log_every=9)
        error = error_of(lambda: trainer.fit(loader, 30, callbacks=[Checkpointer(folder / "late", every=7)]))
    return {"error": error, "steps": trainer.step, "weights": [p.detach().clone() for p in trainer.model.parameters()]}


class Breaks(Dataset[torch.Tensor]):
    """Cannot read one row, which one process needs."""

    def __len__(self) -> int:
        return 96

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 41:
            raise OSError("row 41 cannot be read")
        return POINTS[index]


@scenario
def a_process_that_fails(rank: int, size: int, folder: Path) -> Any:
    trainer = vf.Trainer(mlp(), **OPTIONS)
    result = {"read": error_of(lambda: trainer.fit(Breaks(), 10)), "steps": trainer.step}

    def fail(trainer: Any) -> None:
        if rank == size - 1:
            raise RuntimeError("no paper")

    again = vf.Trainer(mlp(), **OPTIONS)
    result["callback"] = error_of(lambda: again.fit(POINTS, 10, callbacks=[At(4, fail)]))
    result["last callback"] = error_of(lambda: vf.Trainer(mlp(), **OPTIONS).fit(POINTS, 4, callbacks=[At(4, fail)]))
    (folder / "file").touch()
    keeper = Checkpointer(folder / "file")
    result["start"] = error_of(lambda: vf.Trainer(mlp(), **OPTIONS).fit(POINTS, 4, callbacks=[keeper]))
    with deferred_steps():
        late = vf.Trainer(mlp(), **OPTIONS, log_every=5)
        result["late"] = error_of(lambda: late.fit(POINTS, 20, callbacks=[At(7, fail)]))
        # Process 0 finds it between two readings, at a checkpoint.
        early, keeper = vf.Trainer(mlp(), **OPTIONS, log_every=5), Checkpointer(folder / "early", every=9)
        result["early"] = error_of(lambda: early.fit(POINTS, 20, callbacks=[At(7, fail), keeper]))
    return result | {"late steps": late.step}


@scenario
def unlike_processes(rank: int, size: int, folder: Path) -> Any:
    def fit(data: Any = POINTS, model: vf.Potential | None = None, steps: int = 4, **options: Any) -> Any:
        return error_of(lambda: vf.Trainer(model or mlp(), **OPTIONS | options).fit(data, steps))

    def unlike(model: vf.Potential) -> vf.Potential:
        torch.manual_seed(rank)  # after the weights are made
        return model

    last = rank == size - 1
    other = POINTS + 1.0 if last else POINTS
    unseeded: DataLoader[Any] = DataLoader(TensorDataset(POINTS), batch_size=7, shuffle=True)
    sampler = DistributedSampler(TensorDataset(POINTS))
    sharded: DataLoader[Any] = DataLoader(TensorDataset(POINTS), batch_size=7, sampler=sampler)
    return {
        "shape": fit(model=mlp(widths=(16, 8 if last else 16))),
        "seed": fit(seed=int(last)),
        "steps": fit(steps=4 + last),
        "rows": fit(POINTS[:50] if last else POINTS),
        "data": fit(other),
        "no data": fit(None if last else POINTS),
        "unseeded": fit(unseeded, model=unlike(mlp())),
        "sampler": fit(sharded),
        "small": fit(batch_size=1),
        "resume": error_of(lambda: vf.Trainer(mlp(), **OPTIONS).fit(POINTS, 4, resume=folder / "nothing")),
        "after all that": fit(),
    }


@scenario
def samples(rank: int, size: int, folder: Path) -> Any:
    model, results = mlp(torch.float32), {}
    for engine in [name for name in ("native", "reference") if vf.engines()[name] == "usable"]:
        results[engine] = distributed.sample(model, 23, engine=engine, rtol=1e-4, seed=5, batch_size=4)
        solution = distributed.sample(model, 7, engine=engine, rtol=1e-4, seed=6, return_solution=True)
        results[f"{engine} solution"] = vars(solution)
    results["few"] = distributed.sample(model, 1, rtol=1e-3)
    results["images"] = distributed.sample(unet(), 5, rtol=1e-2, batch_size=2)
    results["failing"] = error_of(lambda: distributed.sample(model, 9, max_steps=2, rtol=1e-6))
    results["partial"] = distributed.sample(model, 9, max_steps=2, rtol=1e-6, throw=False, return_solution=True).status
    broken = mlp(torch.float32)
    if rank == size - 1:
        broken.output.weight.data.fill_(torch.nan)
    results["broken"] = error_of(lambda: distributed.sample(broken, 9))
    results["wrong"] = error_of(lambda: distributed.sample(model, 0))
    return results


@scenario
def joined(rank: int, size: int, folder: Path) -> Any:
    """A solution with states on the way, of which each process has its share."""
    shares = [processes.World(r, size).share(5) for r in range(size)]
    rows = torch.arange(5.0)[shares[rank].start : shares[rank].stop]
    states = torch.stack([rows, rows + 10.0, rows + 20.0])[:, :, None]
    counts = rows.long()
    own = vf.Solution(rows[:, None], rows.double(), counts, counts + 1, counts, counts, states, "native", "float32")
    return vars(distributed._gathered(own, shares))


@scenario
def killed(rank: int, size: int, folder: Path) -> Any:
    """The last process is ended in the middle of a fit; it is the last scenario of a group."""

    def die(trainer: Any) -> None:
        if rank == size - 1:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer, began = vf.Trainer(mlp(), **OPTIONS), time.monotonic()
    error = error_of(lambda: trainer.fit(POINTS, 10, callbacks=[At(4, die), Checkpointer(folder / "run", every=3)]))
    return {"error": error, "steps": trainer.step, "seconds": time.monotonic() - began}


@scenario
def command_line(rank: int, size: int, folder: Path) -> Any:
    from typer.testing import CliRunner

    def run(*arguments: object) -> tuple[int, str, str]:
        done = CliRunner().invoke(app, [str(a) for a in arguments])
        return done.exit_code, done.stdout, done.stderr

    train = ["train", "--data", "digits", "--model", "mlp", "--widths", "16,16", "--batch-size", 15, "--steps", 6]
    train += ["--augment", "flip", "--sample-every", 3, "--no-progress", "--out", folder / "cli", "--accumulate", 2]
    results = {"train": run(*train), "again": run(*train)}
    if rank == 0:
        results["files"] = sorted(
            path.relative_to(folder / "cli").as_posix() for path in (folder / "cli").rglob("*") if path.is_file()
        )
        results["weights"] = list(vf.load(folder / "cli" / "model.safetensors").state_dict().values())
    options = ["-n", 11, "--rtol", 1e-3, "--no-progress"]
    results["sample"] = run("sample", folder / "cli", *options, "-o", folder / "samples.npy")
    results["grid"] = run("sample", folder / "cli", *options, "-o", folder / "samples.png")
    scores = ["--extractor", "pixels", "-o", folder / "scores.json"]
    results["evaluate"] = run("evaluate", folder / "cli", *options, *scores)
    results["wrong"] = run("sample", folder / "cli", "-o", "x.jpg")
    minutes = ["train", "--data", "2moons", "--minutes", 0.005, "--widths", "8", "--sample-every", 0, "--no-progress"]
    results["minutes"] = run(*minutes, "--batch-size", 16, "--out", folder / "minutes")
    if rank == 0:
        results["samples"] = torch.from_numpy(np.load(folder / "samples.npy"))
        results["scores"] = (folder / "scores.json").read_text()
    return results


def main() -> None:
    rank, size, meeting, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if size > 1:
        # A process that waits for one that will not come is ended by this, and the test fails.
        dist.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=rank, world_size=size, timeout=timedelta(seconds=45)
        )
    results = {}
    for name in sys.argv[5:]:
        own = folder / name
        own.mkdir(exist_ok=True)
        try:
            results[name] = SCENARIOS[name](rank, size, own)
        except BaseException:
            results[name] = traceback.format_exc()
        torch.save(results, folder / f"{rank}.pt")
    if "killed" in results:
        os._exit(0)  # a group that has lost a process cannot be taken down in order
    if size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
