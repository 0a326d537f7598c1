"""What a potential must be for an engine that computes an MLP's formulas instead of running its modules."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vapo_fast.homotopy import DataHomotopy, LinearHomotopy
from vapo_fast.potentials.base import Potential
from vapo_fast.potentials.mlp import ACTIVATIONS, MLPPotential

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


def unlike_a_plain_mlp(
    potential: Potential, dtype: torch.dtype, device_type: str, most_layers: int, largest_size: int
) -> str | None:
    """What sets a potential apart from the MLP whose formulas an engine has compiled in; None if nothing does.

    Args:
        dtype, device_type: of all its tensors.
        most_layers, largest_size: what the engine has room for.
    """
    if type(potential) is not MLPPotential:
        kind = type(potential).__name__
        return f"the model is a {kind}; this engine knows the formulas of MLPPotential itself, not those of subclasses"
    path = potential.homotopy
    if type(path) not in (DataHomotopy, LinearHomotopy):
        return f"the path is a {type(path).__name__}; this engine knows DataHomotopy and LinearHomotopy"
    if potential.activation not in ACTIVATIONS:  # set by hand
        return f"the model's activation is {potential.activation!r}; this engine knows {', '.join(ACTIVATIONS)}"
    if len(potential.widths) > most_layers:
        return f"the model has {len(potential.widths)} hidden layers; this engine takes {most_layers}"
    dimension = math.prod(potential.event_shape)
    largest = max(dimension, potential.fourier_features, *potential.widths)
    if largest > largest_size:
        return f"the model has a layer of {largest} units; this engine takes {largest_size}"
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
        if tensor.dtype != dtype or tensor.device.type != device_type or tensor.layout != torch.strided:
            return (
                f"the model's {name} is {tensor.dtype} on {tensor.device}, not {dtype} on {device_type} like the others"
            )
        if type(tensor) not in (Tensor, nn.Parameter):
            return f"the model's {name} is a {type(tensor).__name__}, whose arithmetic may be its own"
    return None


def unlike_parameters_of_its_own(potential: Potential) -> str | None:
    """What sets the parameters' gradients apart from those that an engine computes; None if nothing does."""
    first: dict[nn.Parameter, str] = {}
    for name, parameter in potential.named_parameters(remove_duplicate=False):
        if parameter._backward_hooks:
            return f"the model's {name} has a hook on its gradient, which is not called here"
        if first.setdefault(parameter, name) != name:
            return f"the model's {name} is also its {first[parameter]}, whose gradient would be the sum of both"
    return None
