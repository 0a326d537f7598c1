"""Properties that hold of an engine whatever it computes: batches, splits, threads, repetition, full outputs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vapo_fast as vf
from tests.support.tolerances import BITWISE, assert_same, assert_same_rows, job_for
from tests.support.zoo import DTYPES, PATHS, SMALL, Network, states, times
from vapo_fast.engines import Batch, Job, LossOptions
from vapo_fast.ode import SolveOptions

BATCHES = (1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("network", [*SMALL, Network(64, (128, 33)), Network(1, (256, 100, 3), "softplus")], ids=str)
def test_field_does_not_see_the_batch(engine, device, supported, network, dtype):
    model = network.build(dtype).to(device)
    supported(model, Job("field"))
    x, t = states(131, network.dimension, dtype).to(device), times(131, model.homotopy, dtype).to(device)
    phi, gradient = engine.field(model, x, t)
    for rows in BATCHES:
        for first in (0, 131 - rows):
            part = slice(first, first + rows)
            part_phi, part_gradient = engine.field(model, x[part], t[part])
            assert_same(engine, part_phi, phi[part], f"Phi in {rows} rows")
            assert_same(engine, part_gradient, gradient[part], f"grad Phi in {rows} rows")
    order = torch.randperm(131, generator=torch.Generator().manual_seed(0)).to(device)
    shuffled_phi, shuffled_gradient = engine.field(model, x[order], t[order])
    assert_same(engine, shuffled_phi, phi[order], "Phi shuffled")
    assert_same(engine, shuffled_gradient, gradient[order], "grad Phi shuffled")


@pytest.mark.parametrize("method", ["dopri5", "bosh3", "rk4"])
@pytest.mark.parametrize("network", SMALL, ids=str)
def test_solve_does_not_see_the_batch(engine, device, supported, network, method):
    model = network.build(torch.float32).to(device)
    adaptive = method != "rk4"
    end = model.homotopy.t1
    options = SolveOptions(method, rtol=1e-4, t_eval=(0.4 * end, end)) if adaptive else SolveOptions(method, steps=5)
    job = job_for(engine, "solve", solve=options)
    supported(model, job)
    x0 = states(131, network.dimension, torch.float32).to(device)
    whole = engine.solve(model, x0, 0.0, end, job)
    for rows in (1, 2, 17, 64):
        part = slice(60, 60 + rows)
        few = engine.solve(model, x0[part], 0.0, end, job)
        assert_same_rows(engine, few, vf.Solution(*(_rows(value, part) for value in vars(whole).values())), slice(None))
        if adaptive and engine.name in BITWISE:
            assert torch.equal(few.ys, whole.ys[:, part])


def _rows(value, part):
    return value[part] if isinstance(value, torch.Tensor) and value.dim() < 3 else value


@pytest.mark.parametrize("sizes", [(1, 7, 50), (64, 3, 50)])
def test_sample_does_not_see_the_split(engine, device, supported, sizes):
    model = SMALL[0].build(torch.float32).to(device)
    supported(model, Job("solve"))
    options = {
        "rtol": 1e-4,
        "engine": engine.name,
        "precision": job_for(engine, "solve").precision,
        "return_solution": True,
    }
    draws = [vf.sample(model, 50, batch_size=size, **options) for size in sizes]
    for other in draws[1:]:
        assert_same_rows(engine, other, draws[0], slice(None))
    assert_same_rows(engine, vf.sample(model, 20, **options), _first(draws[0], 20), slice(None))


def _first(solution, rows):
    return vf.Solution(*(_rows(value, slice(rows)) for value in vars(solution).values()))


def everything(engine, device, dtype=torch.float32):
    """Numbers of every job, in one list."""
    model = Network(3, (33, 16), "silu", 5).build(dtype).to(device)
    x, t = states(150, 3, dtype).to(device), times(150, PATHS["data"], dtype).to(device)
    numbers = list(engine.field(model, x, t))
    for options in (SolveOptions("dopri5", rtol=1e-3, t_eval=(1.0, 2.0)), SolveOptions("heun", steps=3, t_eval=(2.0,))):
        solution = engine.solve(model, x, 0.0, 2.0, job_for(engine, "solve", solve=options))
        numbers += [value for value in vars(solution).values() if isinstance(value, torch.Tensor)]
    for probes in (None, states(150, 6, dtype).reshape(150, 2, 3).to(device)):
        job = job_for(engine, "solve_with_trace", solve=SolveOptions("bosh3", rtol=1e-2))
        solution, integrals = engine.solve_with_trace(model, x, 2.0, 0.0, job, probes)
        numbers += [solution.x, solution.nfe, integrals]
    for estimator in ("velocity", "covariance"):
        job = job_for(engine, "loss_and_grads", loss=LossOptions(estimator))
        result = engine.loss_and_grads(model, Batch(x, t.clamp_max(2.0), x.flip(0)), job)
        numbers += [*result.loss, *result.grads.values()]
    return [number.cpu() for number in numbers]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_repetition_gives_the_same_bits(engine, device, supported, dtype):
    supported(SMALL[0].build(dtype), Job("field"))
    first, second = everything(engine, device, dtype), everything(engine, device, dtype)
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        assert torch.equal(a, b), i


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_change_nothing(engine, device, supported, dtype):
    supported(SMALL[0].build(dtype), Job("field"))
    results = []
    # Small tensors on more threads than processors cost a library that waits for its threads a hundredfold.
    for threads in (1, 2, 3, 7) if engine.name in BITWISE else (1, 2):
        torch.set_num_threads(threads)
        results.append(everything(engine, device, dtype))
    for other in results[1:]:
        for i, (a, b) in enumerate(zip(results[0], other, strict=True)):
            if a.is_floating_point():
                assert_same(engine, b.reshape(-1), a.reshape(-1), f"number {i}", 5e-3)
            else:
                assert engine.name not in BITWISE or torch.equal(a, b), i


def test_outputs_are_fully_written(engine, device):
    """New tensors are filled with NaN and the largest integers before use; nothing of that may come through."""
    clean = everything(engine, device)
    # Only warned of: cuBLAS wants an environment variable of its own for this setting.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert bool(torch.empty(3, device=device).isnan().all())
        poisoned = everything(engine, device)
    finally:
        torch.use_deterministic_algorithms(False)
    for i, (a, b) in enumerate(zip(clean, poisoned, strict=True)):
        assert torch.equal(a, b), i
        assert bool(torch.isfinite(a).all()), i


DIGEST = """
import hashlib, sys
sys.path.insert(0, {root!r})
import torch
from tests.conformance.test_properties import everything
from vapo_fast.engines import base
digest = hashlib.sha256()
for number in everything(base._REGISTRY[{engine!r}], torch.device("cpu")):
    digest.update(number.numpy().tobytes())
print(digest.hexdigest())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="MALLOC_PERTURB_ is glibc's")
def test_outputs_do_not_depend_on_what_memory_held(engine, device):
    """The C library fills each new and each freed block with a pattern, two patterns must give one result."""
    if device.type != "cpu":
        pytest.skip("host memory only")
    code = DIGEST.format(root=str(Path(__file__).parents[2]), engine=engine.name)
    digests = set()
    for pattern in ("0", "1", "170"):
        environment = {**os.environ, "MALLOC_PERTURB_": pattern, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        digests.add(done.stdout.strip())
    assert len(digests) == 1
