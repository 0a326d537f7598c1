# Built for development only, and in no wheel; setup.py says when.
from collections.abc import Callable, Sequence
from typing import TypedDict

from vapo_fast._native import Floats, SolveResult

class TableauFields(TypedDict):
    name: str
    a: list[list[float]]
    b: list[float]
    c: list[float]
    error: list[float]
    dense: list[list[float]]
    order: int
    error_order: int
    dense_order: int
    fsal: bool

class FormulaResult(SolveResult):
    finished: bool

class Rates:
    """The submodule ``rates``; each function returns how much was done."""

    @staticmethod
    def multiply_adds(instruction_set: str, turns: int, threads: int) -> float: ...
    @staticmethod
    def product(inner: int, columns: int, instruction_set: str, turns: int, threads: int) -> float: ...
    @staticmethod
    def activation(activation: str, columns: int, instruction_set: str, turns: int, threads: int) -> float: ...
    @staticmethod
    def field(dimension: int, widths: Sequence[int], instruction_set: str, turns: int, threads: int) -> float: ...

rates: Rates

def elementwise(function: str, x: Floats, instruction_set: str | None = None) -> Floats: ...
def tableaus() -> list[TableauFields]: ...
def log(x: Sequence[float]) -> list[float]: ...
def exp(x: Sequence[float]) -> list[float]: ...
def step_factor(
    ratio: float, previous_ratio: float, after_rejection: bool, error_order: int, proportional_share: float
) -> tuple[float, float, bool]: ...
def trial_step(state_norm: float, field_norm: float, span: float) -> float: ...
def initial_step(field_norm: float, change_norm: float, trial: float, span: float, error_order: int) -> float: ...
def control(
    ratios: Sequence[float],
    t0: float,
    t1: float,
    first_step: float,
    error_order: int,
    proportional_share: float,
    max_steps: int,
) -> list[tuple[float, float, float, int, int, int]]: ...
def solve(
    field: str,
    x0: Floats,
    t0: float,
    t1: float,
    *,
    method: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 10_000,
    steps: int = 0,
    first_step: float | None = None,
    proportional_share: float = 0.0,
    t_eval: Sequence[float] = (),
    tile: int = 16,
    threads: int = 1,
    progress: Callable[[int], bool] | None = None,
) -> FormulaResult: ...
