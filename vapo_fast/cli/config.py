"""The settings of a training run: one dataclass, filled by the command line's flags, a YAML or JSON file, or code."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import yaml

from vapo_fast import noise
from vapo_fast.core import processes
from vapo_fast.data import Dataset, Mirrored, Subset, load, of_classes
from vapo_fast.homotopy import DataHomotopy, Homotopy, LinearHomotopy
from vapo_fast.potentials import MLPPotential, Potential, UNetPotential, WideResNetPotential
from vapo_fast.training.options import EngineOptions, TrainingOptions, plain_types

# A data set of at most this many bytes is read into memory before training; a larger one is streamed.
_IN_MEMORY = 1 << 30
_SCALE_ROWS = 4096

Class = TypeVar("Class")


class ConfigError(ValueError):
    """Settings that cannot be used; the message names the key, its value and what would be right."""


def _setting(default: Any, panel: str, text: str) -> Any:
    metadata = {"panel": panel, "help": text}
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def with_training_options(options: type[TrainingOptions]) -> Callable[[type[Class]], type[Class]]:
    """Decorator of a class that becomes a dataclass: it adds the options, each at the end of its panel."""

    def add(cls: type[Class]) -> type[Class]:
        kinds = dict(cls.__annotations__) | plain_types(options)
        for option in dataclasses.fields(options):
            if option.name in kinds:
                setattr(cls, option.name, _setting(option.default, option.metadata["panel"], option.metadata["help"]))
        panels = {name: getattr(cls, name).metadata["panel"] for name in kinds}
        order = list(dict.fromkeys(panels.values()))
        cls.__annotations__ = {name: kinds[name] for name in sorted(kinds, key=lambda name: order.index(panels[name]))}
        return cls

    return add


@dataclass
@with_training_options(EngineOptions)
class TrainConfig:
    """Everything that decides a training run. A file's keys are these names; flags write ``-`` for ``_``.

    The options of `vapo_fast.training.options.EngineOptions` are settings too.
    """

    data: str = _setting("", "Data", "Name known to vapo_fast.data.load, image folder, .npy, .npz or idx file.")
    root: str | None = _setting(None, "Data", "Folder with the files of a named image set.")
    image_size: int | None = _setting(None, "Data", "Resize images to squares of this side.")
    n: int | None = _setting(None, "Data", "Use only this many events.")
    classes: list[int] | None = _setting(None, "Data", "Use only these classes of labelled data, such as 0,1,2.")
    mirror: bool = _setting(False, "Data", "Add the left-right mirror image of every image.")

    homotopy: str = _setting("data", "Path", "data (VAPO) or linear (VPFB).")
    omega: float = _setting(1.0, "Path", "Standard deviation of the prior.")
    sigma: float = _setting(0.01, "Path", "Of the data homotopy: standard deviation of the likelihood.")
    t1: float = _setting(0.99, "Path", "Of the linear path: its end, below 1.")

    model: str | None = _setting(None, "Model", "mlp, wide-resnet or unet; by default mlp for points, unet for images.")
    time_dependent: bool = _setting(True, "Model", "Phi(x, t) or, turned off, Phi(x), which is only approximate.")
    data_scale: float | None = _setting(None, "Model", "Root-mean-square of the data; by default measured.")
    widths: list[int] = _setting([128, 128, 128], "Model", "Of mlp: sizes of the hidden layers, such as 128,128,128.")
    activation: str = _setting("silu", "Model", "Of mlp: silu, softplus or tanh.")
    fourier_features: int | None = _setting(
        None, "Model", "Of mlp: random Fourier features of the input; by default 64 if time-independent, else 0."
    )
    fourier_scale: float = _setting(1.0, "Model", "Of mlp: standard deviation of their frequencies.")
    channels: int = _setting(64, "Model", "Of wide-resnet and unet: channels at full resolution.")
    multipliers: list[float] = _setting(
        [1, 2, 2], "Model", "Of wide-resnet and unet: channels of each level, such as 1,2,2."
    )
    blocks: int = _setting(2, "Model", "Of wide-resnet and unet: residual blocks a level.")
    patch_size: int = _setting(1, "Model", "Of wide-resnet and unet: side of the patches that become channels.")

    steps: int | None = _setting(None, "Training", "Optimiser steps; 5000 if minutes is not given either.")
    minutes: float | None = _setting(
        None, "Training", "Instead of steps: as many as fit this time, from a short trial."
    )

    device: str = _setting("auto", "Machine", "auto (CUDA if there is one), cpu, cuda, cuda:1, ...")

    out: str | None = _setting(
        None, "Output", "Folder for checkpoints, log, pictures and resolved.yaml; runs/DATA by default."
    )
    checkpoint_every: int = _setting(1000, "Output", "Steps between checkpoints.")
    sample_every: int | None = _setting(
        None, "Output", "Steps between pictures of samples; a tenth of the run by default, 0: none."
    )
    tensorboard: bool = _setting(False, "Output", "Also write TensorBoard logs.")

    if TYPE_CHECKING:  # the training options

        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...


FIELDS: dict[str, dataclasses.Field[Any]] = {field.name: field for field in dataclasses.fields(TrainConfig)}
TYPES: dict[str, Any] = typing.get_type_hints(TrainConfig)


def read_file(path: Path) -> dict[str, Any]:
    """The settings in a .yaml, .yml or .json file, checked. ConfigError if it cannot be read or holds unknown keys."""
    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        raise ConfigError(f"a configuration file must end in .yaml, .yml or .json, got {str(path)!r}")
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file at {path}") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold keys and values, such as 'lr: 0.001', got {type(values).__name__}")
    return check(values, str(path))


def check(values: Mapping[Any, Any], origin: str) -> dict[str, Any]:
    """``values`` with each one converted to its setting's type; ConfigError names unknown keys and near ones."""
    checked = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in FIELDS:
            near = difflib.get_close_matches(name, FIELDS, n=3, cutoff=0.6)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known keys: {', '.join(FIELDS)}"
            raise ConfigError(f"{origin}: unknown key {str(key)!r}; {hint}")
        try:
            checked[name] = _convert(value, TYPES[name])
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{origin}: {name} must be {_spoken(TYPES[name])}, got {value!r}") from error
    return checked


