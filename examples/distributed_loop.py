"""A training loop of one's own, in several processes, with PyTorch's DistributedDataParallel.

    torchrun --nproc-per-node 2 examples/distributed_loop.py

`vf.Trainer` trains in several processes by itself; this is for loops that it does not fit. What is wrapped is the loss,
because DistributedDataParallel averages gradients as the backward pass of what it wraps produces them. Both losses
serve: `vf.energy_loss` of any potential, and an engine's, which computes its gradients with the loss.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import vapo_fast as vf
from vapo_fast.core.processes import process_group, world
from vapo_fast.loss import EnergyLoss
from vapo_fast.training.batches import Batches, as_source


class Loss(nn.Module):
    """The mean of the energy loss over some rows, as a module to wrap."""

    def __init__(self, model: vf.Potential, function: Callable[..., EnergyLoss] = vf.energy_loss) -> None:
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, x_data: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return self.function(self.model, x_data, t, noise).total


def train(loss: Loss, data: Tensor, steps: int, batch_size: int, lr: float = 3e-3, seed: int = 0) -> None:
    """Adam on batches of ``batch_size`` rows in all, of which each process computes its share."""
    here, model = world(), loss.model
    parameter = next(model.parameters())
    rows = here.share(batch_size)
    batches = Batches(
        as_source(data, model.event_shape),
        model.homotopy,
        seed,
        batch_size,
        "log_noise",
        parameter.device,
        parameter.dtype,
        part=rows,
    )
    wrapped = DistributedDataParallel(loss) if here.size > 1 else loss
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for step in range(steps):
        optimizer.zero_grad()
        # DistributedDataParallel takes the mean over processes; their shares may differ by a row.
        total = wrapped(*batches(step)) * (here.size * len(rows) / batch_size)
        total.backward()
        optimizer.step()


def main() -> None:
    """Eight Gaussians by all processes, and samples of the result in shares."""
    with process_group(torch.device("cpu")) as here:
        torch.manual_seed(0)
        model = vf.MLPPotential((2,), vf.DataHomotopy(), (64, 64))
        train(Loss(model), vf.data.load("8gaussians").tensor(), steps=300, batch_size=512)
        x = vf.distributed.sample(model, 2000, rtol=1e-3)
        if here.is_first:
            print(f"{here.size} processes: {len(x)} samples, mean distance from the origin {x.norm(dim=1).mean():.3f}")


if __name__ == "__main__":
    main()
