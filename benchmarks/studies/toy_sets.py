"""Train the default MLP on the five two-dimensional sets and judge it: python -m benchmarks.studies.toy_sets

For each set, a time-dependent and a time-independent `MLPPotential`, with the defaults of model and trainer. Scores,
each the mean over several sample seeds: sliced-W2 of 8 192 samples to as many data points, over its mean between
independent data sets of that size (the floor); for eight Gaussians also the share of samples near a mode, the share of
each mode, and the mean held-out log-likelihood beside the true density's. The time-independent potential ends where
`validate_t_end` says. Appends to benchmarks/results/toy_sets.csv; writes the tables of docs/toy_sets.md from it, and
pictures to docs/images/.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from pathlib import Path
from statistics import fmean, pstdev

import torch
from torch import Tensor

import vapo_fast as vf
from benchmarks import pages, provenance
from benchmarks.provenance import ROOT, append
from vapo_fast import plots
from vapo_fast.noise import Stream, normal

RESULTS = provenance.RESULTS / "toy_sets.csv"
DOCS = ROOT / "docs" / "toy_sets.md"
SETS = ("8gaussians", "2moons", "checkerboard", "pinwheel", "swissroll")
N = 8192
SEEDS = 8
LIKELIHOOD_POINTS = 2048
# Some eighty times what a sample needs.
MAX_STEPS = 1000


def score(model: vf.Potential, data: Tensor, t_end: float, floor: float) -> dict[str, float]:
    """Sliced-W2 of samples to data over the floor: its mean and spread over sample seeds, and the solver's effort."""
    ratios, nfe, failed = [], [], 0
    for seed in range(SEEDS):
        solution = vf.sample(
            model, N, rtol=1e-5, t_end=t_end, seed=seed, max_steps=MAX_STEPS, return_solution=True, throw=False
        )
        assert isinstance(solution, vf.Solution)
        real = data[seed * N : (seed + 1) * N]
        ratios.append(vf.metrics.sliced_wasserstein(solution.x, real) / floor)
        nfe.append(float(solution.nfe.double().mean()))
        failed += int((solution.status != vf.Status.SUCCESS).sum())
    return {
        "sw2_ratio": fmean(ratios),
        "sw2_ratio_sd": pstdev(ratios),
        "nfe": fmean(nfe),
        "failed": failed / (SEEDS * N),
    }


def modes(model: vf.Potential, t_end: float) -> dict[str, float]:
    """For eight Gaussians: share of samples within .2 of a mode, and the smallest and largest share of one mode."""
    samples = vf.sample(model, N, rtol=1e-5, t_end=t_end, max_steps=MAX_STEPS, throw=False)
    assert isinstance(samples, Tensor)
    found = vf.metrics.mode_shares(samples, vf.data.eight_gaussians_mixture().means.to(samples.dtype), radius=0.2)
    return {"near": found.near, "least": float(min(found.shares)), "most": float(max(found.shares))}


def likelihoods(model: vf.Potential, data: Tensor) -> dict[str, float]:
    """Mean held-out log-likelihood at the path's end, by the model and by the closed form of eight Gaussians."""
    path = model.homotopy
    noise = normal(1, range(LIKELIHOOD_POINTS), (2,), stream=Stream.DATA)
    x = path.perturb(data[:LIKELIHOOD_POINTS], path.t1, noise).x
    mixture = vf.data.eight_gaussians_mixture()
    exact = vf.GaussianMixturePotential(mixture.weights, mixture.means, mixture.covariances, path)
    truth = float(exact.marginal_log_density(x.double(), path.t1).mean())
    ours = vf.log_likelihood(model, x, rtol=1e-5)
    assert isinstance(ours, Tensor)
    return {"log_likelihood": float(ours.double().mean()), "true_log_likelihood": truth}


def trained(name: str, steps: int, time_dependent: bool, seed: int) -> tuple[vf.Trainer, float]:
    """The trainer of one model, and the seconds it took."""
    train = vf.data.load(name)
    torch.manual_seed(seed)
    trainer = vf.Trainer(vf.MLPPotential((2,), vf.DataHomotopy(), time_dependent=time_dependent), seed=seed)
    started = time.perf_counter()
    trainer.fit(train.tensor(), steps)
    return trainer, time.perf_counter() - started


def held_out_points(name: str) -> Tensor:
    """Points for the scores, and N more to choose an end time on."""
    return vf.data.load(name, split="test", n=(SEEDS + 1) * N).tensor()


