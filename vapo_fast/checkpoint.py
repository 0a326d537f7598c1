"""Checkpoints: one safetensors file each, described by JSON in its metadata; written atomically, never pickle.

A *model* file holds a potential's tensors and its ``config()``. A *training* file holds the raw and the averaged
weights, the optimiser's moments, the step and the options. `load` reads its averaged weights as a model. Tensors and
description are in one file, and one rename puts it in place: a checkpoint is complete or absent, never half written. A
digest of both (SHA-256) is stored beside them, and a file that differs from its digest is refused.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vapo_fast.core.tensor_file import KEY, CheckpointError, check_digest, opened, write
from vapo_fast.homotopy import homotopy_from_config
from vapo_fast.potentials import POTENTIALS, GaussianMixturePotential, ModulePotential, Potential, potential_from_config

FORMAT_VERSION = 1
_DESCRIBED = {"format_version", "kind", "model", "notes", "training"}
_STEP_FILE = re.compile(r"step-(\d{8,})\.safetensors")
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")

__all__ = [
    "CheckpointError",
    "CheckpointInfo",
    "describe",
    "load",
    "load_training",
    "resolve",
    "save",
    "save_training",
    "step_path",
    "step_paths",
]

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class CheckpointInfo:
    """The description of a checkpoint, read without its tensors.

    Attributes:
        path: the file. kind: "model" or "training". format_version: of the file's layout.
        model: the potential's ``config()``. parameters: number of values in the potential's tensors, buffers included.
        training: step, start of the fit and options for a training file, else None.
        notes: the ``notes`` that were saved with it.
    """

    path: Path
    kind: str
    format_version: int
    model: dict[str, Any]
    parameters: int
    training: dict[str, Any] | None
    notes: dict[str, Any]


def save(model: Potential, path: PathLike, *, notes: Mapping[str, Any] | None = None) -> None:
    """Write a potential to one safetensors file, atomically.

    Args:
        model: any `Potential`. One made by ``from_module`` is saved without its code: `load` then needs the module
            again.
        path: the file to write. Missing folders are made. An older file is replaced once the new one is complete.
        notes: JSON values to keep with it, for example the name of the data set.
    Raises: TypeError for another object or notes that are not JSON; CheckpointError if the file cannot be written.
    """
    if not isinstance(model, Potential):
        raise TypeError(f"model must be a Potential, got {type(model).__name__}")
    write(Path(path), _module_tensors("model.", model), _description(_header("model", model, notes)))


def load(path: PathLike, module: nn.Module | None = None, *, device: str | torch.device = "cpu") -> Potential:
    """Read a potential back, with its weights' dtype; from a training file, the averaged (EMA) one.

    Args:
        path: the file.
        module: for a potential that was made by ``Potential.from_module``: a module of the same architecture. For a
            potential of a class of your own, or with layers that you replaced: a potential built in the same way,
            whose weights are overwritten, and which is returned.
        device: where to put the potential.
    Raises: CheckpointError if the file is missing, damaged (its digest differs), foreign, from a newer version, or does
    not fit the module.
    """
    path = Path(path)
    info, tensors = _read(path)
    model = _rebuild(info, module, tensors)
    _fill(path, {"ema." if info.kind == "training" else "model.": model}, tensors, cast=True)
    return model.to(device).eval()


def describe(path: PathLike) -> CheckpointInfo:
    """Read a checkpoint's description, without its tensors; CheckpointError as for `load`."""
    path = Path(path)
    with opened(path) as handle:
        header = _parse(path, handle.metadata())
        prefix = "ema." if header["kind"] == "training" else "model."
        names = [name for name in handle.keys() if name.startswith(prefix)]  # noqa: SIM118 (not a mapping)
        sizes = (torch.Size(handle.get_slice(name).get_shape()).numel() for name in names)
        return _info(path, header, sum(sizes))


def save_training(
    path: PathLike,
    model: Potential,
    ema_model: Potential,
    optimizer: torch.optim.Optimizer,
    training: Mapping[str, Any],
) -> None:
    """Write the whole state of a training run to one file, atomically.

    ``training`` holds JSON values to read back with it. Errors as for `save`.
    """
    tensors = _module_tensors("model.", model) | _module_tensors("ema.", ema_model)
    for name, parameter in _optimised(model, optimizer).items():
        state = optimizer.state.get(parameter, {})
        tensors |= {f"optimizer.{name}.{key}": state[key] for key in _MOMENTS if key in state}
    header = _header("training", model, None)
    header["training"] = dict(training)
    write(Path(path), tensors, _description(header))


