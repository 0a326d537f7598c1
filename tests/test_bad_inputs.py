"""Bad inputs, each with what a user sees: the lines are run, and docs/bad_inputs.md is written from the outcome.

``python tests/test_bad_inputs.py`` writes the page anew; the last test fails while the page shows something else.
"""

import contextlib
import gzip
import os
import re
import resource
import shlex
import signal
import struct
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

import vapo_fast as vf
from vapo_fast.cli.app import app
from vapo_fast.core import extension
from vapo_fast.data import DataFormatError, DataNotFoundError
from vapo_fast.engines import UnsupportedJobError
from vapo_fast.sampling import batching
from vapo_fast.training.optimizer import NonFiniteLossError
from vapo_fast.training.run import TrainingInterrupted

PAGE = Path(__file__).resolve().parents[1] / "docs" / "bad_inputs.md"

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


class Outcome(NamedTuple):
    kind: type[BaseException] | int | None
    text: str


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


def make_files(names: dict[str, Any]) -> None:
    """The files that the lines name, in the current folder."""
    folders = ("empty", "sizes", "damaged_image", "other_pickle")
    for folder in folders:
        Path(folder).mkdir()
    Path("notes.txt").write_text("not data\n")
    header = struct.pack(">HBBIII", 0, 8, 3, 5, 4, 4)
    Path("truncated-idx3-ubyte").write_bytes(header + bytes(60))
    Path("damaged-idx3-ubyte.gz").write_bytes(gzip.compress(header + bytes(80), mtime=0)[:20])
    Path("text-idx3-ubyte").write_text("not an idx file\n")
    for i in range(1, 6):
        # A pickle that would run os.system.
        Path(f"other_pickle/data_batch_{i}").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    for i, side in enumerate((4, 6)):
        Image.new("L", (side, side)).save(f"sizes/{i}.png")
    Path("damaged_image/0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    Path("text.npy").write_text("not an array\n")
    np.save("objects.npy", np.array([{"a": 1}]), allow_pickle=True)
    np.save("integers.npy", np.ones((3, 2), dtype=np.int64))
    np.save("nan.npy", np.where(np.arange(24).reshape(12, 2) == 5, np.nan, 1.0).astype(np.float32))
    np.save("rows_0.npy", np.empty((0, 2), dtype=np.float32))
    Path("unknown_key.yaml").write_text("data: 8gaussians\nbatchsize: 8\n")
    Path("wrong_value.yaml").write_text("data: 8gaussians\nlr: fast\n")
    Path("broken.yaml").write_text("data: [8gaussians\n")
    model = names["model"]
    vf.save(model, "model.safetensors")
    vf.save(names["image"], "image.safetensors")
    linear = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Linear(8, 1), torch.nn.Flatten(0))
    vf.save(vf.Potential.from_module(linear, (2,), names["path"]), "module.safetensors")
    whole = Path("model.safetensors").read_bytes()
    Path("truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    save_file({"weight": torch.ones(2)}, "foreign.safetensors")
    change_description("newer.safetensors", '"format_version": 1', '"format_version": 2')
    change_description("other_widths.safetensors", '"widths": [16, 16]', '"widths": [32, 16]')
    change_description("unknown_class.safetensors", "MLPPotential", "TransformerPotential")
    vf.Trainer(model, batch_size=8).fit(torch.randn(8, 2), 5, callbacks=[names["Checkpointer"]("run")])


def change_description(path: str, old: str, new: str) -> None:
    with safe_open("model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        text = file.metadata()["vapo_fast"]
    assert old in text
    save_file(tensors, path, {"vapo_fast": text.replace(old, new)})


@contextlib.contextmanager
def circumstances(given: str, names: dict[str, Any]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("VAPO_FAST_ENGINE", raising=False)
        patch.delenv("VAPO_FAST_DATA", raising=False)
        patch.setenv("COLUMNS", "200")
        if match := re.fullmatch(r"(\w+)=(\w+)", given):
            patch.setenv(match[1], match[2])
        elif match := re.fullmatch(r"(\d+) kB of free memory", given):
            patch.setattr(batching, "free_memory", lambda device: 1000 * int(match[1]))
        elif match := re.fullmatch(r"a disk with (\d+) kB left", given):
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000 * int(match[1]), hard))
            try:
                yield
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            return
        elif given:
            killed_while_saving(names["image"], "model.safetensors")
        yield


def killed_while_saving(model: vf.Potential, path: str) -> None:
    """A process is killed between writing the new file and putting it in the old one's place."""
    child = os.fork()
    if child == 0:
        try:
            Path.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign,assignment]
            vf.save(model, path)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def run(case: Case) -> Outcome:
    """Do what the line says, in the current folder, and tell what a user sees."""
    names: dict[str, Any] = {}
    exec(SETUP, names)
    with circumstances(case.given, names), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if case.line.startswith("vapo-fast "):
            result = CliRunner().invoke(app, shlex.split(case.line)[1:])
            # Of several lines the error is the last; the frames that the terminal's width decides are left out.
            text = "".join(" " if c in "│╭╮╰╯─" else c for c in result.stderr)
            return Outcome(result.exit_code, normal(text[max(0, text.rfind("error: ")) :]))
        *statements, last = case.line.split("; ")
        try:
            exec("; ".join(statements), names)
            value = eval(last, names)
        except BaseException as error:
            return Outcome(type(error), normal(str(error)))
    told = [f"{warning.category.__name__}: {warning.message}" for warning in caught]
    return Outcome(None, normal("; ".join(told if value is None else [*told, f"returns {value}"])))


