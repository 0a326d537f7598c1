"""What preparing batches ahead gains on the CPU: times of training steps with and without it, alternately in one run.

``python -m benchmarks.studies.prefetch`` appends to benchmarks/results/prefetch.csv. On one thread it measures rows in
memory, rows of a folder of PNG files, which are random pixels, and rows that take a wait, as from a disk far away.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import vapo_fast as vf
from benchmarks.provenance import RESULTS, append

COLUMNS = ("data", "model", "batch", "without_ms", "without_fastest_ms", "ahead_ms", "ahead_fastest_ms", "ratio")
ROUNDS = 7
AHEAD = 2
WAIT_SECONDS = 0.02
PATH = vf.DataHomotopy()


class Waits(torch.utils.data.Dataset[Tensor]):
    """Rows in memory that come after a wait."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return self.rows[index]

    def batch(self, indices: Tensor) -> Tensor:
        time.sleep(WAIT_SECONDS)
        return self.rows[indices]


def main() -> None:
    """Measure all and write the file."""
    torch.set_num_threads(1)
    points = vf.data.load("8gaussians", n=10_000)
    with tempfile.TemporaryDirectory() as folder:
        images = _folder_of_images(Path(folder))
        cases = (
            ("tensor", points.tensor(), "mlp 3x128", _mlp, 256, 200),
            ("data set in memory", points, "mlp 3x128", _mlp, 256, 200),
            ("data set in memory", points, "mlp 3x128", _mlp, 1024, 100),
            ("folder of PNG files", images, "unet 8", _unet, 32, 12),
            ("wait of 20 ms", Waits(images.tensor()), "unet 8", _unet, 32, 12),
        )
        rows = [_measured(*case) for case in cases]
    append(RESULTS / "prefetch.csv", COLUMNS, rows)


def _measured(
    name: str, data: object, model_name: str, model: Callable[[], vf.Potential], batch: int, steps: int
) -> dict[str, object]:
    times: dict[int, list[float]] = {0: [], AHEAD: []}
    for _ in range(ROUNDS):
        for prefetch, found in times.items():
            trainer = vf.Trainer(model(), batch_size=batch, prefetch=prefetch)
            trainer.fit(data, 2)  # type: ignore[arg-type]
            began = time.perf_counter()
            trainer.fit(data, steps)  # type: ignore[arg-type]
            found.append(1e3 * (time.perf_counter() - began) / steps)
    without, ahead = (statistics.median(found) for found in times.values())
    fastest = [min(found) for found in times.values()]
    numbers = (without, fastest[0], ahead, fastest[1], without / ahead)
    row = (name, model_name, batch, *(f"{number:.4g}" for number in numbers))
    print(*row, sep="  ", flush=True)
    return dict(zip(COLUMNS, row, strict=True))


def _mlp() -> vf.Potential:
    torch.manual_seed(0)
    return vf.MLPPotential((2,), PATH, (128, 128, 128))


def _unet() -> vf.Potential:
    torch.manual_seed(0)
    return vf.UNetPotential((3, 32, 32), PATH, 8, (1, 2), 1)


def _folder_of_images(folder: Path) -> vf.data.Dataset:
    from PIL import Image

    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (1000, 32, 32, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(folder / f"{i:04d}.png")
    return vf.data.load(str(folder))


if __name__ == "__main__":
    main()
