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

from vapo_fast import _checks, native
from vapo_fast.batches import Batch
from vapo_fast.engines.base import Engine, Job, LossAndGrads, LossOptions, Progress, UnsupportedJobError
from vapo_fast.homotopy import DataHomotopy, Homotopy, LinearHomotopy, Time, as_time
from vapo_fast.loss import ESTIMATORS, WEIGHTS, EnergyLoss, Weight, check_points, loss_weight
from vapo_fast.ode import Solution
from vapo_fast.potentials.base import Potential
from vapo_fast.potentials.mlp import MLPPotential

if TYPE_CHECKING:
    from vapo_fast._native import Floats, Mlp, SolveResult

# Bytes of a sample's time, status and counts.
_COUNTS_BYTES = 40


class NativeEngine(Engine):
    """`MLPPotential` on the CPU through ``vapo_fast._native``; see the module's docstring."""

    name = "native"

    def __init__(self) -> None:
        self._packed: weakref.WeakKeyDictionary[MLPPotential, tuple[dict[str, Any], Mlp]] = weakref.WeakKeyDictionary()

    def available(self) -> str | None:
        reason = native.unavailable_reason()
        return reason if reason is None else reason.splitlines()[0]  # the rest is the compiler's

    def supports(self, potential: Potential, device: torch.device, dtype: torch.dtype, job: Job) -> str | None:
        if device.type != "cpu":
            return f"the model is on {device}; this engine runs on the CPU"
        if dtype not in native.DTYPE_NAMES:
            return f"the model's dtype is {dtype}; this engine computes in float32 or float64 (convert with .float())"
        if job.precision not in ("auto", native.DTYPE_NAMES[dtype]):
            return f"precision={job.precision!r} is not the model's own, {native.DTYPE_NAMES[dtype]}"
        if job.kind == "loss_and_grads" and job.loss.baseline is not None:
            return "a baseline is a function of the user's own, which this engine has no derivatives of"
        reason = _unlike_a_plain_mlp(potential, dtype)
        if reason is None and job.kind == "loss_and_grads":
            reason = _unlike_parameters_of_its_own(potential)
        return reason

    def bytes_per_sample(self, potential: Potential, dtype: torch.dtype, job: Job, probes: int = 0) -> int:
        # The start, a copy of it that becomes the result, and what the caller makes of both. Nothing is kept of a
        # step but each thread's own few rows.
        states = (4 + len(job.solve.t_eval or ())) * (math.prod(potential.event_shape) + max(1, probes))
        # A caller draws probes in float64 and compares before it converts.
        drawn = 4 * probes * math.prod(potential.event_shape)
        return states * dtype.itemsize + drawn * torch.float64.itemsize + _COUNTS_BYTES

    def field(self, potential: Potential, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        flat = _rows(x)
        phi, gradient = torch.empty_like(flat[:, 0]), torch.empty_like(flat)
        self._mlp(potential).field(_array(flat), _array(t), _array(phi), _array(gradient), _threads())
        return phi, gradient.reshape(x.shape)

    def solve(
        self, potential: Potential, x0: Tensor, t0: float, t1: float, job: Job, progress: Progress | None = None
    ) -> Solution:
        result = self._solve(potential, x0, t0, t1, job, None, progress)
        return self._solution(result, x0)

    def solve_with_trace(
        self, potential: Potential, x0: Tensor, t0: float, t1: float, job: Job, probes: Tensor | None
    ) -> tuple[Solution, Tensor]:
        trace: Literal["exact"] | Floats = "exact" if probes is None else _array(probes)
        result = self._solve(potential, x0, t0, t1, job, trace)
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
        trainable = {name: p for name, p in potential.named_parameters() if p.requires_grad}
        try:
            mlp = self._mlp(potential)
        except native.extension().NonFiniteWeightsError:
            # What any arithmetic makes of such weights; whoever trains looks for it and knows the step.
            bad = torch.full((), torch.nan, dtype=x_data.dtype)
            grads = {name: torch.full_like(p, torch.nan, requires_grad=False) for name, p in trainable.items()}
            return LossAndGrads(EnergyLoss(bad, bad.clone(), bad.clone()), grads)
        linear, quadratic, weights, biases, output = mlp.loss(
            _array(x_data), _array(batch.t), _array(noise), options.estimator, weight, _threads()
        )
        found = {"output.weight": torch.from_numpy(output)[None]}
        for i, (of_weight, of_bias) in enumerate(zip(weights, biases, strict=True)):
            found[f"hidden.{i}.weight"] = torch.from_numpy(of_weight)
            found[f"hidden.{i}.bias"] = torch.from_numpy(of_bias)
        terms = (torch.tensor(term, dtype=x_data.dtype) for term in (linear + quadratic, linear, quadratic))
        return LossAndGrads(EnergyLoss(*terms), {name: found[name] for name in trainable})

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
            t_eval=options.t_eval,
            trace=trace,
            threads=_threads(),
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
            native.DTYPE_NAMES[x0.dtype],
        )

    def _mlp(self, potential: Potential) -> Mlp:
        """The extension's twin of a potential that `supports` accepted, with the weights of this moment."""
        if not isinstance(potential, MLPPotential):
            raise TypeError(f"the native engine takes an MLPPotential, got {type(potential).__name__}")
        shape = _shape(potential)
        known = self._packed.get(potential)
        if known is None or known[0] != shape:
            known = shape, native.extension().Mlp(**shape)
            self._packed[potential] = known
        layers: list[nn.Linear] = list(potential.hidden)  # type: ignore[arg-type]
        known[1].load(
            [_array(layer.weight) for layer in layers],
            [_array(layer.bias) for layer in layers],
            _array(potential.output.weight)[0],
            _array(potential.frequencies),
        )
        return known[1]


