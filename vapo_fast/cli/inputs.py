"""What commands read: runs and their settings, models, events, samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vapo_fast import checkpoint, data, distributed, noise
from vapo_fast.cli import config
from vapo_fast.cli.config import ConfigError
from vapo_fast.ode import Solution
from vapo_fast.potentials.base import Potential

RESOLVED = "resolved.yaml"
LOG = "training.csv"


def settings_of_run(folder: Path) -> dict[str, Any]:
    """The settings of the run in a folder. ConfigError if there is none."""
    if not (folder / RESOLVED).is_file():
        raise ConfigError(f"there is no run to resume in {folder}: it has no {RESOLVED}")
    return config.read_file(folder / RESOLVED)


def settings_beside(path: Path) -> dict[str, Any]:
    """The settings of the run that ``path`` belongs to, or nothing."""
    folder = path if path.is_dir() else path.parent
    return config.read_file(folder / RESOLVED) if (folder / RESOLVED).is_file() else {}


def load_model(path: Path, device: torch.device) -> Potential:
    """The model in a checkpoint; of a run, the averaged model or its newest checkpoint. Errors as `checkpoint.load`."""
    if path.is_dir() and (path / "model.safetensors").is_file():
        path = path / "model.safetensors"
    return checkpoint.load(checkpoint.resolve(path), device=device)


def like_model(model: Potential) -> Tensor:
    """A tensor of the dtype and on the device that the model computes with."""
    reference = model.reference_tensor()
    return torch.zeros(()) if reference is None else reference


def solve(model: Potential, n: int, **options: Any) -> Solution:
    """`vapo_fast.distributed.sample` with its Solution."""
    solution = distributed.sample(model, n, return_solution=True, **options)
    if not isinstance(solution, Solution):
        raise TypeError(f"sample returned {type(solution).__name__} although a Solution was asked for")
    return solution


def at_most(events: data.Dataset, n: int) -> data.Dataset:
    """The first ``n`` of a shuffle: files are often in the order of their classes."""
    return events if len(events) <= n else data.Subset(events, noise.permutation(0, len(events), 0)[:n])


def known_events(
    model_path: Path, model: Potential, name: str | None, root: str | None, split: str = "test"
) -> data.Dataset:
    """A split of the data that a run was trained on, of its classes only, or of the data set called ``name``."""
    known = settings_beside(model_path)
    of_run = name in (None, known.get("data"))
    name = name or known.get("data")
    if not name:
        raise ConfigError("the data's name is needed: there is no resolved.yaml beside the model")
    size = known.get("image_size") if of_run else None
    events = data.load(name, root=root or (known.get("root") if of_run else None), split=split, image_size=size)
    if of_run and known.get("classes"):
        events = data.of_classes(events, known["classes"])
    if events.event_shape != model.event_shape:
        raise ConfigError(f"{name} has events of shape {events.event_shape}, and the model of {model.event_shape}")
    return events


def read_npy(path: Path) -> Tensor:
    """Samples (n, *event) in float32. ConfigError if the file does not hold such."""
    try:
        with path.open("rb") as file:
            # numpy takes any other file for a pickle, and says how to load it unsafely.
            if file.read(6) != b"\x93NUMPY":
                raise ConfigError(f"{path} cannot be read as .npy: it does not begin as such a file does")
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise ConfigError(f"there are no samples at {path}") from None
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as .npy: {error}") from error
    if array.dtype.kind != "f" or array.ndim < 2:
        raise ConfigError(f"{path} must hold floating-point samples (n, *event), got {array.dtype} {array.shape}")
    return torch.from_numpy(array.astype(np.float32))
