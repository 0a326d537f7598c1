"""How near to the machine's limits each kernel comes: operations and bytes from shapes, its own time, the roofs.

Operations are those of the matrix products alone (`benchmarks.flops`); bytes are counted as the kernels move them
(`benchmarks.studies.traffic`). Bytes of device memory are the inputs and results, and of what lies between two products
the share that L2 has no room for.

Kernel times are the profiler's, without the launch; where it sees no kernels, CUDA events around the whole call. The
roofs are measured in the same run: cuBLAS products of 8192 x 8192 matrices in float32, TF32 and bfloat16, a copy within
L2 and one of device memory.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from benchmarks.cases import SHAPES, Case, on, solve
from benchmarks.devices import accelerator, timer
from benchmarks.flops import field_flops, loss_flops, product_flops
from benchmarks.pages import html_table, note, number, paragraph, share
from benchmarks.studies.traffic import (
    FLOAT,
    Blocks,
    field_l2_bytes,
    loss_l2_bytes,
    scratch_bytes,
    solve_l2_bytes,
    spilled_bytes,
)
from benchmarks.workloads import Problem, Workloads
from vapo_fast.engines import Job, UnsupportedJobError, choose
from vapo_fast.ode import SolveOptions

_PRODUCT_SIZE = 8192
_CALLS = 5
# Products of one value of a network: a split operand makes three TF32 products of one.
PRODUCTS = {"ieee": ("float32", 1), "tf32x3": ("tf32", 3), "tf32": ("tf32", 1), "bf16": ("bf16", 1)}
"""Precision of a kernel, whose roof it has, and how many products it makes for one."""


@dataclass(frozen=True)
class Roof:
    """One kernel of one case, as it stands in the file.

    Attributes:
        kernel: its name, or "all" for everything that a call launches. launches: in one call. tile: as it was launched.
        how: "profiler" or "events". ms: median over calls of its time in one. flops, l2_bytes, memory_bytes: counted,
            of one call; None where the kernel's part is not known.
        share: of the rate that its precision allows. share_float32: of cuBLAS's float32 products. share_l2: of a copy's
            rate within L2. error: of a field, relative to its largest entry.
    """

    run: str
    kernel: str
    case: str
    precision: str
    tile: str
    launches: int
    how: str
    ms: float
    flops: int | None = None
    l2_bytes: int | None = None
    memory_bytes: int | None = None
    tflops: float | None = None
    l2_gbs: float | None = None
    share: float | None = None
    share_float32: float | None = None
    share_l2: float | None = None
    error: float | None = None
    float32_tflops: float | None = None
    tf32_tflops: float | None = None
    bf16_tflops: float | None = None
    l2_peak_gbs: float | None = None
    memory_peak_gbs: float | None = None
    accelerator: str = ""
    driver: str = ""
    triton: str = ""
    date: str = ""
    commit: str = ""
    machine: str = ""
    threads: int = 0
    torch: str = ""


@dataclass(frozen=True)
class Peaks:
    """What the machine reached: TFLOP/s of products, and GB/s of copies, read and written bytes together."""

    float32_tflops: float
    tf32_tflops: float
    bf16_tflops: float
    l2_peak_gbs: float
    memory_peak_gbs: float

    def of(self, precision: str) -> float | None:
        """The rate that products of a precision can have."""
        if precision not in PRODUCTS:
            return None
        name, count = PRODUCTS[precision]
        rate: float = getattr(self, f"{name}_tflops")
        return rate / count


@dataclass(frozen=True)
class Launch:
    """A kernel that a call launched."""

    kernel: str
    tile: Any
    programs: int = 0


@contextmanager
def launches() -> Iterator[list[Launch]]:
    """What is launched through `vapo_fast.kernels.launch` meanwhile."""
    from vapo_fast.kernels.launch import Program

    seen: list[Launch] = []
    original = Program.launch

    def launch(self: Any, kernel: Any, *arguments: Any, **constants: Any) -> None:
        seen.append(Launch(str(getattr(kernel, "__name__", kernel)), self.tile, self.count))
        original(self, kernel, *arguments, **constants)

    Program.launch = launch  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        Program.launch = original  # type: ignore[method-assign]


def kernel_seconds(call: Callable[[], object], calls: int = _CALLS) -> dict[str, float]:
    """Seconds on the device of each kernel in one call, by name, the median of several; none if the profiler sees none.

    The call must have run before.
    """
    from torch.profiler import ProfilerActivity, profile

    found: list[dict[str, float]] = []
    for i in range(calls + 1):
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            call()
            torch.cuda.synchronize()
        if i:  # the first only wakes the profiler
            found.append(device_times(profiler.events()))
    names = {name for one in found for name in one}
    return {name: statistics.median(one.get(name, 0.0) for one in found) for name in sorted(names)}


def device_times(events: Any) -> dict[str, float]:
    """Seconds of the device's events by name, from a profile's events; copies and fills of memory are left out."""
    times: dict[str, float] = {}
    for event in events or ():
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.name.startswith(("Memcpy", "Memset")):
            times[event.name] = times.get(event.name, 0.0) + 1e-6 * event.time_range.elapsed_us()
    return times


def peaks() -> Peaks:
    """Measure the roofs."""
    big = torch.randn(_PRODUCT_SIZE, _PRODUCT_SIZE, device="cuda")
    products = {
        "float32": _product_rate(big, "highest"),
        "tf32": _product_rate(big, "high"),
        "bf16": _product_rate(big.bfloat16(), "highest"),
    }
    memory = _copy_rate(big, torch.empty_like(big), 1)
    small = big.view(-1)[: 2 * 2**20]  # 8 MiB and as much again: within L2
    l2 = _copy_rate(small, torch.empty_like(small), 100)
    return Peaks(products["float32"], products["tf32"], products["bf16"], l2, memory)


def median_event_seconds(call: Callable[[], object], repeats: int = 7) -> float:
    """Median time of a call on CUDA, after two that are not counted."""
    for _ in range(2):
        call()
    return statistics.median(timer("cuda")(call) for _ in range(repeats))


def _product_rate(a: torch.Tensor, precision: str) -> float:
    """TFLOP/s of a square product, float32's in PyTorch's words for how it is computed."""
    b, out = a.flip(0).contiguous(), torch.empty_like(a)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        return 1e-12 * product_flops(len(a)) / median_event_seconds(lambda: torch.mm(a, b, out=out))
    finally:
        torch.set_float32_matmul_precision(before)


def _copy_rate(source: torch.Tensor, target: torch.Tensor, repeats: int) -> float:
    """GB/s, read and written; repeats are one CUDA graph, so that launching them is no part of it."""

    def copy() -> None:
        for _ in range(repeats):
            target.copy_(source)

    call: Callable[[], object] = copy
    if repeats > 1:
        copy()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            copy()
        call = graph.replay
    return 1e-9 * 2 * source.nbytes * repeats / median_event_seconds(call)


def row(
    run: str,
    case: Case,
    launch: Launch,
    count: int,
    seconds: float,
    how: str,
    tops: Peaks,
    flops: int | None = None,
    l2_bytes: int | None = None,
    memory_bytes: int | None = None,
    error: float | None = None,
) -> Roof:
    """A kernel's row: rates and shares from counts and time."""
    tile, precision = launch.tile, str(getattr(launch.tile, "precision", ""))
    tflops = None if flops is None else 1e-12 * flops / seconds
    l2 = None if l2_bytes is None else 1e-9 * l2_bytes / seconds
    own = tops.of(precision)
    return Roof(
        run=run,
        kernel=launch.kernel,
        case=case.name,
        precision=precision,
        tile=describe(tile),
        launches=count,
        how=how,
        ms=1e3 * seconds,
        flops=flops,
        l2_bytes=l2_bytes,
        memory_bytes=memory_bytes,
        tflops=tflops,
        l2_gbs=l2,
        share=None if tflops is None or own is None else tflops / own,
        share_float32=None if tflops is None else tflops / tops.float32_tflops,
        share_l2=None if l2 is None else l2 / tops.l2_peak_gbs,
        error=error,
        **asdict(tops),
        **asdict(accelerator(case.device)),
    )


