"""The rules of training that both trainers follow: options, schedule, averaging, gradient checks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from vapo_fast.training.options import TrainingOptions


class NonFiniteLossError(ArithmeticError):
    """The loss or a gradient became NaN or infinite; the model holds its state from before that step.

    Attributes:
        step: the 1-based step that failed; ``step - 1`` steps are in the model.
        term: "linear term", "quadratic term", or "gradient of NAME" with the name of a parameter.
    """

    def __init__(self, step: int, term: str, advice: str) -> None:
        super().__init__(
            f"step {step}: the {term} is not finite. The model is left as it was after step {step - 1}. {advice}"
        )
        self.step = step
        self.term = term
        self._advice = advice

    def __reduce__(self) -> tuple[type[NonFiniteLossError], tuple[int, str, str], dict[str, object]]:
        # Exceptions are rebuilt from their arguments, and these are not the message.
        return type(self), (self.step, self.term, self._advice), vars(self)


class RunningAverage:
    """``average += (1 - decay)(model - average)`` for the parameters of two modules alike; buffers are copied."""

    def __init__(self, average: nn.Module, model: nn.Module) -> None:
        # Walking through the modules takes longer than averaging a small model. Parameters stay what they are, as the
        # optimiser's do; buffers may be replaced at any time, so only the modules that have some are kept.
        self._average: list[Tensor] = list(average.parameters())
        self._current: list[Tensor] = list(model.parameters())
        self._buffered = [
            pair
            for pair in zip(average.modules(), model.modules(), strict=True)
            if next(pair[1].buffers(recurse=False), None) is not None
        ]

    @torch.no_grad()
    def update(self, decay: float | Tensor, applied: Tensor | None = None) -> None:
        """One step. ``applied`` is a 0-dim device flag: where it is 0 nothing changes, without a host read."""
        if applied is None:
            torch._foreach_lerp_(self._average, self._current, 1.0 - float(decay))
        else:
            difference = torch._foreach_sub(self._current, self._average)
            torch._foreach_mul_(difference, applied * (1.0 - decay))
            torch._foreach_add_(self._average, difference)
        for average, model in self._buffered:
            for kept, buffer in zip(average.buffers(recurse=False), model.buffers(recurse=False), strict=True):
                kept.copy_(buffer if applied is None else torch.where(applied != 0, buffer, kept))


def make_optimizer(
    parameters: Iterable[nn.Parameter], options: TrainingOptions, fused: bool = False
) -> torch.optim.Adam:
    """Adam or AdamW with betas (0.9, 0.999) and eps 1e-8, for gradients that `set_gradients` sets.

    ``fused`` lets a device-side flag skip a step. On the CPU the update is fused anyway: for a small model that takes a
    third of the time.
    """
    parameters = list(parameters)
    fused = fused or all(p.device.type == "cpu" and p.stride() == torch.empty_like(p).stride() for p in parameters)
    kind = torch.optim.AdamW if options.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=options.lr, weight_decay=options.weight_decay, fused=fused or None)


def set_gradients(parameters: Iterable[nn.Parameter], gradients: Iterable[Tensor]) -> None:
    """Give each parameter its gradient, in the parameter's memory layout.

    The fused optimisers of PyTorch pair numbers by where they lie in memory; on the CPU nothing checks that a gradient
    lies as its parameter does, and autograd often gives a transposed view.
    """
    for parameter, gradient in zip(parameters, gradients, strict=True):
        alike = gradient.stride() == parameter.stride()
        parameter.grad = gradient if alike else torch.empty_like(parameter).copy_(gradient)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Names and parameters that take gradients.

    Raises: ValueError if there are none, if they were made in inference mode, or not all have one dtype and device;
        TypeError unless float32 or float64.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError(f"model has no trainable parameters ({type(model).__name__}): there is nothing to fit")
    if any(p.is_inference() for p in parameters.values()):
        raise ValueError("model was made inside torch.inference_mode(), where no gradients can be; make it outside")
    kinds = {(p.dtype, p.device) for p in parameters.values()}
    if len(kinds) > 1:
        listed = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
        raise ValueError(f"model must have all parameters in one dtype on one device, got {listed}")
    ((dtype, _),) = kinds
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"model must hold float32 or float64 parameters, got {dtype}; for bfloat16 products use precision='bf16'"
        )
    return parameters


def gradient_norms(parameters: dict[str, nn.Parameter]) -> Tensor:
    """The 2-norm of each parameter's gradient, (P,), without a host read."""
    return torch.stack(torch._foreach_norm([p.grad for p in parameters.values() if p.grad is not None]))


@torch.no_grad()
def clip_gradients(parameters: dict[str, nn.Parameter], norm: Tensor, largest: float) -> None:
    """Scale every gradient by ``min(1, largest/norm)``, on the device."""
    scale = torch.clamp(largest / norm, max=1.0)
    torch._foreach_mul_([p.grad for p in parameters.values() if p.grad is not None], scale)
