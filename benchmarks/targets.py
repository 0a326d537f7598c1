"""The targets, as data: what our engines must show against the best peer, and whether the results show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.devices import OURS
from benchmarks.peers.image_arms import AS_GRAPH, COMPILED_STEP, EAGER_ARM, HOW_COMPILED, SCIPY, TORCHDIFFEQ, TORCHODE
from benchmarks.potentials import MODELS
from benchmarks.records import Key, Record, best_peer, latest, of_arm, paired, whole_run
from benchmarks.studies.curves import time_at_error

ANY_TORCHDIFFEQ = ("torchdiffeq", "torchdiffeq compiled")
DIFFRAX = ("diffrax", "diffrax vmap")
COMPILED = ("torch.compile", "jax jit")
TORCHDIFFEQ_EAGER = ("torchdiffeq",)
COMPILED_CUDA = ("torch.compile", "torch.compile graphed", "jax jit")
EAGER = "reference"


def of_equal_error(ours: str) -> tuple[str, ...]:
    """An engine of ours from the loosest tolerance to the tightest."""
    return f"{ours} tol*100", f"{ours} tol*10", ours, f"{ours} tol/10", f"{ours} tol/20"


RATE = "matrix-product rate"
"""``against`` of a target that is a share of the machine's own rate."""
TERAFLOPS = "TFLOP/s"
"""``against`` of a target that is a rate."""
MILLISECONDS = "ms"
"""``against`` of a target that is a time, which is to be at most as long."""


@dataclass(frozen=True)
class Target:
    """One row: a case, the least ratio, and whom it is against.

    Attributes:
        bound: the least ratio, share or rate, or the longest time. against: names of peers, none for the best of all;
            or `RATE`, `TERAFLOPS`, `MILLISECONDS`. device: of the case. error: the largest error of a field, relative
            to its largest entry.
        rtol: rtol = atol of a solve. precision: of images, that of our arm, and peer_precision of the peer's. There
            ``n`` is 0: any number of images, each held apart.
    """

    job: str
    workload: str
    dimension: int
    hidden: str
    n: int
    bound: float
    against: tuple[str, ...] | str = ()
    device: str = "cpu"
    error: float | None = None
    rtol: float | None = None
    precision: str = ""
    peer_precision: str = ""

    @property
    def of_images(self) -> bool:
        """Whether the case is one of images."""
        return bool(self.precision)

    @property
    def title(self) -> str:
        """The case in words."""
        if self.of_images:
            what = "training step" if self.rtol is None else f"sampling at {self.rtol:.0e}"
            return f"{self.workload}, {what}, {self.precision}"
        shape = f"d {self.dimension}, {self.hidden.replace('x', '×')}"
        size = f"{self.n:,}".replace(",", " ")
        if self.job == "loss":
            return f"loss, gradients, {shape}, batch {size}"
        if self.job == "trainer":
            return f"whole training step, {shape}, batch {size}"
        if self.job == "sample":
            return f"vf.sample(model, {self.n:_}), eight Gaussians, {shape}"
        if self.job == "field":
            return f"field alone, {shape}, n {size}" + (f", error ≤ {self.error:g}" if self.error else "")
        if self.workload == "stiff5":
            return f"5 % need 10×, {shape}, n {size}"
        return ("latency, " if self.n == 1 else "") + f"{shape}, n {size}"


def _solve(
    workload: str, dimension: int, hidden: str, n: int, bound: float, against: tuple[str, ...] = (), device: str = "cpu"
) -> Target:
    return Target("solve", workload, dimension, hidden, n, bound, against, device, rtol=1e-5)


TARGETS = (
    _solve("random", 2, "128x3", 64, 3.0),
    _solve("random", 2, "128x3", 1024, 2.0),
    _solve("random", 2, "128x3", 8192, 2.0),
    _solve("random", 64, "256x3", 64, 2.5),
    _solve("random", 64, "256x3", 8192, 1.7),
    _solve("stiff5", 2, "128x3", 8192, 5.0),
    _solve("random", 2, "128x3", 1, 15.0, ANY_TORCHDIFFEQ),
    _solve("random", 2, "128x3", 1, 1.5, DIFFRAX),
    Target("loss", "random", 2, "128x3", 1024, 2.0, (EAGER,)),
    Target("loss", "random", 2, "128x3", 1024, 1.3, COMPILED),
    Target("trainer", "random", 2, "128x3", 1024, 2.0, (EAGER,)),
    Target("trainer", "random", 2, "128x3", 1024, 1.3, COMPILED),
    Target("field", "random", 2, "128x3", 8192, 0.9, RATE),
    Target("field", "random", 64, "256x3", 8192, 0.9, RATE),
)


