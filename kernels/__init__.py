"""Triton kernels, installed as ``vapo_fast.kernels``; this version ships none, and `vapo_fast.engines` says what runs."""