def energy_loss(
    model: Potential,
    x_data: Tensor,
    t: Time,
    noise: Tensor,
    estimator: str = "velocity",
    weight: Weight = "inverse_variance",
) -> EnergyLoss:
    """`vapo_fast.energy_loss` by the C++ engine: loss and parameter gradients in one call, without double backward.

    ``energy_loss(model, x_data, t, noise).total.backward()`` fills the parameters' ``.grad`` for any optimiser. The
    gradients are computed with the loss; ``backward`` only scales them. ``total`` alone is differentiable, once, and
    with respect to the model's parameters only.

    Args:
        model: an `MLPPotential` on the CPU.
        x_data, t, noise, estimator, weight: as for `vapo_fast.energy_loss`; none may require gradients.
    Returns: `EnergyLoss`.
    Raises:
        UnsupportedJobError: the engine cannot do this, with the reason.
        ValueError, TypeError: as `vapo_fast.energy_loss`, or an argument requires gradients.
        RuntimeError: at a second derivative.
    """
    if not isinstance(model, Potential):
        raise TypeError(f"model must be a Potential, got {type(model).__name__}")
    _checks.one_of("estimator", estimator, ESTIMATORS)
    if not callable(weight):
        _checks.one_of("weight", weight, WEIGHTS)
    check_points(model, x_data, t)
    if not isinstance(noise, Tensor) or noise.shape != x_data.shape:
        found = tuple(noise.shape) if isinstance(noise, Tensor) else type(noise).__name__
        raise ValueError(f"noise must have the shape of x_data, {tuple(x_data.shape)}, got {found}")
    reference = model.reference_tensor()
    for name, value in (("x_data", x_data), ("noise", noise)):
        if reference is not None and (value.dtype != reference.dtype or value.device != reference.device):
            raise TypeError(
                f"{name} is {value.dtype} on {value.device} but the model is {reference.dtype} on {reference.device}; "
                "convert one with .to(...)"
            )
    for name, argument in (("x_data", x_data), ("t", t), ("noise", noise)):
        if isinstance(argument, Tensor) and argument.requires_grad:
            raise ValueError(f"{name} requires grad, but this loss has gradients for the model's parameters only")
    engine = NATIVE
    times = as_time(t).to(device=x_data.device, dtype=x_data.dtype).expand(x_data.shape[0])
    if callable(weight):
        weights = loss_weight(model.homotopy, weight, times)
        if weights.requires_grad:
            raise ValueError("weight(t) requires grad, but this loss has gradients for the model's parameters only")
        weight = lambda _: weights  # the user's function is called once a loss
    job = Job("loss_and_grads", loss=LossOptions(estimator, weight))
    reason = engine.available() or engine.supports(model, x_data.device, x_data.dtype, job)
    if reason is not None:
        raise UnsupportedJobError(f"the native engine cannot do this 'loss_and_grads' job: {reason}")
    parameters = [p for p in model.parameters() if p.requires_grad]
    terms = _Loss.apply(model, Batch(x_data, times, noise), job, *parameters)  # type: ignore[no-untyped-call]
    return EnergyLoss(*terms)


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, model: Potential, batch: Batch, job: Job, *parameters: Tensor) -> tuple[Tensor, ...]:
        loss, grads = NATIVE.loss_and_grads(model, batch, job)
        ctx.save_for_backward(*grads.values(), *parameters)
        ctx.mark_non_differentiable(loss.linear, loss.quadratic)
        return tuple(loss)

    @staticmethod
    def backward(ctx: Any, of_total: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        count = len(saved) // 2
        grads = tuple(of_total * grad for grad in saved[:count])
        if torch.is_grad_enabled():
            # With create_graph they would pass for constants in whatever is made of them.
            grads = _Final.apply(*grads, *saved[count:])  # type: ignore[no-untyped-call]
        return None, None, None, *grads


class _Final(torch.autograd.Function):
    """The first half of the arguments; the derivative with respect to the others is not known and raises."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.clone() for tensor in tensors[: len(tensors) // 2])

    @staticmethod
    def backward(ctx: Any, *of_gradients: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError(
            "this energy_loss, of the native engine, has gradients and no second derivatives; use vapo_fast.energy_loss"
        )


NATIVE = NativeEngine()
"""The registered engine."""


def _unlike_a_plain_mlp(potential: Potential, dtype: torch.dtype) -> str | None:
    """What sets a potential apart from the MLP whose formulas are compiled into the extension; None if nothing does."""
    if type(potential) is not MLPPotential:
        kind = type(potential).__name__
        return f"the model is a {kind}; this engine knows the formulas of MLPPotential itself, not those of subclasses"
    path = potential.homotopy
    if type(path) not in (DataHomotopy, LinearHomotopy):
        return f"the path is a {type(path).__name__}; this engine knows DataHomotopy and LinearHomotopy"
    extension = native.extension()
    if len(potential.widths) > extension.MOST_LAYERS:
        return f"the model has {len(potential.widths)} hidden layers; this engine takes {extension.MOST_LAYERS}"
    dimension = math.prod(potential.event_shape)
    largest = max(dimension, potential.fourier_features, *potential.widths)
    if largest > extension.LARGEST_SIZE:
        return f"the model has a layer of {largest} units; this engine takes {extension.LARGEST_SIZE}"
    if nn.modules.module._has_any_global_hook():  # type: ignore[no-untyped-call]
        return "torch.nn has global module hooks, which this engine would not call"
    inputs = dimension + int(potential.time_dependent)
    wanted: dict[str, tuple[int, ...]] = {"frequencies": (potential.fourier_features, inputs)}
    layers: dict[str, nn.Module] = {"output": potential.output}
    size = inputs + 2 * potential.fourier_features
    if len(potential.hidden) != len(potential.widths):
        return f"the model has {len(potential.hidden)} hidden layers, its widths say {len(potential.widths)}"
    for i, (layer, width) in enumerate(zip(potential.hidden, potential.widths, strict=True)):
        layers[f"hidden.{i}"] = layer
        wanted |= {f"hidden.{i}.weight": (width, size), f"hidden.{i}.bias": (width,)}
        size = width
    wanted["output.weight"] = (1, size)
    for name, layer in layers.items():
        if type(layer) is not nn.Linear:
            return f"the model's {name} is a {type(layer).__name__}, not an nn.Linear"
    for name, module in {"": potential, "hidden": potential.hidden, **layers}.items():
        if _HOOKS_AND_METHODS & {key for key, value in vars(module).items() if value or callable(value)}:
            return (
                f"the model{name and ', in ' + name + ','} has hooks or methods of its own, which are not called here"
            )
    tensors = {"frequencies": potential.frequencies}
    for name, layer in layers.items():
        tensors |= {f"{name}.{key}": value for key, value in layer._parameters.items() if value is not None}
    if tensors.keys() != wanted.keys():
        return f"the model has {', '.join(sorted(tensors.keys() ^ wanted.keys()))} changed from what it was built with"
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != wanted[name]:
            return f"the model's {name} has shape {tuple(tensor.shape)}, it was built with {wanted[name]}"
        if tensor.dtype != dtype or tensor.device.type != "cpu" or tensor.layout != torch.strided:
            return f"the model's {name} is {tensor.dtype} on {tensor.device}, not {dtype} on the CPU like the others"
        if type(tensor) not in (Tensor, nn.Parameter):
            return f"the model's {name} is a {type(tensor).__name__}, whose arithmetic may be its own"
    return None


def _unlike_parameters_of_its_own(potential: Potential) -> str | None:
    """What sets the parameters' gradients apart from those that the extension computes; None if nothing does."""
    first: dict[nn.Parameter, str] = {}
    for name, parameter in potential.named_parameters(remove_duplicate=False):
        if parameter._backward_hooks:
            return f"the model's {name} has a hook on its gradient, which is not called here"
        if first.setdefault(parameter, name) != name:
            return f"the model's {name} is also its {first[parameter]}, whose gradient would be the sum of both"
    return None


_HOOKS_AND_METHODS = {
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "forward",
    "field",
    "value",
    "network",
}


def _shape(potential: MLPPotential) -> dict[str, Any]:
    """What the extension's twin is built from: all but the weights."""
    path: Homotopy = potential.homotopy
    return {
        "dtype": native.DTYPE_NAMES[potential.output.weight.dtype],
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


def _rows(x: Tensor) -> Tensor:
    """(B, *event) as (B, D), in one piece."""
    return x.detach().reshape(x.shape[0], math.prod(x.shape[1:])).contiguous()


def _array(tensor: Tensor) -> Floats:
    """The tensor's own memory, or a copy's if that has gaps."""
    array: Floats = tensor.detach().contiguous().numpy()
    return array


def _threads() -> int:
    most: int = native.extension().MOST_THREADS
    return min(torch.get_num_threads(), most)
