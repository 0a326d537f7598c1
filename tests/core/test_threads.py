"""Small work on the CPU stays on one thread, and whatever comes next has as many as before."""

import pytest
import torch

import vapo_fast as vf
from vapo_fast.core.threads import threads_for


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_small_tensors_have_one_thread(two_threads):
    with threads_for([torch.zeros(10), torch.zeros(300)]):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with pytest.raises(RuntimeError, match="inside"), threads_for([torch.zeros(1)]):
        raise RuntimeError("inside")
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("tensors", [[torch.zeros(1 << 17)] * 3, [torch.zeros(3, device="meta")]], ids=["many", "meta"])
def test_others_have_what_there_was(two_threads, tensors):
    with threads_for(tensors):
        assert torch.get_num_threads() == 2


def test_a_small_models_parameters_are_looked_at_by_one_thread(two_threads, monkeypatch):
    """Another thread would go on spinning on the processor that the solve after it needs."""
    seen = []

    def isfinite(values, real=torch.isfinite):
        seen.append(torch.get_num_threads())
        return real(values)

    monkeypatch.setattr(torch, "isfinite", isfinite)
    model = vf.MLPPotential((64,), vf.DataHomotopy(omega=1.0, sigma=0.1), widths=(256, 256))
    vf.sample(model, 2, engine="reference", rtol=1e-1)
    assert seen[0] == 1
    assert torch.get_num_threads() == 2