def load_training(
    path: PathLike, model: Potential, ema_model: Potential, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Restore what `save_training` wrote, in place, and return its ``training`` values.

    All checks come before any change, so a file that does not fit leaves the run as it was.

    Raises: CheckpointError as for `load`, or if the file holds a model only.
    """
    path = Path(path)
    info, tensors = _read(path)
    if info.training is None:
        raise CheckpointError(
            f"{path} holds a model without its optimiser: a run can be resumed from a training checkpoint only"
        )
    _check_config(info, model, "the trainer's")
    moments: dict[nn.Parameter, dict[str, Tensor]] = {}
    for name, parameter in _optimised(model, optimizer).items():
        state = {key: tensors.pop(f"optimizer.{name}.{key}", None) for key in _MOMENTS}
        kept = {key: value for key, value in state.items() if value is not None}
        if kept and (len(kept) < len(_MOMENTS) or any(kept[key].shape != parameter.shape for key in _MOMENTS[1:])):
            raise CheckpointError(
                f"{path} does not fit: the optimiser's state of {name!r} is incomplete or of another shape"
            )
        if kept:
            moments[parameter] = kept
    _fill(path, {"model.": model, "ema.": ema_model}, tensors, cast=False)
    fused = bool(optimizer.defaults.get("fused"))
    optimizer.state.clear()
    for parameter, kept in moments.items():
        # The averages take the parameter's memory layout, as they had it when they were made.
        averages = {key: torch.empty_like(parameter).copy_(kept[key]) for key in _MOMENTS[1:]}
        optimizer.state[parameter] = {"step": kept["step"].to(parameter.device) if fused else kept["step"], **averages}
    return info.training


def step_path(directory: PathLike, step: int) -> Path:
    """Where the training file of a step goes."""
    return Path(directory) / f"step-{step:08d}.safetensors"


def step_paths(directory: PathLike) -> list[Path]:
    """The complete training files of a directory, oldest step first."""
    try:
        found = [
            (int(match[1]), path) for path in Path(directory).iterdir() if (match := _STEP_FILE.fullmatch(path.name))
        ]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [path for _, path in sorted(found)]


def resolve(path: PathLike) -> Path:
    """``path``, or if it is a directory its training file with the largest step; CheckpointError if it has none."""
    path = Path(path)
    if not path.is_dir():
        return path
    found = step_paths(path)
    if not found:
        raise CheckpointError(f"{path} is a directory without training checkpoints (step-NNNNNNNN.safetensors)")
    return found[-1]


def _header(kind: str, model: Potential, notes: Mapping[str, Any] | None) -> dict[str, Any]:
    kept = _json(dict(notes or {}), "notes")
    return {"format_version": FORMAT_VERSION, "kind": kind, "model": model.config(), "notes": kept}


def _description(header: dict[str, Any]) -> dict[str, Any]:
    return dict(_json(header, "the checkpoint's description"))


def _json(value: object, name: str) -> Any:
    """``value`` as it comes back from JSON."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} must be made of JSON values (numbers, text, lists, dicts), got {value!r}: {error}"
        ) from error


def _module_tensors(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """The module's state by name; TypeError for what is not a tensor."""
    state = module.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name!r} of {type(module).__name__} is not a tensor ({type(value).__name__}) and cannot be saved"
            )
    return {prefix + name: value for name, value in state.items()}


def _parse(path: Path, metadata: dict[str, str] | None) -> dict[str, Any]:
    if not metadata or KEY not in metadata:
        raise CheckpointError(f"{path} is a safetensors file, but not a vapo_fast checkpoint")
    try:
        header = json.loads(metadata[KEY])
        version = int(header["format_version"])
        if version > FORMAT_VERSION:
            raise CheckpointError(
                f"{path} has checkpoint format {version}, written by a newer vapo_fast; this one reads up to "
                f"{FORMAT_VERSION}: update it"
            )
        complete = header["kind"] in ("model", "training") and {"model", "notes"} <= header.keys()
        complete = complete and (header["kind"] == "model" or isinstance(header["training"], dict))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"the description in {path} is damaged: {type(error).__name__}: {error}") from error
    if not complete:
        raise CheckpointError(f"the description in {path} is damaged: its kind is {header['kind']!r}")
    return header  # type: ignore[no-any-return]


def _info(path: Path, header: dict[str, Any], parameters: int) -> CheckpointInfo:
    return CheckpointInfo(
        path,
        header["kind"],
        header["format_version"],
        header["model"],
        parameters,
        header.get("training"),
        header["notes"],
    )


def _read(path: Path) -> tuple[CheckpointInfo, dict[str, Tensor]]:
    with opened(path) as handle:
        metadata = handle.metadata()
        header = _parse(path, metadata)
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a mapping)
    check_digest(path, header, _DESCRIBED, tensors)
    return _info(path, header, sum(value.numel() for value in tensors.values())), tensors


