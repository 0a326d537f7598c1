"""Triton kernels, installed as ``vapo_fast.kernels``. This version ships none: see `vapo_fast.engines`."""
