"""Measure the spread of each estimator of the energy loss: python benchmarks/estimator_variance.py

At the exact potential of two-component Gaussian-mixture data in D = 2, 64 and 3 072 dimensions, it draws points of the
path and takes the standard deviation of one sample's loss under each estimator. For ``covariance`` the constant of
Phi, which matters to nothing else, is chosen so that Phi has mean zero; ``covariance, baseline`` subtracts
Phi(alpha x_data, t). Writes benchmarks/results/estimator_variance.csv and docs/estimator_variance.md.
"""

from __future__ import annotations

import csv
from pathlib import Path

import torch

from vapo_fast.homotopy import DataHomotopy, Homotopy, LinearHomotopy
from vapo_fast.noise import normal
from vapo_fast.potentials import GaussianMixturePotential

ROOT = Path(__file__).resolve().parent.parent
DIMENSIONS = (2, 64, 3072)
FRACTIONS = (0.1, 0.5, 0.9, 1.0)
SAMPLES = 4000
PATHS: tuple[Homotopy, ...] = (DataHomotopy(1.0, 0.01), LinearHomotopy(1.0, 0.99))


def mixture(dimension: int, path: Homotopy) -> GaussianMixturePotential:
    """Two equal components N(+-m, I/4) with |m_i| = 1/2: one coordinate of the data has unit-order scale in any D."""
    signs = 1.0 - 2.0 * (torch.arange(dimension) % 2)
    means = 0.5 * torch.stack([signs, -signs])
    covariances = 0.25 * torch.eye(dimension).expand(2, -1, -1)
    return GaussianMixturePotential(torch.ones(2), means, covariances, path)


def spreads(model: GaussianMixturePotential, t: float) -> dict[str, float]:
    """Standard deviation over samples of the one-sample loss, by estimator."""
    path = model.homotopy
    x_data = model.sample_data(SAMPLES, seed=1)
    noise = normal(2, range(SAMPLES), model.event_shape, dtype=torch.float64)
    point = path.perturb(x_data, t, noise)
    phi, gradient = model.field(point.x, t)
    half = 0.5 * gradient.square().sum(1)
    baseline = model(path.kernel(t).alpha * x_data, t)
    losses = {
        "velocity": half - (gradient * point.velocity).sum(1),
        "covariance": half + (phi - phi.mean()) * point.innovation,
        "covariance, baseline": half + (phi - baseline) * point.innovation,
    }
    return {name: float(loss.std()) for name, loss in losses.items()}


def main() -> None:
    """Measure every case, then write the table twice: as data and as text."""
    rows = []
    for path in PATHS:
        for dimension in DIMENSIONS:
            model = mixture(dimension, path)
            for fraction in FRACTIONS:
                t = path.t0 + fraction * (path.t1 - path.t0)
                row = {"path": repr(path), "D": dimension, "t": round(t, 4), **spreads(model, t)}
                row["covariance / velocity"] = row["covariance"] / row["velocity"]
                rows.append(row)
                print(row, flush=True)
    results = ROOT / "benchmarks" / "results" / "estimator_variance.csv"
    with results.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    for row in rows:
        lines.append("| " + " | ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()) + " |")
    text = f"""# Spread of the loss estimators

Standard deviation of one sample's loss at the exact potential of mixture data, {SAMPLES} samples, written by
`python benchmarks/estimator_variance.py` (data: `benchmarks/results/estimator_variance.csv`). A batch of B divides it
by sqrt(B). `velocity` is the default; `covariance` is the paper's form with exact centring for each data
point and Phi shifted to mean zero; the baseline is Phi(alpha x_data, t), a function of the data point alone.

"""
    (ROOT / "docs" / "estimator_variance.md").write_text(text + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
