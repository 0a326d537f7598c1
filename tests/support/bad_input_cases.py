"""Lines with a mistake or a mishap in them, and how each ends; tests/test_bad_inputs.py runs them."""

from typing import NamedTuple

import vapo_fast as vf
from vapo_fast.data import DataFormatError, DataNotFoundError
from vapo_fast.engines import UnsupportedJobError
from vapo_fast.training.optimizer import NonFiniteLossError
from vapo_fast.training.run import TrainingInterrupted

# Run before the lines, and printed on the page.
SETUP = """
import signal

import torch
from torch import nan, nn

import vapo_fast as vf
from vapo_fast.callbacks import Callback, Checkpointer

torch.manual_seed(0)
path = vf.DataHomotopy(omega=1.0, sigma=0.01)       # times 0 to 9.21
model = vf.MLPPotential((2,), path, widths=(16, 16))
still = vf.MLPPotential((2,), path, widths=(16, 16), time_dependent=False)
image = vf.WideResNetPotential((1, 4, 4), path, channels=4, multipliers=(1,), blocks=1)
x = torch.randn(4, 2)
bad = torch.tensor([[0.0, 1.0], [nan, 2.0]])
diverged = vf.MLPPotential((2,), path, widths=(16, 16))
diverged.output.weight.data.fill_(nan)


class Net(nn.Module):                               # a user's own network, by its formula
    def __init__(self, formula):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.formula = formula

    def forward(self, x):
        return self.scale * self.formula(x)


def potential(formula):
    return vf.Potential.from_module(Net(formula), (2,), path)


class Seen:                                         # the largest batch that a potential was shown
    largest = 0

    def __call__(self, x):
        Seen.largest = max(Seen.largest, len(x))
        return -0.5 * x.square().sum(1)


def crowded(limit):                                 # memory ends when sampling more than this many at a time
    def formula(x):
        if x.requires_grad and len(x) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return -0.5 * x.square().sum(1)

    return formula


def cubic(x, t):                                    # dx/dt = x^3: reaches infinity at t = 1/(2 x^2)
    return x**3


class CtrlC(Callback):                              # presses Ctrl-C during step 3
    def on_step_end(self, trainer, step, metrics):
        if step == 3:
            signal.raise_signal(signal.SIGINT)
"""


class Case(NamedTuple):
    """A line, and what comes of it: an exception class, an exit code of the command line, or None for a result."""

    line: str
    outcome: type[BaseException] | int | None
    given: str = ""


V, T = ValueError, TypeError
BAD = vf.CheckpointError

