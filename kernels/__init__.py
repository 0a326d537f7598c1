"""Triton kernels: the field, its solve and its training of an MLP potential, counter-based noise, steps of images.

One op a file with its launcher: `field`, `solve`, `train`, `noise`; `stage` and `finish_step` of the graph engine;
`silu_map`, `film_silu` and `residual` of the explicit passes. The other modules hold device functions that ops share
(`sweeps`, `stepping`, `controller`, `gauge`, `activation`, `elementary`) and what the host prepares (`shapes`, `mlp`,
`tableau`, `tuning`, `launch`). Pointers that belong together are one argument of a kernel, a NamedTuple. Names in
capitals are constants of a compilation. Importing this package needs triton; nothing else of the library does.
"""