def draw(name: str, model: vf.Potential) -> None:
    """The page's picture of a set."""
    plots.samples_2d(model, ROOT / "docs" / "images" / f"toy_{name}.png", data=held_out_points(name)[:4096])


def run(name: str, steps: int, time_dependent: bool, seed: int) -> dict[str, object]:
    """Train and judge one model."""
    held_out = held_out_points(name)
    floor = vf.metrics.sliced_wasserstein_floor(vf.data.load(name, n=16 * N, seed=1).tensor(), N, trials=SEEDS)
    trainer, seconds = trained(name, steps, time_dependent, seed)
    end = trainer.model.homotopy.t1
    if not time_dependent:
        # Where some samples never get anywhere there is nothing to choose from; the table then shows how many.
        with contextlib.suppress(vf.SolveError):
            end = vf.validate_t_end(trainer.ema_model, held_out[SEEDS * N :], max_steps=MAX_STEPS).t_end
    row: dict[str, object] = {
        "set": name,
        "phi": "Phi(x, t)" if time_dependent else "Phi(x)",
        "steps": steps,
        "lr": trainer.options.lr,
        "batch_size": trainer.options.batch_size,
        "train_seconds": seconds,
        "t_end": end,
        "floor": floor,
        **score(trainer.ema_model, held_out, end, floor),
    }
    if name == "8gaussians":
        row |= modes(trainer.ema_model, end)
        if time_dependent:
            row |= likelihoods(trainer.ema_model, held_out)
    if time_dependent:
        draw(name, trainer.ema_model)
    return row


COLUMNS = (
    "set", "phi", "steps", "lr", "batch_size", "seed", "train_seconds", "t_end", "floor", "sw2_ratio", "sw2_ratio_sd",
    "nfe", "near", "least", "most", "log_likelihood", "true_log_likelihood", "failed",
)  # fmt: skip


def write_docs(results: Path = RESULTS, page: Path = DOCS) -> None:
    """The tables of docs/toy_sets.md from the newest row of each set and kind of potential."""
    newest = {(row["set"], row["phi"]): row for row in provenance.load(results)}
    titles = [
        "set",
        "potential",
        "steps",
        "training, s (threads)",
        "ratio to the floor",
        "end time",
        "nfe",
        "unfinished",
    ]
    cells = [titles]
    for row in sorted(newest.values(), key=lambda row: (row["phi"] == "Phi(x)", SETS.index(row["set"]))):
        training = f"{float(row['train_seconds']):.0f} ({row['threads']})"
        ratio = f"{float(row['sw2_ratio']):.2f} ± {float(row['sw2_ratio_sd']):.2f}"
        effort = [f"{float(row['t_end']):.2f}", f"{float(row['nfe']):.0f}", f"{100 * float(row['failed']):.2g} %"]
        cells.append([row["set"], row["phi"], row["steps"], training, ratio, *effort])
    lines = [pages.markdown(cells), "", "Eight Gaussians, standard deviation .05:", ""]
    lines += [_modes_line(row) for row in newest.values() if row["near"]]
    pages.write(page, {"toy sets": "\n".join(lines)})


def _modes_line(row: dict[str, str]) -> str:
    text = (
        f"- {row['phi']}: {100 * float(row['near']):.1f} % of samples within .2 of a mode; each mode's share "
        f"{100 * float(row['least']):.1f} – {100 * float(row['most']):.1f} %"
    )
    if row["log_likelihood"]:
        ours, true = float(row["log_likelihood"]), float(row["true_log_likelihood"])
        text += f"; mean held-out log-likelihood {ours:.3f} nats against {true:.3f} of the true density"
    return pages.filled(f"{text}.", "  ")


def main() -> None:
    """Run the sets asked for, one row each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--steps", type=int, default=8000, help="optimiser steps of each run (default: %(default)s)")
    parser.add_argument(
        "--kinds", nargs="+", choices=("dependent", "independent"), default=("dependent", "independent")
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="at this size a second thread gains nothing")
    parser.add_argument(
        "--pictures", action="store_true", help="train the time-dependent models again for their pictures only"
    )
    parser.add_argument("--report", action="store_true", help="train nothing, only write the page")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.pictures:
        for name in options.sets:
            draw(name, trained(name, options.steps, True, options.seed)[0].ema_model)
        return
    for kind in () if options.report else options.kinds:
        for name in options.sets:
            row = run(name, options.steps, kind == "dependent", options.seed) | {"seed": options.seed}
            append(RESULTS, COLUMNS, [row])
            print(row, flush=True)
    write_docs()


if __name__ == "__main__":
    main()