GPU_TARGETS = (
    _solve("random", 2, "128x3", 256, 50.0, TORCHDIFFEQ_EAGER, "cuda"),
    _solve("random", 2, "128x3", 256, 8.0, (), "cuda"),
    _solve("random", 2, "128x3", 65_536, 5.0, TORCHDIFFEQ_EAGER, "cuda"),
    _solve("random", 2, "128x3", 65_536, 2.5, (), "cuda"),
    _solve("random", 64, "256x3", 65_536, 1.7, (), "cuda"),
    _solve("stiff5", 2, "128x3", 65_536, 5.0, (), "cuda"),
    Target("field", "random", 64, "256x3", 65_536, 60.0, TERAFLOPS, "cuda", 3e-6),
    Target("field", "random", 64, "256x3", 65_536, 1.2, RATE, "cuda", 3e-6),
    Target("loss", "random", 64, "256x3", 4096, 10.0, (EAGER,), "cuda"),
    Target("loss", "random", 64, "256x3", 4096, 3.0, COMPILED_CUDA, "cuda"),
    Target("trainer", "random", 64, "256x3", 4096, 10.0, (EAGER,), "cuda"),
    Target("trainer", "random", 64, "256x3", 4096, 3.0, COMPILED_CUDA, "cuda"),
    Target("sample", "eight", 2, "128x3", 100_000, 30.0, MILLISECONDS, "cuda"),
)
"""On an H100 or H200."""


_BEST_COMPILED = tuple(
    solver + how for solver in (TORCHDIFFEQ, TORCHODE) for how in (HOW_COMPILED, HOW_COMPILED + AS_GRAPH, AS_GRAPH)
)
"""Solvers around a compiled field, or around a CUDA graph of a field, whichever is fastest."""


def _image_targets(model: str) -> list[Target]:
    def of(job: str, rtol: float | None, precision: str, against: tuple[str, ...], peers: str, bound: float) -> Target:
        return Target(job, model, 0, "", 0, bound, against, "cuda", None, rtol, precision, peers)

    found = [of("solve", 1e-3, "auto", (SCIPY,), "float32", 4.0)]
    for rtol, precision in ((1e-3, "bf16"), (1e-3, "tf32"), (1e-3, "float32"), (1e-5, "float32")):
        found.append(of("solve", rtol, precision, (TORCHDIFFEQ,), precision, 2.0))
        found.append(of("solve", rtol, precision, _BEST_COMPILED, precision, 1.25))
    for precision in ("bf16", "tf32", "float32"):
        found.append(of("loss", None, precision, (EAGER_ARM,), precision, 2.0))
        found.append(of("loss", None, precision, (COMPILED_STEP, COMPILED_STEP + AS_GRAPH), precision, 1.3))
    return found


IMAGE_TARGETS = tuple(
    target for name, model in MODELS.items() if model.device == "cuda" for target in _image_targets(name)
)
"""Of images on an H100 or H200."""


@dataclass(frozen=True)
class Finding:
    """What the results say about a target.

    Attributes:
        passed: None if it was not measured.
        against: the peer it was held against. ratio, low, high: median and quartiles at equal tolerance, paired by
            round; or of the share, rate or time that the target is one of. equal_error: the ratio with our engine at
            the tolerance at which its error is the peer's.
        error, peer_error: of the end states, or of the gradient. note: why there is no ratio, or why it does not
            count. n: images of the case.
    """

    target: Target
    passed: bool | None
    against: str = ""
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    equal_error: float | None = None
    error: float | None = None
    peer_error: float | None = None
    note: str = ""
    n: int = 0


# float32 gradients differ by rounding; which of two is nearer to float64's then means nothing.
_ROUNDING = {"loss": 1e-5}


def findings(cases: Mapping[Key, Sequence[Record]], threads: int, targets: Sequence[Target] = TARGETS) -> list[Finding]:
    """Hold the rows of each case against the targets.

    A ratio at equal tolerance counts only if our error is no larger than the peer's. Where it is larger, the ratio
    at equal error has to reach the target. Ours never passes with more failed samples than the peer. Of images a ratio
    counts only if ours is as exact as the peer, or within the tolerance.
    """
    found: list[Finding] = []
    for target in targets:
        found += _of_images(target, cases) if target.of_images else [_finding(target, cases, threads)]
    return found


def cases_of_targets(
    rows: Sequence[Record], threads: int, targets: Sequence[Target] = TARGETS
) -> dict[Key, list[Record]]:
    """The rows that targets are held against, by case: those of the newest run that measured our engine in every
    target's case; where no run did, each case's newest."""
    keys = list(dict.fromkeys(key_of(target, threads) for target in targets))
    whole = whole_run(rows, keys)
    if whole is not None:
        return whole
    newest = latest(rows)
    return {key: newest[key] for key in keys if key in newest}


def key_of(target: Target, threads: int) -> Key:
    """`Record.case` of a target's case."""
    of_host = threads if target.device == "cpu" else None
    case = target.job, target.workload, target.dimension, target.hidden, target.n
    return *case, target.rtol, None, of_host, target.device, "", ""


