"""Metrics of generative models."""

from fastgen.metrics.moments import Moments

__all__ = ["Moments"]
