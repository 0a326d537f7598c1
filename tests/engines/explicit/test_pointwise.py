"""The operations between convolutions: every way to compute them agrees with the definition, and it with autograd."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vapo_fast.core import extension, triton_support
from vapo_fast.engines.explicit.pointwise import Pointwise, TorchPointwise, pair_like

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Rows, channels, height, width: odd ones, single ones, more than one part or block of each kernel.
SHAPES = [(1, 1, 1, 1), (3, 5, 3, 2), (2, 32, 4, 4), (2, 37, 7, 5), (1, 70, 16, 17), (5, 3, 13, 1)]
DTYPES = {
    "float64": (torch.float64, torch.float64, 1e-13),
    "float32": (torch.float32, torch.float32, 4e-6),
    "bf16": (torch.float32, torch.bfloat16, 1.2e-2),
}


def _native() -> Pointwise:
    if extension.unavailable_reason():
        pytest.skip(str(extension.unavailable_reason()))
    from vapo_fast.engines.explicit.pointwise_native import NativePointwise

    return NativePointwise()


def _triton() -> Pointwise:
    if reason := triton_support.unavailable_reason(DEVICE):
        pytest.skip(reason)
    from vapo_fast.engines.explicit.pointwise_triton import TritonPointwise

    return TritonPointwise()


def _torch() -> Pointwise:
    return TorchPointwise()


WAYS: list[tuple[Callable[[], Pointwise], str, str]] = [
    *((_native, "cpu", dtype) for dtype in DTYPES),
    *((_triton, DEVICE, dtype) for dtype in ("float32", "bf16")),
    *((_torch, "cpu", dtype) for dtype in ("float32", "bf16")),
]
ways = pytest.mark.parametrize(("make", "device", "kind"), WAYS, ids=[f"{w[0].__name__[1:]}-{w[2]}" for w in WAYS])


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    """New memory is filled with NaN before it is used."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert bool(torch.empty(3).isnan().all())
        yield
    finally:
        torch.use_deterministic_algorithms(False)


class Maps:
    """Fresh random maps: wide ones in the stream's type, narrow ones in the convolutions', and float64 twins."""

    def __init__(self, shape: tuple[int, ...], device: str, kind: str) -> None:
        self.shape, self.device = shape, device
        self.wide_dtype, self.narrow_dtype, self.tolerance = DTYPES[kind]

    def _map(self, dtype: torch.dtype, rows: int) -> Tensor:
        n, channels, height, width = self.shape
        drawn = (3.0 * torch.randn(rows * n, channels, height, width, dtype=torch.float64)).to(dtype)
        return drawn.to(self.device).contiguous(memory_format=torch.channels_last)

    def wide(self, rows: int = 1) -> Tensor:
        return self._map(self.wide_dtype, rows)

    def narrow(self) -> Tensor:
        return self._map(self.narrow_dtype, 1)

    def coefficient(self) -> Tensor:
        return torch.randn(self.shape[:2], dtype=torch.float64).to(self.wide_dtype).to(self.device)

    def agree(self, found: Tensor, exact: Tensor, dtype: torch.dtype, width: float = 1.0) -> None:
        assert found.dtype == dtype
        assert found.shape == exact.shape
        assert bool(found.isfinite().all())
        size = float(exact.abs().max().clamp_min(1.0)) * width
        torch.testing.assert_close(found.double().cpu(), exact.cpu(), rtol=0.0, atol=self.tolerance * size)


def _exact(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.double().clone(memory_format=torch.preserve_format) for t in tensors]