def _finding(target: Target, cases: Mapping[Key, Sequence[Record]], threads: int) -> Finding:
    rows = cases.get(key_of(target, threads), ())
    ours = of_arm(rows, OURS[target.device])
    if ours is None:
        return Finding(target, None, note="not measured")
    if isinstance(target.against, str):
        return _absolute(target, ours)
    peer = of_arm(rows, EAGER) if target.against == (EAGER,) else best_peer(rows, target.against)
    if peer is None or peer.ratio is None:
        return Finding(target, None, note=f"none of {', '.join(target.against) or 'the peers'} was measured")
    equal = _ratio_at_equal_error(rows, peer)
    counts = peer.ratio if _no_worse(target, ours, peer) else equal or 0.0
    return Finding(
        target,
        counts >= target.bound and ours.failed <= peer.failed,
        peer.arm,
        peer.ratio,
        peer.ratio_low,
        peer.ratio_high,
        equal,
        ours.error_rms,
        peer.error_rms,
    )


def _absolute(target: Target, ours: Record) -> Finding:
    """Of a share, a rate or a time."""
    exact = target.error is None or (ours.error_max is not None and ours.error_max <= target.error)
    sound = exact and not ours.failed
    if target.against == MILLISECONDS:
        values = ours.median_ms, ours.low_ms, ours.high_ms
        passed = ours.median_ms <= target.bound
    elif target.against == TERAFLOPS:
        if ours.gflops is None:
            return Finding(target, None, note="operations were not counted")
        rate = 1e-3 * ours.gflops
        values = rate, rate * ours.median_ms / ours.high_ms, rate * ours.median_ms / ours.low_ms
        passed = rate >= target.bound
    else:
        if ours.share is None or ours.share_low is None or ours.share_high is None:
            return Finding(target, None, note="the machine's rate was not measured")
        values = ours.share, ours.share_low, ours.share_high
        passed = ours.share >= target.bound
    error = ours.error_max if target.error is not None else None
    return Finding(target, passed and sound, str(target.against), *values, error=error)


def _no_worse(target: Target, ours: Record, peer: Record) -> bool:
    if ours.error_rms is None or peer.error_rms is None:
        return ours.error_rms is None and peer.error_rms is None
    return ours.error_rms <= max(peer.error_rms, _ROUNDING.get(target.job, 0.0))


def _ratio_at_equal_error(rows: Sequence[Record], peer: Record) -> float | None:
    """The peer's time over ours at the peer's error, from our times at several tolerances in these rounds."""
    points = []
    for name in of_equal_error(peer.ours):
        row = of_arm(rows, name)
        if row is not None and row.error_rms is not None and row.ratio is not None:
            points.append((row.error_rms, row.ratio))
    took = None if peer.error_rms is None else time_at_error(points, peer.error_rms)
    return None if took is None or peer.ratio is None else peer.ratio / took


# Two results of images are equally exact if one's error is at most so many times the other's, or below what was asked
# for: few samples are compared, and gradients differ by rounding.
_ALIKE, _IMAGE_ROUNDING = 2.0, 1e-5


def _of_images(target: Target, cases: Mapping[Key, Sequence[Record]]) -> list[Finding]:
    """A finding for each number of images: against the fastest of the peers, in whichever case it was measured."""
    fastest: dict[int, Finding] = {}
    for rows in cases.values():
        first = rows[0] if rows else None
        if first is None or not first.peers or first.device != target.device:
            continue
        if (first.job, first.workload, first.rtol) != (target.job, target.workload, target.rtol):
            continue
        ours = next((row for row in rows if row.of_ours and row.asked == target.precision), None)
        peers = [row for row in rows if row.name in target.against and row.asked == target.peer_precision]
        for peer in peers if ours is not None else ():
            found = _held(target, ours, peer)
            before = fastest.get(found.n)
            if before is None or before.ratio is None or (found.ratio is not None and found.ratio < before.ratio):
                fastest[found.n] = found
    return [fastest[n] for n in sorted(fastest)] or [Finding(target, None, note="not measured")]


def _held(target: Target, ours: Record, peer: Record) -> Finding:
    ratio, error, peer_error, note = paired(peer, ours), ours.error_rms, peer.error_rms, ""
    if ratio is None:
        return Finding(target, None, peer.arm, note="its rounds are not known", n=ours.n)
    if ours.failed > peer.failed:
        note = f"{ours.failed} of our samples failed"
    elif error is None or peer_error is None or not error <= max(_ALIKE * peer_error, target.rtol or _IMAGE_ROUNDING):
        note = "less exact than the peer"
    passed = not note and ratio.median >= target.bound
    spread = ratio.median, ratio.low, ratio.high
    return Finding(target, passed, peer.arm, *spread, None, error, peer_error, note, ours.n)
