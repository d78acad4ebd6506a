"""How an op is compared with its reference: kernels that can run here, calls of them, and the measure of their errors.

Tests, benchmarks and the campaign of drawn calls share these; the bound on the error is their own, and that of a
benchmark is wider than that of the tests.

python -m fastgen.conformance.fuzz --help      millions of drawn calls, compared with float64
"""

from fastgen.conformance.calls import as_tuple
from fastgen.conformance.kernels import EVERY_OP, best_capability, dtypes, ids, running_on, samples, variants
from fastgen.conformance.measure import (
    cast,
    finite_error,
    floating,
    penalty_gradients,
    relative_error,
    values_and_gradients,
)

__all__ = [
    "EVERY_OP",
    "as_tuple",
    "best_capability",
    "cast",
    "dtypes",
    "finite_error",
    "floating",
    "ids",
    "penalty_gradients",
    "relative_error",
    "running_on",
    "samples",
    "values_and_gradients",
    "variants",
]
