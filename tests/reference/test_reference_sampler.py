"""The two samplers on the same seed, point by point."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from vapo_fast import reference
from vapo_fast.homotopy import DataHomotopy, LinearHomotopy
from vapo_fast.ode import Solution, SolveError
from vapo_fast.potentials import GaussianMixturePotential, MLPPotential
from vapo_fast.sampling.sample import sample


def mixture() -> GaussianMixturePotential:
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.5]])
    covariances = torch.stack([0.04 * torch.eye(2), torch.tensor([[0.2, 0.1], [0.1, 0.15]])])
    return GaussianMixturePotential(torch.tensor([0.25, 0.75]), means, covariances, DataHomotopy(sigma=0.1))


def network(**options: Any) -> MLPPotential:
    torch.manual_seed(0)
    model = MLPPotential((2,), LinearHomotopy(t1=0.9), widths=(16,), fourier_features=4, **options)
    torch.nn.init.normal_(model.output.weight, std=0.1)
    return model


@pytest.mark.parametrize("model", [mixture(), network(), network().double(), network(time_dependent=False)])
@pytest.mark.parametrize("options", [{}, {"method": "rk4", "steps": 20}, {"method": "tsit5", "rtol": 1e-3, "seed": 7}])
def test_samples_agree_point_by_point(model: Any, options: dict[str, Any]) -> None:
    theirs = sample(model, 40, engine="reference", return_solution=True, **options)
    ours = reference.sample(model, 40, return_solution=True, **options)
    assert isinstance(theirs, Solution)
    assert isinstance(ours, Solution)
    torch.testing.assert_close(ours.x, theirs.x, rtol=1e-6, atol=1e-6)
    assert torch.equal(ours.nfe, theirs.nfe)
    assert ours.x.std() > 0.3


def test_batches_do_not_matter() -> None:
    torch.testing.assert_close(
        reference.sample(mixture(), 10, batch_size=3), reference.sample(mixture(), 10), rtol=1e-10, atol=1e-10
    )


def test_signatures_differ_by_engine_and_precision_only() -> None:
    ours, twin = (inspect.signature(f).parameters for f in (sample, reference.sample))
    assert {k: v for k, v in ours.items() if k not in ("engine", "precision")} == dict(twin)


def test_a_failing_solve_raises_or_is_returned() -> None:
    with pytest.raises(SolveError, match="4 of 4 samples did not reach the end time"):
        reference.sample(mixture(), 4, max_steps=2)
    partial = reference.sample(mixture(), 4, max_steps=2, throw=False, return_solution=True)
    assert isinstance(partial, Solution)
    assert not partial.success.any()


def test_the_models_mode_and_gradients_are_left_alone() -> None:
    model = network().train()
    reference.sample(model, 2)
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n must be a positive integer, got 0"),
        ({"n": 2, "batch_size": 0}, "batch_size must be a positive integer, got 0"),
        ({"n": 2, "rtol": -1.0}, "rtol must be a finite number > 0, got -1.0"),
        ({"n": 2, "t_end": 99.0}, "t_end must be at most"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reference.sample(mixture(), **arguments)
