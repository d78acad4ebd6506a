"""Benchmarks of every op, layer and sampler: `fastgen bench`."""
