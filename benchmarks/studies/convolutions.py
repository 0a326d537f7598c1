"""Single 3x3 convolutions: minimal filtering with either size of tile, against the library's.

    python -m benchmarks convolutions

Times of one shape are interleaved and paired by round; so is what the processor's multiply-adds in registers reach. Of
inputs and weights of unit normal draws, errors are those of all outputs against float64, in units of their root mean
square.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import conformance
from benchmarks.measure import default_cache
from benchmarks.peers.machine import multiply_adds
from benchmarks.provenance import RESULTS, append, commit, last_run, load, now
from benchmarks.spread import Quartiles, paired_ratio, rotated
from vapo_fast.core import extension
from vapo_fast.engines.explicit.winograd import WinogradWeights, winograd_tile

SUMMARY = "3x3 convolutions by minimal filtering against the library's"
CSV = RESULTS / "convolutions.csv"
COLUMNS = (
    "run", "inputs", "outputs", "side", "images", "instruction_set", "arm", "chosen", "median_us", "low_us", "high_us",
    "rounds", "ratio", "ratio_low", "ratio_high", "share", "error_rms", "error_max", "transform_us", "load", "tests",
)  # fmt: skip
LIBRARY = "library"
TILES = (2, 4)
SHAPES = (
    # The U-Net of `benchmarks images`, forward and transposed, then the wide residual network's.
    (48, 48, 14), (144, 48, 14), (48, 144, 14), (48, 96, 7), (96, 48, 7), (96, 96, 7), (192, 96, 7), (96, 192, 7),
    (32, 32, 28), (32, 64, 14), (64, 64, 14), (64, 64, 7),
    # What the choice has to know: few channels, small images, many weights.
    (4, 48, 14), (8, 64, 14), (16, 16, 14), (24, 24, 14), (64, 64, 1), (64, 64, 2), (64, 64, 3), (64, 64, 5),
    (64, 64, 6), (256, 256, 8), (384, 384, 8), (512, 512, 4),
)  # fmt: skip
_PEAK_TURNS = 200


def measure(shape: tuple[int, int, int], images: int, rounds: int, round_seconds: float) -> list[dict[str, object]]:
    """A row for each arm of a convolution."""
    inputs, outputs, side = shape
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.normal_(layer.weight)
    weight = layer.weight.detach().contiguous(memory_format=torch.channels_last)
    x = torch.randn(images, inputs, side, side).contiguous(memory_format=torch.channels_last)
    arms: dict[str, Callable[[], Tensor]] = {LIBRARY: lambda: F.conv2d(x, weight, padding=1)}
    transforms: dict[str, float] = {}
    for tile in TILES:
        make = partial(WinogradWeights().convolution, layer, weight, False, tile)
        arms[_name(tile)] = partial(make(), x)
        transforms[_name(tile)] = _seconds_to_transform(layer, weight, tile, round_seconds)
    chosen = winograd_tile(layer, x)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    scale = exact.square().mean().sqrt()
    repeats = {name: _repeats(call, round_seconds) for name, call in arms.items()}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    beside: list[float] = []
    for i in range(rounds):
        beside.append(_operations_a_second())
        for name in rotated(list(arms), i):
            begin = time.perf_counter()
            for _ in range(repeats[name]):
                arms[name]()
            seconds[name].append((time.perf_counter() - begin) / repeats[name])
    rows: list[dict[str, object]] = []
    for name, call in arms.items():
        spread, ratio = Quartiles.of(seconds[name]), paired_ratio(seconds[LIBRARY], seconds[name])
        error = (call().double() - exact) / scale
        done = 2.0 * images * inputs * outputs * _products(name, side)
        shares = [done / took / peak for took, peak in zip(seconds[name], beside, strict=True)]
        rows.append(
            {
                "inputs": inputs,
                "outputs": outputs,
                "side": side,
                "images": images,
                "instruction_set": extension.chosen_instruction_set(),
                "arm": name,
                "chosen": int(name == (LIBRARY if chosen is None else _name(chosen))),
                "median_us": f"{1e6 * spread.median:.4g}",
                "low_us": f"{1e6 * spread.low:.4g}",
                "high_us": f"{1e6 * spread.high:.4g}",
                "rounds": rounds,
                "ratio": f"{ratio.median:.3g}",
                "ratio_low": f"{ratio.low:.3g}",
                "ratio_high": f"{ratio.high:.3g}",
                "share": f"{Quartiles.of(shares).median:.3g}",
                "error_rms": f"{float(error.square().mean().sqrt()):.2g}",
                "error_max": f"{float(error.abs().max()):.2g}",
                "transform_us": f"{1e6 * transforms[name]:.3g}" if name in transforms else "",
            }
        )
    return rows


def _name(tile: int) -> str:
    return f"tiles of {tile}"


def _products(arm: str, side: int) -> int:
    """Multiplications that an arm makes for an image and a pair of channels."""
    for tile in TILES:
        if arm == _name(tile):
            return (-(-side // tile) * (tile + 2)) ** 2
    return 9 * side**2


def _repeats(call: Callable[[], object], round_seconds: float) -> int:
    call()
    begin = time.perf_counter()
    call()
    return max(1, round(round_seconds / (time.perf_counter() - begin)))


def _seconds_to_transform(layer: nn.Conv2d, weight: Tensor, tile: int, round_seconds: float) -> float:
    def once() -> object:
        return WinogradWeights().convolution(layer, weight, False, tile)

    repeats, took = max(5, min(50, _repeats(once, round_seconds))), []
    for _ in range(repeats):
        begin = time.perf_counter()
        once()
        took.append(time.perf_counter() - begin)
    return Quartiles.of(took).median


def _operations_a_second() -> float:
    begin = time.perf_counter()
    done = multiply_adds(_PEAK_TURNS, torch.get_num_threads())
    return done / (time.perf_counter() - begin)


def run(options: argparse.Namespace) -> int:
    """Measure every shape and append it to the results."""
    reason = extension.unavailable_reason()
    if reason:
        print(f"error: the native extension is missing: {reason}")
        return 1
    torch.set_num_threads(options.threads)
    commit()  # that of the code which is loaded now
    said = conformance.require(options.cache, gate=conformance.PASSES)
    stamp = now()
    with torch.no_grad():
        for shape in SHAPES:
            load = os.getloadavg()[0]
            rows = measure(shape, options.images, options.rounds, options.round_seconds)
            append(options.csv, COLUMNS, [{"run": stamp, **row, "load": f"{load:.2f}", "tests": said} for row in rows])
            print(*(f"{row['arm']}: {row['ratio']}, {row['share']} of the peak;" for row in rows), shape, flush=True)
    return 0


def latest(path: Path = CSV) -> list[dict[str, str]]:
    """Rows of the newest run."""
    return last_run(load(path))


def table(rows: Sequence[dict[str, str]]) -> list[list[str]]:
    """A line for each shape: channels, side, the library's share of the peak, and of either tile speed and error."""
    lines = [["channels", "image", "library, share", "m = 2", "share", "m = 4", "share", "error"]]
    for shape in dict.fromkeys((row["inputs"], row["outputs"], row["side"]) for row in rows):
        arms = {row["arm"]: row for row in rows if (row["inputs"], row["outputs"], row["side"]) == shape}
        cells = [f"{shape[0]} to {shape[1]}", f"{shape[2]}×{shape[2]}", f"{float(arms[LIBRARY]['share']):.0%}"]
        for tile in TILES:
            row = arms[_name(tile)]
            ratio = f"{float(row['ratio']):.2f} ({float(row['ratio_low']):.2f}–{float(row['ratio_high']):.2f})"
            cells += [f"**{ratio}**" if row["chosen"] == "1" else ratio, f"{float(row['share']):.0%}"]
        cells += ["/".join(arms[arm]["error_rms"] for arm in (LIBRARY, *map(_name, TILES)))]
        lines.append(cells)
    return lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the command."""
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--round-seconds", type=float, default=0.05, help="of an arm in a round (default %(default)s)")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--csv", type=Path, default=CSV)
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.set_defaults(command=run)