def describe(tile: Any) -> str:
    """A tile in a cell: ``64x64x32 w4 s2``, samples, columns, terms, warps, stages."""
    names = ("rows", "block_n", "block_k", "warps", "stages")
    if not all(hasattr(tile, name) for name in names):
        return ""
    return "{}x{}x{} w{} s{}".format(*(getattr(tile, name) for name in names))


def cases(threads: int) -> list[Case]:
    """What is looked at: both shapes of the field, solves small, large and uneven, one loss."""
    small, middle, _ = SHAPES
    n = 65_536
    chosen = [Case("field", "random", *shape, n, threads) for shape in (small, middle)]
    chosen += [solve("random", count, threads, 1e-5) for count in (256, n)]
    chosen += [solve("stiff5", n, threads, 1e-5), solve("random", n, threads, 1e-5, middle)]
    return on("cuda", [*chosen, Case("loss", "random", *middle, 4096, threads)])


def measure(run: str, workloads: Workloads, threads: int, say: Callable[[str], None] = print) -> list[Roof]:
    """Rows of all `cases`; a case that fails is named, and the others go on."""
    tops, rows = peaks(), list[Roof]()
    for case in cases(threads):
        try:
            rows += _measure_case(run, workloads.problem(case), tops)
        except Exception as error:
            say(f"  skipped {case.name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    return rows


def _measure_case(run: str, problem: Problem, tops: Peaks) -> list[Roof]:
    case, potential = problem.case, problem.potential
    kind = {"loss": "loss_and_grads"}.get(case.job, case.job)
    options = SolveOptions(rtol=case.rtol, atol=case.rtol) if case.job == "solve" else SolveOptions()
    job = Job(kind, solve=options)  # type: ignore[arg-type]
    engine = choose("triton", potential, problem.device, torch.float32, job)
    shape = case.dimension, case.widths

    def call() -> Any:
        with torch.no_grad():
            if case.job == "field":
                return engine.field(potential, problem.x0, problem.times)
            if case.job == "loss":
                return engine.loss_and_grads(potential, problem.batch, job)
            return engine.solve(potential, problem.x0, *problem.span, job)

    result = call()
    with launches() as seen:
        result = call()
    torch.cuda.synchronize()
    if not seen:
        raise UnsupportedJobError("nothing was launched through vapo_fast.kernels.launch")
    times = kernel_seconds(call)
    main = seen[-1] if case.job != "loss" else max(seen, key=lambda one: times.get(one.kernel, 0.0))
    blocks = Blocks(main.tile.rows, main.tile.block_n, main.tile.block_k)
    memory = FLOAT * case.n * (2 * case.dimension + 2)
    evaluations = int(result.nfe.sum()) if case.job == "solve" else case.n
    memory += _spilled(case, main, evaluations)
    if case.job == "field":
        counts = field_flops(case.n, *shape), field_l2_bytes(case.n, *shape, blocks), memory
    elif case.job == "loss":
        counts = loss_flops(case.n, *shape), loss_l2_bytes(case.n, *shape, blocks), memory
    else:
        stages = options.tableau.stages
        counts = field_flops(evaluations, *shape), solve_l2_bytes(evaluations, *shape, blocks, stages), memory
    of_ours = {one.kernel: one for one in seen}
    rows = []
    if not any(name in times for name in of_ours):
        whole = replace(main, kernel="all")
        return [row(run, case, whole, len(seen), median_event_seconds(call), "events", tops, *counts)]
    for name, one in of_ours.items():
        count = sum(other.kernel == name for other in seen)
        mine = counts if name == main.kernel else ()
        if name in times:
            rows.append(row(run, case, one, count, times[name], "profiler", tops, *mine))
    if case.job == "loss":
        whole = replace(main, kernel="all")
        rows.append(row(run, case, whole, len(seen), sum(times.values()), "profiler", tops, *counts))
    if case.job == "field":
        rows += _other_precisions(run, problem, main, tops)
    return rows


def _spilled(case: Case, launch: Launch, evaluations: int) -> int:
    """Bytes of device memory for what lies between the products of so many evaluations of single samples."""
    from vapo_fast.kernels.shapes import field_arrays, training_arrays

    l2_size, layers = int(torch.cuda.get_device_properties(0).L2_cache_size), len(case.widths)
    tiles = math.ceil(case.n / launch.tile.rows)
    if case.job == "loss":  # every tile has its own
        rows, arrays = tiles * launch.tile.rows, training_arrays(layers).count
    else:
        rows, arrays = min(tiles, launch.programs) * launch.tile.rows, field_arrays(layers).count
    footprint = scratch_bytes(rows, case.dimension, case.widths, arrays)
    return spilled_bytes(evaluations / rows, footprint, l2_size)


def _other_precisions(run: str, problem: Problem, main: Launch, tops: Peaks) -> list[Roof]:
    """The field's kernel in every precision, with the tile that it then gets, and how wrong each is."""
    from vapo_fast.kernels.field import field
    from vapo_fast.kernels.launch import Program
    from vapo_fast.kernels.mlp import PackedMlp
    from vapo_fast.kernels.tuning import tile_for

    case, exact, rows = problem.case, torch.from_numpy(problem.exact_field), []
    network = case.dimension, case.widths, problem.potential.fourier_features
    for precision in PRODUCTS:
        tile = tile_for(network, precision, problem.x0.device)
        try:
            mlp = PackedMlp(problem.potential, tile)
            program = Program.filling(tile, problem.x0.device)

            def call(mlp: Any = mlp, program: Any = program) -> Any:
                return field(mlp, problem.x0, problem.times, program)

            gradient = call()[1][: len(exact)].cpu().double()
            times = kernel_seconds(call)
        except Exception as error:
            print(f"  {precision} with the tile {describe(tile)}: {type(error).__name__}")
            continue
        wrong = float((gradient - exact).abs().max() / exact.abs().max())
        seconds = times.get(main.kernel) or median_event_seconds(call)
        shape, blocks = (case.n, case.dimension, case.widths), Blocks(tile.rows, tile.block_n, tile.block_k)
        launch = Launch(f"{main.kernel} ({precision})", tile, program.count)
        memory = FLOAT * case.n * (2 * case.dimension + 2) + _spilled(case, launch, case.n)
        counts = field_flops(*shape), field_l2_bytes(*shape, blocks), memory
        rows.append(row(run, case, launch, 1, seconds, "profiler", tops, *counts, wrong))
    return rows


_INTRODUCTION = (
    "Operations and bytes of each kernel are counted from the shapes (benchmarks/studies/roofline.py says how); the",
    "time is the kernel's own, without the launch. The roofs are measured in the same run: products of 8192×8192",
    "matrices by cuBLAS, and copies of memory; split TF32 does three products for one.",
)


def section(rows: Sequence[Roof]) -> list[str]:
    """One run's part of the page of tables: the kernels, and the roofs that they are held against."""
    one = rows[0]
    rates = f"float32 {number(one.float32_tflops)}, TF32 {number(one.tf32_tflops)}, bf16 {number(one.bf16_tflops)}"
    memory = f"L2 {number(one.l2_peak_gbs)}, device memory {number(one.memory_peak_gbs)}"
    where = f"{one.accelerator}, driver {one.driver}, torch {one.torch}, triton {one.triton}"
    when = f"{one.date} at commit {one.commit}"
    told = note(f"Roofs: {rates} TFLOP/s; {memory} GB/s. {where}; {when}.")
    return [paragraph(*_INTRODUCTION), html_table(table(rows)), told]


def table(rows: Sequence[Roof]) -> list[list[str]]:
    """One run's table."""
    titles = ["kernel", "case", "precision", "ms", "TFLOP/s", "of its roof", "of float32's"]
    cells = [[*titles, "GB/s through L2", "of L2's"]]
    for row in rows:
        shares = [share(value) for value in (row.share, row.share_float32, row.share_l2)]
        what = [row.kernel, row.case, row.precision or "–", number(row.ms), number(row.tflops)]
        cells.append([*what, *shares[:2], number(row.l2_gbs), shares[2]])
    return cells
