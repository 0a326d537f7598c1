"""The C++ engine: MLP potentials on the CPU, every job fused and threaded, without autograd.

Each potential has a packed copy of its weights in the extension. Before every job the weights are compared with what
the copy was made of, byte for byte, and packed anew if they differ: however a program changes them, no job uses old
ones.
Rows of every result have the same bits in any batch and on any number of threads (`torch.get_num_threads`).
"""

from __future__ import annotations

import math
import weakref
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from vapo_fast.core import extension
from vapo_fast.engines.base import Engine, Job, LossAndGrads, Progress, fused_bytes_per_sample
from vapo_fast.engines.energy_loss import energy_loss_of
from vapo_fast.engines.mlp_requirements import unlike_a_plain_mlp, unlike_parameters_of_its_own
from vapo_fast.homotopy import Homotopy, Time
from vapo_fast.loss import Batch, EnergyLoss, Weight, loss_weight
from vapo_fast.ode import Solution
from vapo_fast.potentials.base import Potential
from vapo_fast.potentials.mlp import MLPPotential

if TYPE_CHECKING:
    from vapo_fast._native import Floats, Mlp, SolveResult


class NativeEngine(Engine):
    """`MLPPotential` on the CPU through ``vapo_fast._native``; see the module's docstring."""

    name = "native"
    priority = 20

    def __init__(self) -> None:
        self._packed: weakref.WeakKeyDictionary[MLPPotential, tuple[dict[str, Any], Mlp]] = weakref.WeakKeyDictionary()

    def available(self) -> str | None:
        reason = extension.unavailable_reason()
        return reason if reason is None else reason.splitlines()[0]  # the rest is the compiler's

    def supports(self, potential: Potential, device: torch.device, dtype: torch.dtype, job: Job) -> str | None:
        if device.type != "cpu":
            return f"the model is on {device}; this engine runs on the CPU"
        if dtype not in extension.DTYPE_NAMES:
            return f"the model's dtype is {dtype}; this engine computes in float32 or float64 (convert with .float())"
        if job.precision not in ("auto", extension.DTYPE_NAMES[dtype]):
            return f"precision={job.precision!r} is not the model's own, {extension.DTYPE_NAMES[dtype]}"
        if job.kind == "loss_and_grads" and job.loss.baseline is not None:
            return "a baseline is a function of the user's own, which this engine has no derivatives of"
        native = extension.load()
        reason = unlike_a_plain_mlp(potential, dtype, "cpu", native.MOST_LAYERS, native.LARGEST_SIZE)
        if reason is None and job.kind == "loss_and_grads":
            reason = unlike_parameters_of_its_own(potential)
        return reason

    def bytes_per_sample(self, potential: Potential, dtype: torch.dtype, job: Job, probes: int = 0) -> int:
        return fused_bytes_per_sample(potential, dtype, job, probes)

    def field(self, potential: Potential, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        flat = _rows(x)
        phi, gradient = torch.empty_like(flat[:, 0]), torch.empty_like(flat)
        self._mlp(potential).field(_array(flat), _array(t), _array(phi), _array(gradient), extension.threads())
        return phi, gradient.reshape(x.shape)

    def solve(
        self, potential: Potential, x0: Tensor, t0: float, t1: float, job: Job, progress: Progress | None = None
    ) -> Solution:
        result = self._solve(potential, x0, t0, t1, job, None, progress)
        return self._solution(result, x0)

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
        trace: Literal["exact"] | Floats = "exact" if probes is None else _array(probes)
        result = self._solve(potential, x0, t0, t1, job, trace, progress)
        integrals = torch.from_numpy(result["x"])[:, math.prod(x0.shape[1:]) :]
        return self._solution(result, x0), integrals.contiguous()

    def loss_and_grads(self, potential: Potential, batch: Batch, job: Job) -> LossAndGrads:
        options = job.loss
        x_data, noise = _rows(batch.x_data), _rows(batch.noise)
        weight: str | Floats
        if callable(options.weight):
            # In a callable's own dtype the product would be wider; its rounding to the model's changes nothing else.
            weight = _array(loss_weight(potential.homotopy, options.weight, batch.t).to(x_data.dtype))
        else:
            weight = options.weight
        try:
            mlp = self._mlp(potential)
        except extension.load().NonFiniteWeightsError:
            # What any arithmetic makes of such weights; the trainer looks for it and knows the step.
            bad = torch.full((), torch.nan, dtype=x_data.dtype)
            grads = {
                name: torch.full_like(p, torch.nan, requires_grad=False)
                for name, p in potential.named_parameters()
                if p.requires_grad
            }
            return LossAndGrads(EnergyLoss(bad, bad.clone(), bad.clone()), grads)
        linear, quadratic, weights, biases, output = mlp.loss(
            _array(x_data), _array(batch.t), _array(noise), options.estimator, weight, extension.threads()
        )
        # By name, in the order of named_parameters(), which would walk through the modules at every step.
        grads = {}
        for i, (layer, of_weight, of_bias) in enumerate(zip(_layers(potential), weights, biases, strict=True)):
            if layer.weight.requires_grad:
                grads[f"hidden.{i}.weight"] = torch.from_numpy(of_weight)
            if layer.bias.requires_grad:
                grads[f"hidden.{i}.bias"] = torch.from_numpy(of_bias)
        if potential.get_parameter("output.weight").requires_grad:
            grads["output.weight"] = torch.from_numpy(output)[None]
        terms = (torch.tensor(term, dtype=x_data.dtype) for term in (linear + quadratic, linear, quadratic))
        return LossAndGrads(EnergyLoss(*terms), grads)

    def _solve(
        self,
        potential: Potential,
        x0: Tensor,
        t0: float,
        t1: float,
        job: Job,
        trace: Literal["exact"] | Floats | None,
        progress: Progress | None = None,
    ) -> SolveResult:
        options = job.solve
        options.check_dtype(x0.dtype)
        options.check_times(t0, t1)
        return self._mlp(potential).solve(
            _array(_rows(x0)),
            t0,
            t1,
            method=options.method,
            rtol=options.rtol,
            atol=options.atol,
            steps=options.steps,
            max_steps=options.max_steps,
            first_step=options.first_step,
            proportional_share=options.proportional_share,
            t_eval=options.t_eval,
            trace=trace,
            threads=extension.threads(),
            progress=progress,
        )

    def _solution(self, result: SolveResult, x0: Tensor) -> Solution:
        dimension = math.prod(x0.shape[1:])
        ys = result["ys"]
        return Solution(
            torch.from_numpy(result["x"])[:, :dimension].reshape(x0.shape),
            torch.from_numpy(result["t"]),
            torch.from_numpy(result["status"]),
            torch.from_numpy(result["nfe"]),
            torch.from_numpy(result["accepted"]),
            torch.from_numpy(result["rejected"]),
            None if ys is None else torch.from_numpy(ys)[:, :, :dimension].reshape(-1, *x0.shape),
            self.name,
            extension.DTYPE_NAMES[x0.dtype],
        )

    def _mlp(self, potential: Potential) -> Mlp:
        """The extension's twin of a potential that `supports` accepted, with the weights of this moment."""
        if not isinstance(potential, MLPPotential):
            raise TypeError(f"the native engine takes an MLPPotential, got {type(potential).__name__}")
        shape = _shape(potential)
        known = self._packed.get(potential)
        if known is None or known[0] != shape:
            known = shape, extension.load().Mlp(**shape)
            self._packed[potential] = known
        layers = _layers(potential)
        known[1].load(
            [_array(layer.weight) for layer in layers],
            [_array(layer.bias) for layer in layers],
            _array(potential.output.weight)[0],
            _array(potential.frequencies),
        )
        return known[1]


NATIVE = NativeEngine()
"""The registered engine."""


def energy_loss(
    model: Potential,
    x_data: Tensor,
    t: Time,
    noise: Tensor,
    estimator: str = "velocity",
    weight: Weight = "inverse_variance",
) -> EnergyLoss:
    """`vapo_fast.energy_loss` of an `MLPPotential` on the CPU; see `vapo_fast.engines.energy_loss.energy_loss_of`."""
    return energy_loss_of(NATIVE, model, x_data, t, noise, estimator, weight)


def _shape(potential: MLPPotential) -> dict[str, Any]:
    """What the extension's twin is built from: all but the weights."""
    path: Homotopy = potential.homotopy
    return {
        "dtype": extension.DTYPE_NAMES[potential.output.weight.dtype],
        "dimension": math.prod(potential.event_shape),
        "widths": potential.widths,
        "fourier_features": potential.fourier_features,
        "activation": potential.activation,
        "homotopy": type(path).__name__,
        "omega": path.omega,
        "t1": path.t1,
        "data_scale": potential.data_scale,
        "time_dependent": potential.time_dependent,
        "log_beta_ends": path._log_noise_ends,
    }


def _layers(potential: Potential) -> list[nn.Linear]:
    return list(potential.hidden)  # type: ignore[arg-type]


def _rows(x: Tensor) -> Tensor:
    """(B, *event) as (B, D), in one piece."""
    return x.detach().reshape(x.shape[0], math.prod(x.shape[1:])).contiguous()


def _array(tensor: Tensor) -> Floats:
    """The tensor's own memory, or a copy's if that has gaps."""
    array: Floats = tensor.detach().contiguous().numpy()
    return array
