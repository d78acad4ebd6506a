"""Exact cached sampling of any masked network: trace it, prove it causal, compute every activation once; and
diffusion's whole loop as one CUDA graph.
"""

from fastgen.sampling.captured_loop import CapturedLoop, capture
from fastgen.sampling.draw import Categorical, Draw, LogisticMixture, uniform_noise
from fastgen.sampling.errors import NotCausalError, UnsupportedModelError, VerificationError
from fastgen.sampling.naive import naive_sample
from fastgen.sampling.sampler import CachedSampler

__all__ = [
    "CachedSampler",
    "CapturedLoop",
    "Categorical",
    "Draw",
    "LogisticMixture",
    "NotCausalError",
    "UnsupportedModelError",
    "VerificationError",
    "capture",
    "naive_sample",
    "uniform_noise",
]
