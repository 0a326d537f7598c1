"""The tiles that devices get, blocks smaller than the arrays in every direction, and the largest sizes that are taken.

The other tests' tiles are wide, for the interpreter's sake: with them most products are one block.
"""

from __future__ import annotations

import math

import pytest
import torch
from vapo_fast.kernels import tuning
from vapo_fast.kernels.field import field
from vapo_fast.kernels.launch import Program
from vapo_fast.kernels.mlp import PackedMlp
from vapo_fast.kernels.shapes import PRECISIONS, Tile
from vapo_fast.kernels.solve import solve
from vapo_fast.kernels.train import loss_and_gradients

from tests.support.tolerances import TOLERANCES, assert_rows_close, field_scales
from tests.support.zoo import Network, states, times
from vapo_fast.engines import Batch, Job, LossOptions, ReferenceEngine
from vapo_fast.ode import SolveOptions

TOLERANCE = TOLERANCES[torch.float32]
REFERENCE = ReferenceEngine()
GEOMETRIES = ((64, 64, 32, 16), (128, 128, 32, 16), (64, 128, 16, 16))
"""rows, block_n, block_k, block_d."""
NETWORKS = {
    # Two blocks of 128 columns after one, one after two; five blocks of coordinates and four of features.
    GEOMETRIES[0]: Network(70, (130, 7, 40), "silu", 40, True, "linear"),
    GEOMETRIES[1]: Network(70, (130, 7, 40), "silu", 40, True, "linear"),
    GEOMETRIES[2]: Network(33, (40, 129), "tanh", 5),
}


def test_the_rules_tiles_are_among_these():
    tiles = {tuning.rule((70, (w,), 0), p, c) for w in (128, 256) for p in PRECISIONS for c in ((8, 0), (9, 0))}
    ours = {geometry[:3] for geometry in GEOMETRIES}
    found = {(tile.rows, tile.block_n, tile.block_k) for tile in tiles if tile.precision != "ieee"}
    assert found < ours
    assert {tile.block_d for tile in tiles} == {16}


def case(device, network, geometry, n):
    model = network.build(torch.float32).to(device)
    tile = Tile(*geometry, "ieee", 4, 2)
    x, noise = (states(n, network.dimension, torch.float32, seed).to(device) for seed in (11, 12))
    # At the very end of the path the weights dwarf all other rows.
    t = times(n + 2, model.homotopy, torch.float32)[2:].to(device)
    return model, (PackedMlp(model, tile), Program(tile, 2)), Batch(x, t, noise)


def exactly(model, batch):
    return model.cpu().double(), Batch(*(part.cpu().double() for part in batch))


def check_field(loaded, model, batch):
    mlp, program = loaded
    phi, gradient = field(mlp, batch.x_data, batch.t, program)
    exact, (x, t, _) = exactly(model, batch)
    expected = exact.field(x, t)
    scales = field_scales(exact, x, t, expected[1])
    assert_rows_close(phi.cpu(), expected[0], scales[0], TOLERANCE.value, "Phi")
    assert_rows_close(gradient.cpu(), expected[1], scales[1], TOLERANCE.gradient, "grad Phi")


def check_train(loaded, network, model, batch, estimator="covariance"):
    mlp, program = loaded
    found = loss_and_gradients(mlp, *batch, estimator, "uniform", program)
    exact, batch = exactly(model, batch)
    wanted = REFERENCE.loss_and_grads(exact, batch, Job("loss_and_grads", loss=LossOptions(estimator, "uniform")))
    scale = float(wanted.loss.linear.abs() + wanted.loss.quadratic) * math.sqrt(len(batch.t))
    assert abs(float(found.linear) - float(wanted.loss.linear)) <= TOLERANCE.loss * scale
    assert abs(float(found.quadratic) - float(wanted.loss.quadratic)) <= TOLERANCE.loss * scale
    overall = max(float(grad.abs().max()) for grad in wanted.grads.values())
    for name, expected in wanted.grads.items():
        error = float((found.gradients[name].cpu().double() - expected).abs().max())
        assert error <= TOLERANCE.weights * (float(expected.abs().max()) + 1e-3 * overall), (name, error)


def check_solve(loaded, model, batch):
    """One step of Euler's method with the trace along two probes."""
    mlp, program = loaded
    x0, options = batch.x_data[:3].contiguous(), SolveOptions("euler", steps=1)
    probes = torch.where(batch.noise[:3, None] < 0, -1.0, 1.0).repeat(1, 2, 1).contiguous()
    probes[:, 1, 0] *= -1.0
    solved = solve(mlp, x0, 0.1, 0.3, options, program, "probes", probes)
    expected, integrals = REFERENCE.solve_with_trace(
        model.cpu().double(),
        x0.cpu().double(),
        0.1,
        0.3,
        Job("solve_with_trace", solve=options),
        probes.cpu().double(),
    )
    scales = (1.0 + expected.x.abs().max()).expand(3), (1.0 + integrals.abs().max()).expand(3)
    assert_rows_close(solved.x.cpu(), expected.x, scales[0], TOLERANCE.fixed, "x")
    assert_rows_close(solved.integrals.cpu(), integrals, scales[1], TOLERANCE.trace, "integrals")
    assert torch.equal(solved.status.cpu(), expected.status)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_tiles_of_the_rule(device, poisoned, geometry):
    network = NETWORKS[geometry]
    model, loaded, batch = case(device, network, geometry, 19)
    check_train(loaded, network, model, batch)
    check_solve(loaded, model.to(device).float(), batch)
    check_field(loaded, model, batch)


@pytest.mark.parametrize("network", [Network(512, (33,), "silu"), Network(2, (1024, 40), "tanh")], ids=str)
def test_the_largest_sizes(device, poisoned, network):
    """Three samples: what is new is the padding, and the loops over many blocks.

    In 512 dimensions an innovation is the difference of numbers 30 times as large, in any float32.
    """
    model, loaded, batch = case(device, network, GEOMETRIES[1], 3)
    check_train(loaded, network, model, batch, "velocity")
    check_solve(loaded, model.to(device).float(), batch)
    check_field(loaded, model, batch)
