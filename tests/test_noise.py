"""Philox against published vectors, the distribution of the draws, and their independence of how samples are split."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from vapo_fast import noise
from vapo_fast.noise import Stream

# The vectors that the Random123 distribution publishes for philox4x32 with 10 rounds: counter, key, output.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def plain_philox(counter, key):
    """The same function on Python integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return tuple(c)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, expected):
    words = noise.philox(tuple(torch.tensor([c]) for c in counter), key)
    assert tuple(int(word) for word in words) == expected
    assert plain_philox(counter, key) == expected


def test_philox_matches_integer_arithmetic_on_random_counters():
    rng = np.random.default_rng(0)
    counters = rng.integers(0, 1 << 32, (200, 4))
    key = (0xDEADBEEF, 0x12345678)
    words = torch.stack(noise.philox(tuple(torch.from_numpy(counters).unbind(1)), key), dim=1)
    assert [tuple(row) for row in words.tolist()] == [plain_philox(tuple(map(int, c)), key) for c in counters]


def test_normal_follows_its_documented_formula():
    seed, row, stream = (7 << 40) + 5, (3 << 33) + 11, Stream.PROBE
    draw = noise.normal(seed, [row], (6,), stream=stream, dtype=torch.float64)[0].tolist()
    expected = []
    for block in range(2):
        counter = (block, row & 0xFFFFFFFF, row >> 32, int(stream))
        u = [(word + 0.5) / 2**32 for word in plain_philox(counter, (seed & 0xFFFFFFFF, seed >> 32))]
        for u1, u2 in ((u[0], u[1]), (u[2], u[3])):
            radius = math.sqrt(-2.0 * math.log(u1))
            expected += [radius * math.cos(2 * math.pi * u2), radius * math.sin(2 * math.pi * u2)]
    assert draw == pytest.approx(expected[:6], rel=1e-12, abs=1e-12)


def test_normal_bits_are_frozen():
    """Samples published for a seed must stay what they are; a change of these numbers breaks every stored result."""
    draw = noise.normal(0, range(2), (3,))
    expected = [
        ["0x1.fb76660000000p-1", "-0x1.d96d600000000p-1", "-0x1.3c373e0000000p-1"],
        ["0x1.22e8f80000000p+0", "-0x1.5a0d560000000p-1", "0x1.3d976c0000000p+0"],
    ]
    assert torch.equal(draw, torch.tensor([[float.fromhex(v) for v in row] for row in expected]))


@pytest.mark.parametrize("maker", [noise.normal, noise.uniform])
@pytest.mark.parametrize("event_shape", [(), (1,), (2,), (3, 5), (70_000,)])
def test_rows_do_not_depend_on_the_split(maker, event_shape):
    whole = maker(3, range(9), event_shape)
    assert whole.shape == (9, *event_shape)
    assert torch.equal(whole, torch.cat([maker(3, range(i, i + 3), event_shape) for i in (0, 3, 6)]))
    assert torch.equal(whole[[5, 0]], maker(3, torch.tensor([5, 0]), event_shape))
    assert torch.equal(whole, maker(3, list(range(9)), event_shape))


def test_rows_do_not_depend_on_the_split_across_chunks():
    whole = noise.normal(1, range(40_000), (2,))
    odd = torch.cat([noise.normal(1, range(start, min(start + 777, 40_000)), (2,)) for start in range(0, 40_000, 777)])
    assert torch.equal(whole, odd)


def test_large_indices_and_seeds_use_all_bits():
    last = (1 << 63) - 1
    rows = noise.normal((1 << 64) - 1, [0, 1 << 32, last], (4,))
    assert len({tuple(row) for row in rows.tolist()}) == 3
    assert not torch.equal(noise.normal(1 << 32, [0], (4,)), noise.normal(0, [0], (4,)))
    assert torch.equal(
        noise.normal((1 << 64) - 1, range(last - 1, last), (4,)), noise.normal((1 << 64) - 1, [last - 1], (4,))
    )


@pytest.mark.parametrize("stream", list(Stream))
def test_normal_is_standard_normal(stream):
    draw = noise.normal(17, range(50_000), (4,), stream=stream, dtype=torch.float64).numpy()
    for column in draw.T:
        assert scipy.stats.kstest(column, "norm").pvalue > 1e-4
    flat = draw.ravel()
    n = flat.size
    for power, moment, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        assert abs((flat**power).mean() - moment) < 4.5 * math.sqrt(variance / n)


def test_uniform_is_uniform():
    draw = noise.uniform(17, range(50_000), (4,), dtype=torch.float64).numpy()
    for column in draw.T:
        assert scipy.stats.kstest(column, "uniform").pvalue > 1e-4
    counts = np.bincount((draw.ravel() * 1024).astype(int), minlength=1024)
    assert scipy.stats.chisquare(counts).pvalue > 1e-4


