"""For all tests: where there is no CUDA device, Triton's kernels run in its interpreter, on CPU tensors.

Triton looks at the variable when a kernel is defined, so it is set before anything imports `vapo_fast.kernels`.
"""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
