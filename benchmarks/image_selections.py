"""What is measured of image potentials: a model, a job, its size, and the arms that take turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

JOBS = ("sample", "train")
"""``sample``: an adaptive solve from the prior to the data; ``train``: the energy loss of a batch and all gradients."""

OURS, EAGER, COMPILED = "ours", "eager", "compiled"
PEERS = (OURS, EAGER, COMPILED)
"""Who is measured beside our engines. ``ours``: the reference engine alone. ``eager``: what a user has without
compiling. ``compiled``: what goes through torch.compile, half a minute and more for every precision, which is why these
are cases of their own."""


@dataclass(frozen=True)
class Case:
    """One table of arms.

    Attributes:
        model: a name of `benchmarks.image_models.MODELS`. n: images sampled, or in a training batch.
        rtol: rtol = atol of a solve. peers: one of `PEERS`. precisions: of the network's products, each arm in all that
            it can do. device: "cpu" or "cuda".
    """

    model: str
    job: str
    n: int
    rtol: float | None
    peers: str
    precisions: tuple[str, ...]
    device: str = "cpu"

    @property
    def name(self) -> str:
        """In one line."""
        tolerance = "" if self.rtol is None else f" tol{self.rtol:.0e}"
        return f"{self.job} {self.model} n{self.n}{tolerance} {self.peers} {'+'.join(self.precisions)} {self.device}"

    @property
    def least_seconds(self) -> float:
        """Begun with less time than this, it would not come to its end: compiling takes most of it."""
        if self.device == "cpu":
            return 0.0
        if self.peers != COMPILED:
            return 20.0
        return (90.0 if self.job == "train" else 45.0) * len(self.precisions)


def cpu(models: Sequence[str], jobs: Sequence[str], samples: int, batch: int) -> list[Case]:
    """Our engines against the reference engine's eager autograd."""
    sizes = {"sample": samples, "train": batch}
    return [
        Case(model, job, sizes[job], 1e-3 if job == "sample" else None, OURS, ("float32", "bf16"))
        for model in models
        for job in jobs
    ]


SAMPLES = 32
"""Images in the CUDA cases' solves; `MANY` in those at the end."""
MANY = 256
_BATCH = {"unet_10m": 128, "wide_resnet_10m": 128, "unet_50m": 64, "wide_resnet_50m": 64}
_REDUCED, _FULL = ("bf16", "tf32"), ("float32",)


def cuda(jobs: Sequence[str] = JOBS, models: Sequence[str] = tuple(_BATCH)) -> list[Case]:
    """What an H100 or H200 must show (`benchmarks.image_targets.TARGETS`), in the order of what matters most."""

    def sample(model: str, rtol: float, peers: str, precisions: tuple[str, ...], n: int = SAMPLES) -> Case:
        return Case(model, "sample", n, rtol, peers, precisions, "cuda")

    def train(model: str, peers: str, precisions: tuple[str, ...]) -> Case:
        return Case(model, "train", _BATCH[model], None, peers, precisions, "cuda")

    small, large = ("unet_10m", "wide_resnet_10m"), ("unet_50m", "wide_resnet_50m")
    sampling = [
        *(sample(model, 1e-3, EAGER, _REDUCED) for model in small),
        *(sample(model, 1e-5, EAGER, _FULL) for model in small),
        sample("unet_10m", 1e-3, COMPILED, ("bf16",)),
        *(sample(model, 1e-3, EAGER, _REDUCED) for model in large),
        *(sample(model, 1e-5, COMPILED, _FULL) for model in small),
        *(sample(model, 1e-5, EAGER, _FULL) for model in large),
        *(sample(model, 1e-3, COMPILED, ("bf16",)) for model in ("wide_resnet_10m", *large)),
        *(sample(model, 1e-5, COMPILED, _FULL) for model in large),
        *(sample(model, 1e-3, EAGER, _FULL) for model in (*small, *large)),
        *(sample(model, 1e-3, COMPILED, ("tf32",)) for model in (*small, *large)),
        *(sample(model, 1e-3, COMPILED, _FULL) for model in (*small, *large)),
        *(sample(model, 1e-3, EAGER, _REDUCED, MANY) for model in small),
    ]
    training = [
        *(train(model, EAGER, (*_REDUCED, *_FULL)) for model in small),
        train("unet_10m", COMPILED, ("bf16",)),
        *(train(model, EAGER, (*_REDUCED, *_FULL)) for model in large),
        train("wide_resnet_10m", COMPILED, ("bf16",)),
        *(train(model, COMPILED, (precision,)) for precision in ("tf32", "float32") for model in small),
        *(train(model, COMPILED, (precision,)) for precision in ("bf16", "tf32", "float32") for model in large),
    ]
    chosen = {"sample": sampling, "train": training}
    return [case for job in jobs for case in chosen[job] if case.model in models]
