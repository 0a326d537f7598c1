"""The C++ extension's words against the published test vectors, and the errors at its boundary."""

import pytest
import torch

from vapo_fast import native, noise

needs_native = pytest.mark.skipif(native.unavailable_reason() is not None, reason=str(native.unavailable_reason()))

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


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_the_python_twin_gives_the_published_answers(counter, key, expected):
    assert tuple(python_philox(list(counter), list(key))) == expected


@needs_native
@pytest.mark.parametrize("blocks", [1, 7, 8, 9, 33])
@pytest.mark.parametrize("seed", [0, 1, 0x299F31D0A4093822, 2**64 - 1])
def test_native_words_are_philox(seed, blocks):
    index = torch.tensor([0, 1, 2**32 - 1, 2**32, 2**40 + 12345, -1])
    words = native.philox_words(seed, index, blocks, stream=5)
    assert words.shape == (6, 4 * blocks)
    for row, i in enumerate(index.tolist()):
        expected = []
        for block in range(blocks):
            counter = [block, i & 0xFFFFFFFF, (i >> 32) & 0xFFFFFFFF, 5]
            expected += python_philox(counter, [seed & 0xFFFFFFFF, seed >> 32])
        assert [word & 0xFFFFFFFF for word in words[row].tolist()] == expected


@needs_native
@pytest.mark.parametrize("draw", [noise.normal, noise.uniform])
@pytest.mark.parametrize("shape", [(), (1,), (2,), (5,), (3, 8, 8), (1, 33)])
def test_noise_is_the_same_bits_with_and_without_the_extension(draw, shape, monkeypatch):
    index = torch.cat([torch.arange(300), torch.tensor([2**32 - 1, 2**32, 2**63 - 1])])
    for seed, stream in ((0, 0), (2**64 - 1, 6), (0x123456789ABCDEF, 2**32 - 1)):
        with monkeypatch.context() as patched:
            patched.setattr(native, "unavailable_reason", lambda: "switched off by the test")
            plain = draw(seed, index, shape, stream=stream, dtype=torch.float64)
        fast = draw(seed, index, shape, stream=stream, dtype=torch.float64)
        assert torch.equal(plain, fast)
        # A view with gaps takes the fast way too.
        assert torch.equal(draw(seed, index[::3], shape, stream=stream, dtype=torch.float64), plain[::3])


@needs_native
def test_native_words_of_nothing():
    assert native.philox_words(0, torch.empty(0, dtype=torch.int64), 3, 0).shape == (0, 12)
    assert native.philox_words(0, torch.arange(3), 0, 0).shape == (3, 0)


@needs_native
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-1, torch.arange(2), 1, 0), ValueError, r"seed must be in \[0, 2\^64\), got -1"),
        ((2**64, torch.arange(2), 1, 0), ValueError, r"seed must be in \[0, 2\^64\), got 18446744073709551616"),
        ((0.5, torch.arange(2), 1, 0), TypeError, r"seed must be an integer, got 0.5 \(float\)"),
        ((True, torch.arange(2), 1, 0), TypeError, "seed must be an integer, got True"),
        ((0, torch.arange(2), 2**32, 0), ValueError, r"blocks must be in \[0, 4294967295\], got 4294967296"),
        ((0, torch.arange(2), 1, -3), ValueError, r"stream must be in \[0, 4294967295\], got -3"),
        ((0, torch.arange(2.0), 1, 0), TypeError, r"index must be an int64 tensor of shape \(n,\)"),
        ((0, torch.zeros(2, 2, dtype=torch.int64), 1, 0), TypeError, "index must be an int64 tensor"),
        ((0, [0, 1], 1, 0), TypeError, "got list"),
        ((0, torch.arange(4)[::2], 1, 0), ValueError, "index must be contiguous"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        native.philox_words(*arguments)


@needs_native
def test_permutation_is_the_same_with_and_without_the_extension(monkeypatch):
    for n in (1, 2, 3, 7, 8, 100, 1000, 12345):
        for seed, epoch in ((0, 0), (2**64 - 1, 5), (3, 2**62)):
            with monkeypatch.context() as patched:
                patched.setattr(native, "unavailable_reason", lambda: "switched off by the test")
                plain = noise.permutation(seed, n, epoch)
            assert torch.equal(noise.permutation(seed, n, epoch), plain)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_draws_are_the_same_with_and_without_the_extension(dtype, monkeypatch):
    index = torch.arange(20_000)
    for draw in (noise.normal, noise.uniform):
        with monkeypatch.context() as patched:
            patched.setattr(native, "unavailable_reason", lambda: "switched off by the test")
            plain = draw(1, index, (3,), dtype=dtype)
        assert torch.equal(draw(1, index, (3,), dtype=dtype), plain)


@needs_native
def test_build_info():
    info = native.build_info()
    assert info["cpp_standard"] >= 201703
    assert info["compiler"]
    assert native.instruction_sets()[0] == "baseline"
    assert native.chosen_instruction_set() in native.instruction_sets()
    assert info["architecture"] in {"x86_64", "aarch64", "other"}
    if info["architecture"] == "x86_64":
        assert info["instruction_sets"][0] == "sse2"


def test_a_missing_extension_says_why(monkeypatch, tmp_path):
    record = tmp_path / "record.json"
    record.write_text('{"built": false, "error": "CompileError: no g++"}')
    monkeypatch.setattr(native, "_BUILD_RECORD", record)
    monkeypatch.setattr(native.importlib, "import_module", _refuse)
    native._load.cache_clear()
    native.unavailable_reason.cache_clear()
    try:
        assert "CompileError: no g++" in native.unavailable_reason()
        with pytest.raises(
            native.NativeUnavailableError, match=r"not available: it was not built: CompileError: no g\+\+"
        ):
            native.philox_words(0, torch.arange(1), 1, 0)
    finally:
        native._load.cache_clear()
        native.unavailable_reason.cache_clear()


def _refuse(name):
    raise ImportError(name)
