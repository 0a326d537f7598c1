"""What a solve returns: states, a status and counts for each sample, and the error that carries them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum

import torch
from torch import Tensor


class Status(IntEnum):
    """How a sample's integration ended."""

    SUCCESS = 0
    MAX_STEPS = 1
    STEP_TOO_SMALL = 2
    NON_FINITE = 3

    @property
    def message(self) -> str:
        """One sentence for the user."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.SUCCESS: "reached the end time",
    Status.MAX_STEPS: "used up max_steps; raise max_steps or the tolerances",
    Status.STEP_TOO_SMALL: "the error stayed above the tolerance down to the smallest step that time resolves; "
    "the field is discontinuous, too stiff, or noisier than the tolerance",
    Status.NON_FINITE: "the state or the field became NaN or infinite",
}


@dataclass(frozen=True)
class Solution:
    """Result of a batch of integrations.

    Attributes:
        x: (B, *event) state where each sample stopped; the last accepted one for a sample that failed.
        t: (B,) float64, the time where it stopped.
        status: (B,) int64 of `Status` values.
        nfe, accepted, rejected: (B,) int64: evaluations of the field, and steps.
        ys: (len(t_eval), B, *event) states at ``t_eval``, NaN at times that a failed sample did not reach; else None.
        engine, precision: which engine computed it and in which arithmetic; empty for a bare `solve`.
    """

    x: Tensor
    t: Tensor
    status: Tensor
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    ys: Tensor | None = None
    engine: str = ""
    precision: str = ""

    @property
    def success(self) -> Tensor:
        """(B,) bool: which samples reached the end time."""
        return self.status == Status.SUCCESS

    def raise_for_failures(self) -> Solution:
        """Return self if every sample succeeded, else raise `SolveError`. Reads the device once."""
        if not bool(self.success.all()):
            raise SolveError(self)
        return self

    @staticmethod
    def concatenate(parts: Sequence[Solution]) -> Solution:
        """Join the solutions of consecutive batches."""
        if len(parts) == 1:
            return parts[0]
        joined: dict[str, Tensor | str | None] = {}
        for field in fields(Solution):
            values = [getattr(part, field.name) for part in parts]
            if isinstance(values[0], Tensor):
                joined[field.name] = torch.cat(values, dim=1 if field.name == "ys" else 0)
            else:
                joined[field.name] = values[0]
        return Solution(**joined)  # type: ignore[arg-type]


class SolveError(RuntimeError):
    """Some samples did not reach the end time; ``solution`` holds the state of every one."""

    def __init__(self, solution: Solution) -> None:
        self.solution = solution
        status = solution.status.tolist()
        failures = [
            f"{status.count(kind)} {kind.name} (first: sample {status.index(kind)}; {kind.message})"
            for kind in Status
            if kind != Status.SUCCESS and kind in status
        ]
        failed = sum(value != Status.SUCCESS for value in status)
        super().__init__(
            f"{failed} of {len(status)} samples did not reach the end time: {'; '.join(failures)}. "
            "The error's .solution holds every state; throw=False returns it instead of raising"
        )

    def __reduce__(self) -> tuple[type[SolveError], tuple[Solution], dict[str, object]]:
        # Exceptions are rebuilt from their arguments, and this one's is not its message.
        return type(self), (self.solution,), vars(self)
