"""What sigma, the loss weight, the estimator and time dependence change: python -m benchmarks.studies.sensitivity

One factor at a time is moved away from the defaults (sigma .01, inverse-variance weight, velocity estimator,
time-dependent potential), on eight Gaussians (default `MLPPotential` and `Trainer`) and on the 8x8 digits (a small
U-Net, `--sets digits`), several seeds each; a seed decides initial weights, batches and samples. Each run is appended
to benchmarks/results/sensitivity.csv as it ends, and a run that is there already (same set, factors, steps and seed) is
not repeated. Writes docs/sensitivity.md from the file; `--report` does only that.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

import vapo_fast as vf
from benchmarks import pages, provenance
from benchmarks.provenance import ROOT, append, load
from vapo_fast.noise import Stream, normal

RESULTS = provenance.RESULTS / "sensitivity.csv"
DOCS = ROOT / "docs" / "sensitivity.md"
SETS = ("8gaussians", "digits")
STEPS = {"8gaussians": 3000, "digits": 600}
# A sample takes some eighty; a potential too stiff to integrate shows in the share of unfinished ones.
MAX_STEPS = 1000
POINTS = 8192
LIKELIHOOD_POINTS = 2048
DIGITS_LIKELIHOOD_POINTS = 64
DIGITS_CHANNELS = 32
NEAR = 0.2


@dataclass(frozen=True)
class Factors:
    """What a run varies."""

    sigma: float = 0.01
    weight: str = "inverse_variance"
    estimator: str = "velocity"
    time_dependent: bool = True


DEFAULT = Factors()
VARIED: dict[str, tuple[Factors, ...]] = {
    "sigma": tuple(replace(DEFAULT, sigma=sigma) for sigma in (0.003, 0.01, 0.03, 0.1)),
    "weight": tuple(replace(DEFAULT, weight=weight) for weight in ("inverse_variance", "uniform")),
    "estimator": tuple(replace(DEFAULT, estimator=estimator) for estimator in ("velocity", "covariance")),
    "time_dependent": tuple(replace(DEFAULT, time_dependent=dependent) for dependent in (True, False)),
}
"""Each table's rows; the defaults stand in every table."""

COLUMNS = (
    "set", "sigma", "weight", "estimator", "time_dependent", "steps", "seed", "train_seconds", "t_end", "sw2",
    "sw2_floor", "near", "least", "nll_gap", "frechet", "frechet_floor", "bits_per_dim", "nfe", "unfinished", "failure",
)  # fmt: skip


def cases() -> list[Factors]:
    """Every combination that some table shows, each once, the defaults first."""
    return list(dict.fromkeys([DEFAULT, *(factors for rows in VARIED.values() for factors in rows)]))


def run_points(factors: Factors, steps: int, seed: int) -> dict[str, object]:
    """Train the default MLP on eight Gaussians and judge it."""
    held_out = vf.data.load("8gaussians", split="test", n=2 * POINTS, seed=seed).tensor()
    torch.manual_seed(seed)
    model = vf.MLPPotential((2,), vf.DataHomotopy(sigma=factors.sigma), time_dependent=factors.time_dependent)
    row, trained, end = _train(model, vf.data.load("8gaussians").tensor(), held_out[POINTS:], factors, steps, seed)
    if trained is None:
        return row
    solution = _samples(trained, POINTS, end, seed, rtol=1e-5)
    means = vf.data.eight_gaussians_mixture().means.to(solution.x.dtype)
    found = vf.metrics.mode_shares(solution.x, means, radius=NEAR)
    row |= {
        "sw2": vf.metrics.sliced_wasserstein(solution.x, held_out[:POINTS], seed=seed),
        "sw2_floor": _points_floor(),
        "near": found.near,
        "least": float(found.shares.min()),
        **_effort(solution),
    }
    if factors.time_dependent:
        row["nll_gap"] = _likelihood_gap(trained, held_out[:LIKELIHOOD_POINTS], seed)
    return row


