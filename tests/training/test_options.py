"""Options, and models and steps that a trainer refuses."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import textwrap
import typing
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from typer.testing import CliRunner

from tests.training.support import (
    DATA,
    PATH,
    equal,
    mlp,
    options,
    weights,
)
from vapo_fast.cli import config
from vapo_fast.cli.app import app
from vapo_fast.core import checks
from vapo_fast.homotopy import DataHomotopy, LinearHomotopy
from vapo_fast.potentials import GaussianMixturePotential, MLPPotential, Potential
from vapo_fast.reference import Trainer as ReferenceTrainer
from vapo_fast.training.options import (
    EngineOptions,
    TrainingOptions,
    learning_rate,
    option,
    plain_types,
    with_options,
)
from vapo_fast.training.trainer import Trainer, train


def test_learning_rate_schedules() -> None:
    o = options(lr=2.0, warmup_steps=4, schedule="constant")
    assert [learning_rate(o, step, 0, 100) for step in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    o = options(lr=2.0, warmup_steps=0, schedule="cosine")
    assert learning_rate(o, 0, 0, 10) == 2.0
    assert learning_rate(o, 5, 0, 10) == pytest.approx(1.0)
    assert learning_rate(o, 9, 0, 10) == pytest.approx(1 + math.cos(0.9 * math.pi))
    assert learning_rate(o, 10, 10, 20) == 2.0  # the next fit is a cycle of its own


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lr": 0.0}, ValueError, "lr must be a finite number > 0, got 0.0"),
        ({"lr": math.nan}, ValueError, "lr must be finite, got nan"),
        ({"lr": "fast"}, TypeError, "lr must be a number, got 'fast'"),
        ({"batch_size": 0}, ValueError, "batch_size must be a positive integer, got 0"),
        ({"batch_size": 8.0}, TypeError, "batch_size must be a positive integer, got 8.0"),
        ({"optimizer": "sgd"}, ValueError, "optimizer must be one of 'adam', 'adamw', got 'sgd'"),
        ({"weight_decay": -1}, ValueError, "weight_decay must be a finite number >= 0, got -1"),
        ({"warmup_steps": -1}, ValueError, "warmup_steps must be a non-negative integer, got -1"),
        ({"schedule": "linear"}, ValueError, "schedule must be one of 'cosine', 'constant', got 'linear'"),
        ({"grad_clip": 0}, ValueError, "grad_clip must be a finite number > 0, got 0"),
        ({"ema_decay": 1.0}, ValueError, r"ema_decay must be in \[0, 1\), got 1.0"),
        ({"accumulate": 0}, ValueError, "accumulate must be a positive integer, got 0"),
        ({"accumulate": 9, "batch_size": 8}, ValueError, r"accumulate must be at most batch_size \(8\), got 9"),
        ({"estimator": "score"}, ValueError, "estimator must be one of 'velocity', 'covariance', got 'score'"),
        ({"weight": "snr"}, ValueError, "weight must be one of .* got 'snr'"),
        ({"baseline": lambda x, t: t}, ValueError, "baseline applies to estimator='covariance' only"),
        ({"time_sampling": "beta"}, ValueError, "time_sampling must be one of 'log_noise', 'uniform', got 'beta'"),
        ({"seed": -1}, ValueError, "seed must be a non-negative integer, got -1"),
        ({"seed": 2**64}, ValueError, r"seed must be below 2\*\*64"),
        ({"log_every": 0}, ValueError, "log_every must be a positive integer, got 0"),
        ({"augment": "rotate"}, ValueError, "augment must be one of 'flip', got 'rotate'"),
        ({"augment": "flip"}, ValueError, r"augment='flip' is for images, events of shape \(C, H, W\); this model has"),
        ({"augment": True}, ValueError, "augment must be one of 'flip', got True"),
        ({"prefetch": -1}, ValueError, "prefetch must be a non-negative integer, got -1"),
        ({"prefetch": 1.0}, TypeError, "prefetch must be a non-negative integer, got 1.0"),
        ({"engine": "gpu"}, ValueError, "engine must be one of .* got 'gpu'"),
        ({"precision": "half"}, ValueError, "precision must be one of .* got 'half'"),
    ],
)
def test_bad_options_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Trainer(mlp(), **arguments)


def _replaced(model: Any) -> None:
    model.hidden[0].weight = nn.Parameter(model.hidden[0].weight.detach().clone())


def _tied(model: Any) -> None:
    model.hidden[1].bias = model.hidden[0].bias


CHANGES: list[tuple[Any, str]] = [
    (_replaced, r"hidden\.0\.weight of the model has been replaced by another parameter; .*make a new trainer"),
    (lambda m: m.hidden[1].bias.requires_grad_(False), r"hidden\.1\.bias of the model has been frozen"),
    (_tied, r"hidden\.1\.bias of the model has been removed"),
    (lambda m: m.output.weight.requires_grad_(True), r"output\.weight of the model has become trainable"),
    (
        lambda m: m.double(),
        r"hidden\.0\.weight of the model is torch\.float64 on cpu, and was torch\.float32 on cpu; change it back",
    ),
]


@pytest.mark.parametrize("change", CHANGES, ids=range(len(CHANGES)))
@pytest.mark.parametrize("trainer", [Trainer, ReferenceTrainer])
def test_another_model_than_the_trainer_was_made_for_is_refused(trainer: Any, change: tuple[Any, str]) -> None:
    """Not trained in part: the optimiser holds the parameters of before."""
    model = mlp()
    model.output.weight.requires_grad_(False)
    run = trainer(model, batch_size=16)
    run.fit(DATA, 2)
    change[0](model)
    before = weights(model)
    with pytest.raises(ValueError, match=change[1]):
        run.fit(DATA.to(next(model.parameters()).dtype), 2)
    assert equal(weights(model), before)


def test_models_that_cannot_be_trained_are_named() -> None:
    with pytest.raises(TypeError, match="model must be a Potential, got Linear"):
        Trainer(nn.Linear(2, 1))  # type: ignore[arg-type]
    exact = GaussianMixturePotential(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None], PATH)
    with pytest.raises(ValueError, match=r"no trainable parameters \(GaussianMixturePotential\)"):
        Trainer(exact)
    with torch.inference_mode():
        frozen = mlp()
    with pytest.raises(ValueError, match=r"made inside torch.inference_mode\(\), where no gradients can be"):
        Trainer(frozen)
    mixed = mlp()
    mixed.output.double()
    with pytest.raises(ValueError, match=r"one dtype on one device, got torch.float32 on cpu, torch.float64 on cpu"):
        Trainer(mixed)
    with pytest.raises(TypeError, match=r"float32 or float64 parameters, got torch.bfloat16"):
        Trainer(mlp().bfloat16())


@pytest.mark.parametrize(("steps", "error"), [(0, ValueError), (-3, ValueError), (1.5, TypeError), (None, TypeError)])
def test_bad_step_counts_are_named(steps: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="steps must be a positive integer"):
        Trainer(mlp()).fit(DATA, steps)


def test_defaults_come_from_the_potential_and_its_path():
    vapo = Trainer(MLPPotential((2,), DataHomotopy(), widths=(8,))).options
    assert (vapo.lr, vapo.batch_size, vapo.weight) == (1e-2, 1024, "inverse_variance")
    wide = Trainer(MLPPotential((2,), LinearHomotopy(), widths=(256, 8))).options
    assert (wide.lr, wide.batch_size, wide.weight) == (5e-3, 1024, "uniform")
    still = Trainer(MLPPotential((2,), DataHomotopy(), widths=(8,), time_dependent=False)).options
    assert (still.lr, still.batch_size, still.weight) == (2e-3, 1024, "inverse_variance")
    named = Trainer(MLPPotential((2,), DataHomotopy(), widths=(8,)), lr=0.1, batch_size=3, weight="uniform").options
    assert (named.lr, named.batch_size, named.weight) == (0.1, 3, "uniform")


def test_balanced_weights_weigh_noise_levels_alike():
    """``weight (scale beta)^2`` may not vary by more than the square of the gauge's own factor 2."""
    from vapo_fast.loss import loss_weight

    for path in (DataHomotopy(), LinearHomotopy()):
        t = path.time_at_noise_position(torch.linspace(-1, 1, 50, dtype=torch.float64))
        balance = loss_weight(path, path.balanced_weight, t) * (path.gauge(t).scale * path.kernel(t).beta).square()
        assert float(balance.max() / balance.min()) <= 4.0 + 1e-9


