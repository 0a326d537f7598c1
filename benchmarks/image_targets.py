"""The targets for images on an H100 or H200, as data, and whether the results show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.image_arms import AS_GRAPH, COMPILED_STEP, EAGER_STEP, GRAPH, PASSES, SCIPY, TORCHDIFFEQ, TORCHODE
from benchmarks.measure import Quartiles, paired_ratio

Row = Mapping[str, str]
Cases = Mapping[str, Sequence[Row]]

AUTO = "auto"
BEST_COMPILED = tuple(f"{name}{how}" for name in (TORCHDIFFEQ, TORCHODE) for how in (
    " compiled", f" compiled{AS_GRAPH}", AS_GRAPH))  # fmt: skip
"""Solvers around a compiled field, or around a CUDA graph of a field, whichever is fastest."""
COMPILED_STEPS = (COMPILED_STEP, COMPILED_STEP + AS_GRAPH)
MODELS = ("unet_10m", "wide_resnet_10m", "unet_50m", "wide_resnet_50m")
# Two results are equally exact if one's error is at most so many times the other's, or below what was asked for:
# few samples are compared, and gradients differ by rounding.
_ALIKE, _ROUNDING = 2.0, 1e-5


@dataclass(frozen=True)
class Target:
    """One row: how many times as long as our arm the fastest of the peers is to take.

    Attributes:
        rtol: of a solve, rtol = atol. n: None for any number of images. precision: of our arm.
        against: names of peers. peer_precision: theirs.
        bound: the least ratio.
    """

    model: str
    job: str
    rtol: float | None
    precision: str
    against: tuple[str, ...]
    peer_precision: str
    bound: float

    @property
    def title(self) -> str:
        """The case in words."""
        what = "training step" if self.rtol is None else f"sampling at {self.rtol:.0e}"
        return f"{self.model}, {what}, {self.precision}"

    @property
    def whom(self) -> str:
        """The peers in words."""
        names = {BEST_COMPILED: "best compiled peer", COMPILED_STEPS: COMPILED_STEP}
        if self.against == (SCIPY,):
            return "SciPy's RK45, float32"
        return names.get(self.against, self.against[0])


def _targets() -> tuple[Target, ...]:
    found = []
    for model in MODELS:
        found.append(Target(model, "sample", 1e-3, AUTO, (SCIPY,), "float32", 4.0))
        for rtol, precision in ((1e-3, "bf16"), (1e-3, "tf32"), (1e-3, "float32"), (1e-5, "float32")):
            found.append(Target(model, "sample", rtol, precision, (TORCHDIFFEQ,), precision, 2.0))
            found.append(Target(model, "sample", rtol, precision, BEST_COMPILED, precision, 1.25))
        for precision in ("bf16", "tf32", "float32"):
            found.append(Target(model, "train", None, precision, (EAGER_STEP,), precision, 2.0))
            found.append(Target(model, "train", None, precision, COMPILED_STEPS, precision, 1.3))
    return tuple(found)


TARGETS = _targets()


@dataclass(frozen=True)
class Finding:
    """What the results say about a target.

    Attributes:
        n: images of the case. passed: None if it was not measured. ratio: the peer's time over ours, paired by round.
        against: that peer. error, peer_error: of the results. note: why it does not count, or was not measured.
    """

    target: Target
    n: int = 0
    passed: bool | None = None
    ratio: Quartiles | None = None
    against: str = ""
    error: float | None = None
    peer_error: float | None = None
    note: str = "not measured"


def findings(cases: Cases, targets: Sequence[Target] = TARGETS) -> list[Finding]:
    """Hold the rows of each case, by its name, against the targets: a row for each number of images that was measured.

    A ratio counts only if ours is as exact as the peer, or within the tolerance, and no more of our samples failed. The
    best of several peers is the fastest, in whichever case it was measured beside our arm.
    """
    return [found for target in targets for found in _findings(target, cases)]


def _findings(target: Target, cases: Cases) -> list[Finding]:
    fastest: dict[int, Finding] = {}
    for rows in cases.values():
        if not rows or not _is_of(target, rows[0]):
            continue
        n = int(rows[0]["batch"])
        ours = next(
            (row for row in rows if row["name"] in (GRAPH, PASSES) and row["precision"] == target.precision), None
        )
        peers = [row for row in rows if row["name"] in target.against and row["precision"] == target.peer_precision]
        for peer in peers if ours is not None else ():
            found = _held(target, n, ours, peer)
            before = fastest.get(n)
            if before is None or before.ratio is None or (found.ratio and found.ratio.median < before.ratio.median):
                fastest[n] = found
    return [fastest[n] for n in sorted(fastest)] or [Finding(target)]


def _is_of(target: Target, row: Row) -> bool:
    rtol = float(row["rtol"]) if row["rtol"] else None
    return (row["model"], row["job"], rtol) == (target.model, target.job, target.rtol)


def _held(target: Target, n: int, ours: Row, peer: Row) -> Finding:
    ratio = paired_ratio(_seconds(peer), _seconds(ours))
    error, peer_error = _number(ours["error"]), _number(peer["error"])
    note = ""
    if int(ours["failed"] or 0) > int(peer["failed"] or 0):
        note = f"{ours['failed']} of our samples failed"
    elif error is None or peer_error is None or not error <= max(_ALIKE * peer_error, target.rtol or _ROUNDING):
        note = "less exact than the peer"
    passed = not note and ratio.median >= target.bound
    return Finding(target, n, passed, ratio, peer["arm"], error, peer_error, note)


def _seconds(row: Row) -> list[float]:
    return [float(value) for value in row["each_ms"].split()]


def _number(text: str) -> float | None:
    return float(text) if text else None


def text(found: Sequence[Finding]) -> str:
    """What was measured as a Markdown table, and what was not in a line."""
    lines = ["| case | images | target | measured (quartiles) | against | error, ours / peer | |", "|" + "---|" * 7]
    for one in found:
        if one.ratio is None:
            continue
        target, ratio = one.target, one.ratio
        measured = f"{ratio.median:.2f}× ({ratio.low:.2f} – {ratio.high:.2f})"
        verdict = "met" if one.passed else "**missed**" + (f": {one.note}" if one.note else "")
        errors = f"{_shown(one.error)} / {_shown(one.peer_error)}"
        cells = (target.title, str(one.n), f"≥ {target.bound:g}×", measured, one.against, errors, verdict)
        lines.append("| " + " | ".join(cells) + " |")
    counts = {kind: sum(one.passed is kind for one in found) for kind in (True, False, None)}
    missing = [f"{one.target.title} against {one.target.whom}" for one in found if one.passed is None]
    told = f"Targets for images: {counts[True]} met, {counts[False]} missed, {counts[None]} not measured"
    told += f" ({'; '.join(missing)})." if missing else "."
    return "\n".join([*(lines if len(missing) < len(found) else ()), "", told]).strip()


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}"
