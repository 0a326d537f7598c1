"""The options of a training run, each described once, and the schedules of its learning rate and averaging.

An option is one field of `TrainingOptions` or `EngineOptions`. The trainers' signatures, the settings and flags of the
command line, and the table in docs/training.md are read from the fields.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import math
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast

from vapo_fast.core import checks
from vapo_fast.loss import ESTIMATORS, WEIGHTS, Baseline, Weight
from vapo_fast.potentials.base import Potential, check_model
from vapo_fast.training.augment import AUGMENTATIONS, check_augment

OPTIMIZERS = ("adam", "adamw")


SCHEDULES = ("cosine", "constant")


TIME_SAMPLINGS = ("log_noise", "uniform")

Check = Callable[[str, object], object]
# None is the model's own, and `for_model` replaces it.
_FROM_MODEL = ("lr", "batch_size", "weight")

Names = ParamSpec("Names")
Run = TypeVar("Run")


def option(default: object, text: str, check: Check | None = None, *, doc: str = "", panel: str = "Training") -> Any:
    """One option: its default, its help on the command line, and what refuses its value.

    ``check(name, value)`` raises ValueError or TypeError. None, where it is the default, is not checked.
    ``doc`` says more than ``text``, for Python and the docs. ``panel`` is the group of the command line's help.
    """
    return dataclasses.field(
        default=default, metadata={"help": text, "check": check, "doc": doc or text, "panel": panel}
    )


def _one_of(*allowed: str) -> Check:
    return functools.partial(checks.one_of, allowed=allowed)


def _weight(name: str, value: object) -> None:
    if not callable(value):
        checks.one_of(name, value, WEIGHTS)


def _decay(name: str, value: object) -> None:
    if checks.non_negative_float(name, value) >= 1.0:
        raise ValueError(f"{name} must be in [0, 1), got {value!r}")


def _seed(name: str, value: object) -> None:
    if checks.non_negative_int(name, value) >= 2**64:
        raise ValueError(f"{name} must be below 2**64, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Everything that decides the numbers of a training run, apart from the model, the data and the engine.

    `for_model` fills in what None leaves to the model. Raises: ValueError or TypeError naming the option.
    """

    # "| Any": who gives options may give None, and who reads them finds none.
    lr: float | Any = option(
        None,
        "Peak learning rate; by default what suits the model.",
        checks.positive_float,
        doc="Peak learning rate, > 0; None for the potential's own (`Potential.training_defaults`).",
    )
    batch_size: int | Any = option(
        None,
        "Samples in one step; by default what suits the model.",
        checks.positive_int,
        doc="Samples in one optimiser step, >= 1; None for the potential's own.",
    )
    optimizer: str = option("adam", "adam or adamw.", _one_of(*OPTIMIZERS), doc='"adam" or "adamw".')
    weight_decay: float = option(
        0.0,
        "Weight decay.",
        checks.non_negative_float,
        doc='>= 0, on every parameter; an L2 term for "adam", decoupled for "adamw".',
    )
    warmup_steps: int = option(
        100,
        "Steps over which the learning rate rises.",
        checks.non_negative_int,
        doc="The rate rises linearly over this many steps from the first of the run; 0 for none.",
    )
    schedule: str = option(
        "cosine",
        "cosine or constant.",
        _one_of(*SCHEDULES),
        doc='"cosine" (to zero over one call of `fit`) or "constant".',
    )
    grad_clip: float | None = option(
        None,
        "Largest norm of the gradient.",
        checks.positive_float,
        doc="Largest 2-norm of the whole gradient, > 0; None leaves gradients alone.",
    )
    ema_decay: float = option(
        0.999,
        "Decay of the averaged weights, in [0, 1).",
        _decay,
        doc="In [0, 1); after k updates the decay in use is `min(ema_decay, (1 + k)/(10 + k))`.",
    )
    accumulate: int = option(
        1,
        "Micro-batches in one step, for less memory.",
        checks.positive_int,
        doc="Compute each batch in this many micro-batches, at most batch_size, for less memory; the result is the "
        "whole batch's to rounding. Of several processes each computes its share in so many.",
    )
    estimator: str = option(
        "velocity",
        "velocity or covariance.",
        _one_of(*ESTIMATORS),
        doc='As for `vapo_fast.energy_loss`: "velocity" or "covariance".',
    )
    weight: Weight | Any = option(
        None,
        "inverse_variance or uniform; by default what weighs all noise levels of the path alike.",
        _weight,
        doc="As for `vapo_fast.energy_loss`; None for the path's own (`Homotopy.balanced_weight`).",
    )
    baseline: Baseline | None = option(
        None, 'As for `vapo_fast.energy_loss`, a function (x_data, t) -> (B,), with estimator "covariance" only.'
    )
    time_sampling: str = option(
        "log_noise",
        "log_noise (times uniform in the noise's logarithm) or uniform (in the path's time).",
        _one_of(*TIME_SAMPLINGS),
        doc='"log_noise" (stratified uniform in ln beta) or "uniform" (stratified uniform in the path\'s time).',
    )
    seed: int = option(
        0,
        "Decides initial weights, data order, times and noise.",
        _seed,
        doc="0 <= seed < 2**64: decides data order, times and noise (on the command line initial weights too). A "
        "network's own randomness (dropout) is not covered.",
    )
    augment: str | None = option(
        None,
        "flip: mirror each image left to right with probability 1/2.",
        _one_of(*AUGMENTATIONS),
        doc='None, or "flip": each image (C, H, W) is mirrored left to right with probability 1/2, on the device.',
    )
    prefetch: int | None = option(
        None,
        "Batches that a thread prepares ahead; by default 2 on CUDA, 0 on the CPU.",
        checks.non_negative_int,
        doc="Batches that a thread reads and draws ahead of their use, >= 0; None for 2 on an accelerator and 0 on the "
        "CPU, where it gains only what a disk makes wait. Does not change them.",
    )
    log_every: int | None = option(
        None,
        "Steps between rows of the log; 1 on the CPU, 20 on CUDA.",
        checks.positive_int,
        doc="Steps between two readings of the loss by the host; None for 1 on the CPU and 20 on an accelerator. On "
        "CUDA the steps between are not waited for: a non-finite step is noticed on the device, freezes model, average "
        "and optimiser from that step on, and is reported at the next reading.",
        panel="Output",
    )

    @classmethod
    def for_model(cls, model: Potential, **given: Any) -> Self:
        """Options with what suits the model and its path where lr, batch_size or weight is None or not given.

        Raises: TypeError for an unknown option; as the class.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for name in given:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
                raise TypeError(f"{name!r} is not a training option; {hint}")
        check_augment(given.get("augment"), check_model(model).event_shape)
        defaults = model.training_defaults
        own = {"lr": defaults.lr, "batch_size": defaults.batch_size, "weight": model.homotopy.balanced_weight}
        return cls(**given | {name: value for name, value in own.items() if given.get(name) is None})

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, check = getattr(self, field.name), field.metadata["check"]
            may_be_none = field.default is None and field.name not in _FROM_MODEL
            if check is not None and not (value is None and may_be_none):
                check(field.name, value)
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate must be at most batch_size ({self.batch_size}), got {self.accumulate!r}")
        if self.baseline is not None and self.estimator != "covariance":
            raise ValueError("baseline applies to estimator='covariance' only")

    def config(self) -> dict[str, Any]:
        """What decides the numbers, as JSON values; a callable is recorded by its name only."""
        return {field.name: _json_value(getattr(self, field.name)) for field in dataclasses.fields(TrainingOptions)}


@dataclass(frozen=True, kw_only=True)
class EngineOptions(TrainingOptions):
    """Training options, and by what loss and gradients are computed."""

    engine: str = option(
        "auto",
        "Engine for loss and gradients, see `vapo-fast info`.",
        doc='"auto" or the name of an engine, see `vapo_fast.engines`.',
        panel="Machine",
    )
    precision: str = option(
        "auto",
        "auto, float32 or bf16 (the network's products in bfloat16).",
        doc='"auto", "float32" or "float64" compute in the model\'s own dtype. "bf16" runs the network\'s matrix '
        "products in bfloat16 (forward and both backward passes), with weights, gauge, loss and optimiser in float32: "
        'gradients then differ by about 1 %. It needs a float32 model and estimator "velocity".',
        panel="Machine",
    )


def plain_types(options: type[TrainingOptions]) -> dict[str, Any]:
    """The options that a file or a flag can give, each with a type such as ``int`` or ``float | None``."""
    kinds = typing.get_type_hints(options)
    found = {}
    for field in dataclasses.fields(options):
        kind = kinds[field.name]
        plain = [k for k in typing.get_args(kind) or (kind,) if k in (bool, int, float, str)]
        if plain:
            found[field.name] = plain[0] | None if field.default is None else plain[0]
    return found


def with_options(
    options: Callable[Names, TrainingOptions],
) -> Callable[[Callable[Concatenate[Run, ...], None]], Callable[Concatenate[Run, Potential, Names], None]]:
    """Decorator of a trainer's ``__init__(self, model, **given)``: it shows the options in signature and help."""

    def decorate(init: Callable[Concatenate[Run, ...], None]) -> Callable[Concatenate[Run, Potential, Names], None]:
        show_options(cast(type[TrainingOptions], options), init)
        return init

    return decorate


def show_options(options: type[TrainingOptions], function: Callable[..., Any]) -> None:
    """Replace ``**given`` in a function's signature by the options, and list them in its docstring."""
    signature = inspect.signature(function)
    shown = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    lines = []
    for field in dataclasses.fields(options):
        kind = str(field.type).replace("| Any", "| None")
        shown.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=kind)
        )
        lines.append(f"    {field.name}: {field.metadata['doc']}")
    function.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    function.__doc__ = "\n".join([f"{function.__doc__ or 'Args:'}", *lines])


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
