"""The file of scores: one row for each scored model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import provenance

CSV = provenance.RESULTS / "quality.csv"
METRICS = ("frechet", "sliced_wasserstein", "kernel_distance", "precision", "recall", "density", "coverage")
"""Each has columns of its name, NAME_floor and NAME_floor_sd."""

COLUMNS = (
    "set", "arm", "seed", "budget", "device", "arithmetic", "compiled", "backbone", "parameters", "batch_size", "lr",
    "steps", "fraction", "images", "seconds", "cpu_seconds", "rtol", "nfe", "sample_seconds", "extractor", "n_fake",
    "n_real", *(name + end for name in METRICS for end in ("", "_floor", "_floor_sd")), "engine", "warm_up_seconds",
)  # fmt: skip


def append(row: Mapping[str, object], scores: Mapping[str, Any], path: Path = CSV) -> None:
    """Add a scored model: the facts about it, and what `vapo_fast.metrics.evaluate` says."""
    flat: dict[str, object] = {key: scores[key] for key in ("extractor", "n_fake", "n_real")}
    for name, numbers in _by_name(scores).items():
        flat |= {name: numbers["value"], f"{name}_floor": numbers["floor"], f"{name}_floor_sd": numbers["floor_sd"]}
    provenance.append(path, COLUMNS, [dict(row) | flat])


def line(row: Mapping[str, Any], scores: Mapping[str, Any]) -> str:
    """A scored model in one line."""
    found = ", ".join(f"{name} {v['value']:.4g} ({v['floor']:.4g})" for name, v in _by_name(scores).items())
    return (
        f"  {100 * row['fraction']:g} %, {row['images']} images, {row['seconds']:.0f} s, nfe {row['nfe']:.0f}: {found}"
    )


def _by_name(scores: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Metrics by the names of `METRICS`: the Frechet distance has its extractor in its own."""
    return {
        "frechet" if name.startswith("FD-") or name == "FID" else name: numbers
        for name, numbers in scores["metrics"].items()
    }
