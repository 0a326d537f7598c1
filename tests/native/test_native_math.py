"""The kernels' own exp, log, turns and activations, on every instruction set of this processor.

Errors are in units in the last place of the result in its own precision, against NumPy in a wider one.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from vapo_fast.core import extension

pytestmark = pytest.mark.skipif(extension.unavailable_reason() is not None, reason=str(extension.unavailable_reason()))

INSTRUCTION_SETS = extension.instruction_sets() if extension.unavailable_reason() is None else []
DTYPES = [np.float32, np.float64]
WIDE = np.longdouble  # 64 bits of fraction on x86-64, 113 on AArch64 Linux; elsewhere no more than float64
needs_wide = pytest.mark.skipif(np.finfo(WIDE).nmant < 63, reason="no type wider than float64 to compare with")


@dataclass(frozen=True)
class Bound:
    """Largest error, in units in the last place of max(|result|, ``least``).

    ``flushed``: results below the smallest normal number may be 0; else they are rounded as denormal numbers are.
    ``absolute``: what the result may be off by in any case, where it is far below its own scale.
    """

    ulp: float
    least: float = 0.0
    flushed: bool = False
    absolute: float = 0.0


# The least sizes are of functions that change sign where nothing is exact: silu' at -1.28 (it is at least -0.1), and
# silu'' at +-2.4, whose tails keep no relative accuracy either.
BOUNDS = {
    "exp": Bound(2),
    "log": Bound(2),
    "sigmoid": Bound(3),
    "cos_turns": Bound(2),
    "sin_turns": Bound(2),
    "silu": Bound(4),
    "silu_first": Bound(4, least=0.125),
    "silu_second": Bound(7, least=0.125, flushed=True, absolute=1e-24),
    "softplus": Bound(2, flushed=True),
    "softplus_first": Bound(3, flushed=True),
    "softplus_second": Bound(4, flushed=True),
    "tanh": Bound(4),
    "tanh_first": Bound(4, flushed=True),
    "tanh_second": Bound(7, flushed=True, absolute=1e-36),
}


def exact(name: str, x: np.ndarray) -> np.ndarray:
    """The function in WIDE, written so that nothing cancels."""
    with np.errstate(all="ignore"):
        x = x.astype(WIDE)
        if name in {"exp", "log"}:
            return getattr(np, name)(x)
        if name in {"cos_turns", "sin_turns"}:
            quarter = np.floor(4 * x + WIDE(0.5))
            angle = (x - quarter / 4) * (8 * np.arctan(WIDE(1)))
            rolled = [np.cos(angle), -np.sin(angle), -np.cos(angle), np.sin(angle)]
            start = 0 if name == "cos_turns" else 3
            turned = [rolled[(start + k) % 4] for k in range(4)]
            return np.select([np.mod(quarter, 4) == k for k in range(4)], turned, np.nan)
        if name.startswith("tanh"):
            e = np.exp(-2 * np.abs(x))
            value = np.copysign(-np.expm1(-2 * np.abs(x)) / (1 + e), x)
            first = 4 * e / (1 + e) ** 2
            return {"tanh": value, "tanh_first": first, "tanh_second": -2 * value * first}[name]
        e = np.exp(-np.abs(x))
        s, rest = np.where(x < 0, e, 1) / (1 + e), np.where(x < 0, 1, e) / (1 + e)
        if name == "sigmoid":
            return s
        if name.startswith("softplus"):
            linear = x > 20  # as in PyTorch
            value = np.where(linear, x, np.maximum(x, 0) + np.log1p(e))
            first, second = np.where(linear, 1, s), np.where(linear, 0, s * rest)
            return {"softplus": value, "softplus_first": first, "softplus_second": second}[name]
        value, first, second = x * s, s * (1 + x * rest), s * rest * (2 + x * (rest - s))
        return {"silu": value, "silu_first": first, "silu_second": second}[name]


def arguments(name: str, dtype: type) -> np.ndarray:
    """Bit patterns from the whole range, and more where the function does something."""
    rng = np.random.default_rng(0)
    n = 40_000
    if dtype is np.float32:
        everything = np.arange(0, 2**32, 65_537, dtype=np.uint64).astype(np.uint32).view(np.float32)
    else:
        everything = rng.integers(0, 2**64, 2 * n, dtype=np.uint64).view(np.float64)
    with np.errstate(all="ignore"):  # some bit patterns are signalling NaNs
        if name == "log":
            return np.concatenate([everything, rng.uniform(0.5, 2, n), 1 + 1e-3 * rng.normal(size=n)]).astype(dtype)
        if name in {"cos_turns", "sin_turns"}:
            quarters = rng.integers(-40, 41, n) / 4
            near = [quarters, quarters + 1e-4 * rng.normal(size=n), np.arange(-40, 41) / 8, rng.uniform(-1e4, 1e4, n)]
            return np.concatenate([everything[np.abs(everything) <= 1e4], *near]).astype(dtype)
        largest = 105.0 if dtype is np.float32 else 750.0
        pieces = [
            everything,
            rng.uniform(-largest, largest, n),
            3 * rng.normal(size=n),
            20 * rng.normal(size=n),
            rng.uniform(-1.4, -1.1, n),  # silu' = 0
            rng.uniform(19.9, 20.1, n),  # PyTorch's threshold of softplus
            rng.choice([-1.0, 1.0], n) * largest * rng.uniform(0.82, 1.0, n),  # where exp leaves the normal numbers
            rng.choice([-1.0, 1.0], n) * largest * rng.uniform(0.41, 0.48, n),  # where its square does
        ]
        return np.concatenate(pieces).astype(dtype)


@functools.cache
def case(name: str, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    x = arguments(name, dtype)
    return x, exact(name, x)


def bits(x: np.ndarray) -> np.ndarray:
    return x.view(np.uint32 if x.dtype == np.float32 else np.uint64)


def evaluate(name: str, x: np.ndarray, instruction_set: str | None = None) -> np.ndarray:
    from vapo_fast import _native_testing

    return _native_testing.elementwise(name, x, instruction_set)


@needs_wide
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BOUNDS)
def test_errors_are_a_few_units_in_the_last_place(name, dtype):
    x, expected = case(name, dtype)
    bound, kind = BOUNDS[name], np.finfo(dtype)
    # -infinity is a limit that the formulas miss; the test of special values has it.
    kept = ~np.isnan(expected) & (np.abs(expected) <= WIDE(kind.max)) & np.isfinite(x)
    x, expected = x[kept], expected[kept]
    assert len(x) > 100_000
    unit = np.spacing(np.maximum(np.abs(expected), WIDE(bound.least)).astype(dtype)).astype(WIDE)
    allowed = bound.ulp * unit
    denormal = np.abs(expected) < WIDE(kind.tiny)
    allowed[denormal] = WIDE(kind.tiny) if bound.flushed else 2 * WIDE(kind.smallest_subnormal)
    allowed = np.maximum(allowed, WIDE(bound.absolute))
    for instruction_set in INSTRUCTION_SETS:
        error = np.abs(evaluate(name, x, instruction_set).astype(WIDE) - expected)
        worst = np.argmax(np.where(np.isnan(error), np.inf, error / allowed))
        where = f"{instruction_set}: {error[worst] / unit[worst]} units in the last place at {x[worst]!r}"
        assert error[worst] <= allowed[worst], where


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_silu_first_keeps_its_relative_accuracy_far_from_its_zero(instruction_set):
    x = -np.exp(np.random.default_rng(1).uniform(np.log(3.0), np.log(85.0), 50_000)).astype(np.float32)
    wide = x.astype(np.float64)
    expected = np.exp(wide) / (1 + np.exp(wide)) * (1 + wide / (1 + np.exp(wide)))
    error = np.abs(evaluate("silu_first", x, instruction_set) - expected)
    assert np.max(error / np.spacing(np.abs(expected).astype(np.float32))) <= 6


SPECIAL = {
    #                   NaN     -inf     -0.0  0.0   inf
    "exp": (np.nan, 0.0, 1.0, 1.0, np.inf),
    "log": (np.nan, np.nan, -np.inf, -np.inf, np.inf),
    "sigmoid": (np.nan, 0.0, 0.5, 0.5, 1.0),
    "cos_turns": (np.nan, np.nan, 1.0, 1.0, np.nan),
    "sin_turns": (np.nan, np.nan, 0.0, 0.0, np.nan),
    # Limits at infinity. PyTorch's silu of -infinity is NaN, as are its derivatives at either.
    "silu": (np.nan, 0.0, 0.0, 0.0, np.inf),
    "silu_first": (np.nan, 0.0, 0.5, 0.5, 1.0),
    "silu_second": (np.nan, 0.0, 0.5, 0.5, 0.0),
    "softplus": (np.nan, 0.0, np.log(2), np.log(2), np.inf),
    "softplus_first": (np.nan, 0.0, 0.5, 0.5, 1.0),
    "softplus_second": (np.nan, 0.0, 0.25, 0.25, 0.0),
    "tanh": (np.nan, -1.0, 0.0, 0.0, 1.0),
    "tanh_first": (np.nan, 0.0, 1.0, 1.0, 0.0),
    "tanh_second": (np.nan, 0.0, 0.0, 0.0, 0.0),
}


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SPECIAL)
def test_special_values(name, dtype, instruction_set):
    found = evaluate(name, np.array([np.nan, -np.inf, -0.0, 0.0, np.inf], dtype), instruction_set)
    absolute = BOUNDS[name].absolute
    np.testing.assert_allclose(found, np.array(SPECIAL[name], dtype), rtol=np.finfo(dtype).eps, atol=absolute)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BOUNDS)
def test_every_nan_stays_nan(name, dtype, instruction_set):
    # All payloads and signs: some sequences of integer operations turn a few of them into numbers.
    rng = np.random.default_rng(2)
    word, fraction = (np.uint32, 23) if dtype is np.float32 else (np.uint64, 52)
    payload = rng.integers(1, 2**fraction, 5000, dtype=word)
    payload[:4] = [1, 2 ** (fraction - 1), 2**fraction - 1, 2 ** (fraction - 1) + 1]
    sign = rng.integers(0, 2, 5000, dtype=word) << word(8 * word(0).itemsize - 1)
    x = (sign | bits(np.full(5000, np.inf, dtype)) | payload).view(dtype)
    assert np.isnan(x).all()
    assert np.isnan(evaluate(name, x, instruction_set)).all()


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BOUNDS)
def test_a_result_depends_on_its_argument_alone(name, dtype, instruction_set):
    """Whatever the lane, the neighbours, the start of the array and its length."""
    rng = np.random.default_rng(4)
    x = (50 * rng.normal(size=257)).astype(dtype)
    x[rng.permutation(257)[:20]] = [np.nan, np.inf, -np.inf, 0.0, 1e-40] * 4
    whole = bits(evaluate(name, x, instruction_set))
    order = rng.permutation(len(x))
    assert np.array_equal(bits(evaluate(name, x[order], instruction_set)), whole[order])
    for start in range(18):
        assert np.array_equal(bits(evaluate(name, x[start:], instruction_set)), whole[start:])
    for length in range(36):
        assert np.array_equal(bits(evaluate(name, x[:length], instruction_set)), whole[:length])
    for each in range(0, 257, 16):
        assert bits(evaluate(name, np.full(33, x[each], dtype), instruction_set)).tolist() == [whole[each]] * 33


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("name", ["silu", "softplus", "tanh"])
def test_derivatives_are_those_of_pytorch(name, instruction_set):
    edge = np.nextafter(20.0, 21.0)
    x = np.concatenate([np.random.default_rng(5).uniform(-30, 30, 5000), [edge, 20.5, 0.0]])
    z = torch.tensor(x, requires_grad=True)
    value = getattr(torch.nn.functional, name)(z)
    (first,) = torch.autograd.grad(value.sum(), z, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), z)
    for suffix, expected in (("", value), ("_first", first), ("_second", second)):
        found = evaluate(name + suffix, x, instruction_set)
        # PyTorch forms 1 - s, which costs its silu'' accuracy where that is small.
        np.testing.assert_allclose(found, expected.detach().numpy(), rtol=2e-15, atol=2e-14)
    if name == "softplus":  # beyond its threshold PyTorch's is the identity; not at it
        beyond = np.array([edge, 20.5])
        assert evaluate("softplus", beyond, instruction_set).tolist() == beyond.tolist()
        assert evaluate("softplus_first", beyond, instruction_set).tolist() == [1.0, 1.0]
        assert evaluate("softplus_second", beyond, instruction_set).tolist() == [0.0, 0.0]
        assert evaluate("softplus_first", np.array([20.0]), instruction_set)[0] < 1.0


def test_the_environment_chooses_the_instruction_set(monkeypatch):
    x = np.random.default_rng(6).normal(size=4000)
    for chosen in INSTRUCTION_SETS:
        monkeypatch.setenv("VAPO_FAST_INSTRUCTION_SET", chosen)
        assert np.array_equal(evaluate("silu", x), evaluate("silu", x, chosen))
    if len(INSTRUCTION_SETS) > 1:  # the baseline has no fused multiply-add on x86-64: it rounds in other places
        monkeypatch.setenv("VAPO_FAST_INSTRUCTION_SET", "baseline")
        assert not np.array_equal(evaluate("silu", x), evaluate("silu", x, INSTRUCTION_SETS[-1]))
    monkeypatch.setenv("VAPO_FAST_INSTRUCTION_SET", "sse9")
    with pytest.raises(ValueError, match=r"VAPO_FAST_INSTRUCTION_SET .*'sse9'; usable here: baseline"):
        evaluate("silu", x)


def test_arrays_of_any_shape_and_stride_and_none_of_another_type():
    x = np.random.default_rng(7).normal(size=(6, 10, 4))
    expected = np.exp(x)
    for view in (np.s_[:], np.s_[::2, 1:, ::-1], np.s_[0], np.s_[:0], np.s_[3, 4, 1]):
        found = evaluate("exp", np.asarray(x[view]))
        assert found.shape == expected[view].shape
        np.testing.assert_allclose(found, expected[view], rtol=1e-15)
    with pytest.raises(TypeError, match="float32 or float64, got int64"):
        evaluate("exp", np.arange(3))
    with pytest.raises(ValueError, match=r"function must be one of 'exp', .*got 'gelu'"):
        evaluate("gelu", x)
    with pytest.raises(ValueError, match=r"instruction_set .*'sse9'"):
        evaluate("exp", x, "sse9")
