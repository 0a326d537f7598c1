"""Training by several processes: each computes its rows of every batch, and all take the same step.

Engines return gradients; no backward pass runs that a hook could follow. So the loss terms, the gradients and a few
numbers that the processes must agree on travel in one buffer, by one all-reduce a step.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from vapo_fast.core.processes import (
    ProcessFailedError,
    copy_from_first,
    first_failure,
    from_first,
    told_failures,
    world,
)
from vapo_fast.core.transfer import to_device
from vapo_fast.training.optimizer import NonFiniteLossError
from vapo_fast.training.run import TrainingRun

_TERMS = 3
# A checksum of 32 bits travels as eight numbers below 16: float32 adds those, and their squares, exactly for up to
# 2^24 / 15^2 processes.
_DIGITS = 8
_MOST_PROCESSES = (1 << 24) // 15**2
INTERRUPTED, FAILED = 0, 1
_DIGEST = 2
_FLAGS = _DIGEST + 2 * _DIGITS


class DataParallel:
    """One process's place in a data-parallel fit.

    Attributes:
        rows: the rows of each batch that are this process's.
        step: how many exchanges there were, counted as the run's steps.
        ended: whether all processes know, since the last exchange, that the fit ends.
        reachable: False once an exchange has failed.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], batch_size: int, step: int) -> None:
        here = world()
        if batch_size < here.size:
            raise ValueError(
                f"batch_size must be at least the number of processes, {here.size}, so that each has a row; got "
                f"{batch_size}"
            )
        if here.size > _MOST_PROCESSES:
            raise ValueError(f"at most {_MOST_PROCESSES} processes can train together, got {here.size}")
        self.rows = here.share(batch_size)
        self.step = step
        self.ended = False
        self.reachable = True
        self._share = len(self.rows) / batch_size
        first = parameters[0]
        sizes = [parameter.numel() for parameter in parameters]
        self._buffer = torch.zeros(_TERMS + _FLAGS + sum(sizes), dtype=first.dtype, device=first.device)
        self._terms, self._heard = self._buffer[:_TERMS], self._buffer[_TERMS : _TERMS + _FLAGS]
        self._gradients = self._buffer[_TERMS + _FLAGS :]
        ends = list(itertools.accumulate(sizes))
        self._views = [
            _shaped_like(parameter, self._gradients[end - size : end])
            for parameter, size, end in zip(parameters, sizes, ends, strict=True)
        ]
        # What this process says with every step, where a captured step finds it.
        self._said = torch.zeros(_FLAGS, dtype=first.dtype, device=first.device)
        self._digest = 0

    @property
    def capturable(self) -> bool:
        """Whether the exchange can be part of a CUDA graph: it then only launches work."""
        return self._buffer.is_cuda and f"{self._buffer.device.type}:nccl" in dist.get_backend_config()

    def set_flag(self, flag: int) -> None:
        """With the next step all processes get ``flag``: `INTERRUPTED`, or `FAILED`."""
        self._said[flag] = 1.0

    def set_digest(self, digest: int) -> None:
        """The checksum of the whole batch of the next step, as this process reads it."""
        if digest != self._digest:
            self._digest = digest
            digits = [digest >> 4 * i & 15 for i in range(_DIGITS)]
            numbers = torch.tensor([*digits, *(digit**2 for digit in digits)], dtype=self._said.dtype)
            self._said[_DIGEST:].copy_(to_device(numbers, self._said.device))

    def average(self, terms: Tensor, gradients: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], Tensor]:
        """Loss terms and gradients of the whole batch from those of this process's rows.

        Returns: both, in memory that the next call writes to; and a 0-dim tensor that is NaN if processes read
        different batches, else 0.
        """
        torch.mul(terms, self._share, out=self._terms)
        torch._foreach_copy_(self._views, list(gradients))
        self._gradients.mul_(self._share)
        self._exchange()
        # Cauchy and Schwarz: n sum d^2 = (sum d)^2 if and only if all n numbers are equal.
        sums, squares = self._heard[_DIGEST:].double().reshape(2, _DIGITS)
        same = (squares * world().size == sums.square()).all()
        return self._terms, self._views, torch.where(same, 0.0, torch.nan).to(self._buffer.dtype)

    def interrupted(self) -> bool:
        """Whether any process had Ctrl-C before the last exchange, which ends the fit. Waits for the device."""
        self.ended = bool(self._heard[INTERRUPTED])
        return self.ended

    def found_to_end(self, ended: bool) -> None:
        """A step was not finite; ``ended`` is whether all find that now. ProcessFailedError if a process had failed."""
        self.ended = ended
        if bool(self._heard[FAILED]):
            raise ProcessFailedError("another process failed")

    def barrier(self) -> None:
        """Exchange the flags without a step. ProcessFailedError if a process had failed."""
        self._buffer.zero_()
        self._exchange()
        self.step += 1
        if bool(self._heard[FAILED]):
            self.found_to_end(ended=True)

    def announce_failure(self, error: BaseException, flags_read_at: Callable[[int], bool]) -> BaseException:
        """Take part until all processes know that the fit ends; gives the error to raise: this one, or the first told.

        ``flags_read_at(step)`` is whether all read the flags after that step. The steps until then are not finite, so
        that they change nothing.
        """
        if not isinstance(error, NonFiniteLossError):  # which all find by themselves
            self.set_flag(FAILED)
        another = isinstance(error, ProcessFailedError)
        try:
            while self.reachable and not self.ended:
                self._buffer.fill_(torch.nan)
                self._exchange()
                self.step += 1
                self.ended = flags_read_at(self.step)
            told = told_failures(None if another else error) if self.reachable else {}
        except Exception as second:
            error.add_note(f"the other processes could not be told: {second}")
            self.reachable = False
            return error
        return first_failure(told) if another and told else error

    def final_barrier(self) -> None:
        """Wait for the others, if all know that the fit ends."""
        if self.ended and self.reachable:
            with contextlib.suppress(ProcessFailedError):
                self._exchange()

    def _exchange(self) -> None:
        self._heard.copy_(self._said)
        try:
            dist.all_reduce(self._buffer)
        except RuntimeError as error:
            if self._buffer.is_cuda and torch.cuda.is_current_stream_capturing():
                raise  # the step cannot be captured; that is no news of the others
            self.reachable = False
            raise ProcessFailedError(
                f"another process has ended, or cannot be reached; what it reported says why ({error})"
            ) from error


