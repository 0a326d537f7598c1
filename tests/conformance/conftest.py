"""Every engine that can be used here, on the device it works on."""

import importlib.util
from collections.abc import Iterator

import numpy
import pytest
import torch

from tests.support.zoo import SMALL, ZOO
from vapo_fast.engines import Engine, Job, base, engines

# On the CPU the graph engine takes what has explicit passes, and `test_images` is its suite; on CUDA it takes MLPs too.
ELSEWHERE = () if torch.cuda.is_available() else ("graph",)
USABLE = [name for name, told in engines().items() if told == "usable" and name not in ELSEWHERE]
# These take every MLP on the CPU: a refusal would be a gap that a skipped test hides.
TAKES_ALL = ("native", "reference")

# Where there is no CUDA device the triton engine runs on CPU tensors in Triton's interpreter, whose every operation
# takes microseconds: a few small cases of each job stand for the suite, which runs whole on CUDA.
INTERPRETED = "triton-interpreted"
AT_HAND = importlib.util.find_spec("triton") is not None and not torch.cuda.is_available()
FEW = tuple(network for network in ZOO[::9] if network.dimension < 100)
SELECTED = {
    "test_field": {
        "test_zoo": lambda network, **_: network in FEW,
        "test_batch_sizes": lambda rows, **_: rows in (1, 17, 64, 129),
        "test_values_far_out": lambda **_: True,
        "test_a_bad_row_does_not_touch_the_others": lambda: True,
    },
    "test_solve": {
        "test_methods": lambda network, method, backward, **_: (
            (method, backward, network) in (("heun", False, SMALL[2]), ("dopri5", True, SMALL[2]))
        ),
        "test_failing_rows_do_not_touch_the_others": lambda options, **_: options.method == "rk4",
        "test_equal_times_return_the_start": lambda options, **_: options.method == "dopri5",
        "test_event_shapes": lambda: True,
    },
    "test_likelihood": {
        "test_zoo": lambda network, **_: network in FEW[::2],
        "test_methods": lambda method, probes, **_: (method, probes) == ("rk4", 1),
    },
    "test_loss": {
        "test_zoo": lambda network, **_: network in FEW,
        "test_estimators_and_weights": lambda network, **_: network == SMALL[1],
        "test_batch_sizes": lambda rows, **_: rows in (1, 65),
        "test_untrained": lambda: True,
        "test_frozen_parameters_are_left_out": lambda: True,
    },
}


def pytest_collection_modifyitems(items):
    items[:] = [item for item in items if _wanted(item)]


def _wanted(item) -> bool:
    parameters = dict(item.callspec.params) if hasattr(item, "callspec") else {}
    if parameters.pop("engine", None) != INTERPRETED:
        return True
    chosen = SELECTED.get(item.path.stem, {}).get(item.originalname)
    return chosen is not None and parameters.get("dtype") != torch.float64 and chosen(**parameters)


@pytest.fixture(params=[*USABLE, *([pytest.param(INTERPRETED, marks=pytest.mark.triton)] if AT_HAND else [])])
def engine(request) -> Iterator[Engine]:
    if request.param != INTERPRETED:
        yield base._REGISTRY[request.param]
        return
    from vapo_fast.engines.triton import TritonEngine

    with numpy.errstate(all="ignore"):  # rows that are not numbers are computed with like all others
        yield TritonEngine(device_type="cpu")


@pytest.fixture
def device(engine) -> torch.device:
    return torch.device("cuda" if engine.name in ("triton", "graph") and torch.cuda.is_available() else "cpu")


@pytest.fixture
def supported(engine, device):
    """A check that the engine takes a job; skips the test if it may refuse, with its reason."""

    def check(model, job: Job) -> None:
        dtype = model.output.weight.dtype
        reason = engine.supports(model.to(device), device, dtype, job)
        if reason is not None:
            must = engine.name in TAKES_ALL or (engine.name == "triton" and dtype == torch.float32)
            (pytest.fail if must else pytest.skip)(f"{engine.name}: {reason}")

    return check


@pytest.fixture(autouse=True)
def _own_threads():
    """A test may change the number of threads."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
