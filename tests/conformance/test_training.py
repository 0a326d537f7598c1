"""`Trainer` with every engine against the readable twin: same seed, same batches, same curve to rounding."""

import pytest
import torch

import vapo_fast as vf
from tests.support.zoo import DTYPES, PATHS
from vapo_fast.training.run import Callback

STEPS = 200
# A few units in the last place of the terms that the loss is the sum of: rounding does not grow over these steps.
# Weights are held to ten times as much.
LARGEST_DIFFERENCE = {torch.float32: 5e-6, torch.float64: 1e-14}


class Curve(Callback):
    def __init__(self):
        self.values = []

    def on_step_end(self, trainer, step, metrics):
        self.values.append((metrics.loss, metrics.linear, metrics.quadratic))


def run(trainer_class, path, dtype, **options):
    torch.manual_seed(3)
    model = vf.MLPPotential((2,), path, (32, 32)).to(dtype)
    curve = Curve()
    trainer = trainer_class(model, lr=3e-3, batch_size=256, seed=5, warmup_steps=20, **options)
    trainer.fit(vf.data.load("8gaussians", n=4000), STEPS, callbacks=(curve,))
    return torch.tensor(curve.values, dtype=torch.float64), trainer


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("estimator", ["velocity", "covariance"])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_curves_agree(engine, device, path, estimator, dtype):
    if device.type != "cpu":
        pytest.skip("the readable twin's batches are made on the CPU here")
    options = {"estimator": estimator, "weight": "uniform" if estimator == "covariance" else None}
    curve, trainer = run(vf.Trainer, path, dtype, engine=engine.name, **options)
    expected, twin = run(vf.reference.Trainer, path, dtype, **options)
    assert trainer.engine.name == engine.name
    bound = LARGEST_DIFFERENCE[dtype]
    scale = expected.abs().sum(1, keepdim=True)
    assert float(((curve - expected).abs() / scale).max()) <= bound
    for ours, theirs in ((trainer.model, twin.model), (trainer.ema_model, twin.ema_model)):
        for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=10 * bound, atol=10 * bound, msg=name)
    assert float(curve[-20:, 0].mean()) < float(curve[:5, 0].mean())
