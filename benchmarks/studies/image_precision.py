"""How much a reduced arithmetic of the convolutions disturbs the field and the gradients, at each noise level.

    python -m benchmarks image-precision --root DIR

Against float64, for the briefly trained models of `benchmarks.potentials`. TF32, which only CUDA has, is emulated:
factors are rounded to ten bits of fraction and products summed in float32. A policy "but ..." keeps some layers in
float32. Writes benchmarks/results/image_precision.csv.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.measure import default_cache
from benchmarks.potentials import IMAGE_SHAPE, MODELS, image_potential, in_float64, load_images
from benchmarks.provenance import RESULTS, append, load
from benchmarks.workloads import flat
from vapo_fast import noise
from vapo_fast.engines.base import Job
from vapo_fast.engines.explicit import ExplicitPasses, explicit_passes
from vapo_fast.engines.explicit.convolutions import Convolutions
from vapo_fast.engines.explicit.winograd import WinogradWeights
from vapo_fast.engines.reference import ReferenceEngine
from vapo_fast.loss import Batch
from vapo_fast.potentials.image import ImagePotential

SUMMARY = "image potentials: error of reduced arithmetic at each noise level"
CSV = RESULTS / "image_precision.csv"
COLUMNS = ("data", "model", "policy", "position", "beta", "field", "gradients")
POSITIONS = (-1.0, -0.6, -0.2, 0.2, 0.6, 1.0)
BATCH = 32


class RoundedConvolutions(Convolutions):
    """Convolutions whose factors are rounded to TF32 first."""

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        return super()._convolve(_tf32(x), _tf32(weight))

    def weight_gradient(self, layer: nn.Conv2d, values: Tensor, adjoints: Tensor) -> Tensor:
        return super().weight_gradient(layer, _tf32(values), _tf32(adjoints))


def _tf32(x: Tensor) -> Tensor:
    """To the nearest number with ten bits of fraction, ties away from zero, as the tensor cores' conversion does."""
    bits = x.view(torch.int32)
    return ((bits + (1 << 12)) & ~((1 << 13) - 1)).view(torch.float32)


class Policy(ExplicitPasses):
    """Explicit passes with convolutions of one's own."""

    def __init__(self, model: ImagePotential, convolutions: Callable[[], Convolutions]) -> None:
        super().__init__(model)
        self._make = convolutions

    def _convolutions(self, precision: str) -> Convolutions:
        return self._make()


def policies(model: ImagePotential) -> dict[str, Callable[[], Convolutions]]:
    """By name; all have the stream, the sums and the gauge in float32."""
    ends = (model.stem, model.output)
    return {
        "float32": lambda: Convolutions(torch.float32, winograd=WinogradWeights()),
        "float32, the library's convolutions": lambda: Convolutions(torch.float32),
        "tf32": lambda: RoundedConvolutions(torch.float32),
        "bf16": lambda: Convolutions(torch.bfloat16),
        "bf16 but the stem": lambda: Convolutions(torch.bfloat16, ends[:1]),
        "bf16 but the output": lambda: Convolutions(torch.bfloat16, ends[1:]),
        "bf16 but both": lambda: Convolutions(torch.bfloat16, ends),
    }


def measure(name: str, model: ImagePotential, data_name: str, data: Tensor) -> list[dict[str, object]]:
    """Relative errors in the norm: of grad Phi over a batch, and of all gradients of the loss."""
    path, rows = model.homotopy, []
    exact_passes = explicit_passes(in_float64(model))
    engine = ReferenceEngine()
    for position in POSITIONS:
        t = path.time_at_noise_position(torch.full((BATCH,), position, dtype=torch.float64)).float()
        batch = Batch(data[:BATCH], t, noise.normal(7, range(BATCH), IMAGE_SHAPE))
        x = path.perturb(*batch).x
        exact_field = exact_passes.field(x.double(), t.double())[1]
        exact = flat(exact_passes.loss_and_grads(Batch(*(part.double() for part in batch)))[1])
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for policy, make in policies(model).items():
            passes = Policy(model, make)
            found[policy] = passes.field(x, t)[1], flat(passes.loss_and_grads(batch)[1])
        with torch.autocast("cpu", torch.bfloat16):
            field = model.field(x, t)[1]
        grads = engine.loss_and_grads(model, batch, Job("loss_and_grads", "bf16")).grads
        found["bf16, autocast and autograd"] = field, flat(grads)
        for policy, (field, gradients) in found.items():
            rows.append(
                {
                    "data": data_name,
                    "model": name,
                    "policy": policy,
                    "position": position,
                    "beta": f"{float(path.kernel(t[:1]).beta[0]):.4g}",
                    "field": f"{_relative(field, exact_field):.3g}",
                    "gradients": f"{_relative(gradients, exact):.3g}",
                }
            )
            print(*rows[-1].values(), flush=True)
    return rows


def _relative(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def latest(path: Path = CSV) -> list[dict[str, str]]:
    """The newest row of each model, policy and noise level."""
    return list({(row["model"], row["policy"], row["position"]): row for row in load(path)}.values())


def tables(rows: Sequence[dict[str, str]]) -> dict[str, list[list[str]]]:
    """For each model a line for each policy: errors of the field and of the gradients, by noise level."""
    found: dict[str, list[list[str]]] = {}
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        levels = list(dict.fromkeys(row["beta"] for row in own))
        cells = {(row["policy"], row["beta"]): f"{row['field']} / {row['gradients']}" for row in own}
        found[model] = [["policy", *(f"β = {beta}" for beta in levels)]]
        for policy in dict.fromkeys(row["policy"] for row in own):
            found[model].append([policy, *(cells.get((policy, beta), "–") for beta in levels)])
    return found


def run(options: argparse.Namespace) -> int:
    """Measure every model and append it to the results."""
    torch.set_num_threads(options.threads)
    data_name, data = load_images(options.root)
    for name in options.models:
        append(options.csv, COLUMNS, measure(name, image_potential(name, data, options.cache), data_name, data))
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the command."""
    parser.add_argument("--root", type=Path, help="folder with Fashion-MNIST's idx files")
    small = [name for name, model in MODELS.items() if model.trained]
    parser.add_argument("--models", nargs="+", choices=small, default=small)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--csv", type=Path, default=CSV)
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.set_defaults(command=run)
