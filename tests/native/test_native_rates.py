"""Kernels run over and over for benchmarks: what they say they did, and arguments they refuse."""

import pytest

from vapo_fast.core import extension

pytestmark = pytest.mark.skipif(extension.unavailable_reason() is not None, reason="needs the native extension")


def rates():
    from vapo_fast import _native_testing

    return _native_testing.rates


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    "instruction_set", extension.instruction_sets() if extension.unavailable_reason() is None else ["none"]
)
def test_work_grows_with_the_turns_and_not_with_the_threads(instruction_set, threads):
    once = {
        "multiply_adds": rates().multiply_adds(instruction_set, 1, threads),
        "product": rates().product(5, 7, instruction_set, 1, threads),
        "activation": rates().activation("tanh", 7, instruction_set, 1, threads),
        "field": rates().field(3, (5, 7), instruction_set, 1, threads),
    }
    tile = once["field"]
    assert tile in (32.0, 36.0)
    assert once["product"] == 2 * tile * 5 * 7
    assert once["activation"] == tile * 7
    assert once["multiply_adds"] % 2000 == 0
    assert rates().multiply_adds(instruction_set, 10, threads) == 10 * once["multiply_adds"]
    assert rates().product(5, 7, instruction_set, 100, threads) == 100 * once["product"]
    assert rates().activation("silu", 7, instruction_set, 100, threads) == 100 * once["activation"]
    assert rates().field(3, (5, 7), instruction_set, 9, threads) == 9 * tile


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rates().multiply_adds("mmx", 1, 1), "instruction_set"),
        (lambda: rates().multiply_adds("baseline", 0, 1), "turns must be"),
        (lambda: rates().multiply_adds("baseline", 1, 0), "threads must be"),
        (lambda: rates().product(0, 4, "baseline", 1, 1), "inner must be"),
        (lambda: rates().product(4, 1 << 20, "baseline", 1, 1), "columns must be"),
        (lambda: rates().activation("relu", 4, "baseline", 1, 1), "activation must be"),
        (lambda: rates().field(2, (), "baseline", 1, 1), "widths must hold"),
        (lambda: rates().field(2, (4,) * 65, "baseline", 1, 1), "widths must hold"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
