"""The potential: a scalar field Phi(x, t) whose gradient carries the prior to the data (samples ascend Phi)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vapo_fast.core import checks
from vapo_fast.core.threads import threads_for
from vapo_fast.homotopy import Homotopy, Time, expand_time


class TrainingDefaults(NamedTuple):
    """Defaults of a trainer: peak learning rate of Adam, and samples in one step."""

    lr: float = 1e-3
    batch_size: int = 128


class Potential(nn.Module, ABC):
    """Scalar potential Phi(x, t) on events of a fixed shape, along a given path.

    Subclasses implement `value`; callers use ``model(x, t)`` and ``model.field(x, t)``.

    Args:
        event_shape: shape of one sample, without the batch dimension.
        homotopy: the path the potential is trained along and sampled over.
        time_dependent: whether Phi depends on t. A time-independent Phi(x) ignores t and cannot reproduce a path
            exactly (see `vapo_fast.validate_t_end`); a time-dependent one can.
    """

    def __init__(self, event_shape: Sequence[int], homotopy: Homotopy, time_dependent: bool = True) -> None:
        super().__init__()
        self.event_shape = checks.event_shape(event_shape)
        if not isinstance(homotopy, Homotopy):
            raise TypeError(f"homotopy must be a DataHomotopy or LinearHomotopy, got {homotopy!r}")
        if not isinstance(time_dependent, bool):
            raise TypeError(f"time_dependent must be True or False, got {time_dependent!r}")
        self.homotopy = homotopy
        self.time_dependent = time_dependent

    @property
    def training_defaults(self) -> TrainingDefaults:
        """The learning rate and batch size that `vapo_fast.Trainer` uses unless others are given."""
        return TrainingDefaults()

    @abstractmethod
    def value(self, x: Tensor, t: Tensor) -> Tensor:
        """Phi for checked inputs: x (B, *event), t (B,) in x's dtype; returns (B,). Ignores t if not time_dependent."""

    def forward(self, x: Tensor, t: Time | None = None) -> Tensor:
        """Phi(x, t).

        Args:
            x: (B, *event_shape), floating point, on the model's device.
            t: float or (B,); None only if the potential is time-independent.
        Returns: (B,).
        Raises: TypeError or ValueError for a wrong shape, dtype or device, before the network runs; TypeError for a
            model of several dtypes that its layers do not convert between; ValueError for a value of another shape.
        """
        checks.batch_of_events("x", x, self.event_shape)
        reference = self.reference_tensor()
        if reference is not None:
            _check_placement("x", x, reference, autocast=True)
        # A copy, because a network that scales its times in place must not change those of the caller or a solver.
        times = self._batch_time(x, t).clone()
        try:
            phi = self.value(x, times)
        except RuntimeError as error:
            if (mixture := self._mixture()) is None or "type" not in str(error):
                raise
            raise TypeError(
                f"the model holds {mixture}, and its layers do not convert between them: {error}; convert the whole "
                "model with .float() or .double()"
            ) from error
        if not isinstance(phi, Tensor) or phi.shape != x.shape[:1]:
            # Without this error, a column would be broadcast against rows into a loss of all pairs.
            found = tuple(phi.shape) if isinstance(phi, Tensor) else type(phi).__name__
            raise ValueError(f"the model's value must have shape ({len(x)},), one scalar a sample, got {found}")
        return phi

    def field(self, x: Tensor, t: Time | None = None, *, create_graph: bool = False) -> tuple[Tensor, Tensor]:
        """Phi and its gradient with respect to x.

        Args:
            x, t: as for ``forward``.
            create_graph: keep the graph, so that the gradient can itself be differentiated (training).
        Returns: Phi (B,) and grad Phi (B, *event_shape). Without create_graph both are detached.
        """
        with torch.enable_grad():
            x = x if create_graph and x.requires_grad else x.detach().requires_grad_()
            phi = self(x, t)
            (gradient,) = torch.autograd.grad(phi.sum(), x, create_graph=create_graph)
        return (phi, gradient) if create_graph else (phi.detach(), gradient)

    def reference_tensor(self) -> Tensor | None:
        """A floating-point parameter or buffer with the model's device and dtype; None if it has neither."""
        for tensor in chain(self.parameters(), self.buffers()):
            if tensor.is_floating_point():
                return tensor
        return None

    def _mixture(self) -> str | None:
        """The floating-point dtypes in use, each with the name of its first tensor; None if there is only one."""
        first: dict[torch.dtype, str] = {}
        for name, tensor in chain(self.named_parameters(), self.named_buffers()):
            if tensor.is_floating_point():
                first.setdefault(tensor.dtype, name)
        return None if len(first) < 2 else " and ".join(f"{dtype} ({name})" for dtype, name in first.items())

    def config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON values, with the class name under ``"class"``; used by checkpoints."""
        return {
            "class": type(self).__name__,
            "event_shape": list(self.event_shape),
            "homotopy": self.homotopy.config(),
            "time_dependent": self.time_dependent,
        }

    @staticmethod
    def from_module(
        module: nn.Module, event_shape: Sequence[int], homotopy: Homotopy, time_dependent: bool = False
    ) -> ModulePotential:
        """Wrap any module that maps ``(B, *event_shape)`` (and ``t`` (B,) if time_dependent) to ``(B,)``.

        The module is tried at once on two points of the prior.

        Raises:
            TypeError: not a module, or its output is not a floating-point tensor of the module's dtype.
            ValueError: the call failed, or its output has another shape or device, or no gradient with respect to x.
        """
        return ModulePotential(module, event_shape, homotopy, time_dependent)

    def _batch_time(self, x: Tensor, t: Time | None) -> Tensor:
        if not self.time_dependent:
            return x.new_zeros(x.shape[0])
        if t is None:
            raise ValueError("t is required: this potential is time-dependent")
        if not isinstance(t, Tensor):
            return x.new_full((x.shape[0],), checks.finite_float("t", t))
        checks.time_or_times("t", t, x.shape[0])
        if t.device != x.device and t.dim():
            raise ValueError(f"t is on {t.device} but x is on {x.device}; move one with .to(...)")
        return t.to(device=x.device, dtype=x.dtype).expand(x.shape[0])


class ModulePotential(Potential):
    """A potential whose value is a user's module; build it with `Potential.from_module`."""

    def __init__(
        self, module: nn.Module, event_shape: Sequence[int], homotopy: Homotopy, time_dependent: bool = False
    ) -> None:
        super().__init__(event_shape, homotopy, time_dependent)
        if not isinstance(module, nn.Module):
            raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
        for name, part in module.named_modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                raise ValueError(
                    f"module has batch normalisation at {name or 'its root'!r}, so that a sample's potential would "
                    "depend on its batch-mates; use GroupNorm or LayerNorm"
                )
        self.module = module
        self._try_module()

    def value(self, x: Tensor, t: Tensor) -> Tensor:
        return self.module(x, t) if self.time_dependent else self.module(x)  # type: ignore[no-any-return]

    def _try_module(self) -> None:
        reference = self.reference_tensor()
        like = torch.zeros(()) if reference is None else reference
        x = self.homotopy.omega * torch.linspace(-1.0, 1.0, 2, dtype=like.dtype, device=like.device)
        x = expand_time(x, torch.empty(0, *self.event_shape)).expand(2, *self.event_shape)
        t = x.new_full((2,), 0.5 * (self.homotopy.t0 + self.homotopy.t1))
        call = f"module(x{', t' if self.time_dependent else ''}) with x of shape {tuple(x.shape)}"
        try:
            with torch.no_grad():
                out: object = self.value(x, t)
        except Exception as error:  # a user's module may raise any exception
            raise ValueError(f"{call} failed: {type(error).__name__}: {error}") from error
        if not isinstance(out, Tensor):
            raise TypeError(f"{call} must return a tensor of shape (2,), got {type(out).__name__}")
        if out.shape != (2,):
            raise ValueError(f"{call} must return shape (2,), one scalar a sample, got {tuple(out.shape)}")
        if out.dtype != x.dtype:
            raise TypeError(f"{call} must return dtype {x.dtype}, got {out.dtype}")
        if out.device != x.device:
            raise ValueError(f"{call} must return a tensor on {x.device}, got {out.device}")
        if not self._has_gradient(x, t, call):
            raise ValueError(
                f"{call} must be differentiable with respect to x, and its result does not depend on x through "
                "autograd; look for detach, no_grad, numpy or integer operations in the module"
            )

    def _has_gradient(self, x: Tensor, t: Tensor, call: str) -> bool:
        try:
            # Under inference_mode, autograd needs copies that are ordinary tensors.
            with torch.inference_mode(False), torch.enable_grad():
                x = x.clone().requires_grad_()
                out = self.value(x, t.clone())
                return out.requires_grad and torch.autograd.grad(out.sum(), x, allow_unused=True)[0] is not None
        except (MemoryError, torch.OutOfMemoryError):
            return True  # sampling handles memory itself
        except Exception as error:
            raise ValueError(f"the gradient of {call} failed: {type(error).__name__}: {error}") from error


