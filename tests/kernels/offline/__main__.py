"""What the compiler makes of every kernel, for devices that are not there: registers, spills, memory, instructions.

    python -m tests.kernels.offline            compare with tests/kernels/limits.csv; 1 if anything got worse
    python -m tests.kernels.offline --quick    the same for a choice of cases that has every kernel, precision, target
    python -m tests.kernels.offline --write    write tests/kernels/limits.csv (20 to 40 minutes on two cores)
    python -m tests.kernels.offline --write --missing   only what it does not have yet, or has of other sources
    python -m tests.kernels.offline --current  whether the table is of these sources: nothing is compiled
    python -m tests.kernels.offline --batches  whether a launch is compiled anew for another batch, seed or stream
    python -m tests.kernels.offline --explore  many tiles instead of the rule's: benchmarks/results/offline_tiles.csv

A launcher is called as on a device, and the launch caught and compiled (`triton.compile` needs no device) for the
target, with the tile that `vapo_fast.kernels.tuning.rule` gives it. A line of the table has a hash of what the compiler
was given: the device functions that the kernel reaches, its shapes and its arguments. Change one of them, and the lines
that depend on it have to be written anew.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from itertools import product, repeat
from multiprocessing import get_context
from pathlib import Path

import triton
from vapo_fast.kernels.shapes import Tile

from .batches import compiled_again
from .cases import PRODUCTS, SHARED_MEMORY, Case, every_case, quick_cases, ruled
from .compiling import fingerprint
from .figures import MARGINS, Figures
from .recall import attempted

ROOT = Path(__file__).resolve().parents[3]
LIMITS = Path(__file__).parents[1] / "limits.csv"
TILES = ROOT / "benchmarks" / "results" / "offline_tiles.csv"

_TILE = ("rows", "block_n", "block_k", "warps", "stages")
_KEY_COLUMNS = tuple(f.name for f in fields(Case))
_COLUMNS = (*_KEY_COLUMNS, *_TILE, *(f.name for f in fields(Figures)), "triton", "source")


def row(case: Case, tile: Tile | None, figures: Figures) -> dict[str, object]:
    """A line of the table."""
    shown = {name: getattr(tile, name) if tile else "-" for name in _TILE}
    return {**asdict(case), **shown, **asdict(figures), "triton": triton.__version__}


def read(path: Path) -> list[dict[str, str]]:
    """A table's lines."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def merge(path: Path, rows: Iterable[dict[str, object]], key: Sequence[str], columns: Sequence[str]) -> None:
    """Lines into a table, each in the place of the one with the same key."""
    table: dict[tuple[str, ...], dict[str, object]] = {tuple(old[k] for k in key): dict(old) for old in read(path)}
    for new in rows:
        table[tuple(str(new[k]) for k in key)] = new
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(table.values())


def worse(case: Case, figures: Figures, limit: dict[str, str] | None) -> list[str]:
    """In what a compilation exceeds its limits, with the numbers."""
    if case.kernel in PRODUCTS and figures.shared > SHARED_MEMORY[case.target]:
        return [f"{case}: {figures.shared} bytes of shared memory; the device has {SHARED_MEMORY[case.target]}"]
    if limit is None:
        return [f"{case}: not in {LIMITS.name}; write it with --write"]
    if limit["triton"] != triton.__version__:
        return []  # another compiler has other figures; that it compiles, and fits the device, is known by now
    tile = ruled(case)
    chosen = {name: str(getattr(tile, name)) if tile else "-" for name in _TILE}
    if any(limit[name] != chosen[name] for name in _TILE):
        return [f"{case}: the rule's tile is {chosen}, the limits are of another; write them with --write"]
    found = []
    for name, value in asdict(figures).items():
        if not limit.get(name):
            continue  # the line was written before there was this figure
        # More matrix instructions are more work; where they are gone altogether, the tensor cores are.
        most = int(limit[name]) + getattr(MARGINS, name)
        if value > most or (name == "matrix" and value != int(limit[name])):
            found.append(f"{case}: {name} {value}, limit {limit[name]} (margin {getattr(MARGINS, name)}); {figures}")
    return found


# Commands ---------------------------------------------------------------------------------------------------------


def _all(
    jobs: int, work: Sequence[tuple[Case, Tile | None]], folder: Path | None = None
) -> Iterator[tuple[Case, Tile | None, Figures | None, str]]:
    """Results of a pool of processes as they come, with a line for each."""
    cases, tiles = [case for case, _ in work], [tile for _, tile in work]
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["TRITON_CACHE_DIR"] = temporary  # so that every figure is fresh
        with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
            results = pool.map(attempted, cases, tiles, repeat(folder))
            for case, tile, (found, error, seconds) in zip(cases, tiles, results, strict=True):
                shown = f" {[getattr(tile, name) for name in _TILE]}" if tile else ""
                print(f"{case}{shown}: {found or error} {seconds:.1f} s", flush=True)
                yield case, tile, found, error


