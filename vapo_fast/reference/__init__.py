"""The readable twin: `Trainer` and `sample` by plain PyTorch autograd, without engines.

Signatures are those of `vapo_fast.Trainer` and `vapo_fast.sample` minus ``engine`` and ``precision``; the same seed
gives the same batches and the same prior draws, so that loss curves and samples can be compared point by point.
"""

from vapo_fast.reference.sampler import sample
from vapo_fast.reference.trainer import Trainer

__all__ = ["Trainer", "sample"]
