"""What each ATen operator does to a `Value`: the rules of the tracer.

A rule gets the builder, the shape (or shapes) of the operator's real result, and the operator's arguments, in which
every image-dependent tensor is a `Value`. An operator without a rule is refused, never guessed.
"""

from fastgen.sampling.rules import elementwise, neighbours, shapes
from fastgen.sampling.rules.table import RULES, why_not

__all__ = ["CONDITIONAL", "RULES", "elementwise", "neighbours", "shapes", "why_not"]

# Operators that may mix the image with values that depend on the condition.
CONDITIONAL = {"add", "sub", "rsub", "mul", "div", "maximum", "minimum", "cat"}