def compare(cases: Sequence[Case], jobs: int, folder: Path | None) -> int:
    """1 if a compilation exceeds its limits."""
    limits = {tuple(line[k] for k in _KEY_COLUMNS): line for line in read(LIMITS)}
    found = []
    for case, _, figures, error in _all(jobs, [(case, None) for case in cases], folder):
        key = tuple(str(value) for value in asdict(case).values())
        found += worse(case, figures, limits.get(key)) if figures else [f"{case}: {error}"]
    print("\n".join(["", *found]) if found else f"{len(cases)} compilations within their limits")
    return int(bool(found))


def write(cases: Sequence[Case], jobs: int, keep: bool) -> int:
    """Write the table of limits; 1 if something does not compile."""
    if not keep:
        LIMITS.unlink(missing_ok=True)
    failed = 0
    for case, _, figures, error in _all(jobs, [(case, None) for case in cases]):
        failed += bool(error)
        if figures:
            tile = ruled(case)
            merge(LIMITS, [row(case, tile, figures) | {"source": fingerprint(case)}], _KEY_COLUMNS, _COLUMNS)
    _drop_what_is_no_case()
    return int(failed > 0)


def _drop_what_is_no_case() -> None:
    keys = {tuple(map(str, asdict(case).values())) for case in every_case()}
    kept = [line for line in read(LIMITS) if tuple(line[k] for k in _KEY_COLUMNS) in keys]
    LIMITS.unlink(missing_ok=True)
    merge(LIMITS, kept, _KEY_COLUMNS, _COLUMNS)


def stale(cases: Sequence[Case]) -> list[Case]:
    """Those that the table does not have, or has of other sources."""
    known = {tuple(line[k] for k in _KEY_COLUMNS): line.get("source") for line in read(LIMITS)}
    return [case for case in cases if known.get(tuple(map(str, asdict(case).values()))) != fingerprint(case)]


def current(cases: Sequence[Case]) -> int:
    """1 if a line of the table is of other sources than these, or is no case at all."""
    old = stale(cases)
    keys = {tuple(map(str, asdict(case).values())) for case in every_case()}
    extra = [line for line in read(LIMITS) if tuple(line[k] for k in _KEY_COLUMNS) not in keys]
    for case in old:
        print(f"{case}: not in {LIMITS.name}, or of other sources")
    for line in extra:
        print(f"{line}: no case of this table")
    if old or extra:
        print(f"\n{len(old)} of {len(cases)} lines to write: python -m tests.kernels.offline --write --missing")
    return int(bool(old or extra))


def explore(cases: Sequence[Case], tiles: Sequence[tuple[int, ...]], jobs: int) -> int:
    """Compile cases with many tiles, into `TILES`."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.provenance import commit

    work = [
        (case, replace(ruled(case), **dict(zip(_TILE, numbers, strict=True)), precision=case.precision))
        for case, numbers in product(cases, tiles)
    ]
    known = ("date", "commit")
    for case, tile, figures, error in _all(jobs, work):
        blank = dict.fromkeys(asdict(MARGINS), "")
        line = {**row(case, tile, MARGINS), **(asdict(figures) if figures else blank), "error": error}
        line |= {"date": datetime.now(UTC).strftime("%Y-%m-%d"), "commit": commit()}
        line["block_d"] = tile.block_d
        merge(TILES, [line], (*_KEY_COLUMNS, *_TILE, "block_d"), (*known, *_COLUMNS, "block_d", "error"))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--missing", action="store_true", help="only cases without a line of these sources")
    parser.add_argument("--current", action="store_true")
    parser.add_argument("--explore", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", metavar="REGEX", help="cases whose name, as printed, matches")
    parser.add_argument(
        "--tiles", default="", metavar="R,N,K,W,S;...", help="with --explore: these, not the usual ones"
    )
    parser.add_argument("--batches", action="store_true")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument(
        "--cache", type=Path, metavar="FOLDER", help="of figures, for comparing: named by what they are of"
    )
    options = parser.parse_args(arguments)
    if triton.knobs.runtime.interpret:
        parser.error("TRITON_INTERPRET is set: nothing would be compiled")
    cases = [case for case in (quick_cases() if options.quick else every_case()) if re.search(options.only, str(case))]
    if options.batches:
        again = compiled_again()
        print("\n".join(again) or "every operation is compiled once")
        return int(bool(again))
    if options.current:
        return current(cases)
    if options.missing:
        cases = stale(cases)
    if options.explore:
        tiles = [tuple(map(int, tile.split(","))) for tile in options.tiles.split(";") if tile] or EXPLORED
        return explore([case for case in cases if case.kernel in PRODUCTS], tiles, options.jobs)
    if options.write:
        return write(cases, options.jobs, bool(options.only or options.quick or options.missing))
    return compare(cases, options.jobs, options.cache)


EXPLORED = [
    (rows, n, k, warps, stages)
    for rows, warps in ((64, 4), (64, 8), (128, 4), (128, 8))
    for n in (64, 128, 256)
    for k in (16, 32, 64)
    for stages in (2, 3)
]
"""What `explore` tries: rows, block_n, block_k, warps, stages."""

if __name__ == "__main__":
    sys.exit(main())
