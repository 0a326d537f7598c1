"""Addresses beyond 2^31 elements, and grids of every size.

What cannot be run, because too much memory would have to be touched, is read in the compiler's output: no product of
sizes is formed in 32 bits (`offline.narrow_products`, a column of limits.csv).
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from vapo_fast.kernels import film_silu, noise, residual, silu_map, train
from vapo_fast.kernels.field import field
from vapo_fast.kernels.solve import solve

import vapo_fast as vf
from vapo_fast.ode import SolveOptions

EULER = SolveOptions(method="euler", steps=1)
KEY = (123, 456)


def potential(dimension: int = 3) -> vf.MLPPotential:
    torch.manual_seed(0)
    return vf.MLPPotential((dimension,), vf.DataHomotopy(), (16, 16))


def second(maps: Tensor, wide: Tensor) -> film_silu.SecondInputs:
    return film_silu.SecondInputs(maps, maps, maps, maps, wide, wide)


def far_apart(rows: Tensor, stride: int) -> Tensor:
    """The same rows, a stride apart in memory that is asked for and, but for the rows, never touched."""
    n, columns = rows.shape
    try:
        memory = rows.new_empty((n - 1) * stride + columns)
    except RuntimeError as error:
        pytest.skip(f"{4 * n * stride / 2**30:.0f} GiB of addresses are refused: {error}")
    apart = memory.as_strided((n, columns), (stride, 1))
    apart.copy_(rows)
    return apart


def test_field_reads_rows_beyond_2_to_the_31_elements(device, packed):
    mlp, program = packed(potential())
    x, t = torch.randn(4, 3, device=device), torch.linspace(0.1, 1.0, 4, device=device)
    expected = field(mlp, x, t, program)
    # The third row begins at element 2^31, the fourth beyond.
    found = field(mlp, far_apart(x, 2**30), t, program)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_solve_reads_rows_beyond_2_to_the_31_elements(device, packed):
    mlp, program = packed(potential())
    x = torch.randn(2, 3, device=device)
    expected = solve(mlp, x, 0.1, 1.0, EULER, program)
    # A stride that is itself no 32-bit number.
    found = solve(mlp, far_apart(x, 2**31), 0.1, 1.0, EULER, program)
    assert torch.equal(found.x, expected.x)
    assert torch.equal(found.status, expected.status)


def test_sample_numbers_beyond_32_bits(device):
    index = torch.tensor([0, 2**31 - 1, 2**31, 2**32 + 5, 2**62])
    found = noise.normal(KEY, index.to(device), 5, 7, torch.float64)
    assert torch.equal(found.cpu(), vf.noise.normal(KEY[1] << 32 | KEY[0], index, (5,), stream=7, dtype=torch.float64))


@pytest.mark.parametrize("n", [1, 16, 17])
def test_any_number_of_programs_gives_the_same(device, packed, n):
    mlp, one = packed(potential(), 16, 1)
    x, t = torch.randn(n, 3, device=device), torch.linspace(0.1, 1.0, n, device=device)
    expected = field(mlp, x, t, one)
    found = field(mlp, x, t, replace(one, count=1000))
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_one_program_serves_a_queue_of_samples(device, packed):
    mlp, one = packed(potential(), 16, 1)
    x = torch.randn(18, 3, device=device)
    expected = solve(mlp, x, 0.1, 1.0, EULER, replace(one, count=2))
    found = solve(mlp, x, 0.1, 1.0, EULER, one)
    assert torch.equal(found.x, expected.x)
    assert torch.equal(found.nfe, expected.nfe)


@pytest.fixture
def grids(monkeypatch) -> list[int]:
    """The grids of what is launched, which is not run."""
    found: list[int] = []

    def run(kernel, *arguments, grid, warmup, **constants):
        found.append(grid[0])

    monkeypatch.setattr(type(noise._draw), "run", run)
    return found


def test_nothing_is_launched_for_no_samples(device, packed, grids):
    mlp, program = packed(potential())
    x, t = torch.zeros(0, 3, device=device), torch.zeros(0, device=device)
    phi, gradient = field(mlp, x, t, program)
    solved = solve(mlp, x, 0.0, 1.0, SolveOptions(t_eval=(0.5, 1.0)), program)
    drawn = noise.normal(KEY, torch.zeros(0, dtype=torch.int64, device=device), 3, 0, torch.float32)
    assert grids == []
    assert (phi.shape, gradient.shape, drawn.shape) == ((0,), (0, 3), (0, 3))
    assert (solved.x.shape, solved.ys.shape) == ((0, 3), (2, 0, 3))


@pytest.mark.parametrize("dimension", [1, 2, 5, 512])
def test_no_grid_exceeds_the_devices_limit(packed, grids, dimension):
    """As many samples as 192 GiB hold, which is more than a device has, as tensors without memory."""
    mlp, program = packed(potential(dimension), 16, 264)
    n = 192 * 2**30 // 4 // dimension
    x, t = torch.empty(n, dimension, device="meta"), torch.empty(n, device="meta")
    noise.normal(KEY, torch.empty(n, dtype=torch.int64, device="meta"), dimension, 0, torch.float32)
    few = x[: n // 256]  # each sample has a kilobyte and more of activations beside it
    train.loss_and_gradients(mlp, few, t[: len(few)], few, "velocity", "uniform", program)
    field(mlp, x, t, program)
    solve(mlp, few, 0.0, 1.0, EULER, program)
    assert len(grids) == 4
    assert grids[-2:] == [264, 264]
    assert max(grids) < 2**31


def test_grids_of_maps_are_within_the_devices_limits(grids):
    """Feature maps of 96 GiB, of few and of many channels."""
    for channels, side in ((1, 512), (64, 64), (4096, 8)):
        n = 96 * 2**30 // 4 // (channels * side * side)
        maps, wide = torch.empty(n, channels, side, side, device="meta"), torch.empty(n, channels, device="meta")
        silu_map.silu(maps, maps)
        silu_map.silu_derivative(maps, maps, None, maps)
        silu_map.silu_second(maps, maps, maps, maps, None, maps, maps)
        film_silu.film_silu(maps, wide, wide, maps)
        film_silu.film_silu_derivative(maps, maps, wide, wide, maps)
        film_silu.film_silu_second(second(maps, wide), film_silu.SecondResults(maps, maps, wide, wide))
        residual.residual(maps, maps, None, maps)
    assert len(grids) == 21
    assert max(grids) < 2**31


def test_nothing_is_launched_for_no_maps(grids):
    maps, wide = torch.empty(0, 3, 2, 2), torch.empty(0, 3)
    silu_map.silu(maps, maps)
    silu_map.silu_derivative(maps, maps, None, maps)
    silu_map.silu_second(maps, maps, maps, maps, None, maps, maps)
    film_silu.film_silu(maps, wide, wide, maps)
    film_silu.film_silu_derivative(maps, maps, wide, wide, maps)
    film_silu.film_silu_second(second(maps, wide), film_silu.SecondResults(maps, maps, wide, wide))
    residual.residual(maps, maps, None, maps)
    assert grids == []