# One place

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training.md"


@dataclasses.dataclass(frozen=True, kw_only=True)
class More(EngineOptions):
    """An option that a later version adds."""

    time_score: float = option(0.0, "Weight of the score in time.", checks.non_negative_float)


@pytest.mark.parametrize("kind", [TrainingOptions, EngineOptions, More])
def test_a_signature_shows_every_option(kind: type[TrainingOptions]) -> None:
    class Run:
        @with_options(kind)
        def __init__(self, model: Potential, **given: Any) -> None:
            self.options = kind.for_model(model, **given)

    shown = inspect.signature(Run).parameters
    assert {name: p.default for name, p in list(shown.items())[1:]} == {f.name: f.default for f in fields(kind)}
    assert all(f"{f.name}: {f.metadata['doc']}" in (Run.__init__.__doc__ or "") for f in fields(kind))
    assert Run(mlp(), seed=4).options.seed == 4


@pytest.mark.parametrize(
    ("shown", "kind"),
    [(Trainer, EngineOptions), (train, EngineOptions), (ReferenceTrainer, TrainingOptions)],
    ids=["Trainer", "train", "reference"],
)
def test_the_trainers_show_them(shown: Any, kind: type[TrainingOptions]) -> None:
    parameters = inspect.signature(shown).parameters
    for field in fields(kind):
        assert parameters[field.name].default == field.default
    assert "given" not in parameters
    assert "options" not in parameters


