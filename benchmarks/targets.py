"""The targets: what native must show against the best peer, and whether a results file shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.curves import time_at_error
from benchmarks.records import Record, best_peer, of_arm

TORCHDIFFEQ = ("torchdiffeq", "torchdiffeq compiled")
DIFFRAX = ("diffrax", "diffrax vmap")
COMPILED = ("torch.compile", "jax jit")
NATIVE, EAGER = "native", "reference"
OF_EQUAL_ERROR = ("native tol*100", "native tol*10", NATIVE, "native tol/10")
"""Native from the loosest tolerance to the tightest."""

RATE = "matrix-product rate"
"""``against`` of a target that is a share of the machine's own rate."""


@dataclass(frozen=True)
class Target:
    """One row: a case (at rtol = atol = 1e-5 for solves), the least ratio, and whom it is against."""

    job: str
    workload: str
    dimension: int
    hidden: str
    n: int
    at_least: float
    against: tuple[str, ...] | str = ()

    @property
    def title(self) -> str:
        """The case in words."""
        shape = f"d {self.dimension}, {self.hidden.replace('x', '×')}"
        size = f"{self.n:,}".replace(",", " ")
        if self.job == "loss":
            return f"training step, {shape}, batch {size}"
        if self.job == "field":
            return f"field alone, {shape}, n {size}"
        if self.workload == "stiff5":
            return f"heterogeneous (5 % need 10×), {shape}, n {size}"
        return f"{shape}, n {size}" + (" (latency)" if self.n == 1 else "")


TARGETS = (
    Target("solve", "random", 2, "128x3", 64, 3.0),
    Target("solve", "random", 2, "128x3", 1024, 2.0),
    Target("solve", "random", 2, "128x3", 8192, 2.0),
    Target("solve", "random", 64, "256x3", 64, 2.5),
    Target("solve", "random", 64, "256x3", 8192, 1.7),
    Target("solve", "stiff5", 2, "128x3", 8192, 5.0),
    Target("solve", "random", 2, "128x3", 1, 15.0, TORCHDIFFEQ),
    Target("solve", "random", 2, "128x3", 1, 1.5, DIFFRAX),
    Target("loss", "random", 2, "128x3", 1024, 2.0, (EAGER,)),
    Target("loss", "random", 2, "128x3", 1024, 1.3, COMPILED),
    Target("field", "random", 2, "128x3", 8192, 0.9, RATE),
    Target("field", "random", 64, "256x3", 8192, 0.9, RATE),
)


@dataclass(frozen=True)
class Finding:
    """What the results say about a target.

    Attributes:
        passed: None if it was not measured.
        against: the peer it was held against. ratio, low, high: median and quartiles at equal tolerance, paired by
            round. equal_error: the ratio with native at the tolerance at which its error is the peer's.
        error, peer_error: of the end states, or of the gradient. note: why there is no ratio.
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


# float32 gradients differ by rounding; which of two is nearer to float64's then means nothing.
_ROUNDING = {"loss": 1e-5}


def findings(
    cases: Mapping[tuple[object, ...], Sequence[Record]], threads: int, targets: Sequence[Target] = TARGETS
) -> list[Finding]:
    """Hold the newest rows of each case against the targets.

    A ratio at equal tolerance counts only if native's error is no larger than the peer's. Where it is larger, the ratio
    at equal error has to reach the target. Native never passes with more failed samples than the peer.
    """
    return [_finding(target, cases, threads) for target in targets]


def _finding(target: Target, cases: Mapping[tuple[object, ...], Sequence[Record]], threads: int) -> Finding:
    rtol = 1e-5 if target.job == "solve" else None
    key = (target.job, target.workload, target.dimension, target.hidden, target.n, rtol, None, threads)
    rows = cases.get(key, ())
    native = of_arm(rows, NATIVE)
    if native is None:
        return Finding(target, None, note="not measured")
    if isinstance(target.against, str):
        if native.share is None:
            return Finding(target, None, note="the machine's rate was not measured")
        passed = native.share >= target.at_least
        return Finding(target, passed, target.against, native.share, native.share_low, native.share_high)
    peer = of_arm(rows, EAGER) if target.against == (EAGER,) else best_peer(rows, target.against)
    if peer is None or peer.ratio is None:
        return Finding(target, None, note=f"none of {', '.join(target.against) or 'the peers'} was measured")
    equal = _ratio_at_equal_error(rows, peer)
    counts = peer.ratio if _no_worse(target, native, peer) else equal or 0.0
    return Finding(
        target,
        counts >= target.at_least and native.failed <= peer.failed,
        peer.arm,
        peer.ratio,
        peer.ratio_low,
        peer.ratio_high,
        equal,
        native.error_rms,
        peer.error_rms,
    )


def _no_worse(target: Target, native: Record, peer: Record) -> bool:
    if native.error_rms is None or peer.error_rms is None:
        return native.error_rms is None and peer.error_rms is None
    return native.error_rms <= max(peer.error_rms, _ROUNDING.get(target.job, 0.0))


def _ratio_at_equal_error(rows: Sequence[Record], peer: Record) -> float | None:
    """The peer's time over native's at the peer's error, from native's times at several tolerances in these rounds."""
    points = []
    for name in OF_EQUAL_ERROR:
        row = of_arm(rows, name)
        if row is not None and row.error_rms is not None and row.ratio is not None:
            points.append((row.error_rms, row.ratio))
    took = None if peer.error_rms is None else time_at_error(points, peer.error_rms)
    return None if took is None or peer.ratio is None else peer.ratio / took
