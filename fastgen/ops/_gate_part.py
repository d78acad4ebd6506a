"""What of a benchmark's case its gate compares, for ops on all pairs whose references take differences one by one."""

from __future__ import annotations

from fastgen.ops._registry import Sample

# Differences that take a second or two, and queries that are compared at least.
_DIFFERENCES, _FEWEST = 2_000_000_000, 200


def fewer_queries(case: Sample) -> Sample:
    """The case (queries [..., M, d], points, ...) with the first of its queries, where all would be too many."""
    queries, points, *rest = case.args
    few = max(_FEWEST, _DIFFERENCES // points.numel())
    return case if queries.dim() > 2 or few >= len(queries) else case._replace(args=(queries[:few], points, *rest))
