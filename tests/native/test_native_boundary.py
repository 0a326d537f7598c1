"""The extension's own boundary, without the Python that calls it: any argument whatever gives a right result or an
exception that names it, and never a crash, a silent conversion or a write to memory that is not the call's."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from vapo_fast.core import extension

if extension.unavailable_reason() is not None:
    pytest.skip(str(extension.unavailable_reason()), allow_module_level=True)

from tests.support.native_arguments import (
    ARRAYS,
    EXPECTED,
    MLP,
    NAMES,
    NUMBERS,
    SHAPE,
    SOLVE,
    WRONG,
    N,
    arrays,
    attempt,
    fits,
    is_integer,
    is_number,
    mlp,
    same_bits,
)
from vapo_fast import _native


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(["x", "t", "phi", "grad"]), ARRAYS, min_size=1, max_size=2), st.booleans())
def test_field_takes_right_arrays_only(changes, read_only):
    right = arrays()
    given_arrays = {**right, **{name: WRONG[change](right[name]) for name, change in changes.items()}}
    if read_only:
        assume(isinstance(given_arrays["grad"], np.ndarray))
        given_arrays["grad"].flags.writeable = False
    before = {name: a.tobytes() for name, a in given_arrays.items() if isinstance(a, np.ndarray) and a.dtype != object}
    acceptable = all(fits(given_arrays[name], right[name]) for name in right) and not read_only
    _, refusal = attempt(lambda: MLP.field(**given_arrays, threads=1))
    assert acceptable == (refusal is None), refusal
    if acceptable:
        assert same_bits(given_arrays["grad"], EXPECTED["grad"])
    else:
        assert any(f"{name} must" in refusal for name in given_arrays)
        after = {name: given_arrays[name].tobytes() for name in before}
        assert after == before, "a refused call wrote to its arguments"


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_outputs_that_overlap_are_refused(data):
    """Four views into one buffer, anywhere: refused exactly if an output meets another view."""
    buffer = np.linspace(0.1, 3.0, 80, dtype=np.float32)
    sizes = {"x": (N, 3), "t": (N,), "phi": (N,), "grad": (N, 3)}
    starts = {name: data.draw(st.integers(0, 80 - math.prod(size)), label=name) for name, size in sizes.items()}
    views = {name: buffer[starts[name] :][: math.prod(size)].reshape(size) for name, size in sizes.items()}

    def meet(a, b):
        return starts[a] < starts[b] + math.prod(sizes[b]) and starts[b] < starts[a] + math.prod(sizes[a])

    overlap = meet("phi", "grad") or any(meet(out, other) for out in ("phi", "grad") for other in ("x", "t"))
    inputs = {name: views[name].copy() for name in ("x", "t")}
    before = buffer.copy()
    if overlap:
        with pytest.raises(ValueError, match="must not share memory with"):
            MLP.field(**views, threads=1)
        assert same_bits(buffer, before)
        return
    MLP.field(**views, threads=1)
    separate = {**inputs, "phi": np.empty(N, np.float32), "grad": np.empty((N, 3), np.float32)}
    MLP.field(**separate, threads=1)
    assert same_bits(views["grad"], separate["grad"])
    assert same_bits(views["phi"], separate["phi"])
    untouched = np.ones(80, bool)
    for name in ("phi", "grad"):
        untouched[starts[name] : starts[name] + math.prod(sizes[name])] = False
    assert same_bits(buffer[untouched], before[untouched])


def test_memory_around_the_outputs_is_left_alone():
    """Every batch size up to a few tiles: a guard band before and after each output keeps its bits."""
    for dtype in (np.float32, np.float64):
        twin = mlp(dtype)
        for n in [*range(1, 80), 257]:
            inputs = arrays(dtype, n)
            guarded = {name: np.full(size + 64, 7.25, dtype) for name, size in (("phi", n), ("grad", 3 * n))}
            twin.field(
                inputs["x"], inputs["t"], guarded["phi"][32:-32], guarded["grad"][32:-32].reshape(n, 3), threads=1
            )
            for array in guarded.values():
                assert (array[:32] == 7.25).all()
                assert (array[-32:] == 7.25).all()
                assert (array[32:-32] != 7.25).all()


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from([name for name in SOLVE if name not in ("t_eval", "trace")] + ["t0", "t1"]),
        NAMES,
        min_size=1,
        max_size=3,
    )
)
def test_solve_takes_right_options_only(changes):
    x0 = arrays()["x"]
    given_options = {"t0": 0.0, "t1": 1.0, **SOLVE, **changes}
    # Long solves are for tests of interruption.
    assume(not (is_integer(given_options["max_steps"]) and given_options["max_steps"] > 1000))
    assume(not (is_integer(given_options["steps"]) and given_options["steps"] > 1000))
    result, refusal = attempt(lambda: MLP.solve(x0, **given_options))
    if refusal is not None:
        assert any(name in refusal for name in given_options), refusal
        return
    checked = dict(given_options)
    assert is_number(checked["t0"])
    assert is_number(checked["t1"])
    assert checked["method"] in ("dopri5", "rk4")
    assert is_integer(checked["threads"])
    assert 1 <= checked["threads"] <= _native.MOST_THREADS
    assert checked["progress"] is None or callable(checked["progress"])
    if checked["method"] == "rk4":
        assert is_integer(checked["steps"])
        assert checked["steps"] >= 1
    else:
        assert checked["steps"] is None
        assert is_number(checked["rtol"])
        assert checked["rtol"] > 0
        assert is_number(checked["atol"])
        assert checked["atol"] >= 0
        assert checked["max_steps"] >= 1
    assert result["x"].shape == (N, 3)
    assert set(np.unique(result["status"])) <= {0, 1, 2, 3}
    ended = result["status"] == 0
    assert (result["t"][ended] == float(checked["t1"])).all()
    assert same_bits(x0, arrays()["x"])


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(sorted(SHAPE)), st.one_of(NAMES, st.lists(NUMBERS, max_size=3)), min_size=1, max_size=2
    )
)
def test_shapes_of_any_kind(changes):
    """Either refused, or a potential that works: loads the weights it says it has, and evaluates."""
    given_shape = {**SHAPE, **changes}
    twin, refusal = attempt(lambda: _native.Mlp(**given_shape))
    if refusal is not None:
        assert any(name in refusal for name in given_shape), refusal
        return
    dtype = np.dtype(given_shape["dtype"])
    d, widths, features = (given_shape[name] for name in ("dimension", "widths", "fourier_features"))
    sizes = [int(d) + bool(given_shape["time_dependent"]) + 2 * int(features), *map(int, widths)]
    assert 1 <= len(widths) <= _native.MOST_LAYERS
    assume(max(sizes) < 1000)
    draw = np.random.default_rng(0)
    layers = list(zip(sizes[1:], sizes[:-1], strict=True))
    twin.load(
        [draw.normal(size=size).astype(dtype) for size in layers],
        [draw.normal(size=size[0]).astype(dtype) for size in layers],
        draw.normal(size=sizes[-1]).astype(dtype),
        draw.normal(size=(int(features), sizes[0] - 2 * int(features))).astype(dtype),
    )
    phi, grad = np.full(4, np.nan, dtype), np.full((4, int(d)), np.nan, dtype)
    times = np.full(4, 0.25, dtype)
    twin.field(np.ones((4, int(d)), dtype), times, phi, grad, 1)
    assert same_bits(grad[:1], grad[1:2])


def test_as_many_layers_as_there_is_room_for():
    layers = _native.MOST_LAYERS
    twin = _native.Mlp(**{**SHAPE, "widths": [2] * layers, "fourier_features": 0})
    first = np.ones((2, 4), np.float32)
    twin.load(
        [first, *[np.eye(2, dtype=np.float32)] * (layers - 1)],
        [np.zeros(2, np.float32)] * layers,
        first[0, :2],
        first[:0],
    )
    out = arrays()
    twin.field(**out, threads=1)
    assert np.isfinite(out["grad"]).all()
    parts = twin.loss(out["x"], out["t"], out["x"], "covariance", "uniform", 1)
    assert len(parts[2]) == layers
    assert math.isfinite(parts[0])
    with pytest.raises(ValueError, match=f"widths must hold between 1 and {layers} sizes, got {layers + 1}"):
        _native.Mlp(**{**SHAPE, "widths": [2] * (layers + 1)})
