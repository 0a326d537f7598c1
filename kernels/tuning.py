"""Which tile a network gets: the fastest of a measurement, made only when asked for, else one by rule.

`tune` times every candidate on the device at hand and remembers the fastest in a file, ``tiles.json`` under
``$VAPO_FAST_CACHE`` (default ``~/.cache/vapo_fast``), where `tile_for` finds it from then on.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from itertools import product
from pathlib import Path

import torch
import triton

from .launch import on
from .shapes import PRECISIONS, Tile

Network = tuple[int, tuple[int, ...], int]
"""What a choice depends on beside device and precision: (D, widths, Fourier features)."""

INTERPRETED = Tile(64, 64, 64, 64, "ieee", 4, 1)
"""For Triton's interpreter, whose time goes by the number of operations and not by their size."""

# More coordinates at a time are more values in registers in what is done between the products: a solve of 64 dimensions
# by 64 has 936 bytes of stack and twice the instructions.
_BLOCK_D = 16
# Networks from this width on have the columns for a large tile, which reads the weights half as often.
_WIDE = 256


def tile_for(network: Network, precision: str, device: torch.device) -> Tile:
    """The tile for a network on a device: remembered or by rule."""
    if device.type != "cuda":
        return _fitted(replace(INTERPRETED, precision="ieee"), network)
    name = torch.cuda.get_device_name(device)
    remembered = _tile_from(_remembered().get(_key(name, network, precision)), precision)
    if remembered is not None:
        return remembered
    return rule(network, precision, torch.cuda.get_device_capability(device))


def rule(network: Network, precision: str, capability: tuple[int, int]) -> Tile:
    """The tile by rule, for a device of this compute capability (from 8.0).

    By what compiles without spills inside the product loops, and with few instructions for a multiply-add there
    (benchmarks/results/offline_tiles.csv; docs/notes/performance.md): no device has been measured. Large tiles are for
    compute capability 9 and 10, whose matrix instructions take four warps together and their operands from shared
    memory.
    """
    if precision == "ieee":
        tile = Tile(64, 128, 32, _BLOCK_D, precision, 8, 2)
    elif capability[0] in (9, 10) and max(network[1]) >= _WIDE:
        tile = Tile(128, 128, 32, _BLOCK_D, precision, 8, 2)
    else:
        tile = Tile(64, 64, 32, _BLOCK_D, precision, 4, 2)
    return _fitted(tile, network)


def candidates(network: Network, precision: str) -> list[Tile]:
    """What `tune` tries."""
    choices = product(((64, 4), (64, 8), (128, 8)), (64, 128), (16, 32), (2, 3))
    tiles = (Tile(rows, n, k, _BLOCK_D, precision, warps, stages) for (rows, warps), n, k, stages in choices)
    return [_fitted(tile, network) for tile in tiles]


def tune(
    network: Network, precision: str, device: torch.device, run: Callable[[Tile], None]
) -> tuple[Tile, dict[Tile, float]]:
    """Time ``run`` with every candidate that compiles, and remember the fastest.

    Args:
        run: launches the work to be timed with a tile.
    Returns: the fastest tile, and milliseconds (medians of 10) of each.
    Raises: RuntimeError if none runs.
    """
    times = {}
    for tile in candidates(network, precision):
        try:
            run(tile)
            torch.cuda.synchronize(device)
        except (triton.CompilationError, triton.runtime.errors.OutOfResources, RuntimeError):
            continue  # too much shared memory or too many registers for this device
        times[tile] = statistics.median(_milliseconds(run, tile, device) for _ in range(10))
    if not times:
        raise RuntimeError(f"no tile runs for the network {network} in {precision} on {device}")
    best = min(times, key=times.__getitem__)
    kept = _remembered()
    kept[_key(torch.cuda.get_device_name(device), network, precision)] = asdict(best)
    path = _file()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Another process may read at any time, and this one may be ended at any time.
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
        file.write(json.dumps(kept, indent=1, sort_keys=True))
    written = Path(file.name)
    try:
        written.replace(path)
    finally:
        written.unlink(missing_ok=True)
    return best, times


def _milliseconds(run: Callable[[Tile], None], tile: Tile, device: torch.device) -> float:
    with on(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run(tile)
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))


def _fitted(tile: Tile, network: Network) -> Tile:
    """No wider a block of coordinates than there are coordinates (and an integral beside them)."""
    return replace(tile, block_d=min(tile.block_d, max(2, triton.next_power_of_2(network[0]))))


def _file() -> Path:
    return Path(os.environ.get("VAPO_FAST_CACHE") or Path.home() / ".cache" / "vapo_fast") / "tiles.json"


def _tile_from(entry: object, precision: str) -> Tile | None:
    """The tile that an entry of the file describes; None if it describes none that kernels can have."""
    names = [field.name for field in fields(Tile)]
    if not isinstance(entry, dict) or sorted(entry) != sorted(names) or entry["precision"] != precision:
        return None
    sizes = [entry[name] for name in names if name != "precision"]
    if any(not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= 1024 for size in sizes):
        return None
    tile = Tile(**entry)
    powers = (tile.rows, tile.block_n, tile.block_k, tile.block_d, tile.warps)
    fits = min(tile.rows, tile.block_n, tile.block_k) >= 16 and tile.block_n % tile.block_k == 0
    return tile if fits and all(size & (size - 1) == 0 for size in powers) else None


def _remembered() -> dict[str, object]:
    path = _file()
    try:
        return dict(_read(path, path.stat().st_mtime_ns))
    except (OSError, ValueError):
        return {}


@functools.lru_cache(maxsize=1)
def _read(path: Path, changed: int) -> dict[str, object]:
    """The file, read again only when it has changed: a choice is made before every job."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    return kept if isinstance(kept, dict) else {}


def _key(device: str, network: Network, precision: str) -> str:
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    dimension, widths, features = network
    return f"{device} | d {dimension} | {'-'.join(map(str, widths))} | {features} features | {precision}"
