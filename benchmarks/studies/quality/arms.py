"""One interface to train and sample either kind of model."""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

import vapo_fast as vf
from benchmarks.studies.quality import flow_matching
from benchmarks.studies.quality.flow_matching import FlowMatching
from benchmarks.studies.quality.settings import ARMS, Setting, network_of, options_of
from vapo_fast.callbacks import Callback, Metrics
from vapo_fast.ode import Solution
from vapo_fast.training.batches import Data
from vapo_fast.training.run import TrainingRun

AfterStep = Callable[[int], None]
Clock = Callable[[], float]
# The first steps of a fit compile and capture; they are not timed.
_WARM_UP, _TIMED = 4, 8


class Arm(ABC):
    """A model in training.

    Attributes:
        name: one of `ARMS`. network: what is trained, or its averaged copy in ``averaged()``. engine: what computes
            losses and gradients. optimizer: Adam, whose learning rate is set at every step.
    """

    name: str
    engine: str
    network: nn.Module
    optimizer: torch.optim.Adam

    @abstractmethod
    def fit(self, data: Data, steps: int, after_step: AfterStep | None = None) -> None:
        """Train for ``steps`` steps, from the start of the schedule to its end."""

    @abstractmethod
    def averaged(self) -> nn.Module:
        """The averaged model; goes on changing with training."""

    @abstractmethod
    def sample(self, model: nn.Module, n: int, rtol: float, seed: int) -> Solution:
        """Draw from an averaged model."""


class PotentialArm(Arm):
    """The project's potential and trainer."""

    def __init__(
        self, name: str, setting: Setting, event_shape: tuple[int, ...], device: torch.device, seed: int, precision: str
    ):
        self.name = name
        self.network = network_of(self.name, setting, event_shape).to(device)
        o = options_of(self.name, setting, seed)
        self._trainer = vf.Trainer(
            self.network,
            lr=o.lr,
            batch_size=o.batch_size,
            ema_decay=o.ema_decay,
            warmup_steps=o.warmup_steps,
            weight=o.weight,
            time_sampling=o.time_sampling,
            seed=seed,
            precision=precision,
            augment=o.augment,
        )
        self.engine = self._trainer.engine.name
        self.optimizer = self._trainer.optimizer

    def fit(self, data: Data, steps: int, after_step: AfterStep | None = None) -> None:
        self._trainer.fit(data, steps, () if after_step is None else (_Teller(after_step),))

    def averaged(self) -> vf.Potential:
        return self._trainer.ema_model

    def sample(self, model: nn.Module, n: int, rtol: float, seed: int) -> Solution:
        assert isinstance(model, vf.Potential)
        solution = vf.sample(model, n, rtol=rtol, seed=seed, batch_size=500, return_solution=True)
        assert isinstance(solution, Solution)
        return solution


class FlowArm(Arm):
    """A flow-matching baseline."""

    def __init__(
        self,
        name: str,
        setting: Setting,
        event_shape: tuple[int, ...],
        device: torch.device,
        seed: int,
        precision: str,
        compiled: bool,
    ):
        self.name = name
        self.network = network_of(name, setting, event_shape).to(device)
        assert isinstance(self.network, flow_matching.VelocityUNet)
        options = options_of(name, setting, seed)
        self.engine = "autograd" + ", compiled" * compiled
        self._run = FlowMatching(self.network, options, bf16=precision == "bf16", compiled=compiled)
        self.optimizer = self._run.optimizer

    def fit(self, data: Data, steps: int, after_step: AfterStep | None = None) -> None:
        self._run.fit(data, steps, after_step)

    def averaged(self) -> flow_matching.VelocityUNet:
        return self._run.average

    def sample(self, model: nn.Module, n: int, rtol: float, seed: int) -> Solution:
        assert isinstance(model, flow_matching.VelocityUNet)
        return flow_matching.sample(model, n, rtol=rtol, seed=seed)


class _Teller(Callback):
    def __init__(self, tell: AfterStep) -> None:
        self._tell = tell

    def on_step_end(self, trainer: TrainingRun, step: int, metrics: Metrics | None) -> None:
        self._tell(step)


def make(
    name: str,
    setting: Setting,
    event_shape: tuple[int, ...],
    device: torch.device,
    seed: int,
    precision: str = "auto",
    compiled: bool = False,
) -> Arm:
    """A new arm; initial weights depend on the seed only, and are the same in every arm with the same layers."""
    torch.manual_seed(seed)
    if name in (ARMS[0], ARMS[3]):
        return PotentialArm(name, setting, event_shape, device, seed, precision)
    return FlowArm(name, setting, event_shape, device, seed, precision, compiled)


def step_seconds(
    makers: dict[str, Callable[[], Arm]], data: Data, device: torch.device, clock: Clock, rounds: int
) -> dict[str, float]:
    """Seconds of a training step of each arm, by ``clock``: medians over rounds in which the arms take turns.

    Taking turns, they meet the same load of a machine that others use too.
    """
    trials = {name: maker() for name, maker in makers.items()}
    found: dict[str, list[float]] = {name: [] for name in trials}
    for _ in range(rounds):
        for name, arm in trials.items():
            watch = _Watch(device, clock)
            arm.fit(data, _WARM_UP + _TIMED, watch)
            found[name].append(watch.seconds / _TIMED)
    return {name: median(values) for name, values in found.items()}


class _Watch:
    def __init__(self, device: torch.device, clock: Clock) -> None:
        self._device = device
        self._clock = clock
        self._calls = 0
        self._began = 0.0
        self.seconds = 0.0

    def __call__(self, step: int) -> None:
        self._calls += 1
        if self._calls in (_WARM_UP, _WARM_UP + _TIMED):
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            now = self._clock()
            self._began, self.seconds = now, now - self._began


class Snapshots:
    """Copies of the averaged model after given steps, with the seconds of training up to each.

    The time that copying takes is not counted; nor are the first steps, which compile and capture, unless one of them
    is to be copied: their seconds are ``warm_up``.
    """

    def __init__(self, arm: Arm, steps: set[int], device: torch.device) -> None:
        self._arm = arm
        self._steps = steps
        self._device = device
        self._paused = self._paused_cpu = 0.0
        self._began, self._began_cpu = time.perf_counter(), time.process_time()
        self.warm_up = 0.0
        self.taken: list[tuple[int, float, float, nn.Module]] = []

    def __call__(self, step: int) -> None:
        """After each step; ``taken`` gets (step, wall-clock seconds, the process's CPU seconds, model)."""
        first = step == _WARM_UP and step < min(self._steps)
        if step not in self._steps and not first:
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now, now_cpu = time.perf_counter(), time.process_time()
        if first:
            self.warm_up = now - self._began
            self._began, self._began_cpu = now, now_cpu
            return
        model = copy.deepcopy(self._arm.averaged()).eval()
        elapsed, elapsed_cpu = now - self._began - self._paused, now_cpu - self._began_cpu - self._paused_cpu
        self.taken.append((step, elapsed, elapsed_cpu, model))
        self._paused += time.perf_counter() - now
        self._paused_cpu += time.process_time() - now_cpu


def images(x: Tensor) -> Tensor:
    """Samples as float32 on the CPU."""
    return x.detach().float().cpu()