def normal(text: str) -> str:
    """``text`` on one line, without what differs between machines."""
    text = text.replace(str(Path.cwd()), "/here")
    text = re.sub(r"machine has [\d.]+ GiB", "machine has ... GiB", text)
    text = re.sub(r"[\d.e+-]+ GiB are free", "... GiB are free", text)
    text = re.sub(r"usable here: baseline[\w, ]*", "usable here: baseline ...", text)
    return " ".join(text.split())


def run_all() -> dict[Case, Outcome]:
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        names: dict[str, Any] = {}
        exec(SETUP, names)
        make_files(names)
        return {case: run(case) for cases in CASES.values() for case in cases}


def page(outcomes: dict[Case, Outcome]) -> str:
    failing = sum(outcome.kind is not None for outcome in outcomes.values())
    text = f"""# Bad inputs, and what a user sees

{len(outcomes)} mistakes and mishaps, {failing} of which end in an error; the others show what happens instead. This
page is written by `python tests/test_bad_inputs.py` from what the lines do, and the tests fail while it differs from
that. `/here` stands for the current folder and `...` before a unit for a number that depends on the machine.

The lines follow this:

```python
{SETUP.strip()}
```

and use these files: `model.safetensors` and `image.safetensors` (the models above), `module.safetensors` (a module
that was wrapped), `run/` (a finished training run of `model`, 5 steps), an `empty/` folder, and files whose names say
what is wrong with them.
"""
    for section, cases in CASES.items():
        text += f"\n## {section}\n\n| What was done | What the user sees |\n|---|---|\n"
        for case in cases:
            given = f", with {case.given}" if case.given else ""
            text += f"| {code(case.line)}{given} | {spoken(outcomes[case])} |\n"
    return text


def spoken(outcome: Outcome) -> str:
    if outcome.kind is None:
        return f"no error: {code(outcome.text)}"
    if isinstance(outcome.kind, int):
        return f"exit code {outcome.kind}: {code(outcome.text)}"
    return f"**{outcome.kind.__name__}** {code(outcome.text)}"


def code(text: str) -> str:
    """Markdown code inside a table."""
    assert "`" not in text
    return "`" + text.replace("|", "\\|") + "`"


def other_versions() -> str:
    """The packages whose own words are in some messages, and which are not here in the pinned version."""
    pins = dict(re.findall(r"^([\w-]+)==(\S+)", (PAGE.parents[1] / "constraints.txt").read_text(), re.MULTILINE))
    pinned = {name.lower(): pin for name, pin in pins.items()}
    names = ("numpy", "pillow", "pyyaml", "safetensors", "torch", "typer")
    return ", ".join(name for name in names if version(name).split("+")[0] != pinned[name])


@pytest.fixture(scope="module")
def outcomes() -> dict[Case, Outcome]:
    return run_all()


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=f"{case.line} {case.given}") for cases in CASES.values() for case in cases]
)
def test_ends_as_expected(case: Case, outcomes: dict[Case, Outcome]) -> None:
    outcome = outcomes[case]
    if case.given.startswith("VAPO_FAST_INSTRUCTION_SET") and extension.unavailable_reason():
        pytest.skip("nothing reads it without the native extension")
    assert outcome.kind == case.outcome, outcome.text
    assert len(outcome.text) > 15


def test_the_page_shows_what_happens(outcomes: dict[Case, Outcome]) -> None:
    if others := other_versions():
        pytest.skip(f"the page quotes the pinned versions of {others}, and others are installed")
    if extension.unavailable_reason():
        pytest.skip("the page shows what happens with the native extension")
    if torch.cuda.is_available():
        pytest.skip("the page shows what happens without a CUDA device")
    assert PAGE.read_text(encoding="utf-8") == page(outcomes), "write it anew: python tests/test_bad_inputs.py"


if __name__ == "__main__":
    # A shell starts what it puts in the background with the signal ignored; for tests, conftest.py does the same.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    PAGE.write_text(page(run_all()), encoding="utf-8")
