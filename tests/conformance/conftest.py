"""Every engine that can be used here, on the device it works on."""

import pytest
import torch

from vapo_fast.engines import Engine, Job, base, engines

USABLE = [name for name, told in engines().items() if told == "usable"]
# These take every MLP on the CPU: a refusal would be a gap that a skipped test hides.
TAKES_ALL = ("native", "reference")


@pytest.fixture(params=USABLE)
def engine(request) -> Engine:
    return base._REGISTRY[request.param]


@pytest.fixture
def device(engine) -> torch.device:
    return torch.device("cuda" if engine.name in ("triton", "graph") else "cpu")


@pytest.fixture
def supported(engine, device):
    """A check that the engine takes a job; skips the test if it may refuse, with its reason."""

    def check(model, job: Job) -> None:
        reason = engine.supports(model, device, model.output.weight.dtype, job)
        if reason is not None:
            (pytest.fail if engine.name in TAKES_ALL else pytest.skip)(f"{engine.name}: {reason}")

    return check


@pytest.fixture(autouse=True)
def _own_threads():
    """A test may change the number of threads."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
