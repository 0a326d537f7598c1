"""What is measured: the axes, and the selections of cases that the commands run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from benchmarks.devices import OURS

SHAPES: tuple[tuple[int, tuple[int, ...]], ...] = ((2, (128,) * 3), (64, (256,) * 3), (512, (512,) * 4))
BATCHES = (1, 64, 1024, 8192, 65_536)
TOLERANCES = (1e-3, 1e-5)
THREADS = (1, 2)
# One value more on either side, so that a work-precision line is a line.
CURVE_TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6)
# Workloads other than ``random``, each with the shape it has.
UNEVEN = (("eight", SHAPES[0]), ("eight_static", SHAPES[0]), ("stiff5", SHAPES[0]), ("digits", SHAPES[1]))
# Steps of the fixed-step method rk4 in the cases of equal steps.
FIXED_STEPS = 24

JOBS = ("solve", "solve_fixed", "sample", "field", "loss", "trainer")
"""``solve``: adaptive, to a tolerance; ``solve_fixed``: equal steps for everyone; ``sample``: `vapo_fast.sample` with
its defaults, noise and checks included; ``field``: one grad Phi of a batch; ``loss``: the energy loss of a batch and
all its parameter gradients; ``trainer``: a whole training step."""

WORKLOADS = ("random", "eight", "eight_static", "digits", "stiff5")
"""``random``: weights as drawn, samples need alike steps; ``eight`` and ``digits``: trained, as users have them;
``eight_static``: trained without time, where samples need from 4 to 20 steps; ``stiff5``: 5 % of the samples need ten
times the steps of the others. See `benchmarks.workloads`."""


@dataclass(frozen=True, order=True)
class Case:
    """One thing to measure; every arm that can do the job gets the same one."""

    job: str
    workload: str
    dimension: int
    widths: tuple[int, ...]
    n: int
    threads: int
    rtol: float | None = None
    steps: int | None = None
    device: str = "cpu"

    @property
    def ours(self) -> str:
        """The engine of ours that everybody is compared with."""
        return OURS[self.device]

    @property
    def shape(self) -> str:
        """The network's shape, such as ``d2 128x3``."""
        alike = len(set(self.widths)) == 1
        hidden = f"{self.widths[0]}x{len(self.widths)}" if alike else "-".join(map(str, self.widths))
        return f"d{self.dimension} {hidden}"

    @property
    def name(self) -> str:
        """A line that names the case, and that ``--match`` looks in."""
        how = "" if self.rtol is None else f" tol{self.rtol:.0e}"
        how += "" if self.steps is None else f" rk4x{self.steps}"
        where = f"{self.threads}t" if self.device == "cpu" else self.device
        return f"{self.job} {self.workload} {self.shape} n{self.n}{how} {where}"


def solve(workload: str, n: int, threads: int, rtol: float, shape: tuple[int, tuple[int, ...]] = SHAPES[0]) -> Case:
    """An adaptive solve."""
    return Case("solve", workload, *shape, n, threads, rtol=rtol)


def _others(job: str, n: int, threads: int, shape: tuple[int, tuple[int, ...]] = SHAPES[0]) -> Case:
    return Case(job, "random", *shape, n, threads, steps=FIXED_STEPS if job == "solve_fixed" else None)


def quick(threads: int) -> list[Case]:
    """Under three minutes, conformance included: one small case of every kind."""
    return [
        *(solve("random", n, threads, 1e-5) for n in (1, 64, 1024)),
        solve("random", 64, threads, 1e-5, SHAPES[1]),
        solve("stiff5", 64, threads, 1e-4),
        _others("solve_fixed", 64, threads),
        _others("field", 1024, threads),
        _others("loss", 1024, threads),
    ]


def default(threads: int) -> list[Case]:
    """What `pytest benchmarks --benchmark-only` runs in under ten minutes: the middle of every axis."""
    small, middle, _ = SHAPES
    return [
        *(solve("random", n, threads, 1e-5) for n in (1, 64, 1024)),
        *(solve("random", n, threads, 1e-5, middle) for n in (64, 1024)),
        solve("random", 1024, threads, 1e-3),
        solve("eight", 1024, threads, 1e-5),
        solve("stiff5", 256, threads, 1e-5),
        _others("solve_fixed", 1024, threads),
        *(_others("field", n, threads, shape) for shape in (small, middle) for n in (64, 1024, 8192)),
        _others("loss", 1024, threads),
        _others("trainer", 1024, threads),
    ]


def table(threads: int) -> list[Case]:
    """The cases behind the table of targets, `benchmarks.targets`."""
    small, middle, _ = SHAPES
    return [
        *(solve("random", n, threads, 1e-5) for n in (1, 64, 1024, 8192)),
        *(solve("random", n, threads, 1e-5, middle) for n in (64, 8192)),
        solve("stiff5", 8192, threads, 1e-5),
        *(_others(job, 1024, threads) for job in ("loss", "trainer")),
        *(_others("field", n, threads, shape) for shape in (small, middle) for n in (64, 1024, 8192)),
    ]


def curves(threads: int) -> list[Case]:
    """Error against time: the same solve to several tolerances."""
    kinds = [("random", SHAPES[0], n) for n in (64, 1024, 8192)]
    kinds += [(workload, shape, 1024) for workload, shape in UNEVEN]
    return [solve(workload, n, threads, rtol, shape) for workload, shape, n in kinds for rtol in CURVE_TOLERANCES]


def gpu(threads: int) -> list[Case]:
    """What an H100 or H200 must show (`benchmarks.targets.GPU_TARGETS`), in about five minutes there: what matters most
    comes first, for the case that the time runs out."""
    small, middle, _ = SHAPES
    return [
        _others("field", 65_536, threads, middle),
        *(solve("random", n, threads, 1e-5) for n in (256, 65_536)),
        solve("stiff5", 65_536, threads, 1e-5),
        solve("random", 65_536, threads, 1e-5, middle),
        *(_others(job, 4096, threads, middle) for job in ("loss", "trainer")),
        Case("sample", "eight", *small, 100_000, threads),
    ]


def full(threads: int) -> list[Case]:
    """Every axis; hours. ``threads`` is the larger number of threads."""
    counts = sorted({1, threads})
    cases = [
        solve("random", n, count, rtol, shape) for shape, n, rtol, count in product(SHAPES, BATCHES, TOLERANCES, counts)
    ]
    for workload, shape in UNEVEN:
        cases += [
            solve(workload, n, count, rtol, shape) for n, rtol, count in product(BATCHES[2:4], TOLERANCES, counts)
        ]
    for shape, count in product(SHAPES, counts):
        cases += [_others("solve_fixed", n, count, shape) for n in (64, 1024)]
        cases += [_others("field", n, count, shape) for n in BATCHES[:4]]
    for job, shape, n, count in product(("loss", "trainer"), SHAPES, (256, 1024), counts):
        cases.append(_others(job, n, count, shape))
    return sorted({*cases, *table(threads), *default(threads)})


SELECTIONS = {"quick": quick, "default": default, "table": table, "curves": curves, "gpu": gpu, "full": full}


def on(device: str, cases: Sequence[Case]) -> list[Case]:
    """The same cases on a device."""
    return [replace(case, device=device) for case in cases]


def matching(cases: Sequence[Case], patterns: Sequence[str]) -> list[Case]:
    """The cases whose name holds every one of the patterns as words."""
    return [case for case in cases if all(f" {pattern} " in f" {case.name} " for pattern in patterns)]