@ways
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_the_definition_in_float64(
    make: Callable[[], Pointwise], device: str, kind: str, shape: tuple[int, ...]
) -> None:
    ours, definition, maps = make(), TorchPointwise(), Maps(shape, device, kind)
    wide, narrow, f64 = maps.wide_dtype, maps.narrow_dtype, torch.float64
    x, x_dot, a_s, b_s, c, c_dot = maps.wide(), maps.wide(), *(maps.narrow() for _ in range(4))
    gain, offset = maps.coefficient(), maps.coefficient()
    ex, ex_dot, ea_s, eb_s, ec, ec_dot, egain, eoffset = _exact(x, x_dot, a_s, b_s, c, c_dot, gain, offset)

    maps.agree(ours.silu(x, narrow), definition.silu(ex, f64), narrow)
    for skip in (None, maps.wide(), maps.narrow()):
        (eskip,) = _exact(skip)
        maps.agree(ours.silu_derivative(x, a_s, skip, wide), definition.silu_derivative(ex, ea_s, eskip, f64), wide)
    maps.agree(ours.silu_derivative(x, x_dot, None, narrow), definition.silu_derivative(ex, ex_dot, None, f64), narrow)
    for skip in (None, maps.wide(2)):
        (eskip,) = _exact(skip)
        found = ours.silu_second(x, x_dot, a_s, b_s, skip, narrow)
        exact = definition.silu_second(ex, ex_dot, ea_s, eb_s, eskip, f64)
        maps.agree(found.adjoints, exact.adjoints, wide)
        maps.agree(found.values, exact.values, narrow)
    maps.agree(ours.film_silu(c, gain, offset, narrow), definition.film_silu(ec, egain, eoffset, f64), narrow)
    maps.agree(
        ours.film_silu_derivative(c, a_s, gain, offset, narrow),
        definition.film_silu_derivative(ec, ea_s, egain, eoffset, f64),
        narrow,
    )
    film = ours.film_silu_second(c, c_dot, a_s, b_s, gain, offset, narrow)
    exact_film = definition.film_silu_second(ec, ec_dot, ea_s, eb_s, egain, eoffset, f64)
    maps.agree(film.adjoints, exact_film.adjoints, narrow)
    maps.agree(film.values, exact_film.values, narrow)
    # Sums of as many terms of about the size of the largest, in float32 whatever the maps are in.
    terms = 20.0 * (shape[2] * shape[3]) ** 0.5
    maps.agree(film.gain, exact_film.gain, wide, terms)
    maps.agree(film.offset, exact_film.offset, wide, terms)
    for bias in (None, maps.coefficient()[0].contiguous()):
        branch, skip = maps.narrow(), maps.wide()
        ebranch, eskip, ebias = _exact(branch, skip, bias)
        maps.agree(ours.residual(branch, skip, bias), definition.residual(ebranch, eskip, ebias), wide)


def test_the_definition_is_what_autograd_says() -> None:
    """Each operation is a derivative of those before it."""
    pointwise, maps = TorchPointwise(), Maps((2, 3, 2, 2), "cpu", "float64")
    c, c_dot, a, b = (maps.wide().requires_grad_() for _ in range(4))
    gain, offset = maps.coefficient().requires_grad_(), maps.coefficient().requires_grad_()

    def silu_of(h: Tensor) -> Tensor:
        return F.silu(h)

    with torch.enable_grad():
        h = gain[:, :, None, None] * c + offset[:, :, None, None]
        s = silu_of(h)
        (a_c,) = torch.autograd.grad(s, c, a, create_graph=True)
        s_dot = (a_c / a.detach()) * c_dot  # the derivative is diagonal
        # b of s, and a of s_dot.
        b_c, of_gain, of_offset = torch.autograd.grad([s, s_dot], [c, gain, offset], [b, a.detach()])
    detached = [t.detach() for t in (c, c_dot, a, b, gain, offset)]
    c, c_dot, a, b, gain, offset = detached
    found = pointwise.film_silu_second(c, c_dot, a, b, gain, offset, torch.float64)
    torch.testing.assert_close(pointwise.film_silu(c, gain, offset, torch.float64), s.detach())
    torch.testing.assert_close(pointwise.film_silu_derivative(c, a, gain, offset, torch.float64), a_c.detach())
    torch.testing.assert_close(found.adjoints, torch.cat([b_c, a_c.detach()]))
    torch.testing.assert_close(found.values, torch.cat([s, s_dot]).detach())
    torch.testing.assert_close(found.gain, of_gain)
    torch.testing.assert_close(found.offset, of_offset)
    one, zero = torch.ones_like(gain), torch.zeros_like(gain)
    plain, film = pointwise.silu_second(c, c_dot, a, b, None, torch.float64), (c, c_dot, a, b, one, zero)
    torch.testing.assert_close(plain, pointwise.film_silu_second(*film, torch.float64)[:2])


