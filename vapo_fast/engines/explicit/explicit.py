r"""Explicit passes: fields, losses and gradients of image potentials without double backward.

For a potential ``Phi = a/2 |x|^2 + c f(r x)`` (`gauge`) the gradient ``a x + c r df/dz`` takes a forward and an adjoint
sweep of the network f, and no autograd graph. The energy loss depends on the parameters through ``grad Phi`` (and, for
the covariance estimator, Phi). With ``rho = dloss/d(grad Phi)`` and ``q = dloss/dPhi`` held fixed, its gradient is that
of the scalar ``f_dot + c q f``, where f_dot is the derivative of f along ``z_dot = c r rho``: a tangent sweep, and a
second adjoint sweep. Each convolution's weight then gets ``b (x) y + a (x) y_dot``, summed over rows and positions: one
weight gradient of ordinary backpropagation, of twice as many rows. In units of one forward sweep: field 2, loss with
gradients 6.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vapo_fast.core import checks
from vapo_fast.core.extension import DTYPE_NAMES
from vapo_fast.engines.explicit.convolutions import Convolutions, float32_products
from vapo_fast.engines.explicit.gauge import Coefficients, coefficients
from vapo_fast.engines.explicit.layer import Gradients, Layer, Sweep, image
from vapo_fast.engines.explicit.memory import peak_bytes
from vapo_fast.engines.explicit.modulation import Modulation
from vapo_fast.engines.explicit.network import Evaluation, u_net_layers, wide_resnet_layers
from vapo_fast.engines.explicit.plain_network import unlike_a_plain_network
from vapo_fast.engines.explicit.pointwise import Pointwise
from vapo_fast.engines.explicit.pointwise_choice import fastest_pointwise
from vapo_fast.engines.explicit.residual_block import Residual
from vapo_fast.engines.explicit.winograd import WinogradWeights
from vapo_fast.homotopy import Time, as_time, expand_time
from vapo_fast.loss import ESTIMATORS, Batch, EnergyLoss, Weight, check_points, loss_weight
from vapo_fast.potentials.base import Potential
from vapo_fast.potentials.image import ImagePotential
from vapo_fast.potentials.unet import UNetPotential
from vapo_fast.potentials.wide_resnet import WideResNetPotential

PRECISIONS = ("auto", "float64", "float32", "tf32", "bf16")
"""Of the convolutions' factors: "auto" is the model's own type; "tf32" (on CUDA) and "bf16" are for models in float32,
whose first and last layer, activations, sums, gauge, loss and gradients stay in float32."""


class UnlikePlainNetworkError(TypeError):
    """There are no explicit passes for this potential; the message says what is in the way."""


def explicit_passes(potential: Potential) -> ExplicitPasses:
    """The explicit passes of a potential.

    Raises: UnlikePlainNetworkError for a potential that `unlike_a_plain_network` tells from the library's own.
    """
    return ExplicitPasses(potential)


class ExplicitPasses:
    """Field, loss with gradients, and trace of a `WideResNetPotential` or `UNetPotential`; see the module's docstring.

    Weights are read at every call. What the potential is made of is looked at once, when this object is made; a hook
    or a layer put in later is not noticed.

    Args:
        potential: a model for which `unlike_a_plain_network` answers None.
        pointwise: what computes between convolutions; None for the fastest there is on the model's device.
    Raises: UnlikePlainNetworkError.
    """

    def __init__(self, potential: Potential, pointwise: Pointwise | None = None) -> None:
        reason = unlike_a_plain_network(potential)
        if reason is not None:
            raise UnlikePlainNetworkError(f"there are no explicit passes for this potential: {reason}")
        assert isinstance(potential, ImagePotential)
        self.potential = potential
        self._pointwise = pointwise
        self._winograd = WinogradWeights()
        self._layers = _layers(potential)
        self._ends = _ends(potential)
        self._blocks = [layer.block for layer in self._layers if isinstance(layer, Residual)]

    def field(self, x: Tensor, t: Time | None = None, precision: str = "auto") -> tuple[Tensor, Tensor]:
        """Phi and its gradient, by a forward and an adjoint sweep.

        Args:
            x: (B, *event_shape) in the model's type, on its device. t: float or (B,).
            precision: one of `PRECISIONS`.
        Returns: Phi (B,) and grad Phi (B, *event_shape).
        Raises: ValueError, TypeError as `Potential.field`, or for a precision that does not go with model and device.
        """
        x, t = self._checked(x, t)
        if len(x) == 0:
            self._dtype(precision)
            return x.new_zeros(0), x.new_zeros(x.shape)
        with self._computing(precision):
            c = coefficients(self.potential, t)
            evaluation = self._evaluation(x, c, self._sweep(self._modulation(c), precision))
            return self._phi(x, c, evaluation.value), self._gradient(x, c, evaluation.last_adjoint())

    def field_and_trace(
        self, x: Tensor, t: Time | None = None, probes: Tensor | None = None, precision: str = "auto"
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Phi, its gradient, and the trace of its Hessian H, by a tangent and a second adjoint sweep a direction.

        Args:
            x, t, precision: as for `field`.
            probes: (B, m, D) directions v for the m estimates ``v . H v`` of each sample; None for the exact trace,
                which takes D directions.
        Returns: Phi (B,), grad Phi (B, *event_shape) and the estimates (B, m), or the trace (B, 1).
        Raises: as `field`, or ValueError for probes of another shape, type or device.
        """
        x, t = self._checked(x, t)
        dimension = math.prod(x.shape[1:])
        if probes is not None:
            self._check_probes(probes, x, dimension)
        if len(x) == 0:
            self._dtype(precision)
            return x.new_zeros(0), x.new_zeros(x.shape), x.new_zeros(0, 1 if probes is None else probes.shape[1])
        with self._computing(precision):
            c = coefficients(self.potential, t)
            evaluation = self._evaluation(x, c, self._sweep(self._modulation(c), precision))
            phi, gradient = self._phi(x, c, evaluation.value), self._gradient(x, c, evaluation.adjoint())

            def second(direction: Tensor) -> Tensor:
                direction = direction.reshape(x.shape)
                z_dot = self._patches(direction * expand_time(c.inverse_radius, x))
                curvature = (evaluation.curvature(z_dot) * z_dot).flatten(1).sum(1)
                return c.quadratic * direction.flatten(1).square().sum(1) + c.scale * curvature

            if probes is None:
                unit = torch.eye(dimension, dtype=x.dtype, device=x.device)
                trace = sum((second(row.expand(len(x), -1)) for row in unit), torch.zeros_like(phi))[:, None]
            else:
                trace = torch.stack([second(direction) for direction in probes.unbind(1)], dim=1)
            return phi, gradient, trace

    def loss_and_grads(
        self,
        batch: Batch,
        estimator: str = "velocity",
        weight: Weight = "inverse_variance",
        precision: str = "auto",
        recompute: bool = False,
    ) -> tuple[EnergyLoss, dict[str, Tensor]]:
        """`vapo_fast.energy_loss` without a baseline, and its gradient for each trainable parameter.

        Args:
            batch, estimator, weight: as for `vapo_fast.energy_loss`.
            precision: one of `PRECISIONS`.
            recompute: keep the blocks' inputs alone between sweeps, and compute what lies in them anew: half to four
                fifths of the memory, the less the deeper the network, for half as many convolutions again.
        Returns: the loss terms and {name: gradient}, all detached and in the model's type.
        Raises: ValueError, TypeError as `vapo_fast.energy_loss`, or for a precision that does not go with the model.
        """
        x_data, t, noise = self._checked_batch(batch, estimator)
        path, n = self.potential.homotopy, len(x_data)
        parameters = {name: p for name, p in self.potential.named_parameters() if p.requires_grad}
        gradients = Gradients(frozenset(parameters.values()))
        with self._computing(precision):
            point = path.perturb(x_data, t, noise)
            w = loss_weight(path, weight, t).to(x_data.dtype)
            c = coefficients(self.potential, t)
            modulation = self._modulation(c, differentiable=True)
            sweep = self._sweep(modulation, precision, gradients, recompute)
            evaluation = self._evaluation(point.x, c, sweep)
            gradient = self._gradient(point.x, c, evaluation.adjoint())
            quadratic = (w * (0.5 * gradient.flatten(1).square().sum(1))).mean()
            if estimator == "velocity":
                linear = (w * -(gradient * point.velocity).flatten(1).sum(1)).mean()
                direction, q = gradient - point.velocity, torch.zeros_like(w)
            else:
                linear = (w * (self._phi(point.x, c, evaluation.value) * point.innovation)).mean()
                direction, q = gradient, (w / n) * c.scale * point.innovation
            z_dot = self._patches(direction * expand_time((w / n) * c.scale * c.inverse_radius, direction))
            del point, gradient, direction
            evaluation.collect_gradients(z_dot, q)
            found = gradients.found
            rest = [p for p in parameters.values() if p not in found]
            found |= zip(rest, modulation.gradients(rest), strict=True)
        return EnergyLoss(linear + quadratic, linear, quadratic), {name: found[p] for name, p in parameters.items()}

    def bytes_per_sample(self, job: str, precision: str = "auto", recompute: bool = False) -> int:
        """Memory that one sample takes at the peak of a job: an estimate, to choose batches by.

        Weights are not counted (`bytes_of_weights`).

        Args:
            job: "field", "field_and_trace" or "loss_and_grads". precision, recompute: as for the job.
        Raises: ValueError.
        """
        checks.one_of("job", job, ("field", "field_and_trace", "loss_and_grads"))
        wide = self.potential.stem.weight.element_size()
        narrow = 2 if self._dtype(precision) == torch.bfloat16 else wide
        height, width = (side // self.potential.patch_size for side in self.potential.event_shape[1:])
        return peak_bytes(self._layers, (self.potential.image_channels, height, width), job, wide, narrow, recompute)

    def bytes_of_weights(self, precision: str = "auto") -> int:
        """Most memory that weights take during a job beside the model's own, whatever the number of samples.

        They are converted, turned around, and on the CPU transformed (`WinogradWeights`). Gradients are not counted.
        """
        convolutions = self._convolutions(precision)
        layers = (module for module in self.potential.modules() if isinstance(module, nn.Conv2d))
        return sum(convolutions.weight_bytes(layer) for layer in layers)

    def _modulation(self, c: Coefficients, differentiable: bool = False) -> Modulation:
        return Modulation(self.potential, self._blocks, c.position, differentiable)

    def _sweep(
        self, modulation: Modulation, precision: str, gradients: Gradients | None = None, recompute: bool = False
    ) -> Sweep:
        weight = self.potential.stem.weight
        pointwise = self._pointwise or fastest_pointwise(weight.device.type, weight.dtype)
        return Sweep(pointwise, self._convolutions(precision), modulation.films, recompute, gradients)

    def _convolutions(self, precision: str) -> Convolutions:
        # Both ends stay in the model's type: rounding the network's input and its adjoint would be most of the field's
        # error late in the path (docs/explicit_passes.md), and these layers have few channels.
        return Convolutions(self._dtype(precision), self._ends, self._winograd)

    def _evaluation(self, x: Tensor, c: Coefficients, sweep: Sweep) -> Evaluation:
        return Evaluation(self._layers, self._patches(x * expand_time(c.inverse_radius, x)), sweep)

    def _phi(self, x: Tensor, c: Coefficients, f: Tensor) -> Tensor:
        return 0.5 * c.quadratic * x.flatten(1).square().sum(1) + c.scale * f

    def _gradient(self, x: Tensor, c: Coefficients, a_z: Tensor) -> Tensor:
        a_z = F.pixel_shuffle(a_z, self.potential.patch_size)
        through = expand_time(c.scale * c.inverse_radius, x) * a_z
        return torch.addcmul(through, expand_time(c.quadratic, x), x).contiguous()

    def _patches(self, z: Tensor) -> Tensor:
        return image(F.pixel_unshuffle(z, self.potential.patch_size))

    def _dtype(self, precision: str) -> torch.dtype:
        checks.one_of("precision", precision, PRECISIONS)
        weight = self.potential.stem.weight
        if precision in ("auto", DTYPE_NAMES[weight.dtype]):
            return weight.dtype
        if weight.dtype != torch.float32 or precision in DTYPE_NAMES.values():
            raise ValueError(f"precision={precision!r} does not go with a model in {DTYPE_NAMES[weight.dtype]}")
        if precision == "tf32":
            if weight.device.type != "cuda":
                raise ValueError(f"precision='tf32' is CUDA's, and the model is on {weight.device}")
            return weight.dtype
        return torch.bfloat16

    @contextmanager
    def _computing(self, precision: str) -> Iterator[None]:
        device = self.potential.stem.weight.device
        with torch.no_grad(), torch.autocast(device.type, enabled=False), float32_products(device, precision):
            yield

    def _checked(self, x: Tensor, t: Time | None) -> tuple[Tensor, Tensor]:
        checks.batch_of_events("x", x, self.potential.event_shape)
        self._check_like_weights("x", x)
        return x.detach(), self.potential._batch_time(x, t).detach()

    def _checked_batch(self, batch: Batch, estimator: str) -> tuple[Tensor, Tensor, Tensor]:
        checks.one_of("estimator", estimator, ESTIMATORS)
        x_data, t, noise = batch
        check_points(self.potential, x_data, t)
        self._check_like_weights("x_data", x_data)
        self._check_like_weights("noise", noise)
        t = as_time(t).to(device=x_data.device, dtype=x_data.dtype).expand(len(x_data))
        return x_data.detach(), t.detach(), noise.detach()

    def _check_probes(self, probes: Tensor, x: Tensor, dimension: int) -> None:
        if not isinstance(probes, Tensor) or probes.dim() != 3 or probes.shape[::2] != (len(x), dimension):
            found = tuple(probes.shape) if isinstance(probes, Tensor) else type(probes).__name__
            raise ValueError(f"probes must have shape ({len(x)}, m, {dimension}), got {found}")
        self._check_like_weights("probes", probes)

    def _check_like_weights(self, name: str, value: Tensor) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
        weight = self.potential.stem.weight
        if value.device != weight.device:
            raise ValueError(f"{name} is on {value.device} but the model is on {weight.device}; move one with .to(...)")
        if value.dtype != weight.dtype:
            raise TypeError(
                f"{name} has dtype {value.dtype} but the model has {weight.dtype}; convert one with .to(...)"
            )


def _ends(potential: ImagePotential) -> tuple[nn.Conv2d, nn.Conv2d]:
    assert isinstance(potential, (WideResNetPotential, UNetPotential))
    return potential.stem, potential.output


def _layers(potential: ImagePotential) -> list[Layer]:
    if isinstance(potential, WideResNetPotential):
        return wide_resnet_layers(potential)
    assert isinstance(potential, UNetPotential)
    return u_net_layers(potential)
