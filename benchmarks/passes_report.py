"""Write docs/explicit_passes.md from the results files alone: python -m benchmarks passes-report"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks import convolutions, image_precision, images
from benchmarks.conformance import ROOT

SUMMARY = "write docs/explicit_passes.md from the results of `images`, `image-precision` and `convolutions`"
PAGE = ROOT / "docs" / "explicit_passes.md"
_NAMES = {"unet": "U-Net", "wide_resnet": "Wide residual network"}
_JOBS = {"train": "a training step: loss and all gradients", "sample": "sampling: a whole adaptive solve"}

_TEXT = """# Explicit passes of image potentials

Written by `python -m benchmarks passes-report` from `benchmarks/results/images.csv`, `image_precision.csv` and
`convolutions.csv`.

`vapo_fast.engines.explicit.explicit_passes(potential)` computes what autograd's double backward does for a
`WideResNetPotential` or `UNetPotential`, without a graph:

| job | sweeps over the network | in forward sweeps |
|---|---|---|
| `field(x, t)` | forward, adjoint | 2 |
| `field_and_trace(x, t, probes)` | and for each probe a tangent and a second adjoint | 2 + 3 m |
| `loss_and_grads(batch)` | forward, adjoint, tangent, second adjoint, weight gradients | 6 |
| the same with `recompute=True` | and once more what lies in the blocks | 9 |

```python
from vapo_fast.engines.explicit import explicit_passes

passes = explicit_passes(model)
phi, gradient = passes.field(x, t)  # as model.field(x, t)
loss, grads = passes.loss_and_grads(batch)  # as energy_loss and its .backward(): {name: gradient}
```

With a_y = df/dy and, for the direction ż of the network's input, b_y = d(ḟ + q f)/dy, each convolution's weight gets
`b ⊗ y + a ⊗ ẏ`, summed over rows and positions: one call of ordinary backpropagation's weight gradient over [b; a] and
[y; ẏ], with twice as many rows. Double backward gets its second half from a convolution with a kernel as large as the
image, which libraries are slow at. FiLM's coefficients do not depend on x; they are left to autograd on small tensors.

Of a residual block are kept its input x, the first convolution's output c, both tangents, and the adjoints of both
activations: six maps. Activations with their first two derivatives are computed anew where they are needed, in the same
pass over memory as what they are multiplied with: in C++ on the CPU, by Triton kernels on CUDA, and, where neither is
there, in PyTorch, whose operations are the definition that the others are tested against. With `recompute=True` a block
keeps x and its tangent alone. `bytes_per_sample` says what a batch will take.

