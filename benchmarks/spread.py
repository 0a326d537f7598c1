"""Medians, quartiles and errors: the statistics that every measurement of the kit is given in."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Quartiles:
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Quartiles:
        """Of at least two values."""
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return Quartiles(median, low, high)


def paired_ratio(values: Sequence[float], bases: Sequence[float]) -> Quartiles:
    """Quartiles of the ratios of values taken in the same rounds: what a busy machine does to both cancels."""
    return Quartiles.of([value / base for value, base in zip(values, bases, strict=True)])


def rotated(names: Sequence[str], by: int) -> list[str]:
    """The names, starting with another one: no arm always follows the same one."""
    start = by % len(names) if names else 0
    return [*names[start:], *names[:start]]


@dataclass(frozen=True)
class Error:
    """Distance from the float64 solution: root mean square over a sample's coordinates, for the samples compared.

    Of a gradient, all three are its error relative to the gradient's norm.
    """

    rms: float
    median: float
    largest: float

    @staticmethod
    def of(x: np.ndarray, reference: np.ndarray) -> Error:
        """Of the first rows of x (n, d), as many as ``reference`` has."""
        return Error.of_rows(np.sqrt(np.square(x[: len(reference)] - reference).mean(axis=1)))

    @staticmethod
    def of_rows(rows: np.ndarray) -> Error:
        """Of one distance a row."""
        return Error(float(np.sqrt(np.square(rows).mean())), float(np.median(rows)), float(rows.max()))
