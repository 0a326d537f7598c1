"""Device functions of numbers, each against its PyTorch twin: elementary functions, activations, gauge, controller."""

import math

import pytest
import torch
import triton
import triton.language as tl
from torch.nn import functional as F
from vapo_fast.kernels import activation, controller, elementary, gauge
from vapo_fast.kernels.launch import OPTIONS
from vapo_fast.kernels.shapes import InKernel

from tests.support.zoo import ACTIVATIONS, Network
from vapo_fast.core import elementary as torch_elementary
from vapo_fast.ode.controller import PIController, initial_step, trial_step
from vapo_fast.ode.settings import SETTINGS

EPS = torch.finfo(torch.float32).eps
SPAN = 3.7


def same_bits(actual, expected):
    assert actual.dtype == expected.dtype == torch.float64
    different = (actual.cpu().view(torch.int64) != expected.view(torch.int64)) & ~(
        actual.cpu().isnan() & expected.isnan()
    )
    assert not bool(different.any()), (actual.cpu()[different][:5], expected[different][:5])


def draws(n, low, high, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(n, dtype=torch.float64, generator=generator)


@triton.jit
def _elementary_functions(x, log, exp, cosine, sine, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n, other=1.0)
    tl.store(log + at, elementary.log(tl.abs(value) + 1e-300), mask=at < n)
    tl.store(exp + at, elementary.exp(value), mask=at < n)
    c, s = elementary.cos_sin_turns(value - tl.floor(value))
    tl.store(cosine + at, c, mask=at < n)
    tl.store(sine + at, s, mask=at < n)


def test_elementary_functions_have_the_librarys_bits(device):
    special = [0.0, 1.0, 0.25, 0.5, 0.75, 0.125, math.sqrt(0.5), 1e-290, 1e300, 700.0, -700.0, 1e4, -1e4, math.log(2.0)]
    x = torch.cat((torch.tensor(special, dtype=torch.float64), draws(2000, -50.0, 50.0), draws(2000, -800.0, 800.0)))
    found = [torch.empty_like(x, device=device) for _ in range(4)]
    grid = (triton.cdiv(len(x), 1024),)
    _elementary_functions[grid](x.to(device), *found, len(x), BLOCK=1024, **OPTIONS)
    turns = x - x.floor()
    expected = (torch_elementary.log(x.abs() + 1e-300), torch_elementary.exp(x), *torch_elementary.cos_sin_turns(turns))
    for ours, theirs in zip(found, expected, strict=True):
        same_bits(ours, theirs)


@triton.jit
def _activate(z, h, d, c, n, ACTIVATION: tl.constexpr, CURVED: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    found = activation.activate(tl.load(z + at, mask=at < n, other=0.0), ACTIVATION, CURVED)
    tl.store(h + at, found[0], mask=at < n)
    tl.store(d + at, found[1], mask=at < n)
    tl.store(c + at, found[2], mask=at < n)


def activated(device, z, name, curved=True):
    found = [torch.empty_like(z, device=device) for _ in range(3)]
    _activate[(triton.cdiv(len(z), 1024),)](
        z.to(device), *found, len(z), ACTIVATION=name, CURVED=curved, BLOCK=1024, **OPTIONS
    )
    return [part.cpu() for part in found]


def sizes_of_terms(z, name):
    """What value, first and second derivative are the sums of: near their zeros they are known no better."""
    h, d, c = activation.activate_reference(z, name)
    if name == "silu":
        s, rest = torch.sigmoid(z), torch.sigmoid(-z)
        return h.abs(), s * (1.0 + z.abs() * rest), s * rest * (2.0 + z.abs())
    return h.abs(), d, c.abs()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(device, name):
    """To a few units in the last place of each one's terms, and |z| more for the exponential of it."""
    edges = [0.0, 0.5, 20.0, 30.0, 80.0, 1e-30, 1e-8, 1e-4]
    points = torch.cat((torch.linspace(-100.0, 100.0, 2001), torch.linspace(-2.0, 2.0, 2001), torch.tensor(edges)))
    z = torch.cat((points, -points))
    found, exact = activated(device, z, name), activation.activate_reference(z.double(), name)
    for ours, theirs, size in zip(found, exact, sizes_of_terms(z.double(), name), strict=True):
        error = (ours.double() - theirs).abs()
        allowed = EPS * (4.0 + z.abs().double()) * size + 1e-37
        assert bool((error <= allowed).all()), (z[error > allowed][:5], (error / size / EPS)[error > allowed][:5])
    for ours, same in zip(activated(device, z, name, curved=False)[:2], found[:2], strict=True):
        assert torch.equal(ours, same)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_far_out(device, name):
    """Nothing overflows up to the largest numbers; what is not a number stays so."""
    z = torch.tensor([200.0, 1e4, 3e38, -200.0, -1e4, -3e38, math.nan])
    found, exact = activated(device, z, name), activation.activate_reference(z.double(), name)
    for ours, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours[:-1].double(), theirs[:-1], rtol=4 * EPS, atol=1e-37)
        assert bool(ours[-1].isnan())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_twin_of_the_activations_is_autograds(name):
    z = torch.cat((draws(200, -15.0, 15.0), torch.zeros(1, dtype=torch.float64))).requires_grad_()
    h = getattr(F, name)(z)
    (d,) = torch.autograd.grad(h.sum(), z, create_graph=True)
    (c,) = torch.autograd.grad(d.sum(), z)
    for ours, theirs in zip(activation.activate_reference(z.detach(), name), (h, d, c), strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-12, atol=1e-13)


@triton.jit
def _gauge(t, a, c, r, position, n, constants, NET: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    found = gauge.coefficients(tl.load(t + at, mask=at < n, other=0.0), constants, NET)
    tl.store(a + at, found[0], mask=at < n)
    tl.store(c + at, found[1], mask=at < n)
    tl.store(r + at, found[2], mask=at < n)
    tl.store(position + at, found[3], mask=at < n)


@pytest.mark.parametrize("timed", [True, False], ids=["t", "still"])
@pytest.mark.parametrize("path", ["data", "linear"])
def test_gauge(device, packed, path, timed):
    """Rounded once from float64: to half a unit in the last place, and that of a term where there is a difference."""
    model = Network(2, (7,), path=path, time_dependent=timed).build(torch.float32)
    mlp, _ = packed(model)
    last = model.homotopy.t1
    t = torch.cat((torch.tensor([0.0, 1e-30, 1e-6, last]), torch.linspace(0.0, last, 200))).clamp_max(last)
    found = [torch.empty_like(t, device=device) for _ in range(4)]
    _gauge[(1,)](t.to(device), *found, len(t), mlp.constants, NET=InKernel(mlp.net), BLOCK=256, **OPTIONS)
    exact = gauge.coefficients_reference(model, t.double())
    for ours, theirs, largest in zip(found, exact, (1.0, 0.0, 0.0, 1.0), strict=True):
        error = (ours.cpu().double() - theirs).abs()
        assert bool((error <= 0.51 * EPS * torch.maximum(theirs.abs(), torch.tensor(1e-6 * largest))).all())


def test_gauge_where_there_is_no_path(device, packed):
    """Times that are not finite, or beyond the end where the noise is less than nothing, give no number."""
    for path, times in (("data", [math.nan, math.inf, -math.inf]), ("linear", [math.nan, math.inf, 1.0, 1.5])):
        mlp, _ = packed(Network(2, (7,), path=path).build(torch.float32))
        t = torch.tensor(times)
        found = [torch.empty_like(t, device=device) for _ in range(4)]
        _gauge[(1,)](t.to(device), *found, len(t), mlp.constants, NET=InKernel(mlp.net), BLOCK=16, **OPTIONS)
        assert not bool(torch.isfinite(sum(found)).any()), (path, found)


@triton.jit
def _control(
    ratio_ptr, previous_ptr, after_ptr, factor, kept, trial, first, n, settings, span, inverse, BLOCK: tl.constexpr
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ratio = tl.load(ratio_ptr + at, mask=at < n, other=1.0)
    previous = tl.load(previous_ptr + at, mask=at < n, other=1.0)
    rejected = tl.load(after_ptr + at, mask=at < n, other=0) != 0
    tl.store(factor + at, controller.factor(ratio, previous, rejected, settings), mask=at < n)
    tl.store(kept + at, controller.remember(ratio, previous), mask=at < n)
    whole = tl.load(span) + tl.zeros((BLOCK,), tl.float64)
    step = controller.trial_step(ratio, previous, whole)
    tl.store(trial + at, step, mask=at < n)
    tl.store(first + at, controller.initial_step(previous, ratio, step, whole, tl.load(inverse)), mask=at < n)


@pytest.mark.parametrize("share", [0.0, 0.2])
@pytest.mark.parametrize("order", [3, 5])
def test_controller_has_the_librarys_bits(device, order, share):
    special = torch.tensor(
        [0.0, 1e-300, 1e-20, 1e-5, 1e-4, 1.0, math.nextafter(1.0, 2.0), 2.0, 1e300, math.inf, math.nan],
        dtype=torch.float64,
    )
    pairs = torch.cartesian_prod(special, special)
    many = torch.stack((10.0 ** draws(3000, -12.0, 6.0, 1), 10.0 ** draws(3000, -6.0, 6.0, 2)), dim=1)
    ratio, previous = torch.cat((pairs, many)).T.contiguous()
    after = (torch.arange(len(ratio)) % 3 == 0).to(torch.int64)
    twin = PIController(share)
    exponents = twin.exponents(order)
    settings = torch.full((len(SETTINGS),), torch.nan, dtype=torch.float64)
    for name, value in zip(("accepted", "previous", "rejected"), exponents, strict=True):
        settings[SETTINGS.index(f"{name}_exponent")] = value
    numbers = [torch.tensor([value], dtype=torch.float64, device=device) for value in (SPAN, 1.0 / order)]
    found = [torch.empty_like(ratio, device=device) for _ in range(4)]
    inputs = (ratio.to(device), previous.to(device), after.to(device))
    grid = (triton.cdiv(len(ratio), 1024),)
    _control[grid](*inputs, *found, len(ratio), settings.to(device), *numbers, BLOCK=1024, **OPTIONS)
    trial = trial_step(ratio, previous, SPAN)
    expected = (
        twin.factor(ratio, previous, after != 0, exponents),
        twin.remember(ratio, previous),
        trial,
        initial_step(previous, ratio, trial, SPAN, order),
    )
    for ours, theirs in zip(found, expected, strict=True):
        same_bits(ours, theirs)
