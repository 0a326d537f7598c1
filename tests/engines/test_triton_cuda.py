"""What only a CUDA device shows of the Triton engine: launches, waits, graphs; skipped without one."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch

import vapo_fast as vf
from vapo_fast.engines import Job, choose
from vapo_fast.loss import Batch
from vapo_fast.ode import SolveOptions
from vapo_fast.training.run import Callback

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]

CUDA = torch.device("cuda")


def potential(dimension: int = 2, widths: tuple[int, ...] = (128, 128, 128)) -> vf.MLPPotential:
    torch.manual_seed(0)
    model = vf.MLPPotential((dimension,), vf.DataHomotopy(), widths)
    torch.nn.init.normal_(model.output.weight, std=0.1)
    return model.to(CUDA).eval()


def engine_for(model: vf.MLPPotential, job: Job):
    return choose("triton", model, CUDA, torch.float32, job)


def kernels(call: Callable[[], object]) -> list[str]:
    """Names of the kernels that a call runs on the device, copies and fills of memory left out."""
    from torch.profiler import ProfilerActivity, profile

    names: list[str] = []
    for _ in range(2):  # the first profile of a process may miss its first kernels
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            call()
            torch.cuda.synchronize()
        events = [e for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        names = [event.name for event in events if not event.name.startswith(("Memcpy", "Memset"))]
    if not names:
        pytest.skip("the profiler sees no kernels on this machine")
    return names


@pytest.mark.parametrize("n", [1, 256, 20_000])
@pytest.mark.parametrize(
    "options", [SolveOptions(rtol=1e-5), SolveOptions("rk4", steps=8), SolveOptions(rtol=1e-4, t_eval=(1.0, 2.0))]
)
def test_a_solve_is_one_launch_of_the_solver(n: int, options: SolveOptions):
    model, job = potential(), Job("solve", solve=options)
    engine = engine_for(model, job)
    x0 = torch.randn(n, 2, device=CUDA)
    end = model.homotopy.t1
    engine.solve(model, x0, 0.0, end, job)  # compiled, and its precision chosen
    names = kernels(lambda: engine.solve(model, x0, 0.0, end, job))
    assert sum(name.startswith("_solve") for name in names) == 1, names
    assert not any(name.startswith(("_step", "_field")) for name in names), names
    # Packing the weights, clearing the queue and what else is done once: none of it grows with the steps.
    assert len(names) < 16, names


def _refusing_to_wait(call: Callable[[], object]) -> None:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("trace", [False, True])
@pytest.mark.parametrize("options", [SolveOptions(rtol=1e-5), SolveOptions("rk4", steps=8)])
def test_a_solve_never_waits_for_the_device(options: SolveOptions, trace: bool):
    model = potential(3, (33, 16))
    job = Job("solve_with_trace" if trace else "solve", "float32", solve=options)
    engine = engine_for(model, job)
    x0, end = torch.randn(300, 3, device=CUDA), model.homotopy.t1

    def call() -> None:
        if trace:
            engine.solve_with_trace(model, x0, end, 0.0, job, None)
        else:
            engine.solve(model, x0, 0.0, end, job)

    call()
    _refusing_to_wait(call)


def test_choosing_the_precision_waits_once_before_the_launch():
    """For the weights' fingerprint, which says whether what was measured still holds."""
    model, job = potential(3, (33, 16)), Job("solve", solve=SolveOptions(rtol=1e-3))
    engine, x0, end = engine_for(model, job), torch.randn(300, 3, device=CUDA), model.homotopy.t1
    engine.solve(model, x0, 0.0, end, job)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            engine.solve(model, x0, 0.0, end, job)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len([one for one in said if "synchroniz" in str(one.message)]) == 1


def test_training_and_sampling_take_turns():
    """The precision that was measured on untrained weights, whose field has no noise, is not that of trained ones."""
    torch.manual_seed(0)
    data = vf.data.load("8gaussians", n=4000).tensor().to(CUDA)
    trainer = vf.Trainer(vf.MLPPotential((2,), vf.DataHomotopy(), (32, 32)).to(CUDA), batch_size=256)
    model = trainer.ema_model
    for _ in range(2):
        chosen = vf.sample(model, 64, rtol=1e-5, return_solution=True).precision
        fresh = vf.sample(copy.deepcopy(model), 64, rtol=1e-5, return_solution=True).precision
        assert chosen == fresh
        trainer.fit(data, 100)


def test_fields_and_losses_never_wait_for_the_device():
    model = potential(3, (33, 16))
    x, noise = torch.randn(2, 300, 3, device=CUDA)
    t = torch.linspace(0.1, 3.0, 300, device=CUDA)
    job = Job("loss_and_grads")
    engine = engine_for(model, job)

    def call() -> None:
        engine.field(model, x, t)
        engine.loss_and_grads(model, Batch(x, t, noise), job)

    call()
    _refusing_to_wait(call)


def test_waiting_is_noticed():
    """The tests above would fail if an engine waited."""
    x = torch.ones(3, device=CUDA)
    with pytest.raises(RuntimeError, match="synchroniz"):
        _refusing_to_wait(lambda: float(x.sum()))


def test_many_samples_in_one_call():
    model = potential()
    solution = vf.sample(model, 100_000, return_solution=True)
    assert solution.engine == "triton"
    assert solution.x.shape == (100_000, 2)
    assert bool(solution.success.all())
    assert bool(torch.isfinite(solution.x).all())
    # A sample does not see its batch, and the reference finds the same.
    few = vf.sample(model, 500)
    assert torch.equal(few, solution.x[:500])
    reference = vf.sample(model, 500, engine="reference")
    assert float((few - reference).abs().max()) < 1e-3


