"""What only a CUDA device shows of the graph engine: recording, waiting, training in one graph; skipped without one."""

from __future__ import annotations

import copy
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import vapo_fast as vf
from vapo_fast.core import extension
from vapo_fast.engines import GraphEngine, Job, ReferenceEngine, choose
from vapo_fast.engines.graph import capture
from vapo_fast.engines.graph import replay as replaying
from vapo_fast.engines.graph.engine import GRAPH
from vapo_fast.engines.graph.launch import Launcher
from vapo_fast.loss import Batch
from vapo_fast.ode import SolveOptions
from vapo_fast.training.run import Callback

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")

CUDA = torch.device("cuda")
SHAPE = (3, 8, 8)
PATH = vf.DataHomotopy(sigma=0.05)


class Plain(nn.Module):
    """A network of a user's own, whose gradient is autograd's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        y = nn.functional.silu(self.first(x) * (1.0 + t[:, None, None, None]))
        return torch.tanh(self.second(y)).flatten(1).sum(1) - 0.25 * x.square().flatten(1).sum(1)


def drawn(model: vf.Potential) -> vf.Potential:
    """On the device, every parameter drawn, so that no layer is silent."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 25
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.7 / math.sqrt(fan_in)))
    return model.to(CUDA).eval()


MAKERS: dict[str, Callable[[], vf.Potential]] = {
    "unet": lambda: drawn(vf.UNetPotential(SHAPE, PATH, 32, (1, 2), 1)),
    "wide_resnet": lambda: drawn(vf.WideResNetPotential(SHAPE, PATH, 32, (1, 2), 1)),
    "module": lambda: drawn(vf.Potential.from_module(Plain(), SHAPE, PATH, time_dependent=True)),
}


@pytest.fixture(params=MAKERS)
def model(request: pytest.FixtureRequest) -> vf.Potential:
    return MAKERS[request.param]()


def job_for(rtol: float, precision: str = "float32") -> Job:
    return Job("solve", precision, solve=SolveOptions(rtol=rtol))


def solve(model: vf.Potential, x0: torch.Tensor, job: Job) -> vf.Solution:
    engine = choose("graph", model, CUDA, torch.float32, job)
    return engine.solve(model, x0, PATH.t0, PATH.t1, job)


def launchers(engine: GraphEngine, model: vf.Potential) -> list[Launcher]:
    return [solver._launcher for solver, _ in engine._solvers[model]._known.values()]


@contextmanager
def refusing_to_wait() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_waiting_is_noticed() -> None:
    """The tests below would fail if the engine waited."""
    x = torch.ones(3, device=CUDA)
    with pytest.raises(RuntimeError, match="synchroniz"), refusing_to_wait():
        float(x.sum())


def test_steps_are_recorded(model: vf.Potential) -> None:
    """A step that cannot be recorded only warns, and the solve goes on from Python; here that is an error."""
    x0 = torch.randn(40, *SHAPE, device=CUDA)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solution = solve(model, x0, job_for(1e-3))
    assert bool(solution.success.all())
    (launcher,) = launchers(GRAPH, model)
    assert launcher._loops, launcher._recordings
    exact = copy.deepcopy(model).double()
    twin = ReferenceEngine().solve(exact, x0.double(), PATH.t0, PATH.t1, job_for(1e-3))
    assert float((solution.x - twin.x).square().mean().sqrt()) <= 2e-2


