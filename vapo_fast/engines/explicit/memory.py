"""How much memory the sweeps take for one sample: counted on shapes, layer by layer, as the layers hold it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from vapo_fast.engines.explicit.heads import ActivatedConvolution
from vapo_fast.engines.explicit.layer import Layer
from vapo_fast.engines.explicit.resampling import Double, Halve
from vapo_fast.engines.explicit.residual_block import Residual
from vapo_fast.engines.explicit.skip_connection import PopSkip, PushSkip
from vapo_fast.engines.explicit.stem import Stem

Shape = tuple[int, int, int]


@dataclass
class _Held:
    """Bytes of one layer: of its record when the backward sweep comes, of work there, and of skips meanwhile."""

    record: int
    work: int
    side: int = 0


def peak_bytes(layers: Sequence[Layer], shape: Shape, job: str, wide: int, narrow: int, recompute: bool) -> int:
    """Bytes a sample at the peak, which is in the last sweep, of "field", "field_and_trace" or "loss_and_grads".

    Args:
        shape: (C, H, W) of the network's input. wide, narrow: bytes a number of the stream, and of a convolution's.
    """
    maps = 1 if job == "field" else 2  # of what flows backward: a, or the pair [b; a]
    held: list[_Held] = []
    skips: list[tuple[int, int]] = []
    network_input = shape[0] * shape[1] * shape[2]
    for i, layer in enumerate(layers):
        size = shape[0] * shape[1] * shape[2]
        if isinstance(layer, PushSkip):
            skips.append((i, size))
            held.append(_Held(0, 3 * maps * size * wide))
        elif isinstance(layer, PopSkip):
            first, added = skips.pop()
            # From here back to where it was pushed, its adjoint is kept.
            for between in held[first:]:
                between.side += maps * added * wide
            held.append(_Held(0, 2 * maps * (size + added) * wide))
            shape = (shape[0] + added // (shape[1] * shape[2]), *shape[1:])
        elif isinstance(layer, (Halve, Double)):
            shape = (shape[0], shape[1] // 2, shape[2] // 2) if isinstance(layer, Halve) else _doubled(shape)
            held.append(_Held(0, maps * (size + shape[0] * shape[1] * shape[2]) * wide))
        elif isinstance(layer, Residual):
            inner = layer.block.first.out_channels * shape[1] * shape[2]
            turned = isinstance(layer.block.skip, nn.Conv2d)
            held.append(_residual(size, inner, turned, maps, wide, narrow, recompute))
            shape = (layer.block.first.out_channels, *shape[1:])
        elif isinstance(layer, (Stem, ActivatedConvolution)):
            after = layer.convolution.out_channels * shape[1] * shape[2]
            record = maps * size * wide + (0 if recompute or maps == 1 else size * narrow)
            held.append(_Held(record, maps * (2 * size + after) * wide + maps * size * narrow))
            shape = (layer.convolution.out_channels, *shape[1:])
        else:
            held.append(_Held(2 * size * maps * wide, maps * size * wide))
    total, most = 0, 0
    for each in held:
        total += each.record
        most = max(most, total + each.work + each.side)
    # The points with their velocities and gradients, the network's input and its direction.
    return most + 6 * network_input * wide


def _residual(size: int, inner: int, turned: bool, maps: int, wide: int, narrow: int, recompute: bool) -> _Held:
    if maps == 1:
        work = (inner + size) * wide + (inner + max(inner, size)) * narrow
        return _Held(size * wide + inner * narrow, work + (size * wide if turned else 0))
    insides = 0 if recompute else (3 * inner + size) * narrow
    anew = (4 * inner + 2 * max(size, inner)) * narrow if recompute else inner * narrow
    upper = 2 * inner * wide + anew + 4 * inner * narrow
    lower = 2 * inner * wide + (2 * size * wide if turned else 0) + (4 * size if recompute else 3 * size) * narrow
    return _Held(2 * size * wide + insides, max(upper, lower + 2 * inner * narrow))


def _doubled(shape: Shape) -> Shape:
    return shape[0], 2 * shape[1], 2 * shape[2]
