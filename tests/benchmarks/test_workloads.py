"""The workloads are what they say, and the plain field that peers are given is the potential's."""

from pathlib import Path

import numpy as np
import pytest
import torch

import vapo_fast as vf
from benchmarks.cases import SHAPES, Case, solve
from benchmarks.peers.base import DisagreementError, check_field
from benchmarks.plain_field import PlainField, Weights
from benchmarks.potentials import fingerprint, random_potential, start, stiff_potential
from benchmarks.workloads import Workloads
from vapo_fast.loss import Batch

POTENTIALS = {
    "data": lambda: random_potential(3, (16, 24)),
    "linear": lambda: vf.MLPPotential((3,), vf.LinearHomotopy(omega=1.5), (16, 24), activation="tanh", data_scale=2.0),
    "fourier": lambda: vf.MLPPotential((3,), vf.DataHomotopy(), (16,), fourier_features=5, activation="softplus"),
    "static": lambda: vf.MLPPotential((3,), vf.DataHomotopy(omega=2.0), (16, 8), False, data_scale=0.7),
    "static linear": lambda: vf.MLPPotential((3,), vf.LinearHomotopy(), (16, 8), False, fourier_features=0),
}


@pytest.mark.parametrize("name", POTENTIALS)
def test_the_plain_field_is_the_potentials(name: str):
    torch.manual_seed(1)
    potential = POTENTIALS[name]()
    torch.nn.init.normal_(potential.output.weight, std=0.3)
    field = PlainField(Weights.of(potential))
    x = torch.randn(8, 3)
    t = torch.linspace(0.0, potential.homotopy.t1, 8)
    exact = potential.double()
    wanted = exact.field(x.double(), t.double())[1]
    torch.testing.assert_close(field(x, t).double(), wanted, rtol=1e-5, atol=1e-5)
    for i in range(8):
        one = exact.field(x.double(), float(t[i]))[1]
        torch.testing.assert_close(field(x, float(t[i])).double(), one, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(field(x, t[i]).double(), one, rtol=1e-5, atol=1e-5)


def test_the_plain_loss_is_the_librarys():
    potential = random_potential(3, (16, 24))
    batch = Batch(torch.randn(32, 3), torch.linspace(0.0, 5.0, 32), torch.randn(32, 3))
    field = PlainField(Weights.of(potential))
    wanted = vf.energy_loss(potential, *batch).total
    torch.testing.assert_close(field.loss(field.parameters, *batch), wanted.detach(), rtol=1e-5, atol=1e-5)


def test_another_field_is_refused(tmp_path: Path):
    problem = Workloads(tmp_path).problem(solve("random", 16, 1, 1e-5))
    rows = problem.potential.field(problem.x0, problem.times)[1]
    check_field("right", rows, problem)
    check_field("some of its rows", rows[:4], problem)
    with pytest.raises(DisagreementError, match="differs from the float64 one"):
        check_field("scaled", 1.001 * rows, problem)
    with pytest.raises(DisagreementError, match="differs"):
        check_field("not finite", torch.full_like(rows, torch.nan), problem)
    with pytest.raises(DisagreementError, match="shape"):
        check_field("other shape", rows[:, :1], problem)


def test_the_stiff_five_percent_need_ten_times_the_steps():
    potential = stiff_potential(*SHAPES[0])
    n = 4096
    solution = vf.sample(potential, n, rtol=1e-5, engine="reference", return_solution=True)
    steps = (solution.accepted + solution.rejected).double()
    stiff = start(potential, n)[:, 0] < -1.6449
    assert 0.04 < stiff.double().mean() < 0.06
    ratio = steps[stiff].mean() / steps[~stiff].mean()
    assert 9.0 < ratio < 13.0, ratio
    # And hardly anybody else.
    assert (steps[~stiff] > 3 * steps[~stiff].median()).double().mean() < 0.01


def test_starts_are_those_of_sample_and_rows_do_not_depend_on_n(tmp_path: Path):
    workloads = Workloads(tmp_path)
    small, large = (workloads.problem(solve("random", n, 1, 1e-5)) for n in (8, 32))
    assert torch.equal(small.x0, large.x0[:8])
    torch.testing.assert_close(
        torch.from_numpy(large.reference[:8]), torch.from_numpy(small.reference), rtol=0, atol=1e-12
    )
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert len(kept) == 2
    assert all(fingerprint(small.potential) in name for name in kept)
    drawn = vf.sample(small.potential, 8, rtol=1e-5, engine="reference")
    assert np.abs(drawn.double().numpy() - small.reference).max() < 1e-4


def test_the_reference_solution_agrees_with_scipys(tmp_path: Path):
    integrate = pytest.importorskip("scipy.integrate")
    problem = Workloads(tmp_path).problem(Case("solve", "random", 3, (16, 16), 4, 1, rtol=1e-5))
    exact = problem.potential.double()
    x0 = problem.x0.double()
    for i in range(4):

        def field(t: float, x: np.ndarray) -> np.ndarray:
            return exact.field(torch.from_numpy(x)[None], t)[1][0].numpy()

        end = integrate.solve_ivp(field, problem.span, x0[i].numpy(), method="DOP853", rtol=1e-12, atol=1e-12).y[:, -1]
        np.testing.assert_allclose(problem.reference[i], end, rtol=0, atol=1e-8)
