"""What the arms of a case are given: potential, starts and batches, and the float64 solutions to compare with."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vapo_fast as vf
from benchmarks.cases import Case
from benchmarks.plain_field import Weights
from benchmarks.potentials import (
    MODELS,
    batch_of,
    blobs,
    fingerprint,
    image_potential,
    in_float64,
    load_images,
    random_potential,
    start,
    stiff_potential,
)
from vapo_fast import noise, ode
from vapo_fast.engines.explicit import explicit_passes
from vapo_fast.loss import Batch
from vapo_fast.ode import SolveOptions
from vapo_fast.potentials.image import ImagePotential
from vapo_fast.training.batches import as_source

# Rows that solutions are compared on, the first ones of a batch; row i starts at the same point in a batch of any size.
COMPARED_ROWS = {2: 256, 64: 256}
_COMPARED_ROWS_ELSE = 32
_REFERENCE_TOLERANCE = 1e-10
_TRAINING_STEPS = 2000
_DATA = {"eight": "8gaussians", "eight_static": "8gaussians", "digits": "digits"}


class Workloads:
    """Builds potentials once each; what takes long to make (training, float64 solutions) is kept under ``cache``.

    ``root`` is the folder of Fashion-MNIST's files, for images. Of the image potentials only the last one is held.
    """

    def __init__(self, cache: Path, root: Path | None = None) -> None:
        self.cache, self._root = cache, root
        self._potentials: dict[tuple[str, int, tuple[int, ...]], vf.MLPPotential] = {}
        self._references: dict[str, np.ndarray] = {}
        self._image: tuple[str, str, ImagePotential, str, Tensor] | None = None

    def problem(self, case: Case) -> Problem | ImageProblem:
        """What the arms are given for a case."""
        if case.of_images:
            return self._image_problem(case)
        key = (case.workload, case.dimension, case.widths)
        if key not in self._potentials:
            self._potentials[key] = self._build(*key)
        return Problem(case, self._potentials[key], self)

    def _image_problem(self, case: Case) -> ImageProblem:
        if self._image is None or self._image[:2] != (case.workload, case.device):
            self._image = None  # before the next one is made
            one = MODELS[case.workload]
            name, data = load_images(self._root) if one.trained else ("blobs", blobs(one.shape))
            model = image_potential(case.workload, data, self.cache).to(torch.device(case.device)).eval()
            self._image = case.workload, case.device, model, name, data
        return ImageProblem(case, *self._image[2:], self.cache)

    def reference(self, potential: vf.MLPPotential, rows: int) -> np.ndarray:
        """(rows, d) float64 solution of the first rows, to 1e-10: `vapo_fast.ode` on the float64 field."""
        name = f"reference-{fingerprint(potential)}-{rows}.npy"
        if name in self._references:
            return self._references[name]
        path = self.cache / name
        if path.exists():
            states: np.ndarray = np.load(path)
        else:
            exact = copy.deepcopy(potential).double()
            times = potential.homotopy.t0, potential.homotopy.t1
            x0 = start(potential, rows).double()
            tolerance = _REFERENCE_TOLERANCE
            states = vf.ode.solve(
                lambda x, t: exact.field(x, t)[1], x0, *times, rtol=tolerance, atol=tolerance, max_steps=1_000_000
            ).x.numpy()
            self.cache.mkdir(parents=True, exist_ok=True)
            np.save(path, states)
        return self._references.setdefault(name, states)

    def _build(self, workload: str, dimension: int, widths: tuple[int, ...]) -> vf.MLPPotential:
        if workload == "random":
            return random_potential(dimension, widths)
        if workload == "stiff5":
            return stiff_potential(dimension, widths)
        return self._trained(workload, dimension, widths)

    def _trained(self, workload: str, dimension: int, widths: tuple[int, ...]) -> vf.MLPPotential:
        """A potential trained with the library's defaults by the reference engine; loaded if it was trained before."""
        hidden = "-".join(map(str, widths))
        path = self.cache / f"{workload}-d{dimension}-{hidden}.safetensors"
        if not path.exists():
            print(f"training {workload} ({_TRAINING_STEPS} steps; kept in {path})", flush=True)
            data = vf.data.load(_DATA[workload]).tensor().flatten(1)
            if data.shape[1] != dimension:
                raise ValueError(f"workload {workload!r} has d = {data.shape[1]}, got {dimension}")
            torch.manual_seed(0)
            scale = float(data.square().mean().sqrt())
            timed = workload != "eight_static"
            model = vf.MLPPotential((dimension,), vf.DataHomotopy(), widths, timed, data_scale=scale)
            trainer = vf.Trainer(model, engine="reference")
            trainer.fit(data, _TRAINING_STEPS)
            self.cache.mkdir(parents=True, exist_ok=True)
            vf.save(trainer.ema_model, path)
        loaded = vf.load(path)
        if not isinstance(loaded, vf.MLPPotential):
            raise TypeError(f"{path} holds a {type(loaded).__name__}, not an MLPPotential; delete it to train again")
        return loaded


Shared = dict[object, Any]


def once(shared: Shared, key: object, make: Callable[[], Any]) -> Any:
    """What several arms of a problem share, such as a compiled field: made by the first that asks."""
    if key not in shared:
        shared[key] = make()
    return shared[key]