On the CPU most 3×3 convolutions in float32, and their adjoints, are done with fewer multiplications than the definition
has, by minimal filtering (Winograd's, `csrc/winograd.h`): a square of m × m outputs takes (m + 2)² products for each
pair of channels, between two transforms. m is 4, or 2 where that takes no more products or the weights are many; images
of one pixel, fewer than 16 channels, other kernels and types, and weight gradients are left to the library. The choice
looks at the layer and the image's size alone, and an image has the same bits in any batch and on any threads.
Transformed weights are kept from one evaluation to the next and compared with the parameters byte for byte; convolution
and adjoint take 10 times the weight's memory with m = 4, 5.6 times with m = 2. An entry that is not finite makes all
outputs of its squares so, not only its nine neighbours; other images never notice.

A potential that is not exactly what its class builds (a subclass, hooks, replaced or shared layers) is refused with the
reason; `unlike_a_plain_network` gives it without an exception.
"""

_MEASURED = """## Measured

28×28 images, one arm after the other in each round; a ratio is eager PyTorch's time over the arm's, paired by round,
with its quartiles. *error*: of training steps, the relative error of all gradients against float64; of sampling at
rtol = atol = 1e-3, the root mean square distance from a float64 solution at 1e-6. *memory*: the most that tensors take
at once in a call, counted, without the weights. *eager* is the reference engine: autograd's field, and double backward.
"""

_CONVOLUTIONS = """## Convolutions

One 3×3 convolution of 64 images: how many times the library's speed minimal filtering reaches with either size of
square, with quartiles, what the passes choose in bold; shares are of the processor's multiply-adds in registers,
counting the products that are really made. *error*: root mean square, in units of the outputs', of the library, m = 2
and m = 4.
"""

_PRECISION = """## Precision

Relative errors in the norm against float64, for batches at one noise level β: of ∇Φ, and (after the slash) of all
gradients of the loss. TF32 is emulated. In every policy activations, sums, gauge and loss are in float32; "but ..."
keeps layers in float32. Rounding the input z, and behind the stem its adjoint, is most of bfloat16's error in the field
where β is small: there the network is to tell signal from noise that is not much larger than the rounding. So
`precision="bf16"` keeps the first and the last layer in float32, which is *bf16 but both*; their few channels make them
cheap.
"""


def page(
    measured: Sequence[dict[str, str]], precision: Sequence[dict[str, str]], single: Sequence[dict[str, str]]
) -> str:
    """The whole page."""
    lines = [_TEXT, _MEASURED]
    for model, job in dict.fromkeys((row["model"], row["job"]) for row in measured):
        rows = [row for row in measured if (row["model"], row["job"]) == (model, job)]
        first = rows[0]
        what = f"{_NAMES[model]}, {int(first['parameters']):,} parameters, {_JOBS[job]}, {first['batch']} images"
        where = (
            f"{first['machine']}, {first['threads']} threads, load {first['load']} at the start, torch {first['torch']}"
        )
        lines += [f"**{what}** ({first['data']}; {where}; {first['date']}, commit {first['commit']})", ""]
        lines += [*_measured(rows), ""]
    if single:
        first = single[0]
        where = f"{first['machine']}, {first['threads']} threads, {first['instruction_set']}, torch {first['torch']}"
        head = ["channels", "image", "library, share", "m = 2", "share", "m = 4", "share", "error"]
        lines += [_CONVOLUTIONS, f"({where}; {first['date']}, commit {first['commit']})", ""]
        lines += [*_table(head, convolutions.table(single)), ""]
    lines.append(_PRECISION)
    for model in dict.fromkeys(row["model"] for row in precision):
        lines += [f"**{_NAMES[model]}**", "", *_precision([r for r in precision if r["model"] == model]), ""]
    lines += [
        "The Triton kernels were run in Triton's interpreter and compiled offline for sm_80, sm_90 and sm_100; nothing "
        "on this page was run on a GPU.",
        "",
    ]
    return "\n".join(lines)


def _measured(rows: Iterable[dict[str, str]]) -> list[str]:
    def cells(row: dict[str, str]) -> list[str]:
        ratio = f"{float(row['ratio']):.2f} ({float(row['ratio_low']):.2f}–{float(row['ratio_high']):.2f})"
        memory = f"{float(row['peak_mib']):.0f} MiB, {float(row['memory_ratio']):.2f}×" if row["peak_mib"] else "–"
        return [row["arm"], f"{float(row['median_ms']):.0f}", ratio, row["error"], memory, row["nfe"] or "–"]

    head = ["arm", "ms", "eager / arm", "error", "memory", "evaluations"]
    return _table(head, [cells(row) for row in rows])


def _precision(rows: Sequence[dict[str, str]]) -> list[str]:
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    levels = list(dict.fromkeys(row["beta"] for row in rows))
    found = {(row["policy"], row["beta"]): f"{row['field']} / {row['gradients']}" for row in rows}
    body = [[policy, *(found.get((policy, beta), "–") for beta in levels)] for policy in policies]
    return _table(["policy", *(f"β = {beta}" for beta in levels)], body)


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body)]


def run(options: argparse.Namespace) -> int:
    """Write the page."""
    results = images.latest(options.csv), image_precision.latest(options.precision_csv)
    options.page.write_text(page(*results, convolutions.latest(options.convolutions_csv)), "utf-8")
    print(f"wrote {options.page}")
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the command."""
    parser.add_argument("--csv", type=Path, default=images.CSV)
    parser.add_argument("--precision-csv", type=Path, default=image_precision.CSV)
    parser.add_argument("--convolutions-csv", type=Path, default=convolutions.CSV)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.set_defaults(command=run)