def test_auto_takes_this_engine():
    model = potential()
    assert vf.sample(model, 64, return_solution=True).engine == "triton"
    assert vf.Trainer(model).engine.name == "triton"


# Largest errors of the gradient, relative to its largest entry: float32's and split TF32's are a few roundings of sums;
# one product of operands with 11 or 8 bits loses that much in each, and less than ten times it in four.
LARGEST = {"ieee": 5e-6, "float32": 5e-6, "tf32": 1e-2, "bf16": 8e-2}
SMALLEST = {"tf32": 1e-5, "bf16": 1e-4}


@pytest.mark.parametrize("shape", [(2, (128, 128, 128)), (64, (256, 256, 256)), (3, (33, 16))], ids=str)
def test_each_precision_errs_by_what_it_rounds(shape: tuple[int, tuple[int, ...]]):
    """Not more; and a reduced one not less, which would be another one under its name."""
    model = potential(*shape)
    x = torch.randn(2000, shape[0], device=CUDA)
    t = torch.linspace(0.1, 0.95 * model.homotopy.t1, len(x), device=CUDA)
    exact = copy.deepcopy(model).double().field(x.double(), t.double())[1]
    engine = engine_for(model, Job("field"))
    errors = {
        precision: float((engine._gradient(model, x, t, precision) - exact).abs().max() / exact.abs().max())
        for precision in LARGEST
    }
    for precision, error in errors.items():
        assert error <= LARGEST[precision], errors
        assert error >= SMALLEST.get(precision, 0.0), errors


@pytest.mark.parametrize("rtol", [1e-3, 1e-4, 1e-5])
def test_auto_takes_the_cheapest_precision_that_the_tolerance_does_not_see(rtol: float):
    model = potential(64, (256, 256, 256))
    job = Job("solve", solve=SolveOptions(rtol=rtol))
    engine, end = engine_for(model, job), model.homotopy.t1
    x0 = torch.randn(500, 64, device=CUDA)
    solution = engine.solve(model, x0, 0.0, end, job)
    # The policy in other words: h d against the tolerance at points of the path, h an eighth of it.
    t = torch.linspace(model.homotopy.t0, end, 256, device=CUDA)
    k = model.homotopy.kernel(t.double())
    x = torch.randn(256, 64, device=CUDA) * ((k.alpha * model.data_scale).square() + k.beta.square()).sqrt()[:, None]
    x = x.float()
    exact = engine._gradient(model, x, t, "ieee")
    shares = {}
    for precision in ("bf16", "tf32"):
        wrong = engine._gradient(model, x, t, precision) - exact
        shares[precision] = float((end / 8 * wrong / (rtol + rtol * x.abs())).square().mean().sqrt())
    clear = {precision: share for precision, share in shares.items() if not 0.8 < share < 1.25}
    for precision, share in clear.items():
        cheaper_or_same = ("bf16", "tf32", "float32").index(solution.precision) <= ("bf16", "tf32").index(precision)
        assert cheaper_or_same == (share < 1.0), (solution.precision, shares)
    tight = copy.deepcopy(model).double()
    job64 = Job("solve", solve=SolveOptions(rtol=1e-8))
    wanted = choose("reference", tight, CUDA, torch.float64, job64).solve(tight, x0.double(), 0.0, end, job64)
    error = (solution.x - wanted.x).abs() / (1.0 + wanted.x.abs())
    assert float(error.square().mean().sqrt()) <= 10.0 * rtol


class Curve(Callback):
    def __init__(self):
        self.values: list[tuple[float, float]] = []

    def on_step_end(self, trainer, step, metrics):
        if metrics is not None:
            self.values.append((metrics.loss, abs(metrics.linear) + metrics.quadratic))


class RefusingToWait(Callback):
    """Steps 12 to 19, between the readings of steps 10 and 20, run under CUDA's error for waiting."""

    def __init__(self):
        self.steps = 0

    def on_step_end(self, trainer, step, metrics):
        if 11 <= step < 19:
            torch.cuda.set_sync_debug_mode("error")
        else:
            torch.cuda.set_sync_debug_mode("default")
        self.steps += 11 < step <= 19

    def on_exception(self, trainer, error):
        torch.cuda.set_sync_debug_mode("default")


def test_training_follows_the_reference():
    """Past the steps before the graph is recorded, where the loss is that of the replays.

    A recording that fails only warns, so that training goes on; here it is an error, and a step that is not read may
    not wait for the device.
    """
    data = vf.data.load("8gaussians", n=4000).tensor().to(CUDA)
    curves = []
    for name in ("triton", "reference"):
        torch.manual_seed(1)
        model = vf.MLPPotential((2,), vf.DataHomotopy(), (32, 32)).to(CUDA)
        trainer = vf.Trainer(model, batch_size=256, engine=name, schedule="constant", log_every=10)
        curve = Curve()
        steady = (RefusingToWait(),) if name == "triton" else ()
        trainer.fit(data, 100, callbacks=(curve, *steady))
        curves.append(curve.values)
        if name == "triton":
            assert trainer._deferred is not None
            assert trainer._deferred._graph is not None
            assert steady[0].steps == 8
    for (ours, scale), (theirs, _) in zip(*curves, strict=True):
        assert abs(ours - theirs) <= 1e-3 * scale
