"""What a potential must be for passes that compute a network's formulas instead of running its modules."""

from __future__ import annotations

import functools
import json
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vapo_fast.homotopy import homotopy_from_config
from vapo_fast.potentials.base import Potential
from vapo_fast.potentials.image import ImagePotential
from vapo_fast.potentials.unet import UNetPotential
from vapo_fast.potentials.wide_resnet import WideResNetPotential

DTYPES = (torch.float32, torch.float64)
_PLAIN: dict[str, type[ImagePotential]] = {c.__name__: c for c in (WideResNetPotential, UNetPotential)}
_HOOKS_AND_METHODS = {
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "embed",
    "field",
    "forward",
    "network",
    "patches",
    "value",
}
_CONVOLUTION = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "transposed")


def unlike_a_plain_network(potential: Potential) -> str | None:
    """What sets a potential apart from a `WideResNetPotential` or `UNetPotential` as built; None if nothing does.

    Subclasses, hooks, methods or layers of one's own, changed, shared or foreign parameters all make a difference that
    formulas would not see.
    """
    if type(potential) not in _PLAIN.values():
        kind = type(potential).__name__
        return f"the model is a {kind}; there are passes for {' and '.join(_PLAIN)} themselves, not for subclasses"
    assert isinstance(potential, ImagePotential)
    if nn.modules.module._has_any_global_hook():  # type: ignore[no-untyped-call]
        return "torch.nn has global module hooks, which would not be called"
    configuration = potential.config()
    configuration["homotopy"] = {"class": "DataHomotopy"}  # which path it is makes no difference to the layers
    built = _built(json.dumps(configuration, sort_keys=True))
    modules = dict(potential.named_modules(remove_duplicate=False))
    if changed := built.modules.keys() ^ modules.keys():
        return f"the model has {', '.join(sorted(changed))} changed from what it was built with"
    for name, module in modules.items():
        wanted, settings = built.modules[name]
        if type(module) is not wanted:
            return f"the model's {name} is a {type(module).__name__}, it was built as a {wanted.__name__}"
        if _settings(module) != settings:
            return f"the model's {name} has settings {_settings(module)}, it was built with {settings}"
        if _HOOKS_AND_METHODS & {key for key, value in vars(module).items() if value or callable(value)}:
            return (
                f"the model{name and ', in ' + name + ','} has hooks or methods of its own, which would not be called"
            )
    return _unlike_its_tensors(potential, built.shapes)


class _Built(NamedTuple):
    modules: dict[str, tuple[type[nn.Module], tuple[object, ...]]]
    shapes: dict[str, tuple[int, ...]]


@functools.lru_cache(maxsize=64)
def _built(configuration: str) -> _Built:
    """Modules and shapes of the tensors of a new potential."""
    arguments = json.loads(configuration)
    cls = _PLAIN[arguments.pop("class")]
    with torch.device("meta"):
        new = cls(**arguments | {"homotopy": homotopy_from_config(arguments["homotopy"])})
    modules = {name: (type(module), _settings(module)) for name, module in new.named_modules()}
    return _Built(modules, {name: tuple(tensor.shape) for name, tensor in _tensors(new).items()})


def _settings(module: nn.Module) -> tuple[object, ...]:
    return tuple(getattr(module, name) for name in _CONVOLUTION) if isinstance(module, nn.Conv2d) else ()


def _tensors(potential: Potential) -> dict[str, Tensor]:
    return dict(potential.named_parameters(remove_duplicate=False)) | dict(potential.named_buffers())


def _unlike_its_tensors(potential: Potential, shapes: dict[str, tuple[int, ...]]) -> str | None:
    tensors = _tensors(potential)
    if changed := tensors.keys() ^ shapes.keys():
        return f"the model has {', '.join(sorted(changed))} changed from what it was built with"
    reference = next(potential.parameters())
    dtype, device = reference.dtype, reference.device
    if dtype not in DTYPES:
        return f"the model is {dtype}; there are passes in float32 and float64 (convert with .float())"
    if device.type not in ("cpu", "cuda"):
        return f"the model is on {device}; there are passes on the CPU and on CUDA"
    seen: dict[Tensor, str] = {}
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != shapes[name]:
            return f"the model's {name} has shape {tuple(tensor.shape)}, it was built with {shapes[name]}"
        if tensor.dtype != dtype or tensor.device != device or tensor.layout != torch.strided:
            return f"the model's {name} is {tensor.dtype} on {tensor.device}, not {dtype} on {device} like the others"
        if type(tensor) not in (Tensor, nn.Parameter):
            return f"the model's {name} is a {type(tensor).__name__}, whose arithmetic may be its own"
        if tensor._backward_hooks:
            return f"the model's {name} has a hook on its gradient, which would not be called"
        if seen.setdefault(tensor, name) != name:
            return f"the model's {name} is also its {seen[tensor]}, whose gradient would be the sum of both"
    return None
