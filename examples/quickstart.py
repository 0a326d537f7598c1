"""Train a potential on eight Gaussians, sample it, read log-densities off it: about a minute on a CPU."""

import torch

import vapo_fast as vf
from vapo_fast import plots

data = vf.data.load("8gaussians")
model = vf.MLPPotential(event_shape=(2,), homotopy=vf.DataHomotopy(sigma=0.01))
trainer = vf.Trainer(model, seed=0)
trainer.fit(data.tensor(), steps=1500)

samples = vf.sample(trainer.ema_model, 2048, rtol=1e-5)
end = model.homotopy.t1
print("sliced Wasserstein to the data:", vf.metrics.sliced_wasserstein(samples, data.batch(range(2048))))
print(
    "log-density, up to a constant, on a mode and at the centre:",
    vf.log_density(trainer.ema_model, torch.tensor([[1.0, 0.0], [0.0, 0.0]]), end),
)
print("picture:", plots.samples_2d(trainer.ema_model, "out/quickstart.png", data=data.batch(range(2048))))
