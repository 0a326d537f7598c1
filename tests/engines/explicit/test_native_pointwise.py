"""The extension's boundary for maps: every array is checked, and a wrong call is an error that names the argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vapo_fast.core import extension

if extension.unavailable_reason():
    pytest.skip(str(extension.unavailable_reason()), allow_module_level=True)

pytestmark = pytest.mark.native

N, PIXELS, CHANNELS = 2, 3, 5
ORDER: dict[str, tuple[str, ...]] = {
    "silu": ("x", "out"),
    "silu_derivative": ("x", "v", "skip", "out"),
    "silu_second": ("x", "x_dot", "a_s", "b_s", "adjoints", "values"),
    "film_silu": ("c", "gain", "offset", "out"),
    "film_silu_derivative": ("c", "v", "gain", "offset", "out"),
    "film_silu_second": (
        "c", "c_dot", "a_s", "b_s", "gain", "offset", "adjoints", "values", "of_gain", "of_offset",
    ),
    "residual": ("branch", "skip", "bias", "out"),
}  # fmt: skip
OUTPUTS = {"out", "adjoints", "values", "of_gain", "of_offset"}
SHAPES = {
    "adjoints": (2 * N, PIXELS, CHANNELS),
    "values": (2 * N, PIXELS, CHANNELS),
    **dict.fromkeys(("gain", "offset", "of_gain", "of_offset"), (N, CHANNELS)),
    "bias": (CHANNELS,),
}
OPTIONAL = {("silu_derivative", "skip"), ("residual", "bias")}
ARGUMENTS = [(operation, name) for operation, names in ORDER.items() for name in names]


def arguments(operation: str, dtype: type = np.float32) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.standard_normal(SHAPES.get(name, (N, PIXELS, CHANNELS))).astype(dtype) for name in ORDER[operation]
    }
    return {**arrays, **({"add": False} if operation == "silu_second" else {}), "threads": 1}


def call(operation: str, values: dict[str, Any]) -> None:
    getattr(extension.load().pointwise, operation)(**values)


def wrong(operation: str, name: str, change: Callable[[Any], Any]) -> None:
    values = arguments(operation)
    kept = {key: value.copy() for key, value in values.items() if isinstance(value, np.ndarray)}
    values[name] = change(values[name])
    changed = values[name]
    before = changed.copy() if isinstance(changed, np.ndarray) else changed
    with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b"):
        call(operation, values)
    for key, value in kept.items():  # nothing was written
        now = values[key]
        expected = before if key == name else value
        if isinstance(now, np.ndarray):
            assert np.array_equal(now, expected, equal_nan=True)


@pytest.mark.parametrize("operation", ORDER)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_good_calls_write_every_number(operation: str, dtype: type) -> None:
    values = arguments(operation, dtype)
    for name in OUTPUTS & values.keys():
        values[name][...] = np.nan
    call(operation, values)
    assert all(np.isfinite(values[name]).all() for name in OUTPUTS & values.keys())


@pytest.mark.parametrize(("operation", "name"), ARGUMENTS)
def test_wrong_arrays(operation: str, name: str) -> None:
    if (operation, name) not in OPTIONAL:
        wrong(operation, name, lambda a: None)
    wrong(operation, name, lambda a: a.tolist())
    wrong(operation, name, lambda a: a.astype(np.float16))
    wrong(operation, name, lambda a: a.astype(np.int32))
    wrong(operation, name, lambda a: a[..., None])
    wrong(operation, name, lambda a: np.stack([a, a], axis=-1)[..., 0])
    wrong(operation, name, lambda a: np.asfortranarray(np.broadcast_to(a, (2, *a.shape))))
    wrong(
        operation, name, lambda a: np.frombuffer(b"\0" + a.tobytes(), dtype=np.uint8)[1:].view(a.dtype).reshape(a.shape)
    )
    if name in OUTPUTS:

        def read_only(a: Any) -> Any:
            a.setflags(write=False)
            return a

        wrong(operation, name, read_only)


@pytest.mark.parametrize(("operation", "name"), ARGUMENTS)
def test_wrong_sizes(operation: str, name: str) -> None:
    """The first map says what the sizes are; any other that disagrees is refused, whichever it is."""
    for axis in range(len(SHAPES.get(name, (N, PIXELS, CHANNELS)))):
        values = arguments(operation)
        values[name] = np.concatenate([values[name], values[name]], axis=axis)
        with pytest.raises(ValueError, match="must have shape"):
            call(operation, values)
    if name in ("x", "c"):
        wrong(operation, name, lambda a: a[:0])


@pytest.mark.parametrize(("operation", "name"), [(o, n) for o, n in ARGUMENTS if n in OUTPUTS])
def test_overlap(operation: str, name: str) -> None:
    """An output may be an input where the operation says so, and never share a part of one."""
    values = arguments(operation)
    shape = values[name].shape
    size = int(np.prod(shape))
    for other in ORDER[operation]:
        if other == name or values[other].shape != shape:
            continue
        memory = np.zeros(size + 1, np.float32)
        changed = {**values, name: memory[:size].reshape(shape), other: memory[1:].reshape(shape)}
        with pytest.raises(ValueError, match=f"({name}|{other}) must not share memory with"):
            call(operation, changed)


@pytest.mark.parametrize("operation", ORDER)
def test_wrong_numbers(operation: str) -> None:
    for threads in (0, -1, 10**6, 1.0, "1", True, None):
        values = {**arguments(operation), "threads": threads}
        with pytest.raises((TypeError, ValueError), match="threads"):
            call(operation, values)
    if operation == "silu_second":
        with pytest.raises(TypeError, match="add must be True or False"):
            call(operation, {**arguments(operation), "add": 1})


def test_in_place() -> None:
    for operation, name, other in (
        ("silu_derivative", "out", "v"),
        ("silu_derivative", "out", "skip"),
        ("film_silu", "out", "c"),
        ("film_silu_derivative", "out", "v"),
        ("film_silu_derivative", "out", "c"),
        ("residual", "out", "branch"),
        ("residual", "out", "skip"),
    ):
        apart, together = arguments(operation), arguments(operation)
        together[name] = together[other]
        call(operation, apart)
        call(operation, together)
        assert np.array_equal(apart[name], together[name])


def test_bits_of_bfloat16_go_with_float32_only() -> None:
    for operation, name in (
        ("silu", "out"),
        ("silu_derivative", "v"),
        ("silu_derivative", "out"),
        ("residual", "branch"),
    ):
        values = arguments(operation)
        values[name] = np.zeros(values[name].shape, np.uint16)
        call(operation, values)
        values = arguments(operation, np.float64)
        values[name] = np.zeros(values[name].shape, np.uint16)
        with pytest.raises(TypeError, match=name):
            call(operation, values)
    values = arguments("film_silu")
    values["c"] = np.zeros(values["c"].shape, np.uint16)
    with pytest.raises(TypeError, match="out must have dtype uint16"):
        call("film_silu", values)