def run_digits(factors: Factors, steps: int, seed: int) -> dict[str, object]:
    """Train a small U-Net on the digits and judge it."""
    train, test = vf.data.load("digits"), vf.data.load("digits", split="test")
    torch.manual_seed(seed)
    model = vf.UNetPotential(
        train.event_shape,
        vf.DataHomotopy(sigma=factors.sigma),
        channels=DIGITS_CHANNELS,
        multipliers=(1, 2),
        blocks=1,
        time_dependent=factors.time_dependent,
        data_scale=0.75,
    )
    options = {"lr": 2e-3, "batch_size": 64, "ema_decay": 0.99}
    row, trained, end = _train(model, train.tensor(), test.tensor(), factors, steps, seed, **options)
    if trained is None:
        return row
    solution = _samples(trained, len(test), end, seed, rtol=1e-3)
    finite = solution.x[torch.isfinite(solution.x).flatten(1).all(1)]
    if len(finite) == len(solution.x):
        report = vf.metrics.evaluate(
            solution.x, train, reference_split=test, extractor=_digits_extractor(), floor_trials=8, seed=seed
        )
        frechet = next(value for name, value in report["metrics"].items() if name.startswith("FD-"))
        distance = report["metrics"]["sliced_wasserstein"]
        row |= {"sw2": distance["value"], "sw2_floor": distance["floor"]}
        row |= {"frechet": frechet["value"], "frechet_floor": frechet["floor"]}
    row |= _effort(solution)
    if factors.time_dependent:
        order = torch.arange(0, len(test), len(test) // DIGITS_LIKELIHOOD_POINTS)[:DIGITS_LIKELIHOOD_POINTS]
        bits = vf.bits_per_dim(
            trained, test.batch(order), levels=17, seed=seed, rtol=1e-3, trace="hutchinson", probes=2
        )
        row["bits_per_dim"] = float(bits.values.mean())
    return row


RUNS: dict[str, Callable[[Factors, int, int], dict[str, object]]] = {"8gaussians": run_points, "digits": run_digits}


def _train(
    model: vf.Potential, data: Tensor, held_out: Tensor, factors: Factors, steps: int, seed: int, **options: object
) -> tuple[dict[str, object], vf.Potential | None, float]:
    """The row so far, the averaged model (None if training diverged) and the end time."""
    row: dict[str, object] = {}
    trainer = vf.Trainer(model, seed=seed, weight=factors.weight, estimator=factors.estimator, **options)
    started = time.perf_counter()
    try:
        trainer.fit(data, steps)
    except ArithmeticError as error:
        return row | {"failure": str(error).split(". ")[0]}, None, math.nan
    row["train_seconds"] = time.perf_counter() - started
    end = model.homotopy.t1
    if not model.time_dependent:
        # Where some samples never get anywhere there is nothing to choose from; the table then shows how many.
        with contextlib.suppress(vf.SolveError):
            chosen = vf.validate_t_end(trainer.ema_model, held_out, n=min(len(held_out), 1024), max_steps=MAX_STEPS)
            end = chosen.t_end
    return row | {"t_end": end}, trainer.ema_model, end


def _samples(model: vf.Potential, n: int, end: float, seed: int, rtol: float) -> vf.Solution:
    solution = vf.sample(
        model, n, rtol=rtol, t_end=end, seed=seed, max_steps=MAX_STEPS, return_solution=True, throw=False
    )
    assert isinstance(solution, vf.Solution)
    return solution


def _effort(solution: vf.Solution) -> dict[str, object]:
    failed = (solution.status != vf.Status.SUCCESS).double().mean()
    return {"nfe": float(solution.nfe.double().mean()), "unfinished": float(failed)}


def _likelihood_gap(model: vf.Potential, data: Tensor, seed: int) -> float:
    """Mean log-likelihood of the path's true end density less the model's, nats: an estimate of the KL divergence."""
    path = model.homotopy
    x = path.perturb(data, path.t1, normal(seed, range(len(data)), (2,), stream=Stream.DATA)).x
    mixture = vf.data.eight_gaussians_mixture()
    exact = vf.GaussianMixturePotential(mixture.weights, mixture.means, mixture.covariances, path)
    ours = vf.log_likelihood(model, x, rtol=1e-5)
    assert isinstance(ours, Tensor)
    return float((exact.marginal_log_density(x.double(), path.t1) - ours.double()).mean())


@cache
def _points_floor() -> float:
    return vf.metrics.sliced_wasserstein_floor(vf.data.load("8gaussians", n=16 * POINTS, seed=1).tensor(), POINTS)


@cache
def _digits_extractor() -> vf.metrics.CNNExtractor:
    return vf.metrics.CNNExtractor.train(vf.data.load("digits"), epochs=10)


def done(rows: Iterable[dict[str, str]], name: str, factors: Factors, steps: int, seed: int) -> bool:
    """Whether the results hold this run already."""
    wanted = {"set": name, **{key: str(value) for key, value in asdict(factors).items()}}
    wanted |= {"steps": str(steps), "seed": str(seed)}
    return any(all(row[key] == value for key, value in wanted.items()) for row in rows)


_MEASURES: dict[str, tuple[tuple[str, Callable[[dict[str, str]], float | None], str], ...]] = {
    "8gaussians": (
        ("sliced-W2 / floor", lambda row: _ratio(row, "sw2", "sw2_floor"), ".2f"),
        ("near a mode, %", lambda row: _number(row, "near", 100.0), ".1f"),
        ("least share of a mode, %", lambda row: _number(row, "least", 100.0), ".1f"),
        ("log-likelihood gap, nats", lambda row: _number(row, "nll_gap"), ".3f"),
    ),
    "digits": (
        ("FD-cnn", lambda row: _number(row, "frechet"), ".1f"),
        ("FD / floor", lambda row: _ratio(row, "frechet", "frechet_floor"), ".2f"),
        ("sliced-W2 / floor", lambda row: _ratio(row, "sw2", "sw2_floor"), ".2f"),
        ("bits/dim", lambda row: _number(row, "bits_per_dim"), ".3f"),
    ),
}
_EFFORT = (
    ("nfe", lambda row: _number(row, "nfe"), ".0f"),
    ("unfinished, %", lambda row: _number(row, "unfinished", 100.0), ".2g"),
)


def _number(row: dict[str, str], name: str, scale: float = 1.0) -> float | None:
    return scale * float(row[name]) if row[name] else None


def _ratio(row: dict[str, str], name: str, floor: str) -> float | None:
    value, below = _number(row, name), _number(row, floor)
    return value / below if value is not None and below else None


def spread(values: list[float | None], form: str) -> str:
    """``median [least, most]`` over the runs that have the number; a dash if none has."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    text = format(median(known), form)
    return f"{text} [{format(min(known), form)}, {format(max(known), form)}]" if len(known) > 1 else text


def table(rows: list[dict[str, str]], name: str, factor: str) -> list[list[str]]:
    """One table: a row for each value of ``factor``, median and range over seeds."""
    measures = (*_MEASURES[name], *_EFFORT)
    lines = [[factor, "runs", *(title for title, _, _ in measures)]]
    for factors in VARIED[factor]:
        wanted = {key: str(value) for key, value in asdict(factors).items()}
        own = [row for row in rows if row["set"] == name and all(row[key] == value for key, value in wanted.items())]
        if not own:
            continue
        diverged = sum(bool(row["failure"]) for row in own)
        count = f"{len(own)}" + (f" ({diverged} diverged)" if diverged else "")
        cells = [spread([of(row) for row in own], form) for _, of, form in measures]
        mark = " (default)" if factors == DEFAULT else ""
        lines.append([f"{getattr(factors, factor)}{mark}", count, *cells])
    return lines


def write_docs(rows: list[dict[str, str]], path: Path = DOCS) -> None:
    """The tables of the page, from the results file alone."""
    parts = {}
    for name in SETS:
        own = [row for row in rows if row["set"] == name]
        tables = [pages.markdown(table(own, name, factor)) for factor in VARIED] if own else ["Not run."]
        parts[name] = "\n\n".join(tables)
    pages.write(path, parts)


def main() -> None:
    """Run what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS[:1])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, help=f"optimiser steps of each run (default: {STEPS})")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: %(default)s")
    parser.add_argument("--docs", type=Path, default=DOCS, help="default: %(default)s")
    parser.add_argument("--report", action="store_true", help="train nothing, only write the page")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in () if options.report else options.sets:
        steps = options.steps or STEPS[name]
        for seed in options.seeds:
            for factors in cases():
                if done(load(options.results), name, factors, steps, seed):
                    continue
                row = {"set": name, **asdict(factors), "steps": steps, "seed": seed}
                row |= RUNS[name](factors, steps, seed)
                append(options.results, COLUMNS, [row])
                print(row, flush=True)
    write_docs(load(options.results), options.docs)


if __name__ == "__main__":
    main()
