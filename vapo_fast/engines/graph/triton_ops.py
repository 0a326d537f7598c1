"""The arithmetic of a step by Triton kernels: one launch before each evaluation of the field, and one at the end."""

from __future__ import annotations

import torch
from torch import Tensor

from vapo_fast.kernels.finish_step import finish_step
from vapo_fast.kernels.stage import stage
from vapo_fast.kernels.tableau import slot_table
from vapo_fast.ode.masked_state import State
from vapo_fast.ode.masked_step import Ops, Plan


class TritonOps(Ops):
    """`vapo_fast.ode.masked_step.Ops` on CUDA; its twin is `TorchOps`."""

    def __init__(self) -> None:
        self._tables: dict[tuple[str, torch.device], Tensor] = {}

    def stage(self, state: State, settings: Tensor, plan: Plan, index: int) -> None:
        stage(state, settings, self._table(plan, settings.device), plan, index)

    def finish_step(self, state: State, settings: Tensor, plan: Plan) -> None:
        finish_step(state, settings, self._table(plan, settings.device), plan)

    def _table(self, plan: Plan, device: torch.device) -> Tensor:
        # Made by a program's first run, before it is recorded.
        key = plan.method, device
        if key not in self._tables:
            self._tables[key] = slot_table(plan.tableau, device)
        return self._tables[key]
