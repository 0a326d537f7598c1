"""States and stages are the solver's own: fields that reuse a buffer, write into what they get, or return it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import vapo_fast as vf
from vapo_fast import noise

METHODS = [("dopri5", None), ("tsit5", None), ("bosh3", None), ("heun", 40), ("rk4", 40), ("euler", 40)]


def solve(field: object, method: str, steps: int | None, t_eval: list[float] | None = None) -> vf.Solution:
    x0 = torch.linspace(0.5, 1.5, 6, dtype=torch.float64).reshape(3, 2)
    kept = x0.clone()
    tolerance = {} if steps else {"rtol": 1e-8}
    solution = vf.ode.solve(field, x0, 0.0, 1.0, method=method, steps=steps, t_eval=t_eval, **tolerance)  # type: ignore[arg-type]
    assert torch.equal(x0, kept)
    return solution


def plain(x: Tensor, t: Tensor) -> Tensor:
    return -x * (1.0 + t[:, None])


def same_buffer() -> object:
    buffers: dict[int, Tensor] = {}

    def field(x: Tensor, t: Tensor) -> Tensor:
        buffer = buffers.setdefault(len(x), torch.empty_like(x))
        return torch.mul(x, -(1.0 + t[:, None]), out=buffer)

    return field


def view_of_a_buffer() -> object:
    buffer = torch.empty(4, 3, 2, dtype=torch.float64)

    def field(x: Tensor, t: Tensor) -> Tensor:
        buffer[1, : len(x)] = -x * (1.0 + t[:, None])
        return buffer[1, : len(x)]

    return field


def writes_into_x() -> object:
    return lambda x, t: x.neg_().mul_(1.0 + t[:, None])


def writes_into_t() -> object:
    def field(x: Tensor, t: Tensor) -> Tensor:
        t += 1.0
        return -x * t[:, None]

    return field


@pytest.mark.parametrize(("method", "steps"), METHODS)
@pytest.mark.parametrize("make", [same_buffer, view_of_a_buffer, writes_into_x, writes_into_t])
def test_a_field_that_shares_memory_is_solved_like_any_other(make: object, method: str, steps: int | None) -> None:
    expected = solve(plain, method, steps, [0.25, 0.5])
    found = solve(make(), method, steps, [0.25, 0.5])  # type: ignore[operator]
    assert torch.equal(found.x, expected.x)
    assert torch.equal(found.ys, expected.ys)
    assert torch.equal(found.nfe, expected.nfe)


def test_constants_that_a_field_changes_are_each_calls_own() -> None:
    rate = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    x0 = torch.ones(3, 1, dtype=torch.float64)
    solution = vf.ode.solve(lambda x, t, a: -x * a.mul_(2.0)[:, None], x0, 0.0, 1.0, rtol=1e-9, args=(rate,))
    torch.testing.assert_close(solution.x[:, 0], torch.exp(-2.0 * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)))
    assert rate.tolist() == [1.0, 2.0, 3.0]


class Careless(vf.Potential):
    """Phi = -|x|^2/2, whose own field returns one buffer and writes into x."""

    def __init__(self) -> None:
        super().__init__((2,), vf.DataHomotopy(sigma=0.1), time_dependent=False)
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.buffer: Tensor | None = None

    def value(self, x: Tensor, t: Tensor) -> Tensor:
        return -0.5 * self.scale * x.square().sum(1)

    def field(self, x: Tensor, t: object = None, *, create_graph: bool = False) -> tuple[Tensor, Tensor]:
        phi = -0.5 * x.detach().square().sum(1)
        if self.buffer is None or len(self.buffer) < len(x):
            self.buffer = torch.empty_like(x)
        gradient = torch.neg(x.detach(), out=self.buffer[: len(x)])
        x.detach().zero_()
        return phi, gradient


@pytest.mark.parametrize("sample", [vf.sample, vf.reference.sample])
def test_a_potential_with_a_careless_field_is_sampled(sample: object) -> None:
    model = Careless()
    start = noise.normal(0, range(5), (2,))
    x = sample(model, 5, rtol=1e-6, t_end=1.0)  # type: ignore[operator]
    torch.testing.assert_close(x, start * torch.exp(torch.tensor(-1.0)), rtol=1e-5, atol=1e-6)
