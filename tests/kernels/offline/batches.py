"""Operations are compiled once for batches, seeds and streams of any size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from vapo_fast.kernels import noise, tuning
from vapo_fast.kernels.field import field
from vapo_fast.kernels.launch import Program
from vapo_fast.kernels.solve import solve
from vapo_fast.kernels.train import loss_and_gradients

from vapo_fast.ode import SolveOptions

from .cases import packed
from .compiling import compilations


def compiled_again() -> list[str]:
    """Operations that are compiled more than once for batches, seeds and streams of different sizes."""
    tile = tuning.rule((3, (16,), 0), "tf32x3", (9, 0))
    mlp, program = packed("one", tile), Program(tile, 264)
    options = SolveOptions(t_eval=(0.5, 1.0))

    def batch(n: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(n, 1), torch.zeros(n)

    calls: dict[str, Callable[[int, tuple[int, int], int], object]] = {
        "field": lambda n, key, stream: field(mlp, *batch(n), program),
        "solve": lambda n, key, stream: solve(mlp, batch(n)[0], 0.0, 1.0, options, program),
        "solve at n times": lambda n, key, stream: solve(
            mlp, batch(3)[0], 0.0, 1.0, SolveOptions(t_eval=tuple(i / (n + 1) for i in range(1, n + 1))), program
        ),
        "train": lambda n, key, stream: loss_and_gradients(mlp, *batch(n), batch(n)[0], "velocity", "uniform", program),
        "noise": lambda n, key, stream: noise.normal(key, torch.arange(n), n, stream, torch.float32),
        "shuffle": lambda n, key, stream: noise.permutation(key, n, torch.zeros(1, dtype=torch.int64), stream),
    }
    wrong = []
    for name, call in calls.items():
        with compilations(90) as found:
            for n, key, stream in ((1, (1, 0), 0), (5, (2**31, 16), 1), (16, (2**32 - 1, 2**32 - 1), 2**32 - 1)):
                call(n, key, stream)
        keys = {bound.key for bound in found}
        if len(found) < 3 or len(keys) > 1:
            wrong.append(f"{name}: compiled {len(keys)} times for three batches: {sorted(keys)}")
    return wrong
