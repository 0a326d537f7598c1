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

PEERS = OURS_ALONE, EAGER, COMPILED = "ours", "eager", "compiled"
"""Of images: who is measured beside our engines. ``ours``: the reference engine alone. ``eager``: what a user has
without compiling. ``compiled``: what goes through torch.compile. That takes half a minute and more for every precision,
so these are cases of their own."""

WORKLOAD_TITLES = {
    "random": "weights as drawn",
    "eight": "trained on eight Gaussians",
    "eight_static": "trained on eight Gaussians, without time",
    "digits": "trained on digits",
    "stiff5": "5 % of the samples need ten times the steps",
}
"""``random``: weights as drawn, samples need alike steps; ``eight`` and ``digits``: trained, as users have them;
``eight_static``: trained without time, where samples need from 4 to 20 steps; ``stiff5``: 5 % of the samples need ten
times the steps of the others. See `benchmarks.potentials`, which has the image potentials' names too."""

OURS_OF_IMAGES = {"solve": "graph", "loss": "passes"}
"""Of images: the arm of ours for each job. There a ``loss`` case measures whole steps of the trainer too."""


@dataclass(frozen=True, order=True)
class Case:
    """One thing to measure; every arm that can do the job gets the same one.

    Attributes:
        job: one of `JOBS`. workload: of `WORKLOAD_TITLES`, or an image potential. n: samples, or rows of a batch.
        dimension, widths: of an MLP; images have 0 and (). rtol: rtol = atol of a solve. steps: of a fixed-step one.
        peers: of images, one of `PEERS`. precisions: of images, those of the network's products: each arm is measured
            in all that it can do.
    """

    job: str
    workload: str
    dimension: int
    widths: tuple[int, ...]
    n: int
    threads: int
    rtol: float | None = None
    steps: int | None = None
    device: str = "cpu"
    peers: str = ""
    precisions: tuple[str, ...] = ()

    @property
    def of_images(self) -> bool:
        """Whether the potential is convolutional."""
        return bool(self.peers)

    @property
    def ours(self) -> str:
        """The engine of ours that everybody is compared with."""
        return OURS_OF_IMAGES[self.job] if self.of_images else OURS[self.device]

    @property
    def hidden(self) -> str:
        """The hidden widths, such as ``128x3``."""
        alike = len(set(self.widths)) == 1
        return f"{self.widths[0]}x{len(self.widths)}" if alike else "-".join(map(str, self.widths))

    @property
    def shape(self) -> str:
        """The network's shape, such as ``d2 128x3``."""
        return f"d{self.dimension} {self.hidden}"

    @property
    def name(self) -> str:
        """A line that names the case, and that ``--match`` looks in."""
        shape = "" if self.of_images else f" {self.shape}"
        how = "" if self.rtol is None else f" tol{self.rtol:.0e}"
        how += "" if self.steps is None else f" rk4x{self.steps}"
        how += f" {self.peers} {'+'.join(self.precisions)}" if self.of_images else ""
        where = f"{self.threads}t" if self.device == "cpu" else self.device
        return f"{self.job} {self.workload}{shape} n{self.n}{how} {where}"

    @property
    def least_seconds(self) -> float:
        """Begun with less time than this, it would not come to its end: compiling takes most of it."""
        if self.device == "cpu" or not self.of_images:
            return 0.0
        if self.peers != COMPILED:
            return 20.0
        return (90.0 if self.job == "loss" else 45.0) * len(self.precisions)


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


# Images of a solve and of a batch: on the CPU, and on CUDA, where a few solves at the end have many.
_CPU_IMAGES, _SAMPLES, _MANY = 64, 32, 256
_BATCH = {"unet_10m": 128, "wide_resnet_10m": 128, "unet_50m": 64, "wide_resnet_50m": 64}
_SMALL, _LARGE = ("unet_10m", "wide_resnet_10m"), ("unet_50m", "wide_resnet_50m")
_REDUCED, _FULL = ("bf16", "tf32"), ("float32",)


def images(threads: int) -> list[Case]:
    """Our engines against the reference engine's eager autograd, on the CPU."""
    models, precisions = ("unet", "wide_resnet"), ("float32", "bf16")
    return [
        Case(job, model, 0, (), _CPU_IMAGES, threads, rtol, peers=OURS_ALONE, precisions=precisions)
        for model in models
        for job, rtol in (("loss", None), ("solve", 1e-3))
    ]


def gpu_sampling(threads: int) -> list[Case]:
    """Solves of images, what matters most first: see `benchmarks.targets.IMAGE_TARGETS`."""

    def of(
        models: Sequence[str], rtol: float, peers: str, precisions: tuple[str, ...], n: int = _SAMPLES
    ) -> list[Case]:
        return [
            Case("solve", model, 0, (), n, threads, rtol, device="cuda", peers=peers, precisions=precisions)
            for model in models
        ]

    both = (*_SMALL, *_LARGE)
    return [
        *of(_SMALL, 1e-3, EAGER, _REDUCED),
        *of(_SMALL, 1e-5, EAGER, _FULL),
        *of(_SMALL[:1], 1e-3, COMPILED, ("bf16",)),
        *of(_LARGE, 1e-3, EAGER, _REDUCED),
        *of(_SMALL, 1e-5, COMPILED, _FULL),
        *of(_LARGE, 1e-5, EAGER, _FULL),
        *of((*_SMALL[1:], *_LARGE), 1e-3, COMPILED, ("bf16",)),
        *of(_LARGE, 1e-5, COMPILED, _FULL),
        *of(both, 1e-3, EAGER, _FULL),
        *of(both, 1e-3, COMPILED, ("tf32",)),
        *of(both, 1e-3, COMPILED, _FULL),
        *of(_SMALL, 1e-3, EAGER, _REDUCED, _MANY),
    ]


def gpu_training(threads: int) -> list[Case]:
    """Training steps of images, what matters most first."""

    def of(models: Sequence[str], peers: str, precisions: tuple[str, ...]) -> list[Case]:
        return [
            Case("loss", model, 0, (), _BATCH[model], threads, device="cuda", peers=peers, precisions=precisions)
            for model in models
        ]

    return [
        *of(_SMALL, EAGER, (*_REDUCED, *_FULL)),
        *of(_SMALL[:1], COMPILED, ("bf16",)),
        *of(_LARGE, EAGER, (*_REDUCED, *_FULL)),
        *of(_SMALL[1:], COMPILED, ("bf16",)),
        *(case for precision in ("tf32", "float32") for case in of(_SMALL, COMPILED, (precision,))),
        *(case for precision in ("bf16", "tf32", "float32") for case in of(_LARGE, COMPILED, (precision,))),
    ]


SELECTIONS = {
    "quick": quick, "default": default, "table": table, "curves": curves, "gpu": gpu, "full": full,
    "images": images, "gpu-sampling": gpu_sampling, "gpu-training": gpu_training,
}  # fmt: skip


def on(device: str, cases: Sequence[Case]) -> list[Case]:
    """The same cases on a device."""
    return [replace(case, device=device) for case in cases]


def matching(cases: Sequence[Case], patterns: Sequence[str]) -> list[Case]:
    """The cases whose name holds every one of the patterns as words."""
    return [case for case in cases if all(f" {pattern} " in f" {case.name} " for pattern in patterns)]
