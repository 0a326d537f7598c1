"""Masked, static-shape solves of any field: one attempted step as a program that a CUDA graph can hold.

- `engine`: the graph engine: which derivatives and which stepper, and what it supports.
- `recorded`: the stepper: a solver for each model, kept as long as `fingerprint` finds the model unchanged.
- `solver`: whole solves: chunks that fit in memory, `buckets` of sizes that a batch shrinks through, results.
- `triton_ops`: the arithmetic of `vapo_fast.ode.masked_step` in Triton, on the memory of a `masked_state`.
- `launch`: runs a program from Python and then by a recording. `capture`: recordings. `replay`: their loop.
"""
