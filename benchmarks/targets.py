"""The targets: what native must show against the best peer, and whether a results file shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.records import Record, best_peer, of_arm

TORCHDIFFEQ = ("torchdiffeq", "torchdiffeq compiled")
DIFFRAX = ("diffrax", "diffrax vmap")
COMPILED = ("torch.compile", "jax jit")
NATIVE, TIGHTER, EAGER = "native", "native tol/10", "reference"

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
        against: the peer it was held against. ratio, low, high: median and quartiles, paired by round. error,
            peer_error: of the end states, or of the gradient. note: what a reader must know besides.
        passed: None if it was not measured.
    """

    target: Target
    passed: bool | None
    against: str = ""
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    error: float | None = None
    peer_error: float | None = None
    note: str = ""


# float32 gradients differ by rounding; which of two is nearer to float64's then means nothing.
_ROUNDING = {"loss": 1e-5, "field": float("inf")}


def findings(
    cases: Mapping[tuple[object, ...], Sequence[Record]], threads: int, targets: Sequence[Target] = TARGETS
) -> list[Finding]:
    """Hold the newest rows of each case against the targets.

    A ratio counts only if native's error is no larger than the peer's. Where it is larger, native at a tenth of the
    tolerance, measured in the same rounds, takes its place; the note says so.
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
    if peer is None or peer.ratio is None or peer.ratio_low is None or peer.ratio_high is None:
        return Finding(target, None, note=f"none of {', '.join(target.against) or 'the peers'} was measured")
    found = Finding(
        target,
        peer.ratio >= target.at_least,
        peer.arm,
        peer.ratio,
        peer.ratio_low,
        peer.ratio_high,
        native.error_rms,
        peer.error_rms,
    )
    return found if _no_worse(target, native, peer) else _at_equal_error(found, rows, peer)


def _no_worse(target: Target, ours: Record, peer: Record) -> bool:
    if ours.failed > peer.failed:
        return False
    if ours.error_rms is None or peer.error_rms is None:
        return True
    return ours.error_rms <= max(peer.error_rms, _ROUNDING.get(target.job, 0.0))


def _at_equal_error(found: Finding, rows: Sequence[Record], peer: Record) -> Finding:
    """The finding again with native at a tenth of the tolerance."""
    target, tighter = found.target, of_arm(rows, TIGHTER)
    worse = f"at equal tolerance {found.ratio:.2f}× with error {_short(found.error)} against {_short(peer.error_rms)}"
    if tighter is None or tighter.ratio is None or found.ratio is None or not _no_worse(target, tighter, peer):
        return Finding(target, False, *_numbers(found), note=f"error larger than the peer's: {worse}")
    scale = 1.0 / tighter.ratio
    ratio, low, high = (value and value * scale for value in (found.ratio, found.low, found.high))
    passed = ratio is not None and ratio >= target.at_least
    note = f"native at a tenth of the tolerance, for an error no larger; {worse}"
    return Finding(target, passed, found.against, ratio, low, high, tighter.error_rms, peer.error_rms, note)


def _numbers(found: Finding) -> tuple[str, float | None, float | None, float | None, float | None, float | None]:
    return found.against, found.ratio, found.low, found.high, found.error, found.peer_error


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.1e}"
