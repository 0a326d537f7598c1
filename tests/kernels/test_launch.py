"""Where kernels are launched: on the device of their arguments, whichever is the current one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from vapo_fast.kernels import film_silu, launch, noise, residual, silu_map, train, tuning
from vapo_fast.kernels.field import field
from vapo_fast.kernels.finish_step import finish_step
from vapo_fast.kernels.solve import solve
from vapo_fast.kernels.stage import stage

import vapo_fast as vf
from tests.support.zoo import Network, states, times
from vapo_fast.core import triton_support
from vapo_fast.engines import Job, TritonEngine
from vapo_fast.ode import SolveOptions
from vapo_fast.ode.masked_state import State
from vapo_fast.ode.masked_step import Plan
from vapo_fast.ode.tableaus import TABLEAUS

NETWORK = Network(3, (7,))


@pytest.fixture
def guarded(monkeypatch) -> list[torch.device | None]:
    """The device that each launch is made on, which is not run; None for the one that happens to be current."""
    current: list[torch.device | None] = [None]
    found: list[torch.device | None] = []

    @contextmanager
    def on(device: torch.device) -> Iterator[None]:
        current.append(device)
        yield
        current.pop()

    monkeypatch.setattr(launch, "on", on)
    monkeypatch.setattr(type(noise._draw), "run", lambda kernel, *_, grid, warmup, **__: found.append(current[-1]))
    return found


def test_every_launch_is_on_the_device_of_its_arguments(device, packed, guarded):
    model = NETWORK.build(torch.float32)
    mlp, program = packed(model)
    x, t = states(5, 3, torch.float32).to(device), times(5, model.homotopy, torch.float32).to(device)
    index = torch.arange(5, device=device)
    field(mlp, x, t, program)
    solve(mlp, x, 0.1, 0.5, SolveOptions(), program)
    train.loss_and_gradients(mlp, x, t, x, "velocity", "uniform", program)
    noise.normal((1, 2), index, 3, 0, torch.float32)
    noise.uniform((1, 2), index, 3, 0, torch.float32)
    noise.permutation((1, 2), 5, index[:1], 0)
    maps = torch.zeros(2, 4, 3, 3, device=device).to(memory_format=torch.channels_last)
    row = torch.zeros(2, 4, device=device)
    pair = torch.zeros(4, 4, 3, 3, device=device).to(memory_format=torch.channels_last)
    film_silu.film_silu(maps, row, row, maps)
    film_silu.film_silu_derivative(maps, maps, row, row, maps)
    inputs = film_silu.SecondInputs(maps, maps, maps, maps, row, row)
    film_silu.film_silu_second(inputs, film_silu.SecondResults(pair, pair, row, row))
    silu_map.silu(maps, maps)
    silu_map.silu_derivative(maps, maps, None, maps)
    silu_map.silu_second(maps, maps, maps, maps, None, pair, pair)
    residual.residual(maps, maps, None, maps)
    plan, numbers = Plan("dopri5", outputs=0), torch.zeros(64, dtype=torch.float64, device=device)
    state = State.allocate(5, x, TABLEAUS["dopri5"], 0, ())
    stage(state, numbers, numbers, plan, 1)
    finish_step(state, numbers, numbers, plan)
    assert guarded == [x.device] * 15


@pytest.fixture
def entered(monkeypatch) -> list[torch.device]:
    """Devices that were made CUDA's current one."""
    found: list[torch.device] = []

    @contextmanager
    def device(one: torch.device) -> Iterator[None]:
        found.append(one)
        yield

    monkeypatch.setattr(torch.cuda, "device", device)
    return found


def test_a_cuda_device_is_made_the_current_one(entered):
    second = torch.device("cuda:1")
    with launch.on(second):
        assert entered == [second]
    with launch.on(torch.device("cpu")):
        assert entered == [second]


def test_tiles_are_timed_on_their_device(entered, monkeypatch):
    class Event:
        def __init__(self, enable_timing):
            assert entered

        record = synchronize = lambda self: None

        def elapsed_time(self, other):
            return 2.5

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert tuning._milliseconds(lambda tile: None, tuning.INTERPRETED, torch.device("cuda:1")) == 2.5
    assert entered == [torch.device("cuda:1")]


@pytest.fixture
def two_devices(monkeypatch) -> Iterator[None]:
    """An old device and a new one."""
    triton_support.unavailable_reason.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: ((7, 5), (9, 0))[index])
    yield
    triton_support.unavailable_reason.cache_clear()


