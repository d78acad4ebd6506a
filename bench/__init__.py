"""Benchmarks of every op, model and sampler: `fastgen bench`.

Ops come from the registry, so a new op is measured without an edit here. What is not an op (the cost of a call,
sampling, a training step) is a suite, a file of this folder. Nothing is timed that was not first found correct on the
same inputs.
"""
