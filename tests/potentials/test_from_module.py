"""Wrapping a user's module: right ones work, wrong ones are named at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.support.exact import Quadratic
from vapo_fast.homotopy import DataHomotopy
from vapo_fast.loss import energy_loss
from vapo_fast.potentials import MLPPotential, Potential, potential_from_config
from vapo_fast.sampling.density import log_density, log_likelihood
from vapo_fast.sampling.sample import sample

PATH = DataHomotopy(1.0, 0.1)


class Returning(nn.Module):
    """Calls a function on the input; counts its calls."""

    def __init__(self, function, parameter: bool = True) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.function = function
        if parameter:
            self.weight = nn.Parameter(torch.ones(()))

    def forward(self, *inputs: Tensor):  # type: ignore[no-untyped-def]
        return self.function(*inputs)


def test_wrapped_module_is_a_potential() -> None:
    module = Quadratic(-0.3)
    model = Potential.from_module(module, (3, 4, 4), PATH)
    x = torch.randn(5, 3, 4, 4)
    phi, gradient = model.field(x)
    torch.testing.assert_close(gradient, -0.3 * x)
    torch.testing.assert_close(phi, module(x).detach())
    assert model.module is module
    assert not model.time_dependent
    assert list(model.parameters()) == [module.curvature]


def test_time_dependent_module_gets_a_time_a_row() -> None:
    model = Potential.from_module(Returning(lambda x, t: t * x.sum(1)), (2,), PATH, time_dependent=True)
    x = torch.ones(3, 2)
    torch.testing.assert_close(model(x, torch.tensor([0.0, 1.0, 2.0])), torch.tensor([0.0, 2.0, 4.0]))
    torch.testing.assert_close(model(x, 2), torch.full((3,), 4.0))


def test_a_module_that_scales_its_time_in_place_leaves_the_callers_alone() -> None:
    """The loss is weighted, and points are perturbed, by the times that the network was shown."""

    def value(scaled):  # type: ignore[no-untyped-def]
        return lambda x, t: torch.sin(x).sum(1) * scaled(t)

    careful, careless = (
        Potential.from_module(Returning(value(scaled)).double(), (3,), PATH, time_dependent=True)
        for scaled in (lambda t: t * 0.3, lambda t: t.mul_(0.3))
    )
    x, noise = torch.randn(2, 5, 3, dtype=torch.float64)
    t = torch.linspace(0.2, PATH.t1, 5, dtype=torch.float64)
    kept = t.clone()
    for compute in (
        lambda model: model(x, t),
        lambda model: model.field(x, t)[1],
        lambda model: torch.stack(energy_loss(model, x, t, noise)),
        lambda model: log_density(model, x, t),
        lambda model: log_likelihood(model, x, rtol=1e-4),
    ):
        assert torch.equal(compute(careful), compute(careless))
        assert torch.equal(t, kept)


def test_a_value_of_another_shape_is_refused_wherever_it_comes_from() -> None:
    """A column of values times a row of innovations would be a loss of all pairs."""

    class Column(Potential):
        def value(self, x: Tensor, t: Tensor) -> Tensor:
            return x.square().sum(1, keepdim=True)

    model = Column((3,), PATH)
    x, noise = torch.randn(2, 5, 3)
    for call in (
        lambda: model(x, 1.0),
        lambda: energy_loss(model, x, 1.0, noise, estimator="covariance"),
        lambda: log_density(model, x, 1.0),
        lambda: sample(model, 4),
    ):
        with pytest.raises(ValueError, match=r"value must have shape \(\d,\), one scalar a sample, got \(\d, 1\)"):
            call()


def test_a_model_of_several_types_is_named_if_its_layers_do_not_convert() -> None:
    mixed = MLPPotential((2,), PATH, (4, 4))
    mixed.hidden[1].double()
    message = r"holds torch.float32 \(.*\) and torch.float64 \(.*\), and its layers do not convert .*\.float\(\)"
    for call in (
        lambda: mixed.field(torch.ones(3, 2), 1.0),
        lambda: sample(mixed, 2),
        lambda: log_density(mixed, torch.ones(3, 2), 1.0),
    ):
        with pytest.raises(TypeError, match=message):
            call()

    class Converting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Linear(4, 1), nn.Linear(2, 4).double()

        def forward(self, x: Tensor) -> Tensor:
            if len(x) == 7:
                x = x @ torch.ones(5)
            return self.last(torch.tanh(self.first(x.double())).float())[:, 0]

    model = Potential.from_module(Converting(), (2,), PATH)
    assert sample(model, 3).shape == (3, 2)
    with pytest.raises(RuntimeError, match="size mismatch"):
        model(torch.ones(7, 2))


def test_module_in_float64_and_without_parameters() -> None:
    model = Potential.from_module(Quadratic(-0.3).double(), (2,), PATH)
    assert model(torch.ones(1, 2, dtype=torch.float64)).dtype == torch.float64
    free = Potential.from_module(Returning(lambda x: x.sum(1), parameter=False), (2,), PATH)
    assert free.reference_tensor() is None
    assert free(torch.ones(1, 2, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (
            Returning(lambda x: x.sum(1, keepdim=True)),
            ValueError,
            r"must return shape \(2,\), one scalar a sample, got \(2, 1\)",
        ),
        (Returning(lambda x: 1.0), TypeError, r"must return a tensor of shape \(2,\), got float"),
        (
            Returning(lambda x: (x.sub_(1) if x.requires_grad else x).sum(1)),
            ValueError,
            r"the gradient of module\(x\).*in-place",
        ),
        (Returning(lambda x: x.detach().sum(1)), ValueError, r"must be differentiable with respect to x"),
        (nn.Sequential(nn.Linear(2, 1), Returning(lambda y: y.detach()[:, 0])), ValueError, "must be differentiable"),
    ],
)
def test_wrong_modules(module, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        Potential.from_module(module, (2,), PATH)


def test_wrapping_works_where_autograd_is_off() -> None:
    module = Quadratic(-0.3)
    with torch.no_grad():
        Potential.from_module(module, (2,), PATH)
    with torch.inference_mode():
        Potential.from_module(module, (2,), PATH)
    assert module.curvature.grad is None


def test_module_cannot_be_rebuilt_from_its_config() -> None:
    config = Potential.from_module(Quadratic(-0.3), (2,), PATH).config()
    with pytest.raises(ValueError, match="potential class must be one of"):
        potential_from_config(config)
