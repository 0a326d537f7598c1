"""Masked, static-shape solves of any field: one attempted step as a program that a CUDA graph can hold.

`state` is the memory of a batch, `step` the program that moves it, `torch_ops` and `triton_ops` the arithmetic between
two evaluations of the field, `buckets` the sizes that a batch shrinks through, `launch` who runs a step (Python, or a
recorded CUDA graph with `replay`), and `solver` the whole. `vapo_fast.engines.graph.engine` is what uses it.
"""
