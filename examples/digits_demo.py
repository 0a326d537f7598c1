"""Train a potential on scikit-learn's 8 x 8 digits, sample it, judge the samples; pictures and scores go to out/.

Writes samples.png (a grid), training.png (the loss), scores.json and scores.md (each number beside what real digits
score, and the share of each class). `make demo` runs this after eight_gaussians_demo.py.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

import vapo_fast as vf
from vapo_fast import plots
from vapo_fast.callbacks import CSVLogger, ProgressBar
from vapo_fast.training.budget import steps_within

BUDGET_SECONDS = 150.0
TRAINING: dict[str, Any] = {"lr": 2e-3, "batch_size": 64, "ema_decay": 0.998}
GRID = 100


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=int, help="optimiser steps")
    budget.add_argument(
        "--seconds", type=float, default=BUDGET_SECONDS, help="as many steps as fit this time (default: %(default)g)"
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder to write to (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, noise and samples (default: %(default)s)")
    return parser.parse_args()


def main() -> None:
    """Train, sample, draw, judge."""
    options = arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train, test = vf.data.load("digits", split="train"), vf.data.load("digits", split="test")
    data = train.tensor()

    torch.manual_seed(options.seed)
    model = vf.UNetPotential(
        train.event_shape, vf.DataHomotopy(sigma=0.02), channels=32, multipliers=(1, 2), blocks=1, data_scale=0.75
    ).to(device)
    training = {**TRAINING, "seed": options.seed}
    steps = options.steps or steps_within(options.seconds, model, data, **training)
    print(f"training {sum(p.numel() for p in model.parameters()):,} parameters for {steps} steps on {device}")
    started = time.perf_counter()
    trainer = vf.Trainer(model, **training)
    log = options.out / "training.csv"
    trainer.fit(data, steps, callbacks=[ProgressBar(), CSVLogger(log)])
    trained = time.perf_counter() - started

    # As many samples as real test digits, so that they meet the floor on equal terms.
    samples = vf.sample(trainer.ema_model, max(len(test), GRID), rtol=1e-4, seed=options.seed, progress=True).cpu()
    extractor = vf.metrics.CNNExtractor.train(train, epochs=10, seed=options.seed)
    report = vf.metrics.evaluate(samples, train, reference_split=test, extractor=extractor, floor_trials=8)
    shares = vf.metrics.class_shares(samples, data, train.labels)
    report |= {"class_shares": {str(label): share for label, share in shares.items()}}
    report |= {"steps": steps, "training_seconds": round(trained, 1), "seed": options.seed}

    vf.save(trainer.ema_model, options.out / "model.safetensors", notes={"data": "digits"})
    plots.sample_grid(samples[:GRID], options.out / "samples.png", title=f"{GRID} samples after {steps} steps")
    plots.training_curve(log, options.out / "training.png", title="digits")
    (options.out / "scores.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    table = as_markdown(report)
    (options.out / "scores.md").write_text(table, encoding="utf-8")
    print(table)
    print(f"pictures and scores are in {options.out}/")


def as_markdown(report: dict[str, Any]) -> str:
    """The report as two small tables."""
    lines = [
        f"{report['n_fake']} samples against {report['n_real']} real digits, after {report['steps']} steps "
        f"({report['training_seconds']} s) of training. The floor is what {report['n_fake']} other real digits score.",
        "",
        "| metric | samples | floor | ratio |",
        "|---|---|---|---|",
    ]
    for name, numbers in report["metrics"].items():
        value, floor = numbers["value"], numbers["floor"]
        # A distance without bias can have a floor at or below zero, to which there is no ratio.
        ratio = f"{value / floor:.2f}" if floor > 0 else "-"
        lines.append(f"| {name} | {value:.4g} | {floor:.4g} | {ratio} |")
    shares = report["class_shares"]
    lines += ["", "| class | " + " | ".join(shares) + " |", "|---|" + "---|" * len(shares)]
    lines.append("| share of the samples, % | " + " | ".join(f"{100 * share:.1f}" for share in shares.values()) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
