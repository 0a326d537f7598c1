"""The native engine's kernels one by one, beside the rate that multiply-adds in registers reach at the same time.

All in float32, on a tile of its own in each thread and in interleaved rounds, as everything in the kit: products of a
tile with a packed matrix, an activation with its derivative, and the whole field, whose operations are those of its
products alone (`benchmarks.flops`). PyTorch's product of square matrices stands beside them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from benchmarks.cases import SHAPES
from benchmarks.flops import PRODUCT_SIZE, field_flops, product_flops
from benchmarks.pages import html_table, note, number, paragraph, spread
from benchmarks.peers.machine import PEAK, kernel_rates
from benchmarks.provenance import processor
from benchmarks.spread import Quartiles, paired_ratio, rotated
from vapo_fast.core import extension

TORCH = "PyTorch's product"
_FEW_TURNS = 3


@dataclass(frozen=True)
class KernelRate:
    """One kernel of one instruction set on some threads, as it stands in the file.

    Attributes:
        gflops, gflops_low, gflops_high: quartiles over rounds; None for kernels whose operations are not counted.
        ns: median nanoseconds for each entry (of an activation) or row (of a field) on one thread; None for others.
        share, share_low, share_high: of the multiply-adds' rate just before, paired.
    """

    run: str
    instruction_set: str
    kernel: str
    case: str
    rounds: int
    gflops: float | None = None
    gflops_low: float | None = None
    gflops_high: float | None = None
    ns: float | None = None
    share: float | None = None
    share_low: float | None = None
    share_high: float | None = None
    load: float | None = None
    processor: str = ""
    date: str = ""
    commit: str = ""
    machine: str = ""
    threads: int = 0
    torch: str = ""


@dataclass(frozen=True)
class _Kernel:
    """``call(turns)`` returns how much was done; ``operations`` of one of these, None where they are not counted."""

    instruction_set: str
    name: str
    case: str
    call: Callable[[int], float]
    operations: float | None
    counts: bool = False  # whether what was done is entries or rows


def kernels_of(instruction_set: str, threads: int) -> list[_Kernel]:
    """What is measured of an instruction set; multiply-adds in registers come first."""
    rates = kernel_rates()
    where = {"instruction_set": instruction_set, "threads": threads}

    def kernel(name: str, case: str, call: Callable[..., float], operations: float | None, counts: bool) -> _Kernel:
        return _Kernel(instruction_set, name, case, lambda turns: call(turns=turns, **where), operations, counts)

    found = [kernel(PEAK, "", rates.multiply_adds, 1.0, False)]
    for dimension, widths in SHAPES[:2]:
        width = widths[0]
        for inner, columns in ((width, width), (dimension, width), (width, dimension)):
            found.append(kernel("product", f"{inner} to {columns}", partial(rates.product, inner, columns), 1.0, False))
    found.append(kernel("SiLU and its derivative", "128", partial(rates.activation, "silu", 128), None, True))
    for dimension, widths in SHAPES[:2]:
        case = f"d {dimension}, {widths[0]}×{len(widths)}"
        operations = field_flops(1, dimension, widths)
        found.append(kernel("field", case, partial(rates.field, dimension, widths), operations, True))
    return found


def measure(run: str, threads: int, rounds: int = 7, round_seconds: float = 0.05) -> list[KernelRate]:
    """Measure every kernel of every instruction set that this processor has.

    Raises: NativeUnavailableError.
    """
    torch.set_num_threads(threads)
    kernels = [kernel for name in extension.instruction_sets() for kernel in kernels_of(name, threads)]
    a, b = torch.ones(2, PRODUCT_SIZE, PRODUCT_SIZE)
    out = torch.empty_like(a)

    def product(turns: int) -> float:
        for _ in range(turns):
            torch.mm(a, b, out=out)
        return float(turns)

    kernels.append(_Kernel(extension.instruction_sets()[-1], TORCH, f"{PRODUCT_SIZE}³", product, product_flops()))
    turns = [_turns(kernel.call, round_seconds) for kernel in kernels]
    named = zip(kernels, turns, strict=True)
    peaks = {kernel.instruction_set: (kernel, each) for kernel, each in named if kernel.name == PEAK}
    # Seconds for one of what each kernel counts, and of the peak just before: a busy machine does the same to both.
    seconds: list[list[float]] = [[] for _ in kernels]
    beside: list[list[float]] = [[] for _ in kernels]
    for i in range(rounds):
        for place in rotated([str(k) for k in range(len(kernels))], i):
            k = int(place)
            beside[k].append(_seconds(*peaks[kernels[k].instruction_set]))
            seconds[k].append(_seconds(kernels[k], turns[k]))
    return [_rate(run, *each, threads) for each in zip(kernels, seconds, beside, strict=True)]


def _seconds(kernel: _Kernel, turns: int) -> float:
    begin = time.perf_counter()
    done = kernel.call(turns)
    return (time.perf_counter() - begin) / done


def _turns(call: Callable[[int], float], round_seconds: float) -> int:
    """As many turns as take about so long."""
    turns = _FEW_TURNS
    while True:
        begin = time.perf_counter()
        call(turns)
        took = time.perf_counter() - begin
        if took > 0.1 * round_seconds:
            return max(1, round(turns * round_seconds / took))
        turns *= 4


def _rate(run: str, kernel: _Kernel, seconds: Sequence[float], peak: Sequence[float], threads: int) -> KernelRate:
    took = Quartiles.of(seconds)
    rate = KernelRate(
        run,
        kernel.instruction_set,
        kernel.name,
        kernel.case,
        len(seconds),
        ns=1e9 * took.median * threads if kernel.counts else None,
        load=os.getloadavg()[0],
        processor=processor(),
        threads=threads,
    )
    if kernel.operations is None:
        return rate
    share = paired_ratio(peak, [each / kernel.operations for each in seconds])
    gflops = [1e-9 * kernel.operations / each for each in (took.median, took.high, took.low)]
    return replace(
        rate,
        gflops=gflops[0],
        gflops_low=gflops[1],
        gflops_high=gflops[2],
        share=share.median,
        share_low=share.low,
        share_high=share.high,
    )


_INTRODUCTION = (
    "Each kernel of the native engine on a tile that stays in the cache, float32, with what every instruction set of",
    "this processor makes of it (python -m benchmarks kernels). Shares are of the multiply-adds of the same",
    "instruction set, measured just before each time; a field's operations are those of its products alone.",
)


def section(rows: Sequence[KernelRate]) -> list[str]:
    """One run's part of the page of tables."""
    first, loads = rows[0], [row.load for row in rows if row.load is not None]
    busy = f"; load: {min(loads):.1f} – {max(loads):.1f}" if loads else ""
    what = "ns: for each entry of an activation, or each sample of a field, on one thread."
    when = f"{first.processor}; rounds: {first.rounds}{busy}; {first.date} at commit {first.commit}"
    return [paragraph(*_INTRODUCTION), html_table(table(rows)), note(f"{what} {when}.")]


def table(rows: Sequence[KernelRate]) -> list[list[str]]:
    """One run's table."""
    cells = [["instructions", "threads", "kernel", "case", "GFLOP/s", "of the multiply-adds' (quartiles)", "ns"]]
    for row in rows:
        share = spread(row.share, row.share_low, row.share_high, percent=True)
        where = [row.instruction_set, str(row.threads), row.kernel, row.case or "–"]
        cells.append([*where, number(row.gflops), share, number(row.ns)])
    return cells
