"""Ops: a public function each, its plain-PyTorch reference beside it, and kernels chosen per call.

Every family is one file, `fastgen/ops/<family>.py`; each op `f` has `f_reference`, the specification.
"""

from fastgen.ops._registry import BackendError, explain, use_backend
from fastgen.ops.causal_conv1d import causal_conv1d, causal_conv1d_reference, causal_conv1d_step
from fastgen.ops.discretized_logistic_mixture import (
    discretized_logistic_mixture_log_prob,
    discretized_logistic_mixture_log_prob_reference,
    discretized_logistic_mixture_sample,
    discretized_logistic_mixture_sample_reference,
)
from fastgen.ops.gated_activation import gated_activation, gated_activation_reference
from fastgen.ops.masked_conv2d import (
    masked_conv2d,
    masked_conv2d_live_weight,
    masked_conv2d_mask,
    masked_conv2d_reference,
)

__all__ = [
    "BackendError",
    "causal_conv1d",
    "causal_conv1d_reference",
    "causal_conv1d_step",
    "discretized_logistic_mixture_log_prob",
    "discretized_logistic_mixture_log_prob_reference",
    "discretized_logistic_mixture_sample",
    "discretized_logistic_mixture_sample_reference",
    "explain",
    "gated_activation",
    "gated_activation_reference",
    "masked_conv2d",
    "masked_conv2d_live_weight",
    "masked_conv2d_mask",
    "masked_conv2d_reference",
    "use_backend",
]