def test_extreme_arguments() -> None:
    """Far from zero, where a careless formula overflows or cancels, and where there is nothing to compute."""
    for make, device, kind in WAYS:
        if kind == "bf16":
            continue
        maps = Maps((1, 8, 1, 2), device, kind)
        values = [-1e4, -700.0, -100.0, -30.0, -0.0, 1e-30, 30.0, 90.0, 100.0, 700.0, 1e4, 1e30, 5.0, -5.0, 17.0, -17.0]
        x = torch.tensor(values, dtype=maps.wide_dtype, device=device).reshape(1, 8, 1, 2)
        x = x.contiguous(memory_format=torch.channels_last)
        ones = torch.ones_like(x)
        try:
            ours = make()
        except pytest.skip.Exception:
            continue
        exact = TorchPointwise().silu_second(x.double().cpu(), *(ones.double().cpu(),) * 3, None, torch.float64)
        found = ours.silu_second(x, ones, ones, ones, None, maps.wide_dtype)
        for mine, theirs in zip(found, exact, strict=True):
            torch.testing.assert_close(mine.double().cpu(), theirs, rtol=2e-5, atol=1e-6)
        assert bool(ours.silu(torch.full_like(x, torch.nan), x.dtype).isnan().all())


@pytest.mark.parametrize("kind", DTYPES)
def test_native_has_the_same_bits_on_any_number_of_threads(kind: str) -> None:
    ours, maps, threads = _native(), Maps((5, 37, 16, 17), "cpu", kind), torch.get_num_threads()
    narrow = maps.narrow_dtype
    x, x_dot, c, c_dot, a_s, b_s = maps.wide(), maps.wide(), *(maps.narrow() for _ in range(4))
    gain, offset = maps.coefficient(), maps.coefficient()

    def everything() -> list[Tensor]:
        return [
            ours.silu(x, narrow),
            ours.silu_derivative(x, x_dot, None, narrow),
            *ours.silu_second(x, x_dot, a_s, b_s, None, narrow),
            ours.film_silu(c, gain, offset, narrow),
            ours.film_silu_derivative(c, a_s, gain, offset, narrow),
            *ours.film_silu_second(c, c_dot, a_s, b_s, gain, offset, narrow),
            ours.residual(c.clone(memory_format=torch.preserve_format), x, gain[0]),
        ]

    try:
        torch.set_num_threads(1)
        alone = everything()
        torch.set_num_threads(3)
        together = everything()
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(alone, together, strict=True))


@pytest.mark.parametrize("instruction_set", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(instruction_set: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if extension.unavailable_reason() or instruction_set not in extension.instruction_sets():
        pytest.skip(f"{instruction_set} cannot be used here")
    monkeypatch.setitem(os.environ, "VAPO_FAST_INSTRUCTION_SET", instruction_set)
    for kind in DTYPES:
        test_agrees_with_the_definition_in_float64(_native, "cpu", kind, (2, 37, 7, 5))


def test_rounding_to_bfloat16_is_to_the_nearest() -> None:
    """Ties to even, NaN kept, infinity reached: as PyTorch rounds."""
    bits = torch.tensor([0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x7FFFFFFF, 0x7F800001, -0x407F8000, 1])
    x = bits.to(torch.int32).view(torch.float32)
    many = x.repeat(5)[:39].reshape(1, 39, 1, 1).contiguous(memory_format=torch.channels_last)
    # With nothing added, the derivative's place in memory for v is what is rounded: silu'(0) = 1/2.
    zero = torch.zeros_like(many)
    found = _native().silu_derivative(zero, 2.0 * many, None, torch.bfloat16)
    expected = (0.5 * (2.0 * many)).to(torch.bfloat16)
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(1.0), expected.nan_to_num(1.0))


def test_pairs_are_two_maps_one_after_the_other() -> None:
    pair = pair_like(torch.zeros(2, 3, 4, 5), torch.float32)
    assert pair.shape == (4, 3, 4, 5)
    assert pair.is_contiguous(memory_format=torch.channels_last)