def merge(*layers: Mapping[str, Any]) -> TrainConfig:
    """Settings from the defaults and then each layer, later ones first in rank. ConfigError if they contradict."""
    values: dict[str, Any] = {}
    for layer in layers:
        # A budget given later replaces one given earlier, of whichever kind.
        if "steps" in layer or "minutes" in layer:
            values.pop("steps", None)
            values.pop("minutes", None)
        values |= layer
    config = TrainConfig(**values)
    if not config.data:
        raise ConfigError("data is needed: the name of a data set or the path of a file or folder (--data)")
    for name, budget in (("steps", config.steps), ("minutes", config.minutes)):
        if budget is not None and not budget > 0:
            raise ConfigError(f"{name} must be above 0, got {budget!r}")
    if config.steps is not None and config.minutes is not None:
        raise ConfigError(f"give steps or minutes, not both; got steps {config.steps} and minutes {config.minutes}")
    if config.homotopy not in ("data", "linear"):
        raise ConfigError(f"homotopy must be 'data' or 'linear', got {config.homotopy!r}")
    if config.model not in (None, "mlp", "wide-resnet", "unet"):
        raise ConfigError(f"model must be 'mlp', 'wide-resnet' or 'unet', got {config.model!r}")
    if config.steps is None and config.minutes is None:
        config.steps = 5000
    if config.out is None:
        config.out = str(Path("runs") / Path(config.data).stem)
    return config


def build_data(config: TrainConfig, split: str = "train") -> Dataset:
    """The data set that a configuration names. Errors as `vapo_fast.data.load`."""
    n = config.n if config.classes is None else None
    data = load(config.data, root=config.root, split=split, image_size=config.image_size, n=n)
    if config.classes is not None:
        data = of_classes(data, config.classes)
        if config.n is not None:
            if config.n > len(data):
                raise ConfigError(
                    f"n must be at most {len(data)}, the events of classes {config.classes}, got {config.n}"
                )
            data = Subset(data, noise.permutation(0, len(data), 0)[: config.n])
    return Mirrored(data) if config.mirror and split == "train" else data


