"""The extension's own boundary, without the Python that calls it: any argument whatever gives a right result or an
exception that names it, and never a crash, a silent conversion or a write to memory that is not the call's."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from vapo_fast.core import extension

if extension.unavailable_reason() is not None:
    pytest.skip(str(extension.unavailable_reason()), allow_module_level=True)

from vapo_fast import _native, _native_testing

SHAPE = {
    "dtype": "float32",
    "dimension": 3,
    "widths": [5, 4],
    "fourier_features": 2,
    "activation": "silu",
    "homotopy": "DataHomotopy",
    "omega": 1.0,
    "t1": 4.0,
    "data_scale": 1.0,
    "time_dependent": True,
    "log_beta_ends": (0.0, -2.0),
}
# What a call may answer a bad argument with. (A MemoryError is an honest answer to a request for terabytes.)
REFUSALS = (TypeError, ValueError, MemoryError)


def weights(dtype=np.float32, seed=0):
    draw = np.random.default_rng(seed)
    sizes = [(5, 8), (4, 5)]
    return {
        "weights": [draw.normal(size=size).astype(dtype) for size in sizes],
        "biases": [draw.normal(size=size[0]).astype(dtype) for size in sizes],
        "output": draw.normal(size=4).astype(dtype),
        "frequencies": draw.normal(size=(2, 4)).astype(dtype),
    }


def mlp(dtype=np.float32):
    twin = _native.Mlp(**{**SHAPE, "dtype": np.dtype(dtype).name})
    twin.load(**weights(dtype))
    return twin


MLP = mlp()
N = 6
SOLVE = {
    "method": "dopri5",
    "rtol": 1e-3,
    "atol": 1e-3,
    "steps": None,
    "max_steps": 50,
    "first_step": None,
    "proportional_share": 0.0,
    "t_eval": None,
    "trace": None,
    "threads": 1,
    "progress": None,
}


def arrays(dtype=np.float32, n=N):
    draw = np.random.default_rng(1)
    return {
        "x": draw.normal(size=(n, 3)).astype(dtype),
        "t": np.linspace(0.1, 3.0, n).astype(dtype),
        "phi": np.full(n, np.nan, dtype),
        "grad": np.full((n, 3), np.nan, dtype),
    }


def attempt(call):
    """(result, None) or (None, what the refusal said)."""
    try:
        return call(), None
    except REFUSALS as error:
        return None, str(error) or type(error).__name__


def same_bits(a, b):
    return a.tobytes() == b.tobytes()


EXPECTED = arrays()
MLP.field(**EXPECTED, threads=1)

# Arrays that are wrong in one way, made of a right one.
WRONG = {
    "another dtype": lambda a: a.astype({np.float32: np.float64, np.int64: np.int32}[a.dtype.type]),
    "half": lambda a: a.astype(np.float16),
    "integers": lambda a: np.nan_to_num(a).astype(np.int16),
    "complex": lambda a: a.astype(np.complex64),
    "booleans": lambda a: a.astype(bool),
    "objects": lambda a: a.astype(object),
    "text": lambda a: a.astype(str),
    "records": lambda a: np.zeros(a.shape, [("a", a.dtype)]),
    "other byte order": lambda a: a.astype(a.dtype.newbyteorder()),
    "one row more": lambda a: np.concatenate([a, a[:1]]),
    "one row less": lambda a: a[:-1],
    "no rows": lambda a: a[:0],
    "one axis more": lambda a: a[None],
    "one axis less": lambda a: a.reshape(-1) if a.ndim > 1 else a[0],
    "no axes": lambda a: np.array(1.0, a.dtype),
    "gaps between columns": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "gaps between rows": lambda a: np.repeat(a, 2, axis=0)[::2],
    "reversed": lambda a: a[::-1],
    "one element everywhere": lambda a: np.broadcast_to(a[:1, :1] if a.ndim > 1 else a[:1], a.shape),
    "not aligned": lambda a: np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape),
    "a list": lambda a: a.tolist(),
    "a tensor": lambda a: torch.from_numpy(np.ascontiguousarray(a)),
    "nothing": lambda a: None,
    "a number": lambda a: 1.0,
    "text itself": lambda a: "x",
    "the address": lambda a: a.ctypes.data,
    "a type": lambda a: np.ndarray,
    "bytes": lambda a: a.tobytes(),
}
ARRAYS = st.sampled_from(sorted(WRONG))


def fits(array, like):
    """Whether the extension may take ``array`` for ``like``."""
    return (
        isinstance(array, np.ndarray)
        and array.dtype == like.dtype
        and array.shape == like.shape
        and array.flags.c_contiguous
        and array.flags.aligned
    )


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


# Numbers of every kind, most of which no argument takes.
NUMBERS = st.one_of(
    st.integers(-5, 5),
    st.sampled_from([2**31, 2**32, 2**63 - 1, 2**63, 2**64, -(2**63), 10**400, -1]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from(
        [None, True, False, "1", "", b"1", [], (), {}, 1j, object(), np.float32(1.5), np.int64(3), np.ones(2)]
    ),
)
NAMES = st.one_of(
    st.sampled_from(["dopri5", "rk4", "silu", "exact", "velocity", "uniform", "float32", "DataHomotopy"]),
    st.text(max_size=5),
    NUMBERS,
)


def is_integer(value):
    return hasattr(value, "__index__") and not isinstance(value, (bool, np.ndarray))


def is_number(value):
    return (isinstance(value, float) or is_integer(value)) and abs(value) < 1e300 and math.isfinite(float(value))


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


LOSS_ARRAYS = st.sampled_from(["x_data", "t", "noise", "weight"])


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


class Emptying:
    """A number whose conversion empties the list that holds it, and then fails with ``error``."""

    def __init__(self, error):
        self.error = error
        self.holder = [self]

    def __index__(self):
        self.holder.clear()
        raise self.error


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