def _rebuild(info: CheckpointInfo, module: nn.Module | None, tensors: Mapping[str, Tensor]) -> Potential:
    config = info.model
    if isinstance(module, Potential):
        _check_config(info, module, "the one given")
        return module
    wrapped = config.get("class") == ModulePotential.__name__
    if wrapped and module is None:
        raise CheckpointError(
            f"{info.path} holds a potential made by Potential.from_module, whose code is not stored: pass module=..., "
            "a module of the same architecture"
        )
    if not wrapped and module is not None:
        raise CheckpointError(
            f"{info.path} holds a {config.get('class')}, which is rebuilt from the file: leave out module, or pass "
            "a potential of that class"
        )
    try:
        if module is None:
            _check_sizes(info, tensors)
            return potential_from_config(config)
        homotopy = homotopy_from_config(config["homotopy"])
        return Potential.from_module(module, config["event_shape"], homotopy, config["time_dependent"])
    except CheckpointError:
        raise
    except (ValueError, TypeError, KeyError) as error:
        own = module is None and config.get("class") not in POTENTIALS
        way_out = "; for a class of your own, pass module=, a potential built in the same way" if own else ""
        raise CheckpointError(f"the potential in {info.path} cannot be rebuilt: {error}{way_out}") from error


def _check_config(info: CheckpointInfo, model: Potential, whose: str) -> None:
    """CheckpointError naming every setting in which the file's potential differs from ``model``."""
    config = _json(model.config(), "model.config()")
    if info.model != config:
        names = [name for name in info.model | config if info.model.get(name) != config.get(name)]
        listed = "; ".join(f"{name} is {info.model.get(name)!r} there and {config.get(name)!r} here" for name in names)
        raise CheckpointError(f"{info.path} is of another potential than {whose}: {listed}")


def _check_sizes(info: CheckpointInfo, tensors: Mapping[str, Tensor]) -> None:
    """CheckpointError if the potential that the file describes is not that of its tensors, before memory is taken.

    Every size in a description, such as a width, stands for at least as many values in the file.
    """
    values = sum(value.numel() for value in tensors.values())
    largest = max(_integers(info.model), default=0)
    if largest > max(values, math.prod(info.model.get("event_shape", ()))):
        raise CheckpointError(f"the description in {info.path} has a size of {largest}, and the file {values} values")
    if info.model.get("class") == GaussianMixturePotential.__name__:
        return  # its description holds the values themselves
    with torch.device("meta"):
        model = potential_from_config(info.model)
    prefix = "ema." if info.kind == "training" else "model."
    _raise_for(info.path, _unlike(prefix, model, tensors, cast=True))


def _integers(value: object) -> Iterator[int]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _integers(part)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield value


@torch.no_grad()
def _fill(path: Path, modules: dict[str, nn.Module], tensors: dict[str, Tensor], cast: bool) -> None:
    """Copy tensors into modules by prefix, after checking all names, shapes and dtypes of all of them.

    ``cast`` gives the module the file's dtypes; without it a difference of dtype is an error.
    """
    for prefix, module in modules.items():
        _raise_for(path, _unlike(prefix, module, tensors, cast))
    for module in modules.values() if cast else ():
        dtypes = {value.dtype for value in tensors.values() if value.is_floating_point()}
        if len(dtypes) == 1:
            module.to(dtypes.pop())
    for prefix, module in modules.items():
        for name, own in module.state_dict().items():
            own.copy_(tensors[prefix + name])


def _unlike(prefix: str, module: nn.Module, tensors: Mapping[str, Tensor], cast: bool) -> list[str]:
    """In what the module's state and the tensors with this prefix differ, but for their values.

    ``cast`` allows any floating-point dtypes. Names that share memory in the module must have one value in the file.
    """
    state = module.state_dict()
    stored = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    problems = [f"{name!r} is missing" for name in state.keys() - stored.keys()]
    problems += [f"{name!r} is not in the model" for name in stored.keys() - state.keys()]
    shared: dict[tuple[int, int], str] = {}
    for name in sorted(state.keys() & stored.keys()):
        own, value = state[name], stored[name]
        floats = own.is_floating_point() and value.is_floating_point()
        if own.shape != value.shape:
            problems.append(f"{name!r} has shape {tuple(value.shape)}, the model has {tuple(own.shape)}")
        elif own.dtype != value.dtype and not (cast and floats):
            problems.append(f"{name!r} has dtype {value.dtype}, the model has {own.dtype}")
        elif not own.is_meta and own.numel():
            other = shared.setdefault((own.data_ptr(), own.numel()), name)
            # By bytes: numbers that are NaN equal nothing, themselves included.
            if other != name and not torch.equal(*(stored[n].reshape(-1).view(torch.uint8) for n in (other, name))):
                problems.append(f"{name!r} and {other!r} are one tensor in the model and two in the file")
    return problems


def _raise_for(path: Path, problems: list[str]) -> None:
    if problems:
        listed = "; ".join(sorted(problems)[:4]) + (f"; and {len(problems) - 4} more" if len(problems) > 4 else "")
        raise CheckpointError(f"{path} does not fit the model's architecture: {listed}")


def _optimised(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return {name: p for name, p in model.named_parameters() if id(p) in owned}
