"""A small MLP, a batch and jobs for the native engine's tests."""

import torch
from torch import nn

import vapo_fast as vf
from vapo_fast.engines import Batch, Job, ReferenceEngine
from vapo_fast.homotopy import DataHomotopy

PATH = DataHomotopy(1.0, 0.1)
REFERENCE = ReferenceEngine()


def mlp(dtype=torch.float32, path=PATH, **options):
    torch.manual_seed(0)
    model = vf.MLPPotential((2,), path, widths=(16, 24), **options)
    nn.init.normal_(model.output.weight)
    return model.to(dtype)


def batch(dtype=torch.float32, rows=20):
    torch.manual_seed(1)
    return Batch(
        torch.randn(rows, 2).to(dtype), torch.linspace(0.1, 4.0, rows).to(dtype), torch.randn(rows, 2).to(dtype)
    )


def job(kind="solve", **options):
    return Job(kind, **options)


class Own(vf.MLPPotential):
    def network(self, z, position):
        return 2.0 * super().network(z, position)
