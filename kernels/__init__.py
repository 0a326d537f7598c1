"""Triton kernels: the field, its solve and its training of an MLP potential, and counter-based noise.

One op a file: `field`, `step`, `solve`, `noise`, `perturb`, `train`, each with its launcher. The other modules hold
device functions that ops share (`sweeps`, `stepping`, `controller`, `gauge`, `activation`, `elementary`) and what the
host prepares (`shapes`, `mlp`, `tableau`, `tuning`, `launch`). Importing them needs triton; nothing else of the package
does. `vapo_fast.engines.triton` is what uses them.
"""
