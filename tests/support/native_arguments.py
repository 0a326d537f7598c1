"""Arguments of the extension's functions: right ones, and the same wrong in one way."""

import math

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from vapo_fast.core import extension

if extension.unavailable_reason() is not None:
    pytest.skip(str(extension.unavailable_reason()), allow_module_level=True)

from vapo_fast import _native

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
