"""The extension's own boundary: weights, losses, traces, draws, and objects that change while they are read."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
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
    weights,
)
from vapo_fast import _native, _native_testing

LOSS_ARRAYS = st.sampled_from(["x_data", "t", "noise", "weight"])


class Emptying:
    """A number whose conversion empties the list that holds it, and then fails with ``error``."""

    def __init__(self, error):
        self.error = error
        self.holder = [self]

    def __index__(self):
        self.holder.clear()
        raise self.error


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["weights", "biases", "output", "frequencies"]), st.integers(0, 1), ARRAYS)
def test_load_takes_right_weights_only(name, place, change):
    right = weights()
    wrong = weights(seed=1)
    if name in ("weights", "biases"):
        like = wrong[name][place]
        wrong[name][place] = changed = WRONG[change](like)
    else:
        like = wrong[name]
        wrong[name] = changed = WRONG[change](like)
    twin = mlp()
    loaded, refusal = attempt(lambda: twin.load(**wrong))
    if fits(changed, like):
        assert loaded
    else:
        assert name in refusal
        # The copy is what it was.
        assert twin.load(**right) is False


@pytest.mark.parametrize("name", ["weights", "biases", "output", "frequencies"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_load_refuses_weights_that_are_not_finite(name, value):
    wrong = weights()
    array = wrong[name][1] if isinstance(wrong[name], list) else wrong[name]
    array.flat[-1] = value
    twin = mlp()
    with pytest.raises(_native.NonFiniteWeightsError, match=f"{name}.* has NaN or infinite values"):
        twin.load(**wrong)
    assert issubclass(_native.NonFiniteWeightsError, ValueError)
    assert twin.load(**weights()) is False


def test_the_copy_does_not_share_the_callers_memory():
    mine = weights()
    twin = mlp()
    expected = arrays()
    twin.field(**expected, threads=1)
    assert twin.load(**mine) is False
    for array in (*mine["weights"], *mine["biases"], mine["output"], mine["frequencies"]):
        array[...] = np.nan
    after = arrays()
    twin.field(**after, threads=1)
    assert same_bits(after["grad"], expected["grad"])


@pytest.mark.parametrize(
    "change",
    [{"weights": []}, {"weights": np.ones((2, 2))}, {"biases": None}, {"weights": [np.ones((5, 8), np.float32)] * 3}],
)
def test_load_takes_lists_of_the_right_length(change):
    with pytest.raises((TypeError, ValueError), match=next(iter(change))):
        mlp().load(**{**weights(), **change})


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(LOSS_ARRAYS, ARRAYS, max_size=2), NAMES, NAMES)
def test_loss_takes_right_arguments_only(changes, estimator, weight):
    base = arrays()
    right = {"x_data": base["x"], "t": base["t"], "noise": base["x"][::-1].copy(), "weight": base["t"].copy()}
    given_arrays = {**right, **{name: WRONG[change](right[name]) for name, change in changes.items()}}
    if "weight" not in changes and not isinstance(weight, np.ndarray):
        given_arrays["weight"] = weight
    acceptable = (
        all(fits(given_arrays[name], right[name]) for name in ("x_data", "t", "noise"))
        and isinstance(estimator, str)
        and estimator in ("velocity", "covariance")
        and (
            (isinstance(given_arrays["weight"], str) and given_arrays["weight"] in ("uniform", "inverse_variance"))
            or fits(given_arrays["weight"], right["weight"])
        )
    )
    result, refusal = attempt(lambda: MLP.loss(estimator=estimator, threads=1, **given_arrays))
    assert acceptable == (refusal is None), refusal
    if not acceptable:
        assert any(f"{name} must" in refusal for name in ("x_data", "t", "noise", "weight", "estimator")), refusal
    else:
        linear, quadratic, of_weights, of_biases, of_output = result
        assert math.isfinite(linear + quadratic)
        assert [a.shape for a in of_weights] == [(5, 8), (4, 5)]
        assert [a.shape for a in of_biases] == [(5,), (4,)]
        assert of_output.shape == (4,)


@settings(max_examples=200, deadline=None)
@given(ARRAYS, st.integers(0, 4))
def test_trace_takes_right_probes_only(change, count):
    probes = np.ones((N, count, 3), np.float32)
    changed = WRONG[change](probes)
    acceptable = (
        isinstance(changed, np.ndarray)
        and changed.dtype == np.float32
        and changed.ndim == 3
        and changed.shape[0] == N
        and changed.shape[1] > 0
        and changed.shape[2] == 3
        and changed.flags.c_contiguous
        and changed.flags.aligned
    ) or changed is None
    options = {**SOLVE, "method": "heun", "steps": 2, "trace": changed}
    result, refusal = attempt(lambda: MLP.solve(arrays()["x"], 0.0, 1.0, **options))
    assert acceptable == (refusal is None), refusal
    if not acceptable:
        assert "trace must" in refusal
    else:
        assert result["x"].shape == (N, 3 if changed is None else 3 + changed.shape[1])


@settings(max_examples=200, deadline=None)
@given(st.lists(NUMBERS, max_size=5))
def test_output_times(times):
    options = {**SOLVE, "t_eval": times, "max_steps": 10_000}
    acceptable = (
        len(times) > 0
        and all(is_number(time) for time in times)
        and all(a <= b for a, b in zip([0.0, *times], [*times, 1.0], strict=True))
    )
    result, refusal = attempt(lambda: MLP.solve(arrays()["x"], 0.0, 1.0, **options))
    assert acceptable == (refusal is None), refusal
    if not acceptable:
        assert "t_eval" in refusal
    else:
        assert result["ys"].shape == (len(times), N, 3)
        assert np.isfinite(result["ys"]).all()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_values_of_any_size(data):
    """NaN, infinities and denormal numbers among the values: rows without them are not touched."""
    inputs = arrays()
    specials = st.sampled_from([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, 0.0, -0.0])
    rows = data.draw(st.sets(st.integers(0, N - 1), max_size=3))
    for row in rows:
        inputs["x"][row, data.draw(st.integers(0, 2))] = data.draw(specials)
        if data.draw(st.booleans()):
            inputs["t"][row] = data.draw(specials)
    MLP.field(**inputs, threads=1)
    good = [row for row in range(N) if row not in rows]
    assert same_bits(inputs["grad"][good], EXPECTED["grad"][good])
    assert same_bits(inputs["phi"][good], EXPECTED["phi"][good])
    clean = MLP.solve(arrays()["x"], 0.0, 1.0, **SOLVE)
    spoilt = MLP.solve(inputs["x"], 0.0, 1.0, **SOLVE)
    for name in ("x", "t", "status", "nfe", "accepted", "rejected"):
        assert same_bits(spoilt[name][good], clean[name][good]), name
    MLP.loss(inputs["x"], inputs["t"], inputs["x"], "velocity", "inverse_variance", 1)


def test_no_rows():
    nothing = arrays(n=0)
    MLP.field(**nothing, threads=1)
    result = MLP.solve(nothing["x"], 0.0, 1.0, **{**SOLVE, "t_eval": [0.5]})
    assert result["x"].shape == (0, 3)
    assert result["ys"].shape == (1, 0, 3)
    with pytest.raises(ValueError, match="x_data must have at least one row"):
        MLP.loss(nothing["x"], nothing["t"], nothing["x"], "velocity", "uniform", 1)


def test_results_too_large_for_memory():
    with pytest.raises((MemoryError, ValueError)):
        MLP.solve(np.zeros((10**6, 3), np.float32), 0.0, 1.0, **{**SOLVE, "t_eval": [0.5] * 2**20})


def test_more_rows_than_the_solver_counts():
    many = np.lib.stride_tricks.as_strided(np.zeros(3, np.float32), (2**32, 3), (0, 0))
    with pytest.raises(ValueError, match="x0 must be C-contiguous"):
        MLP.solve(many, 0.0, 1.0, **SOLVE)


def test_before_weights_are_loaded():
    twin = _native.Mlp(**SHAPE)
    for call in (
        lambda: twin.field(**arrays(), threads=1),
        lambda: twin.solve(arrays()["x"], 0.0, 1.0, **SOLVE),
        lambda: twin.loss(arrays()["x"], arrays()["t"], arrays()["x"], "velocity", "uniform", 1),
    ):
        with pytest.raises(RuntimeError, match="no weights are loaded"):
            call()


@pytest.mark.parametrize("method", ["field", "solve", "load", "loss"])
def test_calls_without_arguments(method):
    with pytest.raises(TypeError):
        getattr(MLP, method)()


def test_an_mlp_without_its_constructor():
    twin = _native.Mlp.__new__(_native.Mlp)
    for use in (
        lambda: twin.field(**arrays(), threads=1),
        lambda: twin.load(**weights()),
        lambda: twin.instruction_set,
    ):
        with pytest.raises(TypeError, match=r"Mlp.__init__\(\) has not been called"):
            use()
    with pytest.raises(TypeError, match="self must be of type Mlp, got int"):
        _native.Mlp.load(1, **weights())


def test_a_list_that_changes_while_it_is_read():
    """Reading an item of the list may run Python code only through the list itself; both orders are safe."""

    class Shrinking(list):
        def __getitem__(self, i):
            item = super().__getitem__(i)
            self.clear()
            return item

    with pytest.raises((TypeError, ValueError, IndexError)):
        mlp().load(**{**weights(), "weights": Shrinking(weights()["weights"])})


@pytest.mark.parametrize("error", [ValueError, TypeError])
def test_an_item_that_leaves_its_list_while_it_is_converted(error):
    with pytest.raises(TypeError, match=r"each width in widths must be an integer, got <.*Emptying"):
        _native.Mlp(**{**SHAPE, "widths": Emptying(error).holder})
    with pytest.raises((TypeError, ValueError), match=r"each time in t_eval must be .*, got <.*Emptying"):
        mlp().solve(arrays()["x"], 0.0, 1.0, **{**SOLVE, "t_eval": Emptying(error).holder})


def test_ctrl_c_while_a_number_is_converted_is_not_taken_for_a_bad_number():
    for name in ("dimension", "omega"):
        with pytest.raises(KeyboardInterrupt):
            _native.Mlp(**{**SHAPE, name: Emptying(KeyboardInterrupt)})


@pytest.mark.parametrize("prefix", ["", "x"])
def test_messages_about_long_and_odd_texts(prefix):
    with pytest.raises(TypeError, match=r"dtype must be a str, got .*é"):
        _native.Mlp(**{**SHAPE, "dtype": [prefix + "é" * 100]})
    with pytest.raises(ValueError, match=r"dtype must be 'float32' or 'float64', got 'é\\ud800'"):
        _native.Mlp(**{**SHAPE, "dtype": "é\ud800"})
    with pytest.raises(TypeError, match=r"omega must be a number, got array"):
        _native.Mlp(**{**SHAPE, "omega": np.ones(2)})


def test_an_index_that_is_resized_while_the_size_is_converted():
    index = np.arange(1 << 16, dtype=np.int64)

    class Size:
        def __index__(self):
            index.resize(3, refcheck=False)
            return 2

    drawn = _native.normal_draws(0, index, Size(), 0, "float32")
    np.testing.assert_array_equal(drawn, _native.normal_draws(0, np.arange(3), 2, 0, "float32"))


def test_progress_that_uses_the_same_mlp():
    """The lock is not held: a callback may load, evaluate, and be told of a solve of its own."""
    twin = mlp()
    calls = []

    def again(ended):
        calls.append(ended)
        twin.load(**weights(seed=len(calls)))
        twin.field(**arrays(), threads=1)
        twin.solve(arrays()["x"], 0.0, 1.0, **SOLVE)
        if len(calls) == 2:
            raise StopIteration

    x0 = np.zeros((50, 3), np.float32)
    with pytest.raises(StopIteration):
        twin.solve(x0, 0.0, 1.0, **{**SOLVE, "method": "rk4", "steps": 10**12, "threads": 2, "progress": again})
    assert len(calls) == 2


@settings(max_examples=200, deadline=None)
@given(NUMBERS, st.one_of(ARRAYS, st.just("right")), NUMBERS, NUMBERS, NAMES)
def test_draws_take_right_arguments_only(seed, change, size, stream, dtype):
    index = np.arange(4)
    given_index = index if change == "right" else WRONG[change](index)
    assume(not (is_integer(size) and size > 1000))
    drawn, refusal = attempt(lambda: _native.normal_draws(seed, given_index, size, stream, dtype))
    if refusal is not None:
        assert any(f"{name} must" in refusal for name in ("seed", "index", "size", "stream", "dtype")), refusal
    else:
        assert isinstance(given_index, np.ndarray)
        assert given_index.dtype == np.int64
        assert given_index.ndim == 1
        assert given_index.flags.c_contiguous
        assert 0 <= seed < 2**64
        assert drawn.shape == (len(given_index), size)
        assert np.isfinite(drawn).all()


@settings(max_examples=100, deadline=None)
@given(NAMES, st.one_of(ARRAYS, st.just("right")), NAMES)
def test_elementwise_of_anything(function, change, instruction_set):
    x = np.linspace(-1.0, 1.0, 12, dtype=np.float32).reshape(4, 3)
    given_x = x if change == "right" else WRONG[change](x)
    out, refusal = attempt(lambda: _native_testing.elementwise(function, given_x, instruction_set))
    assert refusal is not None or (isinstance(out, np.ndarray) and out.shape == np.shape(given_x))