@dataclass(frozen=True, eq=False)
class Problem:
    """A case with its numbers, those that arms are given on the case's device."""

    case: Case
    source: vf.MLPPotential
    workloads: Workloads
    shared: Shared = field(default_factory=dict)

    @cached_property
    def device(self) -> torch.device:
        """The case's."""
        return torch.device(self.case.device)

    @cached_property
    def potential(self) -> vf.MLPPotential:
        """``source``, which stays on the CPU, on the case's device."""
        return self.source if self.device.type == "cpu" else copy.deepcopy(self.source).to(self.device)

    @property
    def span(self) -> tuple[float, float]:
        """Start and end time."""
        return self.source.homotopy.t0, self.source.homotopy.t1

    @cached_property
    def ends(self) -> Tensor:
        """`span` as a float32 tensor."""
        return torch.tensor(self.span, device=self.device)

    @cached_property
    def weights(self) -> Weights:
        """The potential as arrays."""
        return Weights.of(self.source)

    @cached_property
    def x0(self) -> Tensor:
        """(n, d) float32 starts, those of `vapo_fast.sample` with seed 0."""
        return start(self.source, self.case.n).to(self.device)

    @cached_property
    def times(self) -> Tensor:
        """(n,) float32 times of the field's rows, spread over the path."""
        t0, t1 = self.span
        return (t0 + (t1 - t0) * noise.uniform(0, range(self.case.n), (1,))[:, 0]).to(self.device)

    @cached_property
    def data(self) -> Tensor:
        """Rows to train on."""
        if self.case.dimension == 2:
            return vf.data.load("8gaussians", n=10_000).tensor().to(self.device)
        return noise.normal(1, range(4096), (self.case.dimension,)).to(self.device)

    @cached_property
    def batch(self) -> Batch:
        """A training batch of n rows."""
        source = as_source(self.data, self.source.event_shape)
        return batch_of(self.source, source, 0, self.case.n, self.device)

    @cached_property
    def reference(self) -> np.ndarray:
        """Float64 solution of the first rows."""
        rows = min(self.case.n, COMPARED_ROWS.get(self.case.dimension, _COMPARED_ROWS_ELSE))
        return self.workloads.reference(self.source, rows)

    @cached_property
    def exact_field(self) -> np.ndarray:
        """(m, d) float64 grad Phi at the first rows of (x0, times)."""
        rows = min(self.case.n, 64)
        x, t = self.x0[:rows].cpu().double(), self.times[:rows].cpu().double()
        return copy.deepcopy(self.source).double().field(x, t)[1].numpy()

    @cached_property
    def exact_gradient(self) -> np.ndarray:
        """Float64 gradient of the loss of `batch`: one vector, parameters in the order of ``named_parameters``."""
        exact = copy.deepcopy(self.source).double()
        loss = vf.energy_loss(exact, *(part.cpu().double() for part in self.batch))
        return np.concatenate([g.numpy().ravel() for g in torch.autograd.grad(loss.total, list(exact.parameters()))])


# Images: samples that are compared with float64's, by device, and the tolerance of that solve.
_COMPARED_IMAGES = {"cpu": 4, "cuda": 2}
_EXACT_RTOL = 1e-7
# Rows of a float64 gradient that are computed at once.
_EXACT_ROWS = 16
_START_TRAINING_STEP = 200


@dataclass(frozen=True, eq=False)
class ImageProblem:
    """A case of images with its numbers.

    Args:
        model: on the case's device. data: images on the CPU, for training, and what they are called. cache: folder for
            float64 solutions.
    """

    case: Case
    model: ImagePotential
    data_name: str
    data: Tensor
    cache: Path
    shared: Shared = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Of the network."""
        return sum(p.numel() for p in self.model.parameters())

    @cached_property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.stem.weight.device

    @property
    def span(self) -> tuple[float, float]:
        """Start and end time."""
        return self.model.homotopy.t0, self.model.homotopy.t1

    @cached_property
    def ends(self) -> Tensor:
        """`span` as a tensor."""
        return torch.tensor(self.span, device=self.device)

    @cached_property
    def x0(self) -> Tensor:
        """(n, *event) draws of the prior."""
        draws = noise.normal(5, range(self.case.n), self.model.event_shape)
        return self.model.homotopy.omega * draws.to(self.device)

    @property
    def compared(self) -> int:
        """How many samples are compared with float64's."""
        return min(_COMPARED_IMAGES[self.device.type], self.case.n)

    @cached_property
    def reference(self) -> Tensor:
        """End states (compared, *event) of the first samples, in float64 and far below the arms' tolerances."""
        file = self.cache / f"image-ends-{fingerprint(self.model)}-{self.compared}.pt"
        if file.exists():
            kept: Tensor = torch.load(file, map_location=self.device, weights_only=True)
            return kept
        passes = explicit_passes(in_float64(self.model).to(self.device))
        x0, options = self.x0[: self.compared].double(), SolveOptions(rtol=_EXACT_RTOL)
        ends = ode.integrate(lambda x, t: passes.field(x, t)[1], x0, *self.span, options).x
        self.cache.mkdir(parents=True, exist_ok=True)
        torch.save(ends, file)
        return ends

    @cached_property
    def batch(self) -> Batch:
        """A training batch of n images."""
        source = as_source(self.data, self.model.event_shape)
        batch = batch_of(self.model, source, _START_TRAINING_STEP, self.case.n)
        return Batch(*(part.to(self.device) for part in batch))

    @cached_property
    def exact_gradient(self) -> Tensor:
        """All gradients of the batch's loss, in float64, in one vector."""
        passes = explicit_passes(in_float64(self.model).to(self.device))
        total: Tensor | None = None
        for part in self.batch.split(math.ceil(self.case.n / _EXACT_ROWS)):
            grads = passes.loss_and_grads(Batch(*(value.double() for value in part)))[1]
            share = len(part.x_data) / self.case.n * flat(grads)
            total = share if total is None else total + share
        assert total is not None
        return total


def flat(grads: Mapping[str, Tensor]) -> Tensor:
    """In one vector, by name."""
    return torch.cat([grads[name].flatten() for name in sorted(grads)])