CASES: dict[str, list[Case]] = {
    "Data": [
        Case("vf.Trainer(model).fit(bad, 10)", V),
        Case("vf.Trainer(model).fit(torch.full((8, 2), torch.inf), 10)", V),
        Case("vf.Trainer(model).fit(torch.empty(0, 2), 10)", V),
        Case("vf.Trainer(model).fit(torch.utils.data.TensorDataset(torch.empty(0, 2)), 10)", V),
        Case("vf.Trainer(model).fit(torch.utils.data.DataLoader([], 4), 10)", V),
        Case("vf.Trainer(model).fit(torch.ones(8, 2, dtype=torch.int64), 10)", T),
        Case("vf.Trainer(model).fit(torch.randn(8, 3), 10)", V),
        Case("vf.Trainer(model).fit(torch.randn(2), 10)", V),
        Case("vf.Trainer(model).fit(x.to('meta'), 10)", V),
        Case("vf.Trainer(model).fit([[0.0, 1.0]], 10)", T),
        Case("vf.Trainer(model).fit('8gausians', 10)", V),
        Case("vf.Trainer(model).fit('digits', 10)", V),
        Case("vf.Trainer(model).fit(x, 0)", V),
        Case("vf.Trainer(model).fit(x, 10, callbacks=Checkpointer('run'))", T),
        Case("vf.Trainer(model, batch_size=2).fit(torch.utils.data.DataLoader(bad, 2), 10)", NonFiniteLossError),
        Case("vf.Trainer(potential(lambda x: (x - x).sqrt().sum(1))).fit(x, 10)", NonFiniteLossError),
        Case("vf.energy_loss(Net(len), x, 1.0, torch.randn(4, 2))", T),
        Case("vf.energy_loss(model, x, 1.0, torch.randn(3, 2))", V),
        Case("vf.energy_loss(model, x, torch.ones(3), torch.randn(4, 2))", V),
        Case("vf.energy_loss(model, x, nan, torch.randn(4, 2))", V),
        Case("vf.energy_loss(model, x, 1.0, torch.randn(4, 2), weight=lambda t: t.sum())", V),
        Case("vf.energy_loss(model, torch.empty(0, 2), 1.0, torch.empty(0, 2))", V),
    ],
    "Data sets on disk": [
        Case("vf.data.load('mnist')", V),
        Case("vf.data.load('no/such/folder')", DataNotFoundError),
        Case("vf.data.load('8gaussians', n=0)", V),
        Case("vf.data.load('8gaussians', split='validation')", V),
        Case("vf.data.load('8gaussians', image_size=8)", V),
        Case("vf.data.load('digits', n=5000)", V),
        Case("vf.data.load('fashion-mnist', root='empty')", DataNotFoundError),
        Case("vf.data.load('cifar10', root='empty')", DataNotFoundError),
        Case("vf.data.load('celeba', root='empty')", DataNotFoundError),
        Case("vf.data.load('cifar10', root='other_pickle')", DataFormatError),
        Case("vf.data.load('truncated-idx3-ubyte')", DataFormatError),
        Case("vf.data.load('damaged-idx3-ubyte.gz')", DataFormatError),
        Case("vf.data.load('text-idx3-ubyte')", DataFormatError),
        Case("vf.data.load('empty')", DataNotFoundError),
        Case("vf.data.load('sizes')", DataFormatError),
        Case("vf.data.load('damaged_image').tensor()", DataFormatError),
        Case("vf.data.load('text.npy')", DataFormatError),
        Case("vf.data.load('objects.npy')", DataFormatError),
        Case("vf.data.load('integers.npy')", DataFormatError),
        Case("vf.data.load('nan.npy')", DataFormatError),
        Case("vf.data.load('rows_0.npy')", DataFormatError),
        Case("vf.data.load('notes.txt')", V),
    ],
    "Potentials and paths": [
        Case("vf.DataHomotopy(sigma=0.0)", V),
        Case("vf.DataHomotopy(omega='1')", T),
        Case("vf.LinearHomotopy(t1=1.0)", V),
        Case("vf.MLPPotential((2,), 'vapo')", T),
        Case("vf.MLPPotential(2, path)", T),
        Case("vf.MLPPotential((), path)", V),
        Case("vf.MLPPotential((2,), path, widths=())", V),
        Case("vf.MLPPotential((2,), path, widths=(128, 0))", V),
        Case("vf.MLPPotential((2,), path, activation='relu')", V),
        Case("vf.MLPPotential((2,), path, time_dependent=1)", T),
        Case("vf.UNetPotential((1, 6, 6), path)", V),
        Case("vf.UNetPotential((2,), path)", V),
        Case("vf.GaussianMixturePotential(torch.tensor([1.0, -1.0]), x[:2], torch.eye(2).repeat(2, 1, 1), path)", V),
        Case("vf.GaussianMixturePotential(torch.ones(3), x[:2], torch.eye(2).repeat(2, 1, 1), path)", V),
        Case("vf.GaussianMixturePotential(torch.ones(2), x[:2], -torch.eye(2).repeat(2, 1, 1), path)", V),
        Case("vf.Potential.from_module(lambda x: x, (2,), path)", T),
        Case("potential(lambda x: x)", V),
        Case("potential(lambda x: x.sum())", V),
        Case("potential(lambda x: x.sum(1).double())", T),
        Case("potential(lambda x: x.sum(1).to('meta'))", V),
        Case("potential(lambda x: x @ torch.ones(3))", V),
        Case("vf.Potential.from_module(nn.Sequential(nn.BatchNorm1d(2), nn.Flatten(0)), (2,), path)", V),
        Case("model(torch.randn(4, 3), 1.0)", V),
        Case("model(x.double(), 1.0)", T),
        Case("model(x.to('meta'), 1.0)", V),
        Case("model(x)", V),
        Case("model(x, nan)", V),
        Case("model(x, torch.ones(3))", V),
        Case("model(x, '1')", T),
    ],
    "Sampling": [
        Case("vf.sample(Net(len), 4)", T),
        Case("vf.sample(diverged, 4)", V),
        Case("vf.sample(model.to('meta'), 4)", V),
        Case("vf.sample(model, 0)", V),
        Case("vf.sample(model, -1)", V),
        Case("vf.sample(model, 2.5)", T),
        Case("vf.sample(model, True)", T),
        Case("vf.sample(model, 4, rtol=0)", V),
        Case("vf.sample(model, 4, rtol=-1e-5)", V),
        Case("vf.sample(model, 4, rtol=nan)", V),
        Case("vf.sample(model, 4, rtol='1e-5')", T),
        Case("vf.sample(model, 4, rtol=1e-9)", V),
        Case("vf.sample(model, 4, atol=-1.0)", V),
        Case("vf.sample(model, 4, method='rk45')", V),
        Case("vf.sample(model, 4, method='euler')", V),
        Case("vf.sample(model, 4, method='euler', steps=0)", V),
        Case("vf.sample(model, 4, steps=10)", V),
        Case("vf.sample(model, 4, max_steps=0)", V),
        Case("vf.sample(model, 4, engine='cuda')", V),
        Case("vf.sample(image, 4, engine='native')", UnsupportedJobError),
        Case("vf.sample(model, 4, engine='triton')", UnsupportedJobError),
        Case("vf.sample(model, 4)", V, "VAPO_FAST_INSTRUCTION_SET=sse9"),
        Case("vf.sample(model, 4)", V, "VAPO_FAST_ENGINE=gpu"),
        Case("vf.sample(model, 4)", UnsupportedJobError, "VAPO_FAST_ENGINE=triton"),
        Case("vf.sample(model, 4, precision='float16')", V),
        Case("vf.sample(model, 4, precision='bf16')", UnsupportedJobError),
        Case("vf.sample(model.half(), 4)", UnsupportedJobError),
        Case("vf.sample(model, 4, seed=-1)", V),
        Case("vf.sample(model, 4, seed=0.5)", T),
        Case("vf.sample(model, 4, batch_size=0)", V),
        Case("vf.sample(model, 4, batch_size=2.0)", T),
        Case("vf.sample(model, 4, t_end=-1.0)", V),
        Case("vf.sample(model, 4, t_end=nan)", V),
        Case("vf.sample(model, 4, t_end=20.0)", V),
        Case("vf.sample(model, 4, max_steps=3)", vf.SolveError),
        Case("vf.sample(model, 4, max_steps=3, throw=False, return_solution=True).status", None),
        Case("vf.interpolate(model, x, torch.randn(3, 2), 5)", V),
        Case("vf.interpolate(model, [0.0, 0.0], x[0], 5)", T),
        Case("vf.interpolate(model, x[0], x, 5)", V),
        Case("vf.interpolate(model, x[0], torch.randn(3), 5)", V),
        Case("vf.interpolate(model, x[0], x[1].double(), 5)", T),
        Case("vf.interpolate(model, x[0], bad[1], 5)", V),
        Case("vf.interpolate(model, x[0], x[1], 1)", V),
        Case("vf.validate_t_end(model, x)", V),
        Case("vf.validate_t_end(still, x, candidates=[2.0, 1.0])", V),
        Case("vf.validate_t_end(still, x, candidates=[])", V),
        Case("vf.validate_t_end(still, torch.empty(0, 2))", V),
    ],
    "Memory": [
        Case("vf.data.load('8gaussians', n=10**12 - 1).tensor()", MemoryError),
        Case("vf.sample(model, 10**12)", MemoryError),
        Case(
            "seen = Seen(); vf.sample(potential(seen), 400).shape, seen.largest < 400",
            None,
            "60 kB of free memory",
        ),
        Case("vf.sample(model, 400)", MemoryError, "30 kB of free memory"),
        Case("vf.sample(potential(crowded(128)), 400).shape", None),
        Case("vf.sample(potential(crowded(0)), 400)", MemoryError),
        Case("vf.log_likelihood(potential(crowded(128)), torch.randn(400, 2)).shape", None),
    ],
    "Solving": [
        Case("vf.ode.solve(lambda x, t: x, [[0.0]], 0.0, 1.0)", T),
        Case("vf.ode.solve(lambda x, t: x, torch.ones(2, 2, dtype=torch.int64), 0.0, 1.0)", T),
        Case("vf.ode.solve(lambda x, t: x, x[:0], 0.0, 1.0)", V),
        Case("vf.ode.solve(lambda x, t: x, x, 0.0, nan)", V),
        Case("vf.ode.solve(lambda x, t: x[:, :1], x, 0.0, 1.0)", V),
        Case("vf.ode.solve(lambda x, t: x.double(), x, 0.0, 1.0)", T),
        Case("vf.ode.solve(lambda x, t: (x, t), x, 0.0, 1.0)", T),
        Case("vf.ode.solve(lambda x, t: x, x.requires_grad_(), 0.0, 1.0)", V),
        Case("vf.ode.solve(lambda x, t: x, x, 0.0, 1.0, t_eval=[0.2, 0.1])", V),
        Case("vf.ode.solve(lambda x, t: x, x, 0.0, 1.0, t_eval=[0.5, 1.5])", V),
        Case("vf.ode.solve(lambda x, t: x, x, 0.0, 1.0, t_eval=[nan])", V),
        Case("vf.ode.solve(lambda x, t: x, x, 0.0, 1.0, t_eval=0.5)", T),
        Case("vf.ode.solve(lambda x, t: x, x, 0.0, 1.0, first_step=0.0)", V),
        Case("vf.ode.solve(lambda x, t: -1e6 * x, x, 0.0, 1.0, max_steps=200)", vf.SolveError),
        Case("vf.ode.solve(lambda x, t: -1e6 * x, x, 0.0, 1.0, method='rk4', steps=50)", vf.SolveError),
        Case("vf.ode.solve(cubic, torch.tensor([[0.1], [5.0]]), 0.0, 1.0)", vf.SolveError),
        Case("vf.ode.solve(cubic, torch.tensor([[0.1], [5.0]]), 0.0, 1.0, throw=False).status", None),
        Case("vf.ode.solve(lambda x, t: x.log(), torch.tensor([[1.0], [-1.0]]), 0.0, 0.1)", vf.SolveError),
        Case("vf.ode.solve(lambda x, t: -x, bad, 0.0, 1.0, throw=False).x", None),
    ],
    "Densities": [
        Case("vf.log_likelihood(model, torch.ones(4, 2, dtype=torch.int64))", T),
        Case("vf.log_likelihood(model, [[0.0, 1.0]])", T),
        Case("vf.log_likelihood(model, x.double())", T),
        Case("vf.log_likelihood(model, x.to('meta'))", V),
        Case("vf.log_likelihood(model, bad)", V),
        Case("vf.log_likelihood(model, x[:0])", V),
        Case("vf.log_likelihood(model, x, trace='hutch')", V),
        Case("vf.log_likelihood(model, x, trace='hutchinson', probes=0)", V),
        Case("vf.log_likelihood(model, x, trace='hutchinson', probes=10**12)", V),
        Case("vf.log_likelihood(model, x, trace='hutchinson', probes=1, return_standard_error=True)", V),
        Case("vf.log_likelihood(model, x, batch_size=0)", V),
        Case("vf.log_likelihood(model, x, max_steps=2)", vf.SolveError),
        Case("vf.log_likelihood(model, x, max_steps=2, throw=False)", None),
        Case("vf.log_likelihood(diverged, x)", V),
        Case("vf.log_density(model, torch.randn(4, 3), 1.0)", V),
        Case("vf.log_density(model, x, nan)", V),
        Case("vf.log_density(model, x, torch.tensor([1.0, 1.0, nan, 1.0]))", V),
        Case("vf.log_density(model, x, -0.5)", V),
        Case("vf.log_density(model, x, 20.0)", V),
        Case("vf.log_density(model, x, torch.ones(3))", V),
        Case("vf.log_density(still, x, torch.ones(3))", V),
        Case("vf.log_density(model, x, '1')", T),
    ],
    "Uses of a density": [
        Case("vf.bits_per_dim(image, torch.rand(2, 1, 4, 4))", V),
        Case("vf.dequantise(torch.zeros(2, 4), levels=1)", V),
        Case("vf.ood_scores(model, x, 'phi')", V),
        Case("vf.ood_scores(still, x)", V),
        Case("vf.ood_scores(model, x, noise_level=2.0)", V),
        Case("vf.auroc(torch.zeros(0), torch.zeros(3))", V),
        Case("vf.SumPotential([model, image])", V),
        Case("vf.SumPotential([model, still])", V),
        Case("vf.SumPotential([model, model], [1.0])", V),
        Case("vf.SumPotential(model)", T),
        Case("vf.refine(model, x, 0)", V),
        Case("vf.refine(model, bad, 5)", V),
        Case("vf.refine(still, x, 5)", V),
        Case("vf.refine(model, x, 5, t=20.0)", V),
        Case("vf.refine(model, x, 5, adjusted=False, adapt_steps=5)", V),
        Case("vapo-fast train --data digits --classes 3,12", 2),
        Case("vapo-fast likelihood model.safetensors", 2),
        Case("vapo-fast ood model.safetensors --outside noise", 2),
        Case("vapo-fast compose model.safetensors", 2),
        Case("vapo-fast compose model.safetensors image.safetensors", 2),
        Case("vapo-fast refine model.safetensors --out refined.jpg", 2),
        Case("vapo-fast refine model.safetensors --out notes.txt/refined.npy", 2),
        Case("vapo-fast refine model.safetensors --steps 0", 2),
        Case("vapo-fast refine model.safetensors --noise-level 2", 2),
        Case("vapo-fast ood model.safetensors --inside 8gaussians --outside digits", 2),
        Case("vapo-fast ood model.safetensors --inside 8gaussians --outside noise -n -5", 2),
        Case("vapo-fast ood model.safetensors --inside 8gaussians --outside noise --noise-levels a,b", 2),
    ],
    "Training options": [
        Case("vf.Trainer(Net(len))", T),
        Case("vf.Trainer(model, lr=0)", V),
        Case("vf.Trainer(model, lr=-1e-3)", V),
        Case("vf.Trainer(model, lr=nan)", V),
        Case("vf.Trainer(model, batch_size=0)", V),
        Case("vf.Trainer(model, batch_size=8, accumulate=16)", V),
        Case("vf.Trainer(model, optimizer='sgd')", V),
        Case("vf.Trainer(model, schedule='linear')", V),
        Case("vf.Trainer(model, estimator='score')", V),
        Case("vf.Trainer(model, weight='variance')", V),
        Case("vf.Trainer(model, baseline=lambda x, t: t)", V),
        Case("vf.Trainer(model, ema_decay=1.0)", V),
        Case("vf.Trainer(model, warmup_steps=-1)", V),
        Case("vf.Trainer(model, grad_clip=0.0)", V),
        Case("vf.Trainer(model, seed=2**64)", V),
        Case("vf.Trainer(model, log_every=0)", V),
        Case("vf.Trainer(model, engine='fast')", V),
        Case("vf.Trainer(model, precision='half')", V),
        Case("vf.Trainer(model, precision='bf16', estimator='covariance')", UnsupportedJobError),
        Case("vf.Trainer(model.half())", T),
        Case("vf.Trainer(model.requires_grad_(False))", V),
        Case("vf.Trainer(model.to('meta'))", V),
        Case("vf.Trainer(diverged)", V),
        Case("vf.Trainer(model, lr=1e30, warmup_steps=0).fit(x, 10)", NonFiniteLossError),
    ],
    "Checkpoints": [
        Case("vf.load('no_such_file.safetensors')", BAD),
        Case("vf.load('empty')", BAD),
        Case("vf.load('truncated.safetensors')", BAD),
        Case("vf.load('foreign.safetensors')", BAD),
        Case("vf.load('notes.txt')", BAD),
        Case("vf.load('newer.safetensors')", BAD),
        Case("vf.load('other_widths.safetensors')", BAD),
        Case("vf.load('unknown_class.safetensors')", BAD),
        Case("vf.load('module.safetensors')", BAD),
        Case("vf.load('module.safetensors', nn.Linear(2, 1))", BAD),
        Case("vf.load('model.safetensors', nn.Linear(2, 1))", BAD),
        Case("vf.save(Net(len), 'm.safetensors')", T),
        Case("vf.save(model, 'm.safetensors', notes={'data': torch.ones(2)})", T),
        Case("vf.save(model, 'empty')", BAD),
        Case("vf.save(model, 'notes.txt/m.safetensors')", BAD),
        Case("vf.save(model, 'model.safetensors')", BAD, "a disk with 1 kB left"),
        Case("type(vf.load('model.safetensors'))", None, "vf.save to the same file killed while writing"),
        Case("vf.Trainer(model).fit(x, 10, resume='model.safetensors')", BAD),
        Case("vf.Trainer(model).fit(x, 10, resume='empty')", BAD),
        Case("vf.Trainer(still).fit(x, 10, resume='run')", BAD),
        Case("vf.Trainer(model).fit(x, 3, resume='run')", V),
        Case("vf.Trainer(model, batch_size=8, lr=0.1).fit(x, 10, resume='run')", None),
        Case("vf.Trainer(model).fit(x, 10, callbacks=[Checkpointer('run')])", BAD),
        Case("vf.Trainer(model).fit(x, 10, callbacks=[Checkpointer('notes.txt')])", BAD),
        Case("Checkpointer('run', every=0)", V),
        Case("vf.Trainer(model).fit(x, 10, callbacks=[Checkpointer('new'), CtrlC()])", TrainingInterrupted),
        Case("vf.Trainer(model).fit(x, 10, callbacks=[CtrlC()])", TrainingInterrupted),
    ],
    "Metrics": [
        Case("vf.metrics.sliced_wasserstein(x, bad)", V),
        Case("vf.metrics.sliced_wasserstein(x, torch.randn(4, 3))", V),
        Case("vf.metrics.sliced_wasserstein(x, x[:0])", V),
        Case("vf.metrics.sliced_wasserstein(x, x.long())", T),
        Case("vf.metrics.prdc(x, x, k=5)", V),
        Case("vf.metrics.frechet_distance(x[:1], x)", V),
    ],
    "Command line": [
        Case("vapo-fast trian", 2),
        Case("vapo-fast train", 2),
        Case("vapo-fast train --data 8gaussians --learning-rate 0.1", 2),
        Case("vapo-fast train --data 8gaussians --lr fast", 2),
        Case("vapo-fast train --data 8gaussians --lr 0", 2),
        Case("vapo-fast train --data 8gausians", 2),
        Case("vapo-fast train --data 8gaussians --homotopy vpfb", 2),
        Case("vapo-fast train --data 8gaussians --model transformer", 2),
        Case("vapo-fast train --data 8gaussians --model unet", 2),
        Case("vapo-fast train --data 8gaussians --widths 0", 2),
        Case("vapo-fast train --data 8gaussians --steps 10 --minutes 1", 2),
        Case("vapo-fast train --data 8gaussians --device abacus", 2),
        Case("vapo-fast train --data fashion-mnist --root empty", 2),
        Case("vapo-fast train --config unknown_key.yaml", 2),
        Case("vapo-fast train --config wrong_value.yaml", 2),
        Case("vapo-fast train --config broken.yaml", 2),
        Case("vapo-fast train --config missing.yaml", 2),
        Case("vapo-fast train --config notes.txt", 2),
        Case("vapo-fast train --resume empty", 2),
        Case("vapo-fast train --data 8gaussians --steps 1 --out run", 2),
        Case("vapo-fast train --data 8gaussians --steps 0 --out runs/zero", 2),
        Case("vapo-fast train --data 8gaussians --steps 1 --out notes.txt/run", 2),
        Case("vapo-fast sample missing.safetensors", 1),
        Case("vapo-fast sample empty", 1),
        Case("vapo-fast sample truncated.safetensors", 1),
        Case("vapo-fast sample model.safetensors -n 0", 2),
        Case("vapo-fast sample model.safetensors --rtol 0", 2),
        Case("vapo-fast sample model.safetensors --method rk45", 2),
        Case("vapo-fast sample model.safetensors --engine triton", 2),
        Case("vapo-fast sample model.safetensors --out samples.jpg", 2),
        Case("vapo-fast sample model.safetensors --out notes.txt/samples.npy", 2),
        Case("vapo-fast evaluate model.safetensors", 2),
        Case("vapo-fast evaluate missing.npy --data 8gaussians", 2),
        Case("vapo-fast evaluate nan.npy --data 8gaussians", 2),
        Case("vapo-fast evaluate integers.npy --data 8gaussians", 2),
        Case("vapo-fast plot curve notes.txt", 2),
        Case("vapo-fast plot landscape image.safetensors", 2),
        Case("vapo-fast plot animation model.safetensors --out flow.png", 2),
    ],
}
