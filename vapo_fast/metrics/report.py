"""`evaluate`: metrics beside the floor that a perfect model would reach, with sample sizes and the extractor's name."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from vapo_fast import noise
from vapo_fast.core import checks
from vapo_fast.data.base import Dataset
from vapo_fast.metrics.extractors import Extractor, InceptionExtractor, features_of
from vapo_fast.metrics.extractors import extractor as extractor_by_name
from vapo_fast.metrics.frechet import frechet_distance
from vapo_fast.metrics.kernel import kernel_distance
from vapo_fast.metrics.neighbours import prdc
from vapo_fast.metrics.wasserstein import sliced_wasserstein

ADVISED_SAMPLES = 10_000
"""Below this many samples a report says that its Fréchet distance is dominated by bias."""

# Neighbour searches grow with the square of the sample; this many rows of each set are searched.
_NEIGHBOUR_ROWS = 10_000

Numbers = dict[str, float]


def evaluate(
    fake: Tensor | Dataset,
    real: Tensor | Dataset,
    *,
    reference_split: Tensor | Dataset,
    extractor: str | Extractor = "pixels",
    k: int = 5,
    n_projections: int = 256,
    floor_trials: int = 3,
    batch_size: int = 256,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare ``fake`` with ``real``, and report beside each number the score of real data itself.

    ``reference_split`` is real data that shares no event with ``real`` and stands for a perfect model. It and ``fake``
    are cut to the smaller of their sizes, since most of these numbers depend on the sample size. The floor is the mean
    over ``floor_trials``. The first trial compares ``reference_split`` with ``real`` as given; the others use
    reshuffles of the two together.

    Returns: a dictionary of JSON values: ``extractor``, ``n_fake``, ``n_real``, ``n_features``, ``metrics`` (name to
        ``value``, ``floor``, ``floor_sd``; the last is None for one trial) and ``warnings`` (list of sentences).
        Metrics: ``sliced_wasserstein`` of the events; of features ``FD-<extractor>`` (``FID`` for Inception only),
        ``kernel_distance`` (standardised), ``precision``, ``recall``, ``density``, ``coverage`` (of at most 10 000
        rows each).
    Raises: TypeError/ValueError for NaN or infinite events, different event shapes, sets of ``k`` or fewer events, or
        an unknown extractor.
    """
    extract = extractor_by_name(extractor) if isinstance(extractor, str) else extractor
    if not isinstance(extract, Extractor):
        raise TypeError(f"extractor must be a name or a callable with a name, got {type(extractor).__name__}")
    trials = checks.positive_int("floor_trials", floor_trials)
    sets = {"fake": fake, "real": real, "reference_split": reference_split}
    events = {name: _events(name, x, checks.positive_int("k", k) + 1) for name, x in sets.items()}
    for name in ("fake", "reference_split"):
        if events[name].shape[1:] != events["real"].shape[1:]:
            raise ValueError(
                f"{name} and real must hold events of one shape, got {tuple(events[name].shape[1:])} and "
                f"{tuple(events['real'].shape[1:])}"
            )
    n_real = len(events["real"])
    n_fake = min(len(events["fake"]), len(events["reference_split"]))
    # Files are often sorted by class, so the events to cut off are chosen at random.
    events = {name: x[noise.permutation(seed, len(x), 0)] for name, x in events.items()}
    events = {name: x if name == "real" else x[:n_fake] for name, x in events.items()}
    features = {name: features_of(extract, x, batch_size) for name, x in events.items()}
    frechet = "FID" if isinstance(extract, InceptionExtractor) else f"FD-{extract.name}"

    def compare(samples: Tensor, sample_features: Tensor, truth: Tensor, truth_features: Tensor) -> Numbers:
        near = prdc(truth_features[:_NEIGHBOUR_ROWS], sample_features[:_NEIGHBOUR_ROWS], k)
        return {
            "sliced_wasserstein": sliced_wasserstein(samples, truth, n_projections=n_projections, seed=seed),
            frechet: frechet_distance(sample_features, truth_features),
            "kernel_distance": kernel_distance(sample_features[:_NEIGHBOUR_ROWS], truth_features[:_NEIGHBOUR_ROWS]),
            **near,
        }

    value = compare(events["fake"], features["fake"], events["real"], features["real"])
    floors = _floors(compare, events, features, trials, seed)
    metrics = {
        name: {
            "value": value[name],
            "floor": fmean(floor[name] for floor in floors),
            "floor_sd": stdev(floor[name] for floor in floors) if trials > 1 else None,
        }
        for name in value
    }
    width = features["real"].shape[1]
    return {
        "extractor": extract.name,
        "n_fake": n_fake,
        "n_real": n_real,
        "n_features": width,
        "metrics": metrics,
        "warnings": _warnings(frechet, n_fake, n_real, width),
    }


def _floors(
    compare: Callable[[Tensor, Tensor, Tensor, Tensor], Numbers],
    events: dict[str, Tensor],
    features: dict[str, Tensor],
    trials: int,
    seed: int,
) -> list[Numbers]:
    pool = torch.cat((events["reference_split"], events["real"]))
    pool_features = torch.cat((features["reference_split"], features["real"]))
    n = len(events["reference_split"])
    found = []
    for trial in range(trials):
        order = torch.arange(len(pool)) if trial == 0 else noise.permutation(seed, len(pool), trial)
        first, rest = order[:n], order[n:]
        found.append(compare(pool[first], pool_features[first], pool[rest], pool_features[rest]))
    return found


def _events(name: str, x: object, at_least: int) -> Tensor:
    if isinstance(x, Dataset):
        x = x.tensor()
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2:
        raise TypeError(f"{name} must be a Dataset or a floating-point tensor (n, *event), got {checks.kind_of(x)}")
    if len(x) < at_least:
        raise ValueError(f"{name} must have at least k + 1 = {at_least} events, got {len(x)}")
    return checks.all_finite(name, x.detach().cpu())


def _warnings(frechet: str, n_fake: int, n_real: int, width: int) -> list[str]:
    found = []
    if min(n_fake, n_real) < ADVISED_SAMPLES:
        found.append(
            f"{frechet} is biased at {n_fake} against {n_real} samples "
            f"(advised: {ADVISED_SAMPLES} each); read it only beside its floor"
        )
    if min(n_fake, n_real) <= width:
        found.append(
            f"{frechet} fits a {width}-dimensional covariance to {min(n_fake, n_real)} samples: it is singular"
        )
    return found