def test_each_device_is_asked_for_its_capability(two_devices):
    too_old = "the device's compute capability is 7.5; the kernels need 8.0"
    assert triton_support.unavailable_reason() is None
    assert triton_support.unavailable_reason(torch.device("cuda:1")) is None
    assert triton_support.unavailable_reason(torch.device("cuda:0")) == too_old
    model = vf.MLPPotential((3,), vf.DataHomotopy(), (7,))
    engine = TritonEngine()
    assert engine.available() is None
    assert engine.supports(model, torch.device("cuda:0"), torch.float32, Job("solve")) == too_old
    # The next objection: this model is no CUDA model at all.
    assert "is torch.float32 on cpu" in engine.supports(model, torch.device("cuda:1"), torch.float32, Job("solve"))


@pytest.mark.parametrize(("warps", "each"), [(4, 2), (8, 1), (16, 1), (2, 4)])
def test_programs_fill_the_registers(monkeypatch, warps, each):
    """65 536 of them: 8 warps of 32 threads with 255 each."""
    properties = type("Properties", (), {"multi_processor_count": 132})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    tile = replace(tuning.INTERPRETED, warps=warps)
    assert launch.Program.filling(tile, torch.device("cuda:1")).count == 132 * each
    assert 32 * warps * 255 * each <= 65536 or each == 1


@pytest.fixture
def memory(monkeypatch) -> dict[str, int]:
    """What a made-up device has, and a process holds of it; bytes."""
    held = {"free": 0, "reserved": 0, "allocated": 0, "asked": 0}

    def free(device):
        held["asked"] += 1
        return held["free"], 80 * 2**30

    monkeypatch.setattr(torch.cuda, "mem_get_info", free)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: held["reserved"])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: held["allocated"])
    return held


def test_scratch_memory_is_no_more_than_is_free(memory):
    """64 layers of 1 024 units in tiles of 128 rows: 34 MiB a program."""
    device, program = torch.device("cuda:1"), launch.Program(replace(tuning.INTERPRETED, rows=128), 132)
    step = 128 * (66 * 1024 + 3 * 64)
    memory["free"] = 80 * 2**30
    assert program.programs(10**6, step, device) == 132
    assert program.programs(500, step, device) == 4
    memory["free"] = 2**30
    few = program.programs(10**6, step, device)
    assert 1 < few < 132
    assert few * 4 * step <= 2**29 < (few + 1) * 4 * step
    memory.update(free=2**29, reserved=2**30, allocated=2**29)
    assert program.programs(10**6, step, device) == few
    memory.update(free=0, reserved=0, allocated=0)
    assert program.programs(10**6, step, device) == 1
    assert program.programs(10**6, step, torch.device("cpu")) == 132


def test_memory_is_not_looked_at_for_a_little_scratch(memory):
    program = launch.Program(tuning.INTERPRETED, 264)
    assert program.programs(10**6, 64 * 5 * 128, torch.device("cuda:0")) == 264
    assert memory["asked"] == 0


def test_derivatives_that_are_not_made_are_refused(device, packed):
    model = NETWORK.build(torch.float32)
    mlp, program = packed(model)
    plain, t = states(5, 3, torch.float32).to(device), times(5, model.homotopy, torch.float32).to(device)
    x, of_t, probes = (part.clone().requires_grad_() for part in (plain, t, plain[:, None]))
    options = SolveOptions("euler", steps=1)
    for name, call in (
        ("x", lambda: field(mlp, x, t, program)),
        ("t", lambda: field(mlp, plain, of_t, program)),
        ("x0", lambda: solve(mlp, x, 0.1, 0.3, options, program)),
        ("probes", lambda: solve(mlp, plain, 0.1, 0.3, options, program, "probes", probes)),
        ("x_data", lambda: train.loss_and_gradients(mlp, x, t, plain, "velocity", "uniform", program)),
        ("t", lambda: train.loss_and_gradients(mlp, plain, of_t, plain, "velocity", "uniform", program)),
        ("noise", lambda: train.loss_and_gradients(mlp, plain, t, x, "velocity", "uniform", program)),
        ("weight", lambda: train.loss_and_gradients(mlp, plain, t, plain, "velocity", of_t, program)),
    ):
        with pytest.raises(ValueError, match=f"^{name} requires grad, and this kernel makes no derivatives by it"):
            call()
    with torch.no_grad():
        assert bool(torch.isfinite(field(mlp, x, t, program)[0]).all())


def test_a_path_without_formulas_is_refused(packed):
    model = NETWORK.build(torch.float32)
    model.homotopy = type("Curved", (vf.DataHomotopy,), {})()
    with pytest.raises(ValueError, match="must be one of DataHomotopy, LinearHomotopy for the kernels, got Curved"):
        packed(model)
