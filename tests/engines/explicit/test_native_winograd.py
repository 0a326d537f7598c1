"""Convolutions by minimal filtering: the definition's to a stated bound, the same bits in any batch, and bad calls."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.image_zoo import PATHS, autograd, batch_for, largest_error
from vapo_fast.core import extension
from vapo_fast.engines.explicit import ExplicitPasses, explicit_passes
from vapo_fast.engines.explicit.convolutions import Convolutions
from vapo_fast.engines.explicit.winograd import WinogradWeights, winograd_tile
from vapo_fast.loss import Batch
from vapo_fast.potentials import UNetPotential, WideResNetPotential
from vapo_fast.potentials.image import ImagePotential

if extension.unavailable_reason():
    pytest.skip(str(extension.unavailable_reason()), allow_module_level=True)

pytestmark = pytest.mark.native

# Of sqrt(9 inputs), the root mean square of outputs inside the image for inputs and weights of unit normal draws: the
# largest error and the root mean square one. Found, up to 200 channels: 2.7e-6 and 4.5e-7 with tiles of 2, 1.1e-5 and
# 1.4e-6 with 4, where the library's are 9.0e-6 and 7.6e-7.
BOUNDS = {2: (7e-6, 9e-7), 4: (3e-5, 2.7e-6)}
# Images, input and output channels, height, width: single ones, odd ones, ragged tiles, several blocks of tiles.
SHAPES = [
    (1, 1, 1, 1, 1),
    (3, 2, 5, 1, 6),
    (2, 16, 16, 2, 2),
    (70, 17, 3, 3, 3),
    (5, 64, 48, 7, 7),
    (9, 33, 70, 14, 14),
    (1, 200, 31, 5, 9),
    (2, 7, 200, 28, 13),
    (3, 48, 144, 8, 4),
]
tiles = pytest.mark.parametrize("tile", [2, 4])
directions = pytest.mark.parametrize("transposed", [False, True], ids=["forward", "adjoint"])


@pytest.fixture(autouse=True)
def _threads_and_poison() -> Iterator[None]:
    """New memory is filled with NaN before it is used."""
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape).contiguous(memory_format=torch.channels_last)


def array(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.permute(0, 2, 3, 1).numpy()


def filtered(weight: Tensor, x: Tensor, tile: int, transposed: bool = False, threads: int = 1) -> Tensor:
    """Into memory that holds NaN."""
    made = extension.load().WinogradConvolution(array(weight), transposed=transposed, tile=tile, threads=threads)
    n, _, height, width = x.shape
    out = np.full((n, height, width, weight.shape[1 if transposed else 0]), np.nan, np.float32)
    made.apply(array(x), out, threads)
    return torch.from_numpy(out).permute(0, 3, 1, 2)


def exactly(weight: Tensor, x: Tensor, transposed: bool = False) -> Tensor:
    convolve = F.conv_transpose2d if transposed else F.conv2d
    return convolve(x.double(), weight.double(), padding=1)


def assert_near(found: Tensor, exact: Tensor, tile: int, inputs: int) -> None:
    error = (found.double() - exact) / (9.0 * inputs) ** 0.5
    # The bounds are for many numbers; a few may happen to be large.
    room = 1.0 + 8.0 / exact.numel() ** 0.5
    assert float(error.abs().max()) < room * BOUNDS[tile][0]
    assert float(error.square().mean().sqrt()) < room * BOUNDS[tile][1]


@tiles
@directions
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_the_definition(shape: tuple[int, ...], transposed: bool, tile: int) -> None:
    n, inputs, outputs, height, width = shape
    weight, x = drawn(outputs, inputs, 3, 3), drawn(n, outputs if transposed else inputs, height, width)
    assert_near(filtered(weight, x, tile, transposed, threads=2), exactly(weight, x, transposed), tile, x.shape[1])


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 70),
    channels=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    tile=st.sampled_from([2, 4]),
    transposed=st.booleans(),
    threads=st.integers(1, 3),
)
def test_is_the_definition_for_any_shape(
    n: int, channels: tuple[int, int], size: tuple[int, int], tile: int, transposed: bool, threads: int
) -> None:
    weight, x = drawn(*channels, 3, 3), drawn(n, channels[not transposed], *size)
    assert_near(filtered(weight, x, tile, transposed, threads), exactly(weight, x, transposed), tile, x.shape[1])


@tiles
def test_the_adjoint_is_one(tile: int) -> None:
    weight, x, a = drawn(33, 20, 3, 3), drawn(4, 20, 7, 6), drawn(4, 33, 7, 6)
    there = (filtered(weight, x, tile).double() * a).sum()
    back = (filtered(weight, a, tile, transposed=True).double() * x).sum()
    assert float((there - back).abs()) < 1e-6 * float(exactly(weight, x).norm() * a.norm())


@tiles
@pytest.mark.parametrize("channels", [(48, 48), (37, 75)], ids=str)
def test_bits_do_not_depend_on_the_batch_the_place_or_the_threads(tile: int, channels: tuple[int, int]) -> None:
    weight, x = drawn(*channels, 3, 3), drawn(37, channels[1], 7, 7)
    together = filtered(weight, x, tile)
    for threads in (2, 3):
        assert torch.equal(filtered(weight, x, tile, threads=threads), together)
    for part in (slice(0, 1), slice(36, 37), slice(5, 22)):
        assert torch.equal(filtered(weight, x[part], tile), together[part])
    assert torch.equal(filtered(weight, x.flip(0), tile).flip(0), together)


@tiles
def test_what_is_not_finite_stays_in_its_image_and_is_seen_there(tile: int) -> None:
    """Every output that the definition makes NaN or infinite is one of both here, and others of its tiles may be."""
    weight, x = drawn(20, 17, 3, 3), drawn(6, 17, 7, 7)
    good = filtered(weight, x, tile)
    for value in (float("nan"), float("inf"), -float("inf")):
        for at in ((3, 4), (0, 0), (6, 2)):
            bad = x.clone(memory_format=torch.preserve_format)
            bad[2, 5, at[0], at[1]] = value
            found = filtered(weight, bad, tile)
            assert torch.equal(found[[0, 1, 3, 4, 5]], good[[0, 1, 3, 4, 5]])
            assert not bool((found[2].isfinite() & ~exactly(weight, bad)[2].isfinite()).any())
    weight[4, 3, 1, 1] = float("nan")
    found = filtered(weight, x, tile)
    assert bool(found[:, 4].isnan().all())
    assert torch.equal(found[:, :4], good[:, :4])


@tiles
def test_what_the_workspace_held_does_not_matter(tile: int) -> None:
    weight, x = drawn(50, 50, 3, 3), drawn(20, 50, 7, 7)
    before = filtered(weight, x, tile)
    filtered(torch.full_like(weight, torch.nan), torch.full_like(x, torch.nan), tile)
    assert torch.equal(filtered(weight, x, tile), before)


@pytest.mark.parametrize("instruction_set", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(instruction_set: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if instruction_set not in extension.instruction_sets():
        pytest.skip(f"{instruction_set} cannot be used here")
    monkeypatch.setitem(os.environ, "VAPO_FAST_INSTRUCTION_SET", instruction_set)
    for tile in (2, 4):
        for shape in SHAPES[1:7]:
            test_is_the_definition(shape, transposed=False, tile=tile)
        test_bits_do_not_depend_on_the_batch_the_place_or_the_threads(tile, (37, 75))


# The boundary ------------------------------------------------------------------------------------------------------


def made(**changed: Any) -> Any:
    arguments = {"weight": array(drawn(6, 5, 3, 3)), "transposed": False, "tile": 4, "threads": 1, **changed}
    return extension.load().WinogradConvolution(**arguments)


def test_weights_are_known_by_their_bytes() -> None:
    weight = array(drawn(6, 5, 3, 3)).copy()
    weight[0, 0, 0, 0], weight[1, 0, 0, 0] = np.nan, 0.0
    for transposed in (False, True):
        convolution = made(weight=weight, transposed=transposed)
        assert convolution.holds(weight.copy())
        for changed in (-0.0, 1.0, np.nan):
            other = weight.copy()
            other[1, 0, 0, 0] = changed
            assert not convolution.holds(other)
        for bad in (weight[1:], weight.astype(np.float64), weight.tolist(), None):
            with pytest.raises((TypeError, ValueError), match="weight"):
                convolution.holds(bad)


CHANGES: list[Callable[[Any], Any]] = [
    lambda a: None,
    lambda a: a.tolist(),
    lambda a: a.astype(np.float64),
    lambda a: a.astype(np.float16),
    lambda a: a[..., None],
    lambda a: a[0],
    lambda a: a[:0],
    lambda a: a[..., :0],
    lambda a: np.stack([a, a], axis=-1)[..., 0],
    lambda a: np.frombuffer(b"\0" + a.tobytes(), dtype=np.uint8)[1:].view(a.dtype).reshape(a.shape),
]


@pytest.mark.parametrize("change", CHANGES, ids=range(len(CHANGES)))
def test_wrong_arrays(change: Callable[[Any], Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=r"\bweight\b"):
        made(weight=change(array(drawn(6, 5, 3, 3))))
    x, out = array(drawn(2, 5, 4, 3)), np.zeros((2, 4, 3, 6), np.float32)
    with pytest.raises((TypeError, ValueError), match=r"\bx\b"):
        made().apply(change(x), out, 1)
    with pytest.raises((TypeError, ValueError), match=r"\bout\b"):
        made().apply(x, change(out), 1)
    assert not out.any()


def test_wrong_sizes() -> None:
    x, out = array(drawn(2, 5, 4, 3)), np.zeros((2, 4, 3, 6), np.float32)
    for axis in range(4):
        with pytest.raises(ValueError, match=r"(x|out) must have shape"):
            made().apply(np.concatenate([x, x], axis=axis), out, 1)
        with pytest.raises(ValueError, match="out must have shape"):
            made().apply(x, np.concatenate([out, out], axis=axis), 1)
    with pytest.raises(ValueError, match="x must have shape"):
        made(transposed=True).apply(x, out, 1)
    for taps in ((1, 1), (3, 5), (5, 3)):
        with pytest.raises(ValueError, match="weight must have shape"):
            made(weight=np.zeros((6, *taps, 5), np.float32))
    with pytest.raises(ValueError, match="weight must have at most 16384 channels"):
        made(weight=np.zeros((16385, 3, 3, 1), np.float32))
    out.setflags(write=False)
    with pytest.raises(ValueError, match="out must be writable"):
        made().apply(x, out, 1)


def test_wrong_numbers() -> None:
    for tile in (0, 1, 3, 5, -2, 2**70, 2.0, "2", None, True):
        with pytest.raises((TypeError, ValueError), match="tile"):
            made(tile=tile)
    for transposed in (0, 1, None, "yes"):
        with pytest.raises(TypeError, match="transposed"):
            made(transposed=transposed)
    x, out = array(drawn(2, 5, 4, 3)), np.zeros((2, 4, 3, 6), np.float32)
    for threads in (0, -1, 10**6, 1.0, "1", None, True):
        with pytest.raises((TypeError, ValueError), match="threads"):
            made(threads=threads)
        with pytest.raises((TypeError, ValueError), match="threads"):
            made().apply(x, out, threads)


def test_overlap() -> None:
    convolution = made(weight=array(drawn(5, 5, 3, 3)))
    memory = np.zeros(2 * 4 * 3 * 5 + 1, np.float32)
    first, second = memory[:-1].reshape(2, 4, 3, 5), memory[1:].reshape(2, 4, 3, 5)
    for x, out in ((first, first), (first, second), (second, first)):
        with pytest.raises(ValueError, match="out must not share memory with x"):
            convolution.apply(x, out, 1)


def test_an_object_that_was_never_made() -> None:
    kind = extension.load().WinogradConvolution
    with pytest.raises(TypeError, match=r"WinogradConvolution.__init__\(\) has not been called"):
        kind.__new__(kind).holds(array(drawn(6, 5, 3, 3)))
    with pytest.raises(TypeError, match="self must be of type WinogradConvolution, got int"):
        kind.apply(1, None, None, 1)


# In the passes -----------------------------------------------------------------------------------------------------


def layer(inputs: int, outputs: int, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def test_which_convolutions_are_filtered() -> None:
    def tile(convolution: nn.Conv2d, side: int, n: int = 2, dtype: torch.dtype = torch.float32) -> int | None:
        return winograd_tile(convolution, torch.zeros(n, convolution.in_channels, side, side, dtype=dtype))

    sides = {1: None, 2: 2, 3: 4, 4: 4, 5: 2, 6: 2, 7: 4, 8: 4, 14: 4, 28: 4}
    assert {side: tile(layer(16, 48), side) for side in sides} == sides
    assert {tile(layer(48, 48), 14, n) for n in (1, 2, 64)} == {4}
    assert tile(layer(257, 256), 8) == 2
    for few in (layer(15, 64), layer(64, 15), layer(64, 64, 1), layer(64, 64, 5)):
        assert tile(few, 14) is None
    assert tile(layer(48, 48), 14, n=0) is None
    assert tile(layer(48, 48), 14, dtype=torch.bfloat16) is None
    assert tile(layer(48, 48).double(), 14, dtype=torch.float64) is None
    meta = layer(48, 48).to("meta")
    assert winograd_tile(meta, torch.zeros(2, 48, 14, 14, device="meta")) is None


def test_without_the_extension_the_library_convolves(monkeypatch: pytest.MonkeyPatch) -> None:
    convolution, x = layer(16, 16), drawn(2, 16, 7, 7)
    with_it = Convolutions(torch.float32, winograd=WinogradWeights()).forward(convolution, x)
    monkeypatch.setattr(extension, "unavailable_reason", lambda: "gone")
    without = Convolutions(torch.float32, winograd=WinogradWeights()).forward(convolution, x)
    assert torch.equal(without, Convolutions(torch.float32).forward(convolution, x))
    assert not torch.equal(with_it, without)


@pytest.mark.parametrize("inputs_first", [False, True], ids=["channels_last", "contiguous"])
def test_convolutions_agree_with_the_library(inputs_first: bool) -> None:
    convolution, x, a = layer(48, 32), drawn(3, 48, 7, 7), drawn(3, 32, 7, 7)
    if inputs_first:
        convolution.weight.data = convolution.weight.data.contiguous()
        x, a = x.contiguous(), a.contiguous()
    with torch.no_grad():
        ours, library = Convolutions(torch.float32, winograd=WinogradWeights()), Convolutions(torch.float32)
        for found, expected in (
            (ours.forward(convolution, x), library.forward(convolution, x)),
            (ours.transposed(convolution, a), library.transposed(convolution, a)),
        ):
            assert found.shape == expected.shape
            assert found.is_contiguous(memory_format=torch.channels_last)
            assert not torch.equal(found, expected)
            torch.testing.assert_close(found, expected, rtol=0.0, atol=2e-5 * float(expected.abs().max()))
        empty = ours.forward(convolution, x[:0])
        assert empty.shape == (0, 32, 7, 7)


def potential(kind: type[ImagePotential], **arguments: Any) -> ImagePotential:
    torch.manual_seed(0)
    model = kind(homotopy=PATHS["data"], **arguments)
    for parameter in model.parameters():
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
        nn.init.normal_(parameter, std=0.8 / fan_in**0.5 if parameter.dim() > 1 else 0.2)
    return model


MODELS: dict[str, Callable[[], ImagePotential]] = {
    "unet": lambda: potential(
        UNetPotential, event_shape=(1, 28, 28), channels=16, multipliers=(1, 2), blocks=1, patch_size=2
    ),
    "resnet": lambda: potential(
        WideResNetPotential, event_shape=(3, 12, 20), channels=16, multipliers=(1, 1.5), blocks=1
    ),
}
models = pytest.mark.parametrize("name", MODELS)


def without_filtering(model: ImagePotential) -> ExplicitPasses:
    class Library(ExplicitPasses):
        def _convolutions(self, precision: str) -> Convolutions:
            return Convolutions(self._dtype(precision), self._ends)

    return Library(model)


@models
def test_fields_and_gradients_in_float32(name: str) -> None:
    """Bounds as in test_equality.py, and against the library's convolutions: errors at most three times as large."""
    model = MODELS[name]()
    exact_model = MODELS[name]().double()
    exact_model.load_state_dict(model.state_dict())
    batch = batch_for(model, 6)
    exact_batch = Batch(*(part.double() for part in batch))
    exact = autograd(exact_model, exact_batch)[1]
    field = exact_model.field(*exact_batch[:2])[1]
    errors = {}
    for which, passes in (("ours", explicit_passes(model)), ("library", without_filtering(model))):
        found = passes.field(*batch[:2])[1]
        again = passes.loss_and_grads(batch, recompute=True)[1]
        grads = passes.loss_and_grads(batch)[1]
        assert largest_error(again, exact) < 2e-5
        errors[which] = float((found - field).norm() / field.norm()), largest_error(grads, exact)
    assert max(errors["ours"]) < 2e-5
    assert errors["ours"][0] < 3.0 * errors["library"][0]
    assert errors["ours"][1] < 3.0 * errors["library"][1]


@models
def test_an_image_has_the_same_field_in_any_batch(name: str) -> None:
    """To the last bits of the layers that the library computes; see above for those that it does not."""
    model = MODELS[name]()
    x, t, _ = batch_for(model, 9)
    passes = explicit_passes(model)
    together = passes.field(x, t)[1]
    alone = torch.cat([passes.field(x[i : i + 1], t[i : i + 1])[1] for i in range(9)])
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5 * float(together.abs().max()))


def test_weights_are_read_anew() -> None:
    """Also where PyTorch counts no version: `.data` and NumPy."""
    model = MODELS["unet"]()
    x, t, _ = batch_for(model, 2)
    passes, weight = explicit_passes(model), model.get_parameter("middle.first.weight")
    for change in (
        lambda: weight.data.mul_(1.5),
        lambda: weight.detach().numpy().__imul__(0.5),
        lambda: setattr(weight, "data", weight.data.contiguous() * 1.25),
    ):
        before = passes.field(x, t)[1]
        change()
        after = passes.field(x, t)[1]
        assert not torch.allclose(before, after)
        assert torch.equal(after, explicit_passes(model).field(x, t)[1])
        torch.testing.assert_close(after, without_filtering(model).field(x, t)[1], rtol=1e-4, atol=1e-5)
