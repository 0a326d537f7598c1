"""The optimiser and the running average against their formulas, whatever way gradients and weights lie in memory."""

import copy

import pytest
import torch
from torch import nn

from vapo_fast.training.optimizer import RunningAverage, make_optimizer, set_gradients
from vapo_fast.training.options import TrainingOptions


def options(**changes):
    return TrainingOptions(lr=1e-2, batch_size=8, weight="uniform", **changes)


def laid_out(layout: str) -> torch.Tensor:
    """The same 6 x 6 numbers each time, in another place in memory."""
    values = torch.linspace(-1.0, 2.0, 36, dtype=torch.float64).reshape(6, 6)
    if layout == "transposed":
        return values.t().contiguous().t()
    if layout == "with gaps":
        wide = torch.full((6, 12), torch.nan, dtype=torch.float64)
        wide[:, ::2] = values
        return wide[:, ::2]
    return values.clone()


@pytest.mark.parametrize("of_gradient", ["plain", "transposed", "with gaps"])
@pytest.mark.parametrize("of_parameter", ["plain", "transposed", "with gaps"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_adam_step_by_step(optimizer, of_parameter, of_gradient):
    """PyTorch's fused Adam pairs numbers by their place in memory; a transposed gradient must not mislead it."""
    parameter = nn.Parameter(laid_out(of_parameter))
    made = make_optimizer([parameter], options(optimizer=optimizer, weight_decay=0.1))
    expected, first, second = laid_out("plain"), torch.zeros(6, 6).double(), torch.zeros(6, 6).double()
    for step in range(1, 4):
        gradient = step * laid_out(of_gradient) ** 2
        lying = laid_out(of_gradient).copy_(gradient) if of_gradient == "with gaps" else gradient
        set_gradients([parameter], [lying])
        assert torch.equal(parameter.grad, gradient)
        made.step()
        if optimizer == "adam":
            gradient = gradient + 0.1 * expected
        else:
            expected = expected - 1e-2 * 0.1 * expected
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        corrected = first / (1 - 0.9**step), second / (1 - 0.999**step)
        expected = expected - 1e-2 * corrected[0] / (corrected[1].sqrt() + 1e-8)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-12, atol=1e-12)


def test_an_expanded_gradient_is_read_within_its_memory():
    parameter = nn.Parameter(torch.zeros(50, 50))
    made = make_optimizer([parameter], options())
    set_gradients([parameter], [torch.ones(1, 1).expand(50, 50)])
    made.step()
    torch.testing.assert_close(parameter.detach(), torch.full((50, 50), -1e-2))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("scale", torch.ones(2))


@pytest.mark.parametrize("decay", [0.0, 0.1, 0.9, 0.999])
def test_the_average_follows_its_formula_and_buffers_are_copied(decay):
    torch.manual_seed(0)
    model = Network()
    average = copy.deepcopy(model)
    running = RunningAverage(average, model)
    expected = [p.detach().double() for p in average.parameters()]
    for _ in range(3):
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter))
        model.scale = torch.randn(2)  # another tensor in its place
        model.norm.num_batches_tracked += 1
        running.update(decay)
        for e, current in zip(expected, model.parameters(), strict=True):
            e += (1.0 - decay) * (current.detach().double() - e)
        for e, kept in zip(expected, average.parameters(), strict=True):
            torch.testing.assert_close(kept.detach().double(), e, rtol=3e-6, atol=1e-6)
        assert torch.equal(average.scale, model.scale)
        assert average.norm.num_batches_tracked == model.norm.num_batches_tracked


@pytest.mark.parametrize("applied", [0.0, 1.0])
def test_a_flag_decides_whether_the_average_moves(applied):
    model = nn.Linear(2, 2)
    average = copy.deepcopy(model)
    before = average.weight.detach().clone()
    model.weight.data += 1.0
    RunningAverage(average, model).update(0.75, torch.tensor(applied))
    torch.testing.assert_close(average.weight.detach(), before + 0.25 * applied)
