"""The options of a training run, and the schedules of its learning rate and averaging."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from vapo_fast.core import checks
from vapo_fast.loss import ESTIMATORS, WEIGHTS, Baseline, Weight
from vapo_fast.potentials.base import Potential, check_model
from vapo_fast.training.augment import AUGMENTATIONS, check_augment

OPTIMIZERS = ("adam", "adamw")


SCHEDULES = ("cosine", "constant")


TIME_SAMPLINGS = ("log_noise", "uniform")


@dataclass(frozen=True)
class TrainingOptions:
    """Everything that decides the numbers of a training run, apart from the model, the data and the engine.

    Attributes:
        lr: peak learning rate, > 0.
        batch_size: samples in one optimiser step, >= 1.
        optimizer: "adam" or "adamw".
        weight_decay: >= 0, on every parameter; an L2 term for "adam", decoupled for "adamw".
        warmup_steps: the rate rises linearly over this many steps from the first of the run; 0 for none.
        schedule: "cosine" (to zero over one call of ``fit``) or "constant".
        grad_clip: largest 2-norm of the whole gradient, > 0; None leaves gradients alone.
        ema_decay: decay of the running average of the weights, in [0, 1); see `ema_decay_at` for its warm-up.
        accumulate: number of micro-batches that one batch is computed in, 1 <= accumulate <= batch_size.
        estimator, weight, baseline: as for `vapo_fast.energy_loss`.
        time_sampling: "log_noise" (times uniform in ln beta) or "uniform" (in the path's own time).
        seed: 0 <= seed < 2**64; with the step number it decides data order, times and noise.
        augment: None, or "flip" for images mirrored at random; see `vapo_fast.training.augment.augmented`.
        prefetch: batches prepared ahead of their use, >= 0; None for what suits the data, see
            `vapo_fast.training.prefetch.batches_ahead`.
        log_every: steps between two readings of the loss; None for 1 on the CPU, 20 on an accelerator.
    """

    lr: float
    batch_size: int
    weight: Weight
    optimizer: str = "adam"
    weight_decay: float = 0.0
    warmup_steps: int = 100
    schedule: str = "cosine"
    grad_clip: float | None = None
    ema_decay: float = 0.999
    accumulate: int = 1
    estimator: str = "velocity"
    baseline: Baseline | None = None
    time_sampling: str = "log_noise"
    seed: int = 0
    augment: str | None = None
    prefetch: int | None = None
    log_every: int | None = None

    @classmethod
    def for_model(
        cls, model: Potential, *, lr: float | None, batch_size: int | None, weight: Weight | None, **options: Any
    ) -> TrainingOptions:
        """Options with what suits the model and its path where lr, batch_size or weight is None."""
        check_augment(options.get("augment"), check_model(model).event_shape)
        defaults = model.training_defaults
        return cls(
            lr=defaults.lr if lr is None else lr,
            batch_size=defaults.batch_size if batch_size is None else batch_size,
            weight=model.homotopy.balanced_weight if weight is None else weight,
            **options,
        )

    def __post_init__(self) -> None:
        checks.positive_float("lr", self.lr)
        checks.positive_int("batch_size", self.batch_size)
        checks.one_of("optimizer", self.optimizer, OPTIMIZERS)
        checks.non_negative_float("weight_decay", self.weight_decay)
        checks.non_negative_int("warmup_steps", self.warmup_steps)
        checks.one_of("schedule", self.schedule, SCHEDULES)
        if self.grad_clip is not None:
            checks.positive_float("grad_clip", self.grad_clip)
        if checks.non_negative_float("ema_decay", self.ema_decay) >= 1.0:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay!r}")
        if checks.positive_int("accumulate", self.accumulate) > self.batch_size:
            raise ValueError(f"accumulate must be at most batch_size ({self.batch_size}), got {self.accumulate!r}")
        checks.one_of("estimator", self.estimator, ESTIMATORS)
        if not callable(self.weight):
            checks.one_of("weight", self.weight, WEIGHTS)
        if self.baseline is not None and self.estimator != "covariance":
            raise ValueError("baseline applies to estimator='covariance' only")
        checks.one_of("time_sampling", self.time_sampling, TIME_SAMPLINGS)
        if checks.non_negative_int("seed", self.seed) >= 2**64:
            raise ValueError(f"seed must be below 2**64, got {self.seed!r}")
        if self.augment is not None:
            checks.one_of("augment", self.augment, AUGMENTATIONS)
        if self.prefetch is not None:
            checks.non_negative_int("prefetch", self.prefetch)
        if self.log_every is not None:
            checks.positive_int("log_every", self.log_every)

    def config(self) -> dict[str, Any]:
        """The options as JSON values; a callable is recorded by its name only."""
        return {name: _json_value(getattr(self, name)) for name in self.__dataclass_fields__}


def learning_rate(options: TrainingOptions, step: int, start: int, end: int) -> float:
    """The rate of the 0-based ``step`` in a fit over steps [start, end).

    Warm-up counts from the first step of the run, the cosine ``(1 + cos(pi (step - start)/(end - start)))/2`` over one
    fit.
    """
    rate = options.lr
    if step < options.warmup_steps:
        rate *= (step + 1) / options.warmup_steps
    if options.schedule == "cosine":
        rate *= 0.5 * (1.0 + math.cos(math.pi * (step - start) / (end - start)))
    return rate


def ema_decay_at(options: TrainingOptions, updates: int) -> float:
    """Decay of the update that follows ``updates`` earlier ones: ``min(ema_decay, (1 + updates)/(10 + updates))``.

    The ramp keeps the untrained weights from lingering in the average: after k updates it reaches back about k/9 of
    them.
    """
    return min(options.ema_decay, (1.0 + updates) / (10.0 + updates))


def _json_value(value: object) -> object:
    if callable(value):
        return f"callable {getattr(value, '__qualname__', type(value).__name__)}"
    return value
