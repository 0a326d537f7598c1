"""The GPU engine: MLP potentials on CUDA, every job one hand-written kernel (`vapo_fast.kernels`).

Weights are packed anew before every job, two short launches that nothing waits for: however a program changes them, no
job uses old ones. Rows of every result have the same bits in any batch.
"""

from __future__ import annotations

import copy
import math
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vapo_fast import noise, ode
from vapo_fast.core import checks, triton_support
from vapo_fast.engines.base import Engine, Job, LossAndGrads, Progress, choose, fused_bytes_per_sample
from vapo_fast.engines.energy_loss import energy_loss_of
from vapo_fast.engines.mlp_requirements import unlike_a_plain_mlp, unlike_parameters_of_its_own
from vapo_fast.engines.precision import RoundingNoise
from vapo_fast.homotopy import Time
from vapo_fast.loss import Batch, EnergyLoss, Weight, loss_weight
from vapo_fast.ode import Solution, SolveOptions
from vapo_fast.potentials.base import Potential
from vapo_fast.potentials.mlp import MLPPotential

if TYPE_CHECKING:
    from vapo_fast.kernels.launch import Program
    from vapo_fast.kernels.mlp import PackedMlp
    from vapo_fast.kernels.shapes import Tile

LARGEST_DIMENSION = 512
LARGEST_WIDTH = 1024
MOST_LAYERS = 64
_KERNEL_PRECISIONS = {"float32": "tf32x3", "tf32": "tf32", "bf16": "bf16"}


