"""The batch sizes that a solve runs at: its first one, and the smaller ones it moves to as samples end."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Buckets:
    """A ladder of sizes below the number of rows that memory allows.

    Each size is a program of its own, so the ladder is coarse: at most a quarter of the rows are computed in vain. A
    device is no faster below a few rows.

    Attributes:
        limit: the most rows. step: sizes are multiples of it, but for the limit itself.
        ratio: of one size to the next larger one. smallest: the smallest size.
    """

    limit: int
    step: int = 8
    ratio: float = 0.75
    smallest: int = 16

    def chunk(self, rows: int) -> int:
        """How many of so many samples to take next: all, or equal shares of them."""
        return math.ceil(rows / math.ceil(rows / self.limit))

    def first(self, rows: int) -> int:
        """The size for a chunk."""
        return min(self.limit, self._up(rows))

    def below(self, size: int) -> int:
        """The next smaller size: a batch with no more rows running moves there; 0 if there is none."""
        if size <= self.smallest:
            return 0
        return min(size - 1, max(self.smallest, self._up(math.floor(self.ratio * size))))

    def fit(self, running: int, size: int) -> int:
        """The smallest size, down from ``size``, that holds so many rows."""
        lower = self.below(size)
        while lower > 0 and running <= lower:
            size, lower = lower, self.below(lower)
        return size

    def halved(self, size: int) -> Buckets:
        """The ladder after memory ran out at ``size``."""
        return Buckets(max(1, size // 2), self.step, self.ratio, min(self.smallest, max(1, size // 2)))

    def _up(self, rows: int) -> int:
        return max(1, math.ceil(rows / self.step) * self.step)