def _check_placement(name: str, x: Tensor, reference: Tensor, *, autocast: bool = False) -> None:
    """ValueError for another device than the reference's, TypeError for another dtype that autocast may not convert."""
    if x.device != reference.device:
        raise ValueError(f"{name} is on {x.device} but the model is on {reference.device}; move one with .to(...)")
    if x.dtype != reference.dtype and not (autocast and torch.is_autocast_enabled(x.device.type)):
        raise TypeError(f"{name} has dtype {x.dtype} but the model has {reference.dtype}; convert one with .to(...)")


def require_potential(model: object) -> Potential:
    """``model`` if it is a `Potential`; TypeError otherwise."""
    if isinstance(model, Potential):
        return model
    raise TypeError(f"model must be a Potential, got {type(model).__name__}; wrap a module with Potential.from_module")


def check_model(model: object) -> Potential:
    """``model`` if it is a `Potential` with finite parameters; TypeError/ValueError otherwise. One device read."""
    model = require_potential(model)
    named = list(model.named_parameters())
    if any(parameter.is_meta for _, parameter in named):
        raise ValueError(
            "model is on the meta device, where parameters have no values; load or initialise it elsewhere"
        )
    with torch.no_grad(), threads_for(parameter for _, parameter in named):
        # A sum with a non-finite entry is not finite, and costs a fifth of testing each entry. An overflow of finite
        # entries is told apart by the loop.
        if named and not bool(torch.isfinite(torch.stack([p.sum() for _, p in named])).all()):
            for name, parameter in named:
                if not bool(torch.isfinite(parameter).all()):
                    raise ValueError(
                        f"model parameter {name!r} has NaN or infinite values: its training diverged; "
                        "load an earlier checkpoint"
                    )
    return model


