"""Train a potential on eight Gaussians, sample it, read log-densities off it: about a minute on a CPU."""

import vapo_fast as vf
from vapo_fast import plots

data = vf.data.load("8gaussians")
model = vf.MLPPotential(event_shape=(2,), homotopy=vf.DataHomotopy(sigma=0.01))
trainer = vf.Trainer(model, lr=2e-3, batch_size=512, seed=0)
trainer.fit(data.tensor(), steps=1500)

samples = vf.sample(trainer.ema_model, 2048, rtol=1e-5)
end = model.homotopy.t1
print("sliced Wasserstein to the data:", vf.metrics.sliced_wasserstein(samples, data.batch(range(2048))))
print("log-density, up to a constant, on a mode and between:", vf.log_density(trainer.ema_model, samples[:2], end))
print("picture:", plots.samples_2d(trainer.ema_model, "out/quickstart.png", data=data.batch(range(2048))))
