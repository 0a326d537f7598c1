"""The potentials that cases run on, the starts and batches they are given, and float64 solutions to compare with."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import vapo_fast as vf
from benchmarks.cases import Case
from benchmarks.plain_field import Weights
from vapo_fast import noise
from vapo_fast.loss import Batch
from vapo_fast.training.batches import as_source, training_batch

# Rows that solutions are compared on, the first ones of a batch; row i starts at the same point in a batch of any size.
COMPARED_ROWS = {2: 256, 64: 256}
_COMPARED_ROWS_ELSE = 32
_REFERENCE_TOLERANCE = 1e-10
_TRAINING_STEPS = 2000
_DATA = {"eight": "8gaussians", "eight_static": "8gaussians", "digits": "digits"}


class Workloads:
    """Builds potentials once each; what takes long to make (training, float64 solutions) is kept under ``cache``."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self._potentials: dict[tuple[str, int, tuple[int, ...]], vf.MLPPotential] = {}
        self._references: dict[str, np.ndarray] = {}

    def problem(self, case: Case) -> Problem:
        """What the arms are given for a case."""
        key = (case.workload, case.dimension, case.widths)
        if key not in self._potentials:
            self._potentials[key] = self._build(*key)
        return Problem(case, self._potentials[key], self)

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


@dataclass(frozen=True)
class Problem:
    """A case with its numbers, those that arms are given on the case's device."""

    case: Case
    source: vf.MLPPotential
    workloads: Workloads

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
        return training_batch(
            as_source(self.data, self.source.event_shape),
            0,
            homotopy=self.source.homotopy,
            seed=0,
            batch_size=self.case.n,
            time_sampling="log_noise",
            device=self.device,
            dtype=torch.float32,
        )

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


def start(potential: vf.MLPPotential, n: int) -> Tensor:
    """(n, d) float32 draws of the prior."""
    return potential.homotopy.omega * noise.normal(0, range(n), potential.event_shape)


def fingerprint(potential: vf.Potential) -> str:
    """A hash of a potential's configuration and weights."""
    digest = hashlib.sha256(repr(potential.config()).encode())
    for name, value in potential.state_dict().items():
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def random_potential(dimension: int, widths: tuple[int, ...]) -> vf.MLPPotential:
    """Weights as drawn, with an output layer that is not zero, so that the field has structure."""
    torch.manual_seed(0)
    potential = vf.MLPPotential((dimension,), vf.DataHomotopy(), widths)
    torch.nn.init.normal_(potential.output.weight, std=0.1)
    return potential.eval()


# The synthetic heterogeneous potential, in its network's coordinates z, which the flow of f = 0 leaves where they are.
_EDGE = -1.6449  # 5 % of a normal's draws are below
_CENTRE = -2.2
_PUSH = 1.5
_STEEPNESS = 100.0
_LINEAR = 24.0  # silu(y + 24) - 24 is y to float32's last bit for |y| of a few


def stiff_potential(dimension: int, widths: tuple[int, ...]) -> vf.MLPPotential:
    """A potential whose field is stiff for the 5 % of the prior with ``z_1 < -1.645``, and that of `random_potential`
    elsewhere.

    Added to the random f is ``F(z_1)`` with ``F'`` = push to the right of -2.2 and of minus push to the left: between
    -2.2 and -1.645 as well, and 0 above. So samples of that strip gather at -2.2, where the field contracts at the rate
    ``push x steepness`` times the gauge's factor, many times the speed at which anything moves: an explicit method's
    steps are then held short by stability. F is ``push z_1`` plus two SiLU ramps, computed by three units of the first
    layer, and carried through the later layers by one unit of each, held where SiLU is linear.
    """
    potential = random_potential(dimension, widths)
    with torch.no_grad():
        first, *later = potential.hidden
        # Units 0 - 2 of the first layer, then unit 0, belong to F: the random part neither reads nor writes them.
        first.weight[:3] = 0.0
        first.weight[0, 0], first.bias[0] = 1.0, _LINEAR
        first.weight[1, 0], first.bias[1] = _STEEPNESS, -_STEEPNESS * _CENTRE
        first.weight[2, 0], first.bias[2] = _STEEPNESS, -_STEEPNESS * _EDGE
        into = torch.tensor([_PUSH, -2.0 * _PUSH / _STEEPNESS, _PUSH / _STEEPNESS])
        offset = -_PUSH * _LINEAR
        for layer in later:
            used = len(into)
            layer.weight[:, :used] = 0.0
            layer.weight[0] = 0.0
            layer.weight[0, :used] = into
            layer.bias[0] = offset + _LINEAR
            into, offset = torch.ones(1), -_LINEAR
        potential.output.weight[0, 0] = 1.0
    return potential