@pytest.mark.parametrize("way", ["extension", "python"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_between_looks_nobody_waits(
    model: vf.Potential, precision: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole loop of launches and looks, from the first replay to the last look, under CUDA's error for waiting."""
    if way == "extension" and extension.unavailable_reason() is not None:
        pytest.skip(str(extension.unavailable_reason()))
    loop = replaying.in_extension if way == "extension" else replaying.in_python
    launched: list[int] = []

    def watched(replays: replaying.Replays, monitor: replaying.Monitor | None) -> tuple[int, int]:
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            running, launches = loop(replays, monitor)
        finally:
            torch.cuda.set_sync_debug_mode(before)
        launched.append(launches)
        return running, launches

    x0 = torch.randn(40, *SHAPE, device=CUDA)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bf16 is noisier than this tolerance allows
        first = solve(model, x0, job_for(1e-4, precision))
        monkeypatch.setattr(capture, "replay", watched)
        again = solve(model, x0, job_for(1e-4, precision))
    assert sum(launched) > 0
    torch.testing.assert_close(again.x, first.x, rtol=1e-3, atol=1e-3)


def test_waits_do_not_grow_with_the_steps(model: vf.Potential) -> None:
    """A solve of many steps waits as often as one of few: around it, not in it. (Fewer rows than move to others.)"""
    x0 = torch.randn(12, *SHAPE, device=CUDA)
    counts, steps = [], []
    for rtol in (1e-2, 1e-5):
        for _ in range(3):  # recorded by then
            solve(model, x0, job_for(rtol))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                solution = solve(model, x0, job_for(rtol))
            finally:
                torch.cuda.set_sync_debug_mode("default")
        counts.append(len([one for one in said if "synchroniz" in str(one.message)]))
        steps.append(int((solution.accepted + solution.rejected).max()))
    assert steps[1] > 1.5 * steps[0]
    assert counts[0] == counts[1]


def test_ctrl_c_ends_a_recorded_solve() -> None:
    """The engine is as good as before."""
    model, x0 = MAKERS["unet"](), torch.randn(12, *SHAPE, device=CUDA)
    job = Job("solve", "float32", solve=SolveOptions("rk4", steps=50))
    expected = solve(model, x0, job)
    endless = Job("solve", "float32", solve=SolveOptions("rk4", steps=10_000_000))
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    begin = time.monotonic()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        solve(model, x0, endless)
    timer.join()
    assert time.monotonic() - begin < 5.0
    torch.testing.assert_close(solve(model, x0, job).x, expected.x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
@pytest.mark.parametrize("name", ["unet", "wide_resnet"])
def test_losses_never_wait(name: str, precision: str) -> None:
    model = MAKERS[name]()
    x, noise = torch.randn(2, 8, *SHAPE, device=CUDA)
    batch, job = Batch(x, torch.linspace(0.1, 3.0, 8, device=CUDA), noise), Job("loss_and_grads", precision)
    engine = choose("graph", model, CUDA, torch.float32, job)
    for _ in range(2):
        engine.loss_and_grads(model, batch, job)
    with refusing_to_wait():
        engine.loss_and_grads(model, batch, job)


# Largest relative errors of the gradient in the norm; and the least, below which it would be another arithmetic.
LARGEST = {"float32": 1e-5, "tf32": 1e-2, "bf16": 8e-2}
SMALLEST = {"bf16": 1e-4}


def test_each_precision_errs_by_what_it_rounds(model: vf.Potential) -> None:
    x, t = torch.randn(64, *SHAPE, device=CUDA), torch.linspace(0.1, 0.9 * PATH.t1, 64, device=CUDA)
    exact = copy.deepcopy(model).double().field(x.double(), t.double())[1]
    errors = {
        name: float((GRAPH._gradient(model, x, t, "ieee" if name == "float32" else name) - exact).norm() / exact.norm())
        for name in LARGEST
    }
    for name, error in errors.items():
        assert error <= LARGEST[name], errors
        assert error >= SMALLEST.get(name, 0.0), errors


class Curve(Callback):
    """Losses that were read; between readings the host may not wait, once the step is captured."""

    def __init__(self, refuse: bool) -> None:
        self.values: list[float] = []
        self.refused = 0
        self._refuse = refuse

    def on_step_end(self, trainer, step, metrics):  # type: ignore[no-untyped-def]
        if metrics is not None:
            self.values.append(metrics.loss)
        if self._refuse:
            torch.cuda.set_sync_debug_mode("error" if 11 <= step < 19 else "default")
            self.refused += 11 < step <= 19

    def on_exception(self, trainer, error):  # type: ignore[no-untyped-def]
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("held_on", ["cuda", "cpu"])
@pytest.mark.parametrize("name", ["unet", "wide_resnet"])
def test_training_is_one_graph_and_follows_the_reference(name: str, held_on: str) -> None:
    """With batches drawn by the step itself, where the data lies on the device, or copied in."""
    data = (0.5 * torch.randn(200, *SHAPE, generator=torch.Generator().manual_seed(1))).to(held_on)
    curves = []
    for engine in ("graph", "reference"):
        trainer = vf.Trainer(
            MAKERS[name]().train(), batch_size=16, lr=1e-4, engine=engine, schedule="constant", log_every=10,
            precision="float32", augment=None if held_on == "cuda" else "flip",
        )  # fmt: skip
        # Batches that are copied in may be waited for.
        curve = Curve(refuse=engine == "graph" and held_on == "cuda")
        trainer.fit(data, 40, callbacks=(curve,))
        curves.append(curve.values)
        if engine == "graph":
            assert trainer._deferred is not None
            assert trainer._deferred._graph is not None
            assert curve.refused == (8 if held_on == "cuda" else 0)
    assert len(curves[0]) == 4
    scale = max(map(abs, curves[1]))
    assert max(abs(ours - theirs) for ours, theirs in zip(*curves, strict=True)) <= 1e-2 * scale


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_training_in_reduced_arithmetic_is_one_graph(precision: str) -> None:
    data = (0.5 * torch.randn(200, *SHAPE, generator=torch.Generator().manual_seed(1))).to(CUDA)
    trainer = vf.Trainer(MAKERS["unet"]().train(), batch_size=16, lr=1e-4, engine="graph", precision=precision)
    trainer.fit(data, 20)
    assert trainer._deferred is not None
    assert trainer._deferred._graph is not None
    assert all(bool(torch.isfinite(p).all()) for p in trainer.ema_model.parameters())
