"""Train a potential on eight Gaussians in the plane, sample it, read its densities, and time it beside the reference.

Writes eight_gaussians.png (samples, log-likelihood, paths) and eight_gaussians.json (scores and times).
`make demo` runs this before the digits. Where the native engine is usable it does the work; some training steps and
samples are then timed on it and on the reference engine, in turns within this run.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import vapo_fast as vf
from vapo_fast import plots
from vapo_fast.callbacks import ProgressBar

STEPS = 4000
SAMPLES = 8192
LIKELIHOODS = 1024
ROUNDS = 5
NOISE_LEVELS = (0.02, 0.05, 0.1, 0.2)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS, help="optimiser steps (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder to write to (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, noise and samples (default: %(default)s)")
    return parser.parse_args()


def new_model(seed: int) -> vf.MLPPotential:
    """The potential before training."""
    torch.manual_seed(seed)
    return vf.MLPPotential((2,), vf.DataHomotopy())


def main() -> None:
    """Train, sample, judge, compare."""
    options = arguments()
    data = vf.data.load("8gaussians").tensor()
    trainer = vf.Trainer(new_model(options.seed), seed=options.seed)
    engine = trainer.engine.name
    print(f"training on eight Gaussians for {options.steps} steps on the {engine} engine")
    _, training = timed(lambda: trainer.fit(data, options.steps, callbacks=[ProgressBar()]))
    model = trainer.ema_model
    solution, sampling = timed(lambda: vf.sample(model, SAMPLES, seed=options.seed, return_solution=True))
    logp, likelihood = timed(lambda: vf.log_likelihood(model, solution.x[:LIKELIHOODS]))
    mixture = vf.data.eight_gaussians_mixture()
    found = vf.metrics.mode_shares(solution.x, mixture.means.to(solution.x.dtype), radius=0.2)
    report: dict[str, Any] = {
        "engine": engine,
        "steps": options.steps,
        "samples": SAMPLES,
        "threads": torch.get_num_threads(),
        "seconds": {"training": training, "sampling": sampling, "log_likelihood": likelihood},
        "mean_nfe": float(solution.nfe.double().mean()),
        "share_near_a_mode": found.near,
        "mode_shares": [float(share) for share in found.shares],
        "mean_log_likelihood_of_samples": float(logp.double().mean()),
        "span_over_modes_in_nats": spans(model, mixture.means.to(solution.x.dtype)),
    }
    print(f"trained in {training:.1f} s; {SAMPLES} samples in {sampling:.2f} s, {100 * found.near:.1f} % near a mode")
    if engine != "reference":
        report["reference_over_engine"] = compare(model, data, engine, options.seed)
        for work, ratio in report["reference_over_engine"].items():
            print(f"{work}: the reference engine takes {ratio:.1f} times as long")
    options.out.mkdir(parents=True, exist_ok=True)
    plots.samples_2d(model, options.out / "eight_gaussians.png", data=data[:4096], seed=options.seed)
    (options.out / "eight_gaussians.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def spans(model: vf.Potential, means: torch.Tensor) -> dict[str, float]:
    """Greatest less least log-density at the modes, which are equally high: by the read-out at some noise levels, and
    by the likelihood. Late on the path the read-out does not know how high separated modes are beside each other.
    """
    path = model.homotopy
    found = {"log_likelihood": vf.log_likelihood(model, means)}
    for level in (float(path.kernel(path.t1).beta), *NOISE_LEVELS):
        t = min(float(path.time_at_noise_level(level)), path.t1)
        found[f"read-out at {level:.2g}"] = vf.log_density(model, float(path.kernel(t).alpha) * means, t).detach()
    return {name: float(values.max() - values.min()) for name, values in found.items()}


def compare(model: vf.Potential, data: torch.Tensor, engine: str, seed: int) -> dict[str, float]:
    """Median over rounds of the reference's time for the same work over the engine's; the two take turns."""
    engines = ("reference", engine)
    trainers = {name: vf.Trainer(new_model(seed), seed=seed, engine=name) for name in engines}
    work: dict[str, Callable[[str], Any]] = {
        "20 training steps": lambda name: trainers[name].fit(data, 20),
        "1024 samples": lambda name: vf.sample(model, 1024, seed=seed, engine=name),
    }
    ratios = {}
    for title, job in work.items():
        rounds = []
        for i in range(ROUNDS + 1):
            reference, ours = (timed(partial(job, name))[1] for name in engines)
            if i:  # the first round warms up
                rounds.append(reference / ours)
        ratios[title] = statistics.median(rounds)
    return ratios


def timed(job: Callable[[], Any]) -> tuple[Any, float]:
    """The job's result and the seconds it took."""
    started = time.perf_counter()
    result = job()
    return result, time.perf_counter() - started


if __name__ == "__main__":
    main()