def check_events(model: Potential, name: str, x: object) -> Tensor:
    """``x`` if it is a finite batch of events in the model's dtype, on its device; TypeError/ValueError otherwise."""
    checked = checks.batch_of_events(name, x, model.event_shape)
    if checked.shape[0] == 0:
        raise ValueError(f"{name} must hold at least one sample, got shape {tuple(checked.shape)}")
    reference = model.reference_tensor()
    if reference is not None:
        _check_placement(name, checked, reference)
    return checks.all_finite(name, checked)


def end_time(model: Potential, t_end: float | None) -> float:
    """``t_end``, default the path's end; ValueError if not after the start, or past a time-dependent model's end."""
    path = model.homotopy
    if t_end is None:
        return path.t1
    end = checks.finite_float("t_end", t_end)
    if end <= path.t0:
        raise ValueError(f"t_end must be after the start of the path, {path.t0:g}, got {t_end!r}")
    if model.time_dependent and end > path.t1:
        raise ValueError(
            f"t_end must be at most {path.t1:g}, where the path of this time-dependent potential ends, got {t_end!r}"
        )
    return end


def model_dtype_device(model: Potential) -> tuple[torch.dtype, torch.device]:
    """The dtype and device that the model computes in; PyTorch's defaults for one without parameters or buffers."""
    reference = model.reference_tensor()
    if reference is None:
        return torch.get_default_dtype(), torch.device("cpu")
    return reference.dtype, reference.device
