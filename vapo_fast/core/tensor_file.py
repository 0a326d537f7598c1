"""Files of tensors and a description: written atomically, with a digest that shows damage."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import socket
import threading
import warnings
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

KEY = "vapo_fast"
"""Under which the description stands in the file's metadata: JSON, with the digest under a name of its own."""
# One entry of metadata, since their order in a file would be random, and equal runs write equal files.
_DIGEST = "sha256"


class CheckpointError(ValueError):
    """A checkpoint could not be written or read; the message names the file, what is wrong and what is still intact."""


def write(path: Path, tensors: Mapping[str, Tensor], description: dict[str, Any]) -> None:
    """Write tensors and their description, and a digest of both, to one file, atomically.

    Raises: CheckpointError if the file cannot be written; an older file of that name is then intact.
    """
    kept = dict(_unshared(tensors))
    metadata = {KEY: json.dumps({**description, _DIGEST: _digest(json.dumps(description), kept)})}
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a directory; give the name of the file to write, such as {path / 'model.safetensors'}"
        )
    if path.parent.exists() and not path.parent.is_dir():
        raise CheckpointError(f"could not write {path}: {path.parent} is a file, not a folder")
    # A name for each writer, since two may write to one target at the same time.
    host = re.sub(r"[^\w-]", "_", socket.gethostname())
    temporary = path.with_name(f".{path.name}.{host}-{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path, host)
        # The format's writer makes files that their owner alone can read; this one has the rights that the system
        # gives to new files.
        with temporary.open("wb") as handle:
            mode = os.fstat(handle.fileno()).st_mode & 0o777
        save_file(kept, temporary, metadata)
        temporary.chmod(mode)
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
        _sync_directory(path.parent)
    except (OSError, SafetensorError) as error:
        try:
            temporary.unlink(missing_ok=True)
        except OSError as left:
            error.add_note(f"{temporary} could not be removed: {left}")
        intact = "the older file of that name is intact" if path.exists() else "no file of that name was left behind"
        raise CheckpointError(f"could not write {path}: {error}; {intact}") from error


def opened(path: Path) -> Any:
    """The file as `safetensors.safe_open` gives it; CheckpointError if it is missing or of another format."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory; give a checkpoint file in it")
    if not path.exists():
        raise CheckpointError(f"there is no checkpoint at {path}")
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read as safetensors: it is truncated or of another format ({error})"
        ) from error


def check_digest(path: Path, description: dict[str, Any], names: Set[str], tensors: Mapping[str, Tensor]) -> None:
    """CheckpointError unless tensors and description are those that were written.

    A file of a version without digests, whose description has ``names`` alone, is read with a warning.
    """
    written = {name: value for name, value in description.items() if name != _DIGEST}
    if written.keys() == description.keys() and written.keys() <= names:
        warnings.warn(f"{path} was written without a digest: damage to it would not be noticed", stacklevel=4)
    elif description.get(_DIGEST) != _digest(json.dumps(written), tensors):
        raise CheckpointError(
            f"{path} is damaged: its contents differ from the digest that was stored with them; take another copy"
        )


def _unshared(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Contiguous copies on the CPU without shared memory, which the format does not store."""
    seen: set[int] = set()
    for name, value in tensors.items():
        value = value.detach().contiguous().cpu()
        storage = value.untyped_storage()
        if storage.nbytes() != value.nbytes or storage.data_ptr() in seen:
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        yield name, value


def _digest(description: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the description and of every tensor's name, dtype, shape and bytes, as hexadecimal digits."""
    digest = hashlib.sha256(description.encode())
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _remove_abandoned(path: Path, host: str) -> None:
    """Remove what writers of this target left behind that were killed on this host."""
    path.with_name(f".{path.name}.tmp").unlink(missing_ok=True)  # an earlier version's
    if os.name != "posix":
        return  # signal 0, which only asks elsewhere, is Ctrl-C on Windows
    for left in path.parent.glob(f".{glob.escape(path.name)}.{host}-*.tmp"):
        owner = left.name.removesuffix(".tmp").rsplit("-", 2)[-2]
        if not owner.isdigit() or int(owner) == os.getpid():
            continue
        try:
            os.kill(int(owner), 0)
        except ProcessLookupError:
            left.unlink(missing_ok=True)
        except OSError:
            pass  # it runs, as another user's


def _sync_directory(directory: Path) -> None:
    """Make the rename durable, where the system lets a directory be opened (POSIX)."""
    if os.name != "posix":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
