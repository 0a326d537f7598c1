"""Triton kernels, installed as ``vapo_fast.kernels``. This version ships none; `vapo_fast.engines` says what runs instead."""
