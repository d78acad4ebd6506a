"""Exact cached sampling of any masked network: trace it, prove it causal, compute every activation once.

`capture`, which makes a diffusion model's sampling loop one CUDA graph, is here too for those who sample.
"""

from fastgen.captured_loop import CapturedLoop, capture
from fastgen.sampling.draw import Categorical, Draw, LogisticMixture, uniform_noise
from fastgen.sampling.naive import naive_sample
from fastgen.sampling.program import UnsupportedModelError
from fastgen.sampling.sampler import CachedSampler, VerificationError
from fastgen.sampling.schedule.causality import NotCausalError

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