class TritonEngine(Engine):
    """`MLPPotential` in float32 on CUDA; see the module's docstring.

    Precision "float32" multiplies each number as a sum of two TF32 ones, in three products, with errors of float32's
    size; "tf32" takes one product, "bf16" one of bfloat16 numbers. Sums are float32's in all.

    Args:
        device_type: "cuda"; "cpu" for the kernels' tests under Triton's interpreter.
    """

    name = "triton"
    priority = 40
    capturable = True

    def __init__(self, device_type: str = "cuda") -> None:
        self._device_type = device_type
        self._packed: weakref.WeakKeyDictionary[MLPPotential, dict[Tile, PackedMlp]] = weakref.WeakKeyDictionary()
        self._noise = RoundingNoise(self._gradient)

    def available(self) -> str | None:
        return triton_support.unavailable_reason(self._device_type)

    def supports(self, potential: Potential, device: torch.device, dtype: torch.dtype, job: Job) -> str | None:
        if device.type != self._device_type:
            return f"the model is on {device}; this engine runs on {self._device_type.upper()}"
        if device.type == "cuda" and (reason := triton_support.unavailable_reason(device)) is not None:
            return reason
        if dtype != torch.float32:
            return f"the model's dtype is {dtype}; this engine computes in float32 (convert with .float())"
        if job.precision == "float64":
            return "precision='float64' is not the model's own, float32"
        if job.kind == "loss_and_grads" and job.loss.baseline is not None:
            return "a baseline is a function of the user's own, which this engine has no derivatives of"
        reason = unlike_a_plain_mlp(potential, dtype, self._device_type, MOST_LAYERS, LARGEST_WIDTH)
        if reason is None and isinstance(potential, MLPPotential):
            dimension = math.prod(potential.event_shape)
            if dimension > LARGEST_DIMENSION:
                reason = f"the model has {dimension} coordinates; this engine takes {LARGEST_DIMENSION}"
        if reason is None and job.kind == "loss_and_grads":
            reason = unlike_parameters_of_its_own(potential)
        return reason

    def bytes_per_sample(self, potential: Potential, dtype: torch.dtype, job: Job, probes: int = 0) -> int:
        return fused_bytes_per_sample(potential, dtype, job, probes)

    def field(self, potential: Potential, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        from vapo_fast.kernels.field import field

        mlp, program = self._load(potential, "float32")
        phi, gradient = field(mlp, _rows(x), t.detach().contiguous(), program)
        return phi, gradient.reshape(x.shape)

    def solve(
        self, potential: Potential, x0: Tensor, t0: float, t1: float, job: Job, progress: Progress | None = None
    ) -> Solution:
        return self._solve(potential, x0, t0, t1, job, "none", None)[0]

    def solve_with_trace(
        self,
        potential: Potential,
        x0: Tensor,
        t0: float,
        t1: float,
        job: Job,
        probes: Tensor | None,
        progress: Progress | None = None,
    ) -> tuple[Solution, Tensor]:
        return self._solve(potential, x0, t0, t1, job, "exact" if probes is None else "probes", probes)

    def loss_and_grads(self, potential: Potential, batch: Batch, job: Job) -> LossAndGrads:
        from vapo_fast.kernels.train import loss_and_gradients

        options = job.loss
        weight: str | Tensor
        if callable(options.weight):
            weight = loss_weight(potential.homotopy, options.weight, batch.t).detach().to(torch.float32).contiguous()
        else:
            weight = options.weight
        mlp, program = self._load(potential, "float32" if job.precision == "auto" else job.precision)
        result = loss_and_gradients(
            mlp,
            _rows(batch.x_data).contiguous(),
            batch.t.detach().contiguous(),
            _rows(batch.noise).contiguous(),
            options.estimator,
            weight,
            program,
        )
        terms = EnergyLoss(result.linear + result.quadratic, result.linear, result.quadratic)
        trainable = [name for name, parameter in potential.named_parameters() if parameter.requires_grad]
        return LossAndGrads(terms, {name: result.gradients[name] for name in trainable})

    def _solve(
        self, potential: Potential, x0: Tensor, t0: float, t1: float, job: Job, trace: str, probes: Tensor | None
    ) -> tuple[Solution, Tensor]:
        from vapo_fast.kernels.solve import solve

        options = job.solve
        options.check_dtype(x0.dtype)
        start, stop = checks.finite_float("t0", t0), checks.finite_float("t1", t1)
        options.check_times(start, stop)
        if start == stop:
            solution = ode.integrate(lambda x, t: x, x0, start, stop, options)  # nothing is evaluated
            named = replace(solution, engine=self.name, precision="float32")
            return named, x0.new_zeros(x0.shape[0], 1 if probes is None else probes.shape[1])
        precision = self._precision(potential, start, stop, job)
        mlp, program = self._load(potential, precision)
        directions = None if probes is None else probes.detach().to(torch.float32).contiguous()
        result = solve(mlp, _rows(x0), start, stop, options, program, trace, directions)
        solution = Solution(
            result.x.reshape(x0.shape),
            result.t,
            result.status,
            result.nfe,
            result.accepted,
            result.rejected,
            None if result.ys is None else result.ys.reshape(-1, *x0.shape),
            self.name,
            precision,
        )
        return solution, result.integrals

    def _precision(self, potential: Potential, t0: float, t1: float, job: Job) -> str:
        """The arithmetic of a solve: the cheapest whose noise the tolerance does not see, or what the user says."""
        options = job.solve
        if not options.tableau.adaptive or self._device_type == "cpu":
            return "float32" if job.precision == "auto" else job.precision
        if job.kind == "solve_with_trace" and job.precision == "auto":
            # The noise that is measured is the gradient's; a second derivative has its own.
            return "float32"
        return self._noise.choose(potential, job.precision, t0, t1, options)

    def _gradient(self, potential: Potential, x: Tensor, t: Tensor, precision: str) -> Tensor:
        """grad Phi (n, *event) in one of the kernels' precisions or of the engine's."""
        from vapo_fast.kernels.field import field

        mlp, program = self._load(potential, precision)
        gradient: Tensor = field(mlp, _rows(x), t, program)[1]
        return gradient.reshape(x.shape)

    def _load(self, potential: Potential, precision: str) -> tuple[PackedMlp, Program]:
        """The kernels' twin of a potential, with the weights of this moment, and how to launch it."""
        from vapo_fast.kernels.launch import Program
        from vapo_fast.kernels.mlp import PackedMlp
        from vapo_fast.kernels.tuning import tile_for

        model = _mlp(potential)
        device = model.output.weight.device
        network = (math.prod(model.event_shape), model.widths, model.fourier_features)
        tile = tile_for(network, _KERNEL_PRECISIONS.get(precision, precision), device)
        known = self._packed.setdefault(model, {})
        packed = known.get(tile)
        if packed is None or packed.packed.device != device or not packed.fits(model):
            packed = known[tile] = PackedMlp(model, tile)
        else:
            # Memory of its own for each job: on another stream an earlier one may still read the weights of before.
            packed = copy.copy(packed)
            packed.packed = torch.empty_like(packed.packed)
            packed.load(model)
        return packed, Program.filling(tile, device)


TRITON = TritonEngine()
"""The registered engine."""


def tune(model: Potential, precision: str = "float32", n: int = 16_384) -> dict[str, float]:
    """Find the fastest tile for networks of this model's shape on its device, and use it from now on.

    Timed is one field and one adaptive solve (dopri5, tolerances 1e-5) from the prior of n samples. The choice is kept
    for the network's shape, the precision and the device's name in ``$VAPO_FAST_CACHE/tiles.json`` (default
    ``~/.cache/vapo_fast``). Compiling the candidates takes a few minutes. Results change in the last bits.

    Args:
        model: on CUDA. precision: "float32", "tf32" or "bf16". n: samples of the timed batch, >= 1.
    Returns: milliseconds of each tile that runs on the device, fastest first.
    Raises: ValueError or TypeError for precision or n; UnsupportedJobError for a model that the engine does not take;
        RuntimeError if no tile runs.
    """
    from vapo_fast.kernels.field import field
    from vapo_fast.kernels.launch import Program
    from vapo_fast.kernels.mlp import PackedMlp
    from vapo_fast.kernels.solve import solve
    from vapo_fast.kernels.tuning import tune as fastest

    checks.one_of("precision", precision, tuple(_KERNEL_PRECISIONS))
    checks.positive_int("n", n)
    if not isinstance(model, Potential):
        raise TypeError(f"model must be a Potential, got {type(model).__name__}")
    like = model.reference_tensor()
    like = torch.empty(0) if like is None else like
    device = like.device
    choose("triton", model, device, like.dtype, Job("solve", precision))
    mlp, path = _mlp(model), model.homotopy
    x = path.omega * noise.normal(0, range(n), (math.prod(model.event_shape),), device=device)
    t = torch.full((n,), 0.5 * (path.t0 + path.t1), device=device)

    packed: dict[Tile, PackedMlp] = {}  # made before the timing starts

    def run(tile: Tile) -> None:
        if tile not in packed:
            packed[tile] = PackedMlp(mlp, tile)
        program = Program.filling(tile, device)
        field(packed[tile], x, t, program)
        solve(packed[tile], x, path.t0, path.t1, SolveOptions(), program)

    network = (math.prod(mlp.event_shape), mlp.widths, mlp.fourier_features)
    _, times = fastest(network, _KERNEL_PRECISIONS[precision], device, run)
    return {repr(tile): times[tile] for tile in sorted(times, key=times.__getitem__)}


def energy_loss(
    model: Potential,
    x_data: Tensor,
    t: Time,
    noise: Tensor,
    estimator: str = "velocity",
    weight: Weight = "inverse_variance",
) -> EnergyLoss:
    """`vapo_fast.energy_loss` of an `MLPPotential` on CUDA; see `vapo_fast.engines.energy_loss.energy_loss_of`."""
    return energy_loss_of(TRITON, model, x_data, t, noise, estimator, weight)


def _mlp(potential: Potential) -> MLPPotential:
    if not isinstance(potential, MLPPotential):
        raise TypeError(f"the triton engine takes an MLPPotential, got {type(potential).__name__}")
    return potential


def _rows(x: Tensor) -> Tensor:
    """(B, *event) as (B, D), each row in one piece."""
    flat = x.detach().reshape(x.shape[0], math.prod(x.shape[1:]))
    return flat if flat.stride(1) == 1 or flat.shape[1] == 1 else flat.contiguous()
