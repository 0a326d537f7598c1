"""What wrapping a module finds out: coupled samples, missing second derivatives, kinks instead of curvature."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import vapo_fast as vf

PATH = vf.DataHomotopy(sigma=0.3)


class Net(nn.Module):
    """Two layers and something between them."""

    def __init__(self, between: nn.Module | object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.between = nn.Linear(2, 8), nn.Linear(8, 1), between

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x))).squeeze(1)


class Coupled(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, h: Tensor) -> Tensor:
        h = torch.tanh(h)
        if self.kind == "mean":
            return h - h.mean(0)
        if self.kind == "spread":
            return h / (1.0 + h.std(0))
        return torch.softmax(h, dim=0)


@pytest.mark.parametrize("kind", ["mean", "spread", "softmax"])
def test_samples_that_see_each_other_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="gives a sample another value beside another sample"):
        vf.Potential.from_module(Net(Coupled(kind)), (2,), PATH)


@pytest.mark.parametrize("between", [nn.Dropout(0.5), nn.GroupNorm(2, 8), nn.LayerNorm(8)])
def test_samples_that_do_not_are_taken(between: nn.Module) -> None:
    model = vf.Potential.from_module(Net(nn.Sequential(nn.Tanh(), between)), (2,), PATH)
    assert model.obstacles == (None, None)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(), nn.Hardtanh()])
def test_a_piecewise_linear_module_has_no_likelihood(activation: nn.Module) -> None:
    with pytest.warns(UserWarning, match="can be sampled from, but its likelihood cannot be computed: it is piecewise"):
        model = vf.Potential.from_module(Net(activation), (2,), PATH)
    x = vf.sample(model, 3, rtol=1e-2)
    with pytest.raises(ValueError, match="likelihood cannot be computed: it is piecewise linear"):
        vf.log_likelihood(model, x)
    vf.Trainer(model, batch_size=4).fit(torch.randn(8, 2), 1)


class Times(nn.Module):
    """A potential of its own right whose Laplacian is constant, or 0."""

    def __init__(self, quadratic: bool) -> None:
        super().__init__()
        self.weight, self.quadratic = nn.Parameter(torch.tensor(-0.4)), quadratic

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x.square() if self.quadratic else x).sum(1)


@pytest.mark.parametrize("quadratic", [True, False])
def test_a_constant_laplacian_is_no_obstacle(quadratic: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = vf.Potential.from_module(Times(quadratic), (2,), PATH)
    x = torch.zeros(1, 2)
    assert bool(torch.isfinite(vf.log_likelihood(model, x)).all())


class Distances(nn.Module):
    """cdist has no second derivative."""

    def forward(self, h: Tensor) -> Tensor:
        near = torch.cdist(h[:, None], torch.eye(8, dtype=h.dtype)[None].expand(len(h), 8, 8))
        return near.squeeze(1)


def test_a_module_without_second_derivatives_is_sampled_and_not_trained() -> None:
    with pytest.warns(UserWarning, match="it has no second derivatives"):
        model = vf.Potential.from_module(Net(Distances()), (2,), PATH)
    assert vf.sample(model, 2, rtol=1e-2, t_end=0.1).shape == (2, 2)
    for trainer in (vf.Trainer, vf.reference.Trainer):
        with pytest.raises(ValueError, match="model cannot be trained: it has no second derivatives"):
            trainer(model)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.out = nn.Linear(3, 24), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v)).sum((1, 2))


def test_attention_is_trained_and_has_a_likelihood() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = vf.Potential.from_module(Attention(), (4, 3), PATH)
    for trainer in (vf.Trainer, vf.reference.Trainer):
        trainer(model, batch_size=4).fit(torch.randn(8, 4, 3), 2)
    x = vf.sample(model, 2, rtol=1e-3)
    assert bool(torch.isfinite(vf.log_likelihood(model, x, rtol=1e-3)).all())
    loss = vf.energy_loss(model, x, 1.0, torch.randn_like(x))
    loss.total.backward()
    assert model.module.qkv.weight.grad is not None


def test_a_sum_has_the_obstacles_of_its_parts() -> None:
    class Timed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net(nn.ReLU())

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.net(x)

    with pytest.warns(UserWarning, match="piecewise"):
        part = vf.Potential.from_module(Timed(), (2,), PATH, time_dependent=True)
    both = vf.SumPotential([vf.MLPPotential((2,), PATH, widths=(4,)), part])
    assert both.obstacles == part.obstacles