def check_alike(description: dict[str, Any]) -> None:
    """ValueError on every process if one describes its run otherwise than process 0; all must call it."""
    found: list[Any] = [None] * world().size
    dist.all_gather_object(found, description)
    first = found[0]
    for rank, other in enumerate(found):
        for name in first | other:
            ours, theirs = first.get(name, "nothing"), other.get(name, "nothing")
            if ours != theirs:
                raise ValueError(
                    f"processes that train together must be given the same: {name} is {ours} on process 0 and {theirs} "
                    f"on process {rank}"
                )


def share_buffers(run: TrainingRun) -> None:
    """Give every process the buffers of process 0, of the model and of the average."""
    for module in (run.model, run.ema_model):
        for buffer in module.buffers():
            copy_from_first(buffer)


def share_state(run: TrainingRun) -> None:
    """Give every process the weights, averages, moments and step numbers of process 0."""
    run.step, run.start_step = from_first(lambda: (run.step, run.start_step))
    for module in (run.model, run.ema_model):
        for parameter in module.parameters():
            copy_from_first(parameter)
    share_buffers(run)
    states = run.optimizer.state
    counts = from_first(lambda: [float(states[p]["step"]) if states.get(p) else None for p in run.parameters.values()])
    for parameter, count in zip(run.parameters.values(), counts, strict=True):
        if count is None:
            states.pop(parameter, None)
            continue
        if not states.get(parameter):
            states[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, requires_grad=False),
                "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
            }
        states[parameter]["step"].fill_(count)
        copy_from_first(states[parameter]["exp_avg"])
        copy_from_first(states[parameter]["exp_avg_sq"])


def _shaped_like(parameter: nn.Parameter, piece: Tensor) -> Tensor:
    """A flat piece with the parameter's shape and, where that has no gaps, its memory layout."""
    like = torch.empty_like(parameter, device="meta")
    if like.stride() == parameter.stride():
        return piece.as_strided(parameter.shape, parameter.stride(), piece.storage_offset())
    return piece.view(parameter.shape)
