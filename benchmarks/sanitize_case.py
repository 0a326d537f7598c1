"""Small jobs of the Triton engine for compute-sanitizer: every kernel once, with masked tails and more tiles than one.

    compute-sanitizer --tool memcheck --error-exitcode 86 python -P benchmarks/sanitize_case.py

Blocks come from CUDA one by one, so that a touch past the end of one is seen.
"""

from __future__ import annotations

import os

os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"

import torch

import vapo_fast as vf
from vapo_fast.batches import Batch
from vapo_fast.engines import Job, choose
from vapo_fast.ode import SolveOptions


def main() -> None:
    """Run the jobs."""
    device = torch.device("cuda")
    torch.manual_seed(0)
    potential = vf.MLPPotential((3,), vf.DataHomotopy(), (33, 16), fourier_features=5).to(device)
    torch.nn.init.normal_(potential.output.weight, std=0.1)
    n = 77
    x, noise = torch.randn(2, n, 3, device=device)
    end = potential.homotopy.t1
    t = torch.linspace(0.1, 0.9 * end, n, device=device)
    jobs = [Job("field"), Job("solve", solve=SolveOptions(rtol=1e-3, t_eval=(0.5 * end, end)))]
    jobs += [Job("solve_with_trace", solve=SolveOptions("heun", steps=2)), Job("loss_and_grads")]
    for job in jobs:
        engine = choose("triton", potential, device, torch.float32, job)
        with torch.no_grad():
            if job.kind == "field":
                engine.field(potential, x, t)
            elif job.kind == "solve":
                engine.solve(potential, x, 0.0, end, job)
            elif job.kind == "solve_with_trace":
                engine.solve_with_trace(potential, x, end, 0.5 * end, job, None)
            else:
                engine.loss_and_grads(potential, Batch(x, t, noise), job)
        torch.cuda.synchronize()
        print(f"{job.kind}: done", flush=True)


if __name__ == "__main__":
    main()
