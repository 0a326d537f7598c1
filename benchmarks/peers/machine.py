"""No engine and no peer, but the machine itself, measured beside them: a matrix product, and multiply-adds alone."""

from __future__ import annotations

from typing import Any

import torch

import vapo_fast as vf
from benchmarks.cases import JOBS
from benchmarks.flops import PRODUCT_SIZE, product_shapes
from benchmarks.peers.base import Arm, LocalRunner, Outcome, Runner, UnavailableError, package_version
from benchmarks.workloads import Problem
from vapo_fast.core import extension

PRODUCT = "matrix product"
"""The arm of a field's case that measures the machine: a square float32 product in PyTorch; on CUDA, cuBLAS's float32
products of the field's own shapes, one after the other."""
PEAK = "multiply-adds in registers"
"""The arm of every MLP's case on the CPU that measures its limit: the multiply-adds of our kernels, without memory."""
# A run of it, in thousands of multiply-adds for each chain: some milliseconds.
_PEAK_TURNS = 1000


def kernel_rates() -> Any:
    """The extension's single kernels, run over and over; each returns how much was done.

    Raises: ImportError without the development-only extension, which an installation from a wheel has not.
    """
    from vapo_fast._native_testing import rates

    return rates


def multiply_adds(turns: int, threads: int) -> int:
    """Make so many turns of multiply-adds between registers, in the widest kernels' instructions; how many operations
    that were."""
    return int(kernel_rates().multiply_adds(extension.chosen_instruction_set(), turns, threads))


def peak_flops(threads: int) -> int:
    """Operations of a run of the arm `PEAK`."""
    return multiply_adds(_PEAK_TURNS, threads)


def _square(problem: Problem) -> Runner:
    a, b = torch.ones(2, PRODUCT_SIZE, PRODUCT_SIZE)
    out = torch.empty_like(a)
    return LocalRunner(lambda: torch.mm(a, b, out=out), Outcome)


def _of_the_field(problem: Problem) -> Runner:
    if torch.get_float32_matmul_precision() != "highest":
        raise UnavailableError("float32 products are set to be computed with less precision")
    case, products = problem.case, []
    for rows, inner, columns in product_shapes(case.n, case.dimension, case.widths):
        a, b = (torch.randn(shape, device=problem.device) for shape in ((rows, inner), (inner, columns)))
        products.append((a, b, torch.empty(rows, columns, device=problem.device)))

    def call() -> None:
        for a, b, out in products:
            torch.mm(a, b, out=out)

    return LocalRunner(call, Outcome, case.device)


def _product(problem: Problem) -> Runner:
    return (_square if problem.case.device == "cpu" else _of_the_field)(problem)


def _peak(problem: Problem) -> Runner:
    threads = problem.case.threads
    return LocalRunner(lambda: peak_flops(threads), Outcome)


def _no_kernels() -> str | None:
    """None if single kernels can be measured here, else why not."""
    try:
        kernel_rates()
    except ImportError as error:
        return f"the development-only extension is not built ({error})"
    return extension.unavailable_reason()


_VERSION = f"vapo_fast {vf.__version__}"
ARMS = (
    Arm(PRODUCT, False, ("field",), "torch", _product, lambda: None, package_version("torch"), "", ("cpu", "cuda")),
    Arm(PEAK, False, JOBS, "vapo_fast", _peak, _no_kernels, lambda: _VERSION),
)
