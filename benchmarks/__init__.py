"""The benchmark kit: every engine and every peer on the same cases, in one interleaved run. `python -m benchmarks`."""
