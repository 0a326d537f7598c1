"""What commands say and write: notes, errors and exit codes, files that appear whole, and checks of where they go."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import typer
from torch import Tensor

from vapo_fast import plots
from vapo_fast.cli.config import ConfigError
from vapo_fast.core import processes
from vapo_fast.engines import UnsupportedJobError
from vapo_fast.training.optimizer import NonFiniteLossError
from vapo_fast.training.run import TrainingInterrupted

FAILED, USAGE, INTERRUPTED = 1, 2, 130
FIGURES = (".png", ".pdf", ".svg")
ARRAY_OR_PICTURE = (".npy", ".png")


def shows_progress(progress: bool | None) -> bool:
    """Whether to show a progress bar: by default on a terminal."""
    return sys.stderr.isatty() if progress is None else progress


def tell(text: str) -> None:
    """What one of several processes says for all."""
    if processes.process_number() == 0:
        note(text)


def note(text: str) -> None:
    """A line on standard error, with the number of any process but the first."""
    number = processes.process_number()
    typer.echo(text if number == 0 else f"process {number}: {text}", err=True)


@contextlib.contextmanager
def usage() -> Iterator[None]:
    """What is wrong inside is the user's input: errors leave with the code for usage."""
    try:
        yield
    except (ValueError, TypeError, IndexError, FileNotFoundError, ImportError) as error:
        raise _UsageError(str(error)) from error


class _UsageError(Exception):
    pass


# Errors whose message says all that a user needs; others are told with their class.
_EXPECTED = (
    _UsageError,
    ValueError,
    TypeError,
    OSError,
    ImportError,
    RuntimeError,
    MemoryError,
    NonFiniteLossError,
)


def _is_usage(error: Exception) -> bool:
    """Whether the user's input is at fault: the library raises plain ValueError and TypeError for arguments only."""
    return isinstance(error, (_UsageError, ConfigError, UnsupportedJobError)) or type(error) in (ValueError, TypeError)


@contextlib.contextmanager
def reporting(debug: bool) -> Iterator[None]:
    """Turn errors and warnings into one clear line each, and errors into exit codes."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *arguments, **options: note(f"warning: {message}")
        try:
            yield
        except TrainingInterrupted as error:
            tell(str(error))
            raise typer.Exit(128 + error.signal) from None
        except KeyboardInterrupt:
            tell("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if debug:
                traceback.print_exc()
            # A message of several lines (a compiler's, say) is told in one; --debug shows it as it is.
            text = " ".join(str(error).split()) or type(error).__name__
            expected = isinstance(error, _EXPECTED)
            # Of several processes all find the same step not finite.
            say = tell if isinstance(error, NonFiniteLossError) else note
            say(f"error: {text}" if expected else f"error: {type(error).__name__}: {text} (--debug shows where)")
            raise typer.Exit(USAGE if _is_usage(error) else FAILED) from None


def check_ending(option: str, path: Path | None, endings: tuple[str, ...]) -> None:
    """ConfigError if a file to write has a name that says nothing that can be written."""
    if path is not None and path.suffix.lower() not in endings:
        raise ConfigError(f"{option} must end in {' or '.join(endings)}, got {str(path)!r}")


def check_writable(option: str, path: Path | None) -> None:
    """Before the work, not after it: an error if ``path`` cannot be written, or drawn. Makes its folder."""
    if path is None:
        return
    if path.suffix.lower() in (*FIGURES, ".gif"):
        with usage():
            plots.require()
    if path.is_dir():
        raise ConfigError(f"{option} must be a file, and {path} is a folder")
    try:
        make_folder(path.parent, option)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ConfigError(
            f"{option}: nothing can be written to {path.parent} ({error.strerror}); name another"
        ) from None


def make_folder(folder: Path, option: str = "--out") -> None:
    """Make a folder to write to; ConfigError if something else is in the way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"{option}: {folder} cannot be made, a file is in the way; name another") from None


def at_least(least: int, **given: int | None) -> None:
    """ConfigError for the first option that was given as a smaller number."""
    for name, value in given.items():
        if value is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')} must be {least} or more, got {value}")


def numbers(option: str, text: str | None) -> list[float] | None:
    """The numbers of a list such as 0.5,0.5; ConfigError for anything else."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} must be numbers with commas between them, such as 0.5,0.5, got {text!r}") from None


def write_npy(path: Path, x: Tensor) -> None:
    """Write a tensor as .npy, whole or not at all."""
    with _replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, x.cpu().numpy(), allow_pickle=False)


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8, whole or not at all."""
    with _replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary file that takes the place of ``path`` once it is complete."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
