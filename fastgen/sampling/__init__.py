"""Exact cached sampling of any masked network: trace it, prove it causal, compute every activation once."""

from fastgen.sampling.draw import Categorical, Draw, LogisticMixture, uniform_noise
from fastgen.sampling.errors import NotCausalError, UnsupportedModelError, VerificationError
from fastgen.sampling.naive import naive_sample
from fastgen.sampling.sampler import CachedSampler

__all__ = [
    "CachedSampler",
    "Categorical",
    "Draw",
    "LogisticMixture",
    "NotCausalError",
    "UnsupportedModelError",
    "VerificationError",
    "naive_sample",
    "uniform_noise",
]