def test_draws_are_uncorrelated_across_elements_indices_streams_and_seeds():
    n = 50_000
    base = noise.normal(5, range(n + 1), (8,), dtype=torch.float64).numpy()
    limit = 4.8 / math.sqrt(n)
    for values in (base[:-1], np.square(base[:-1])):
        assert np.abs(np.corrcoef(values.T) - np.eye(8)).max() < limit
        for column in range(8):
            assert abs(np.corrcoef(values[:, column], np.square(base[1:, column]))[0, 1]) < limit
    assert abs(np.corrcoef(base[1:, 0], base[:-1, 0])[0, 1]) < limit
    other_stream = noise.normal(5, range(n + 1), (8,), stream=Stream.DATA, dtype=torch.float64).numpy()
    other_seed = noise.normal(6, range(n + 1), (8,), dtype=torch.float64).numpy()
    for other in (other_stream, other_seed):
        assert abs(np.corrcoef(base.ravel(), other.ravel())[0, 1]) < 4.5 / math.sqrt(base.size)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_uniform_stays_inside_the_open_interval(dtype):
    """Words 0 and 2^32 - 1 round to an end in narrow types; 2^18 draws of a bfloat16 meet both ends many times."""
    draw = noise.uniform(0, range(1 << 16), (4,), dtype=dtype)
    assert draw.dtype == dtype
    assert draw.min() > 0.0
    assert draw.max() < 1.0


def test_dtype_is_a_rounding_of_the_float64_draw():
    wide = noise.normal(2, range(100), (3,), dtype=torch.float64)
    assert torch.equal(noise.normal(2, range(100), (3,)), wide.float())
    assert torch.equal(noise.normal(2, range(100), (3,), dtype=torch.bfloat16), wide.float().bfloat16())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_cuda_draws_the_same_bits(dtype):
    for maker in (noise.normal, noise.uniform):
        device = maker(5, range(3_000), (3, 7), dtype=dtype, device="cuda")
        assert torch.equal(device.cpu(), maker(5, range(3_000), (3, 7), dtype=dtype))


def test_permutation():
    first = noise.permutation(4, 1_000, 0)
    assert first.dtype == torch.int64
    assert torch.equal(first.sort().values, torch.arange(1_000))
    assert torch.equal(first, noise.permutation(4, 1_000, 0))
    assert not torch.equal(first, noise.permutation(4, 1_000, 1))
    assert not torch.equal(first, noise.permutation(5, 1_000, 0))
    assert noise.permutation(0, 1, 0).tolist() == [0]


def test_permutations_are_equally_likely():
    counts: dict[tuple[int, ...], int] = {}
    for epoch in range(3_000):
        order = tuple(noise.permutation(9, 3, epoch).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    assert scipy.stats.chisquare(list(counts.values())).pvalue > 1e-4


def test_no_samples_give_an_empty_tensor():
    assert noise.normal(0, range(0), (2, 3)).shape == (0, 2, 3)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"seed": -1}, ValueError, r"seed must be an integer in \[0, 2\*\*64\), got -1"),
        ({"seed": 1 << 64}, ValueError, "seed must be"),
        ({"seed": 1.5}, TypeError, "seed must be an integer"),
        ({"seed": True}, TypeError, "seed must be an integer"),
        ({"index": range(-2, 3)}, ValueError, "index must hold sample numbers"),
        ({"index": torch.tensor([-4])}, ValueError, "got -4"),
        ({"index": torch.zeros(2)}, TypeError, "int64 tensor"),
        ({"index": torch.zeros(2, 2, dtype=torch.int64)}, TypeError, "int64 tensor"),
        ({"index": [0.5]}, TypeError, "flat sequence of integers"),
        ({"index": [[1, 2]]}, TypeError, "flat sequence"),
        ({"index": 3}, TypeError, "index must be"),
        ({"event_shape": (0,)}, ValueError, "event_shape"),
        ({"event_shape": "2"}, TypeError, "event_shape"),
        ({"stream": -1}, ValueError, "stream must be"),
        ({"stream": 2.0}, TypeError, "stream must be"),
        ({"dtype": torch.int64}, TypeError, "dtype must be one of"),
    ],
)
def test_bad_inputs_are_named(changes, error, message):
    arguments = {"seed": 0, "index": range(2), "event_shape": (2,)} | changes
    with pytest.raises(error, match=message):
        noise.normal(arguments.pop("seed"), arguments.pop("index"), arguments.pop("event_shape"), **arguments)


@pytest.mark.parametrize(("n", "epoch"), [(0, 0), (3, -1), (2.5, 0)])
def test_permutation_bad_inputs(n, epoch):
    with pytest.raises((TypeError, ValueError), match="must be a"):
        noise.permutation(0, n, epoch)
