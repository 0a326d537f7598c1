"""Measure the spread of each estimator of the energy loss: python -m benchmarks.studies.estimator_variance

At the exact potential of two-component Gaussian-mixture data in D = 2, 64 and 3 072 dimensions, it draws points of the
path and takes the standard deviation of one sample's loss under each estimator. For ``covariance`` the constant of
Phi, which matters to nothing else, is chosen so that Phi has mean zero; ``covariance, baseline`` subtracts
Phi(alpha x_data, t). Writes benchmarks/results/estimator_variance.csv and the table of docs/estimator_variance.md.
"""

from __future__ import annotations

import argparse
import csv

import torch

from benchmarks import pages, provenance
from vapo_fast.homotopy import DataHomotopy, Homotopy, LinearHomotopy
from vapo_fast.noise import normal
from vapo_fast.potentials import GaussianMixturePotential

RESULTS = provenance.RESULTS / "estimator_variance.csv"
DOCS = provenance.ROOT / "docs" / "estimator_variance.md"
DIMENSIONS = (2, 64, 3072)
FRACTIONS = (0.1, 0.5, 0.9, 1.0)
SAMPLES = 4000
RATIO = "covariance / velocity"
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


def measure() -> list[dict[str, object]]:
    """A row for each path, dimension and time."""
    rows: list[dict[str, object]] = []
    for path in PATHS:
        for dimension in DIMENSIONS:
            model = mixture(dimension, path)
            for fraction in FRACTIONS:
                t = path.t0 + fraction * (path.t1 - path.t0)
                found = spreads(model, t)
                ratio = found["covariance"] / found["velocity"]
                rows.append({"path": repr(path), "D": dimension, "t": round(t, 4), **found, RATIO: ratio})
                print(rows[-1], flush=True)
    return rows


def write_docs() -> None:
    """The page's table, from the results file."""
    rows = provenance.load(RESULTS)
    cells = [[row["path"], row["D"], *(f"{float(cell):.3g}" for cell in list(row.values())[2:])] for row in rows]
    pages.write(DOCS, {"table": pages.markdown([list(rows[0]), *cells])})


def main() -> None:
    """Measure every case unless only the page is to be written, then write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="measure nothing, only write the page")
    if not parser.parse_args().report:
        rows = measure()
        with RESULTS.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    write_docs()


if __name__ == "__main__":
    main()
