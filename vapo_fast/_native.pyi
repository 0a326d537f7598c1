from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32] | NDArray[np.float64]

MOST_LAYERS: int
LARGEST_SIZE: int
MOST_THREADS: int

pointwise: Any  # called through vapo_fast.engines.explicit.pointwise_native, which types it

class BuildInfo(TypedDict):
    compiler: str
    cpp_standard: int
    architecture: str
    instruction_sets: list[str]

class SolveResult(TypedDict):
    x: Floats
    t: NDArray[np.float64]
    status: NDArray[np.int64]
    nfe: NDArray[np.int64]
    accepted: NDArray[np.int64]
    rejected: NDArray[np.int64]
    ys: Floats | None

class NonFiniteWeightsError(ValueError): ...

class WinogradConvolution:
    def __init__(self, weight: NDArray[np.float32], *, transposed: bool, tile: int, threads: int) -> None: ...
    def holds(self, weight: NDArray[np.float32]) -> bool: ...
    def apply(self, x: NDArray[np.float32], out: NDArray[np.float32], threads: int) -> None: ...

class Mlp:
    def __init__(
        self,
        *,
        dtype: str,
        dimension: int,
        widths: Sequence[int],
        fourier_features: int,
        activation: str,
        homotopy: str,
        omega: float,
        t1: float,
        data_scale: float,
        time_dependent: bool,
        log_beta_ends: tuple[float, float],
        instruction_set: str | None = None,
    ) -> None: ...
    @property
    def instruction_set(self) -> str: ...
    def load(
        self, weights: Sequence[Floats], biases: Sequence[Floats], output: Floats, frequencies: Floats
    ) -> bool: ...
    def field(self, x: Floats, t: Floats, phi: Floats, grad: Floats, threads: int) -> None: ...
    def solve(
        self,
        x0: Floats,
        t0: float,
        t1: float,
        *,
        method: str,
        rtol: float | None,
        atol: float | None,
        steps: int | None,
        max_steps: int,
        first_step: float | None,
        proportional_share: float,
        t_eval: Sequence[float] | None,
        trace: Literal["exact"] | Floats | None,
        threads: int,
        progress: Callable[[int], object] | None,
    ) -> SolveResult: ...
    def loss(
        self, x_data: Floats, t: Floats, noise: Floats, estimator: str, weight: str | Floats, threads: int
    ) -> tuple[float, float, list[Floats], list[Floats], Floats]: ...

def normal_draws(seed: int, index: NDArray[np.int64], size: int, stream: int, dtype: str) -> Floats: ...
def uniform_draws(seed: int, index: NDArray[np.int64], size: int, stream: int, dtype: str) -> Floats: ...
def permutation(seed: int, stream: int, epoch: int, n: int) -> NDArray[np.int64]: ...
def build_info() -> BuildInfo: ...
def instruction_sets() -> list[str]: ...
def chosen_instruction_set() -> str: ...

class DriverError(RuntimeError): ...

def replay(
    library: str,
    graph: int,
    stream: int,
    flags: int,
    every: int,
    stop_at: int,
    most: int,
    monitor: Callable[[int], object] | None = None,
) -> tuple[int, int]: ...
