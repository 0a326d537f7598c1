"""Threads that sample one model in training mode, and a trainer beside them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import vapo_fast as vf
from vapo_fast.core.modes import evaluation_mode, training_step

PATH = vf.DataHomotopy(sigma=0.3)


def dropout_model() -> vf.Potential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 1), nn.Flatten(0))
    return vf.Potential.from_module(net, (2,), PATH).train()


def test_threads_that_sample_a_model_in_training_mode_do_not_meet_dropout() -> None:
    model = dropout_model()
    expected = [vf.sample(model, 8, rtol=1e-3, seed=i) for i in range(12)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: vf.sample(model, 8, rtol=1e-3, seed=i % 12), range(48)))
    assert all(torch.equal(x, expected[i % 12]) for i, x in enumerate(found))
    assert all(module.training for module in model.modules())


def test_read_outs_beside_samples_do_not_either() -> None:
    model = dropout_model()
    x = torch.randn(5, 2)
    expected = vf.log_density(model, x)
    with ThreadPoolExecutor(4) as pool:
        work = [pool.submit(vf.sample, model, 8, rtol=1e-3) for _ in range(8)]
        for _ in range(200):
            assert torch.equal(vf.log_density(model, x), expected)
        for part in work:
            part.result()


@pytest.mark.parametrize("trainer", [vf.Trainer, vf.reference.Trainer])
def test_a_model_that_is_being_trained_is_sampled_between_steps(trainer: type) -> None:
    torch.manual_seed(0)
    data = torch.randn(64, 2)
    alone, beside = dropout_free(), dropout_free()
    trainer(alone, batch_size=16, seed=1).fit(data, 60)
    stop = threading.Event()

    def sample_on() -> int:
        drawn = 0
        while not stop.is_set():
            vf.log_density(beside, data[:4])
            drawn += 1
        return drawn

    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(sample_on)
        trainer(beside, batch_size=16, seed=1).fit(data, 60)
        stop.set()
        assert work.result() > 0
    for a, b in zip(alone.parameters(), beside.parameters(), strict=True):
        assert torch.equal(a, b)


class ModeSeen(nn.Module):
    """Fails where the mode changes between the two halves of an evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 8), nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = self.training
        y = torch.tanh(self.first(x))
        if self.training != before:
            raise RuntimeError("the mode changed during an evaluation")
        return self.second(y).squeeze(1)


def dropout_free() -> vf.Potential:
    torch.manual_seed(3)
    return vf.Potential.from_module(ModeSeen(), (2,), PATH)


def test_the_mode_comes_back_module_by_module() -> None:
    model = dropout_model()
    model.module[2].eval()
    with evaluation_mode(model):
        with evaluation_mode(model.module):
            assert not any(module.training for module in model.modules())
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.module] == [True, True, False, True, True]


def test_a_training_step_waits_for_those_who_evaluate() -> None:
    model = dropout_model()
    order: list[str] = []
    inside = threading.Event()

    def step() -> None:
        inside.wait()
        with training_step(model):
            order.append("step")

    thread = threading.Thread(target=step)
    thread.start()
    with evaluation_mode(model):
        inside.set()
        thread.join(0.2)
        order.append("evaluated")
    thread.join()
    assert order == ["evaluated", "step"]


def test_a_failure_inside_restores_the_mode() -> None:
    model = dropout_model()
    with pytest.raises(ZeroDivisionError), evaluation_mode(model):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), training_step(model):
        raise ZeroDivisionError
    assert all(module.training for module in model.modules())
    with evaluation_mode(model), ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: vf.log_density(model, torch.zeros(1, 2))).result(timeout=30).shape == (1,)
