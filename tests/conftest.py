"""For all tests: Triton's interpreter where there is no CUDA device, and a Ctrl-C that arrives.

Triton looks at the variable when a kernel is defined, so it is set before anything imports `vapo_fast.kernels`. A shell
starts what it puts in the background with the signal ignored, and Python then leaves it so, here and in every process
that a test starts.
"""

from __future__ import annotations

import os
import signal

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