def training_data(data: Dataset) -> Dataset | torch.Tensor:
    """``data`` as one tensor if it is small enough to be held, else as it is."""
    size = 4 * len(data) * torch.Size(data.event_shape).numel()
    return data.tensor() if size <= _IN_MEMORY else data


def build_homotopy(config: TrainConfig) -> Homotopy:
    """The path that a configuration describes."""
    if config.homotopy == "data":
        return DataHomotopy(config.omega, config.sigma)
    return LinearHomotopy(config.omega, config.t1)


def build_model(config: TrainConfig, data: Dataset) -> Potential:
    """The untrained potential for ``data``; fills in the configuration's ``model`` and ``data_scale`` if None.

    Initial weights depend on the seed only. Raises: ValueError or TypeError naming the argument.
    """
    if config.model is None:
        config.model = "unet" if len(data.event_shape) == 3 else "mlp"
    if config.data_scale is None:
        rows = noise.permutation(config.seed, len(data), 0)[:_SCALE_ROWS]
        # Three digits say all that a scale within a factor of 2 needs, and read well in resolved.yaml.
        config.data_scale = float(f"{data.batch(rows).square().mean().sqrt().item():.3g}")
    homotopy = build_homotopy(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.model == "mlp":
            return MLPPotential(
                data.event_shape,
                homotopy,
                config.widths,
                config.time_dependent,
                activation=config.activation,
                fourier_features=config.fourier_features,
                fourier_scale=config.fourier_scale,
                data_scale=config.data_scale,
            )
        network = UNetPotential if config.model == "unet" else WideResNetPotential
        return network(
            data.event_shape,
            homotopy,
            config.channels,
            config.multipliers,
            config.blocks,
            config.time_dependent,
            patch_size=config.patch_size,
            data_scale=config.data_scale,
        )


def trainer_options(config: TrainConfig) -> dict[str, Any]:
    """The keyword arguments of `vapo_fast.Trainer`."""
    return {name: getattr(config, name) for name in plain_types(EngineOptions)}


def build_device(name: str) -> torch.device:
    """The device called ``name``; "auto" is CUDA if there is one, else the CPU. ConfigError if it is not there.

    Of several processes that a launcher has started on one machine, each has a GPU of its own.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if processes.launched() and name.startswith("cuda"):
        if ":" in name and os.environ.get("LOCAL_WORLD_SIZE", "1") != "1":
            raise ConfigError(f"device {name!r} would put every process on one GPU; 'cuda' gives each its own")
        name = name if ":" in name else f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def as_yaml(config: TrainConfig) -> str:
    """A configuration as the text of a file that gives it again."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)


def _convert(value: Any, kind: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _convert(value, next(a for a in arguments if a is not type(None)))
    if origin is list:
        if isinstance(value, str):
            value = [part for part in value.split(",") if part.strip()]
        if not isinstance(value, list | tuple) or not value:
            raise TypeError
        return [_convert(part, arguments[0]) for part in value]
    if kind is bool:
        if not isinstance(value, bool):
            raise TypeError
        return value
    if isinstance(value, bool) or value is None:
        raise TypeError
    if kind is int:
        number = int(value) if isinstance(value, str) else value
        if not isinstance(number, int):
            raise TypeError
        return number
    if kind is float:
        # YAML 1.1 reads 1e-3, without a point, as text.
        return float(value)
    if not isinstance(value, str):
        raise TypeError
    return value


def _spoken(kind: Any) -> str:
    words = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return f"a list such as {'[1, 2, 2]' if arguments[0] is float else '[128, 128]'}"
    if arguments:
        return " or ".join(_spoken(a) if a is not type(None) else "null" for a in arguments)
    return words[kind]
