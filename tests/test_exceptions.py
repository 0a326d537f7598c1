"""Every exception of the library goes through a pipe between processes, and through deepcopy, with all it holds."""

from __future__ import annotations

import concurrent.futures
import copy
import importlib
import inspect
import multiprocessing
import pickle
import pkgutil

import pytest
import torch

import vapo_fast as vf
from vapo_fast.training.optimizer import NonFiniteLossError


def exceptions() -> list[type[BaseException]]:
    """Those defined anywhere in the package."""
    found = set()
    for module in pkgutil.walk_packages(vf.__path__, "vapo_fast."):
        if "_native" in module.name or "kernels" in module.name or module.name.endswith("__main__"):
            continue
        for _, value in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(value, BaseException) and value.__module__.startswith("vapo_fast"):
                found.add(value)
    return sorted(found, key=lambda kind: kind.__name__)


def solve_error() -> vf.SolveError:
    one = torch.ones(1, dtype=torch.int64)
    return vf.SolveError(vf.Solution(torch.ones(1, 2), torch.ones(1), one, one, one, one))


MADE = {
    vf.SolveError: solve_error,
    NonFiniteLossError: lambda: NonFiniteLossError(3, "linear term", "Lower lr."),
}


@pytest.mark.parametrize("kind", exceptions(), ids=lambda kind: kind.__name__)
def test_an_exception_survives_pickle_and_deepcopy(kind: type[BaseException]) -> None:
    error = MADE.get(kind, lambda: kind("what happened"))()
    error.add_note("a note")
    for again in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert type(again) is kind
        assert str(again) == str(error)
        assert again.__notes__ == ["a note"]
        for name, value in vars(error).items():
            kept = getattr(again, name)
            assert repr(kept) == repr(value), name


def fail(_: int) -> None:
    vf.ode.solve(lambda x, t: x * torch.nan, torch.ones(2, 1), 0.0, 1.0)


def test_a_worker_process_hands_its_solve_error_back() -> None:
    pool = concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    with pool, pytest.raises(vf.SolveError, match="2 of 2 samples") as caught:
        pool.submit(fail, 0).result(timeout=120)
    assert caught.value.solution.x.shape == (2, 1)
