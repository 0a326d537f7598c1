"""What the processor's multiply-adds allow for each target's case, and how much of it our engine reaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.flops import field_flops, loss_flops
from benchmarks.peers.machine import PEAK
from benchmarks.records import Key, Record, of_arm
from benchmarks.targets import TARGETS, Finding, Target, findings, key_of


@dataclass(frozen=True)
class Limit:
    """The arithmetic of one target's case, from rows that were measured in the same rounds.

    Attributes:
        operations: of our run, in matrix products alone: evaluations times a field's, or a loss's. evaluations: mean
            over samples, of a solve.
        peak_gflops: what multiply-adds in registers reached in those rounds. peak_ms: of the operations at that rate.
        ours_ms: what our engine took. share, share_low, share_high: of the peak, paired by round.
        against, ratio: the peer of the target and its time over ours. possible: over `peak_ms`: what no kernel with as
            many operations can exceed. None where the target has no peer.
    """

    target: Target
    operations: float
    evaluations: float | None
    peak_gflops: float
    peak_ms: float
    ours_ms: float
    share: float
    share_low: float
    share_high: float
    against: str
    ratio: float | None
    possible: float | None


def limits(cases: Mapping[Key, Sequence[Record]], threads: int, targets: Sequence[Target] = TARGETS) -> list[Limit]:
    """Of every target whose case has our engine and the peak; the others are left out."""
    found = [
        _limit(finding, cases.get(key_of(finding.target, threads), ())) for finding in findings(cases, threads, targets)
    ]
    return [limit for limit in found if limit is not None]


def _limit(finding: Finding, rows: Sequence[Record]) -> Limit | None:
    peak = of_arm(rows, PEAK)
    ours = of_arm(rows, peak.ours) if peak is not None else None
    if peak is None or ours is None or not peak.gflops or not peak.ratio or not peak.ratio_low or not peak.ratio_high:
        return None
    operations = operations_of(ours)
    # The peak's arm does another number of operations in its time.
    scale = operations / (1e6 * peak.gflops * peak.median_ms)
    share = scale * peak.ratio
    ratio = None if isinstance(finding.target.against, str) else finding.ratio
    return Limit(
        finding.target,
        operations,
        ours.evaluations_mean,
        peak.gflops,
        operations / (1e6 * peak.gflops),
        ours.median_ms,
        share,
        scale * peak.ratio_low,
        scale * peak.ratio_high,
        finding.against,
        ratio,
        None if ratio is None else ratio / share,
    )


def operations_of(row: Record) -> float:
    """Of a row's run, in the matrix products of its network; those of a training step are its loss's."""
    width, layers = row.hidden.split("x")
    widths = (int(width),) * int(layers)
    if row.job in ("loss", "trainer"):
        return float(loss_flops(row.n, row.dimension, widths))
    return field_flops(row.n, row.dimension, widths) * (row.evaluations_mean or 1.0)
