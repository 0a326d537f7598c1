"""Out-of-distribution scores: how likely a sample is under the density that the potential represents.

The potential's value itself is no such score: late on the path it tends to a multiple of |x|^2 for any data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vapo_fast import noise
from vapo_fast.core import checks
from vapo_fast.engines import Job, choose
from vapo_fast.homotopy import Homotopy
from vapo_fast.potentials.base import Potential, check_events, check_model
from vapo_fast.sampling.batching import batch_size_for, evaluation, in_batches
from vapo_fast.sampling.density import log_likelihood, read_out

SCORES = ("read_out", "likelihood")


def ood_scores(
    model: Potential,
    x: Tensor,
    score: str = "read_out",
    *,
    noise_level: float | Sequence[float] | None = None,
    draws: int = 1,
    seed: int = 0,
    batch_size: int | None = None,
    engine: str = "auto",
    **options: Any,
) -> Tensor:
    r"""A score for each event, higher for what looks more like the data.

    - ``read_out``: the mean over noise draws of the read-out ``ln rho(alpha x + beta noise, t)``, one evaluation of
      the potential a draw; t is the time at which the path's noise is ``noise_level``. Several levels give a column
      each, since read-outs of different times differ by unknown constants. At the path's end, so do read-outs of
      separated modes (`vapo_fast.log_density`); a level that joins the modes is then often the better score.
    - ``likelihood``: `vapo_fast.log_likelihood` of x, an integration.

    Args:
        model: the potential; time-dependent for ``read_out``.
        x: (B, *event_shape), in the model's dtype and on its device.
        score: "read_out" or "likelihood".
        noise_level: of ``read_out``: beta between the path's end and its start; default its end.
        draws: of ``read_out``: noise draws, >= 1; row i's depend on (seed, i) only.
        seed, batch_size: as for `vapo_fast.log_likelihood`.
        engine: of ``likelihood``; a read-out is the model's own forward pass.
        options: others of `vapo_fast.log_likelihood`, for ``likelihood`` only.
    Returns: (B,) float64; (B, L) for a sequence of L noise levels. NaN where a likelihood's solve failed and
    ``throw=False``.
    Raises: TypeError, ValueError for a bad argument.
    """
    check_model(model)
    check_events(model, "x", x)
    if checks.one_of("score", score, SCORES) == "likelihood":
        if noise_level is not None or draws != 1:
            raise ValueError("noise_level and draws are for score='read_out'; a likelihood is that of the path's end")
        result = log_likelihood(model, x, seed=seed, batch_size=batch_size, engine=engine, **options)
        return (result[0] if isinstance(result, tuple) else result).double()
    if options:
        raise TypeError(f"{', '.join(sorted(options))} cannot be used with score='read_out', which solves nothing")
    if not model.time_dependent:
        raise ValueError("model must be time-dependent: Phi(x) alone has no exact log-density read-out")
    count = checks.positive_int("draws", draws)
    path = model.homotopy
    if noise_level is None:
        times = [path.t1]
    else:
        levels = list(noise_level) if isinstance(noise_level, Sequence) else [noise_level]
        if not levels:
            raise ValueError("noise_level must hold at least one level")
        times = [time_of_noise(path, level) for level in levels]
    job = Job("field")
    plain = choose("reference", model, x.device, x.dtype, job)
    noise.check_seed(seed)

    def read(first: int, last: int) -> Tensor:
        columns = []
        for t in times:
            total = torch.zeros(last - first, dtype=torch.float64, device=x.device)
            for draw in range(count):
                rows = torch.arange(first, last, device=x.device) + (draw << 32)
                values = noise.normal(
                    seed, rows, model.event_shape, stream=noise.Stream.PROBE, dtype=x.dtype, device=x.device
                )
                k = path.kernel(t)
                at = float(k.alpha) * x[first:last].detach() + float(k.beta) * values
                total += read_out(path.density_coefficients(t), model(at, t), at)
            columns.append(total / count)
        return torch.stack(columns, dim=1)

    with evaluation(model):
        size = batch_size_for(plain, model, len(x), job) if batch_size is None else batch_size
        found = torch.cat(in_batches(read, len(x), size))
    return found if isinstance(noise_level, Sequence) else found[:, 0]


def typicality(scores: Tensor, reference: Tensor) -> Tensor:
    """Scores by nearness to those of known data: ``-|score - median(reference)|``, higher for the more typical.

    A density is often *higher* on simple foreign data than on the data itself (Nalisnick et al., Do deep generative
    models know what they don't know?, 2019, arXiv 1810.09136). The distance to the scores of training data detects
    both cases.

    Args: scores (B,) or (B, L); reference (N,) or (N, L), scores of data known to be inside.
    Returns: as scores. Raises: TypeError, ValueError for shapes that do not fit or NaN in the reference.
    """
    for name, value in (("scores", scores), ("reference", reference)):
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() not in (1, 2):
            raise TypeError(f"{name} must be a floating-point tensor of shape (n,) or (n, levels), got {value!r}")
    if scores.shape[1:] != reference.shape[1:] or not len(reference):
        raise ValueError(
            f"reference must hold at least one row of the shape of scores', {tuple(scores.shape[1:])}, got "
            f"{tuple(reference.shape)}"
        )
    checks.all_finite("reference", reference)
    return -(scores - reference.quantile(0.5, dim=0)).abs()


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Area under the ROC curve: the probability that an inside score exceeds an outside one; a tie counts half.

    Args: inside (N,), outside (M,): scores, higher for what is inside; finite.
    Returns: in [0, 1]; 0.5 is chance. Raises: TypeError, ValueError for other shapes, empty sets or NaN.
    """
    for name, value in (("inside", inside), ("outside", outside)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor (n,) of scores, got {type(value).__name__}")
        if value.dim() != 1 or not len(value):
            raise ValueError(f"{name} must hold at least one score, shape (n,), got {tuple(value.shape)}")
        checks.all_finite(name, value)
    # Contiguous, because scores of one noise level are a column.
    own, others = inside.double().cpu().contiguous(), outside.double().cpu().contiguous().sort().values
    below, up_to = (torch.searchsorted(others, own, right=right) for right in (False, True))
    return float((below + up_to).double().mean()) / (2 * len(others))


def time_of_noise(path: Homotopy, level: float, name: str = "noise_level") -> float:
    """The time at which the path's noise is ``level``; ValueError unless it has that noise somewhere."""
    wanted = checks.positive_float(name, level)
    least, most = (float(path.kernel(end).beta) for end in (path.t1, path.t0))
    slack = 1e-6
    if not least * (1 - slack) <= wanted <= most * (1 + slack):
        raise ValueError(f"{name} must be in [{least:.4g}, {most:.4g}], the path's noise, got {level!r}")
    return min(max(float(path.time_at_noise_level(wanted)), path.t0), path.t1)
