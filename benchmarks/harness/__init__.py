"""The harness of `benchmarks/run`."""