def test_the_command_line_has_a_setting_for_each() -> None:
    settings = config.merge({"data": "8gaussians"})
    written = yaml.safe_load(config.as_yaml(settings))
    text = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "250"}).output
    said = [field for field in fields(EngineOptions) if field.name in plain_types(EngineOptions)]
    for field in said:
        assert written[field.name] == field.default
        assert f"--{field.name.replace('_', '-')}" in text
        assert field.metadata["help"] in text
        assert config.FIELDS[field.name].metadata["panel"] == field.metadata["panel"]
    assert config.trainer_options(settings) == {field.name: field.default for field in said}
    assert [field.name for field in fields(EngineOptions) if field not in said] == ["baseline"]


def test_an_option_is_added_by_one_edit() -> None:
    @dataclasses.dataclass
    @config.with_training_options(More)
    class Settings:
        pass

    assert Settings().time_score == 0.0  # type: ignore[attr-defined]
    assert typing.get_type_hints(Settings)["time_score"] is float
    assert More.for_model(mlp(), time_score=0.5).time_score == 0.5
    with pytest.raises(ValueError, match="time_score must be a finite number >= 0, got -1"):
        More.for_model(mlp(), time_score=-1)


def test_the_docs_list_every_option() -> None:
    assert options_list() in PAGE.read_text(encoding="utf-8"), "python -m tests.training.test_options writes it"


@pytest.mark.parametrize(
    ("name", "hint"), [("warmup", "did you mean 'warmup_steps'?"), ("momentum", "there are lr, batch_size, optimizer")]
)
@pytest.mark.parametrize("kind", [Trainer, ReferenceTrainer])
def test_an_unknown_option_is_named(kind: Any, name: str, hint: str) -> None:
    with pytest.raises(TypeError, match=re.escape(f"{name!r} is not a training option; {hint}")):
        kind(mlp(), **{name: 1})


def options_list() -> str:
    """The list in docs/training.md."""
    said = plain_types(EngineOptions)
    items = []
    for field in fields(EngineOptions):
        flag = f", `--{field.name.replace('_', '-')}`" if field.name in said else ""
        text = f"- `{field.name}`{flag} (default `{field.default}`): {field.metadata['doc']}"
        items.append(textwrap.fill(text, 118, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))
    return "\n".join(items) + "\n"


if __name__ == "__main__":
    before, mark, rest = PAGE.read_text(encoding="utf-8").partition("<!-- options -->\n")
    PAGE.write_text(before + mark + options_list() + rest[rest.index("<!-- end -->") :], encoding="utf-8")
