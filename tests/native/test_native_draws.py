"""The C++ draws: Philox by its published answers, the bits of the PyTorch twin everywhere, errors at the boundary."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vapo_fast import noise
from vapo_fast.core import extension

pytestmark = pytest.mark.skipif(extension.unavailable_reason() is not None, reason=str(extension.unavailable_reason()))

# Known answers of the Random123 distribution (kat_vectors, philox4x32-10): counter, key, words.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]

SEEDS = st.integers(0, 2**64 - 1)
STREAMS = st.integers(0, 2**32 - 1)
# Numbers of samples and elements that fill lanes and buffers exactly, miss them by a little, and span several.
COUNTS = st.integers(1, 40) | st.sampled_from([63, 64, 65, 127, 128, 255, 256, 257, 512, 513, 1023, 1024, 1025, 3001])


def python_philox(counter: list[int], key: list[int]) -> list[int]:
    """The generator written from its definition, with Python integers."""
    mask = 0xFFFFFFFF
    for _ in range(10):
        first, second = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [
            (second >> 32) ^ counter[1] ^ key[0],
            second & mask,
            (first >> 32) ^ counter[3] ^ key[1],
            first & mask,
        ]
        key = [(key[0] + 0x9E3779B9) & mask, (key[1] + 0xBB67AE85) & mask]
    return counter


def plain(draw, *arguments, **options):
    """What ``draw`` gives without the extension."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(extension, "unavailable_reason", lambda: "switched off by the test")
        return draw(*arguments, **options)


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_the_python_twin_gives_the_published_answers(counter, key, expected):
    assert tuple(python_philox(list(counter), list(key))) == expected


@pytest.mark.parametrize("size", [1, 2, 3, 4, 28, 33, 130])
@pytest.mark.parametrize("seed", [0, 1, 0x299F31D0A4093822, 2**64 - 1])
def test_uniform_draws_are_philox_words(seed, size):
    index = torch.tensor([0, 1, 2**32 - 1, 2**32, 2**40 + 12345, -1])
    draws = extension.uniform_draws(seed, index, size, 5, torch.float64)
    assert draws.shape == (6, size)
    for row, i in enumerate(index.tolist()):
        expected = []
        for block in range((size + 3) // 4):
            counter = [block, i & 0xFFFFFFFF, (i >> 32) & 0xFFFFFFFF, 5]
            expected += python_philox(counter, [seed & 0xFFFFFFFF, seed >> 32])
        assert (draws[row] * 2.0**32 - 0.5).tolist() == expected[:size]  # exact: a word is a float64


@pytest.mark.parametrize("draw", [noise.normal, noise.uniform])
@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, stream=STREAMS, start=st.integers(0, 2**63 - 4000), rows=COUNTS, size=COUNTS)
def test_draws_have_the_bits_of_the_twin(draw, seed, stream, start, rows, size):
    rows = min(rows, 1 + 30_000 // size)
    index = range(start, start + rows)
    for dtype in (torch.float64, torch.float32):
        options = {"stream": stream, "dtype": dtype}
        assert same_bits(draw(seed, index, (size,), **options), plain(draw, seed, index, (size,), **options))


@pytest.mark.parametrize("draw", [noise.normal, noise.uniform])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (1,), (2,), (5,), (3, 8, 8), (1, 33)])
def test_scattered_samples_have_the_bits_of_the_twin(draw, dtype, shape):
    index = torch.cat([torch.arange(3_000), torch.tensor([2**32 - 1, 2**32, 2**63 - 1, 7, 7])])
    for seed, stream in ((0, 0), (2**64 - 1, 6), (0x123456789ABCDEF, 2**32 - 1)):
        options = {"stream": stream, "dtype": dtype}
        expected = plain(draw, seed, index, shape, **options)
        assert same_bits(draw(seed, index, shape, **options), expected)
        # A view with gaps takes the fast way too.
        assert same_bits(draw(seed, index[::3], shape, **options), expected[::3].contiguous())


def test_no_samples():
    for draw in (extension.normal_draws, extension.uniform_draws):
        assert draw(0, torch.empty(0, dtype=torch.int64), 3, 0, torch.float32).shape == (0, 3)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, stream=STREAMS, epoch=st.integers(0, 2**63 - 1), n=COUNTS | st.integers(1, 20_000))
def test_permutations_are_those_of_the_twin(seed, stream, epoch, n):
    order = noise.permutation(seed, n, epoch, stream=stream)
    assert same_bits(order, plain(noise.permutation, seed, n, epoch, stream=stream))


def test_a_long_permutation_is_that_of_the_twin():
    """Longer than the number of ranges that keys are sorted into first."""
    n = (1 << 23) + 1
    assert same_bits(noise.permutation(3, n, 1), plain(noise.permutation, 3, n, 1))


def test_an_epoch_beyond_64_bits_is_left_to_the_twin():
    assert noise.permutation(0, 5, 2**63).sort().values.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("draw", [extension.normal_draws, extension.uniform_draws])
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"seed": -1}, ValueError, r"seed must be in \[0, 2\^64\), got -1"),
        ({"seed": 2**64}, ValueError, r"seed must be in \[0, 2\^64\), got 18446744073709551616"),
        ({"seed": 0.5}, TypeError, r"seed must be an integer, got 0.5 \(float\)"),
        ({"seed": True}, TypeError, "seed must be an integer, got True"),
        ({"size": 0}, ValueError, r"size must be in \[1, 17179869184\], got 0"),
        ({"size": 2**34 + 1}, ValueError, r"size must be in \[1, 17179869184\]"),
        ({"stream": -3}, ValueError, r"stream must be in \[0, 4294967295\], got -3"),
        ({"index": torch.arange(2.0)}, TypeError, r"index must be an int64 tensor of shape \(n,\)"),
        ({"index": torch.zeros(2, 2, dtype=torch.int64)}, TypeError, "index must be an int64 tensor"),
        ({"index": [0, 1]}, TypeError, "got list"),
        ({"index": torch.arange(4)[::2]}, ValueError, "index must be contiguous"),
        ({"dtype": torch.float16}, ValueError, "dtype must be torch.float32 or torch.float64, got torch.float16"),
    ],
)
def test_bad_arguments_are_refused(draw, changes, error, message):
    arguments = {"seed": 0, "index": torch.arange(2), "size": 1, "stream": 0, "dtype": torch.float32} | changes
    with pytest.raises(error, match=message):
        draw(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2**64, 3, 0, 0), r"seed must be in \[0, 2\^64\)"),
        ((0, -1, 0, 0), r"n must be in \[0, 8589934592\], got -1"),
        ((0, 3, 2**63, 0), "epoch must be in"),
        ((0, 3, 0, 2**32), "stream must be in"),
    ],
)
def test_bad_arguments_of_a_permutation_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        extension.permutation(*arguments)
