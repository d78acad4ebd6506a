"""Ops: a public function each, its plain-PyTorch reference beside it, and kernels chosen per call.

A family is a file `fastgen/ops/<family>.py`, or a folder whose `__init__` holds its public functions and its `Op`s.
Each op `f` has `f_reference`, the specification.
"""

from fastgen.ops.actnorm import actnorm, actnorm_reference, actnorm_statistics
from fastgen.ops.affine_coupling import additive_coupling, affine_coupling, affine_coupling_reference
from fastgen.ops.bias_act import bias_act, bias_act_reference
from fastgen.ops.causal_conv1d import causal_conv1d, causal_conv1d_reference, causal_conv1d_step
from fastgen.ops.count_within import (
    BallCounts,
    ball_counts,
    ball_counts_reference,
    count_within,
    count_within_reference,
)
from fastgen.ops.coupling_flow import coupling_flow, coupling_flow_reference
from fastgen.ops.diffusion import diffusion_update, diffusion_update_reference, q_sample, q_sample_reference
from fastgen.ops.diffusion.loss import diffusion_loss, diffusion_loss_weight
from fastgen.ops.discretized_logistic_mixture import (
    discretized_logistic_mixture_log_prob,
    discretized_logistic_mixture_log_prob_reference,
    discretized_logistic_mixture_sample,
    discretized_logistic_mixture_sample_reference,
)
from fastgen.ops.frechet import (
    FrechetReference,
    frechet_distance,
    frechet_distance_from_features,
    frechet_distance_from_features_reference,
    frechet_distance_reference,
)
from fastgen.ops.gated_activation import gated_activation, gated_activation_reference
from fastgen.ops.group_norm_silu import group_norm_silu, group_norm_silu_reference
from fastgen.ops.importance_weighted_bound import importance_weighted_bound
from fastgen.ops.invertible_conv1x1 import (
    invertible_conv1x1,
    invertible_conv1x1_factors,
    invertible_conv1x1_reference,
    invertible_conv1x1_weight,
)
from fastgen.ops.kde import (
    kde_log_densities,
    kde_log_densities_reference,
    kde_log_density,
    kde_log_density_reference,
    kde_score,
    kde_score_reference,
)
from fastgen.ops.knn import knn, knn_reference
from fastgen.ops.masked_autoregressive import masked_autoregressive_inverse, masked_autoregressive_inverse_reference
from fastgen.ops.masked_conv2d import (
    masked_conv2d,
    masked_conv2d_live_weight,
    masked_conv2d_mask,
    masked_conv2d_reference,
)
from fastgen.ops.minibatch_stddev import minibatch_stddev
from fastgen.ops.mmd import polynomial_mmd, polynomial_mmd_reference, rbf_mmd, rbf_mmd_reference
from fastgen.ops.modulated_conv2d import modulated_conv2d, modulated_conv2d_reference
from fastgen.ops.moments import moments, moments_reference
from fastgen.ops.norm_modulate import norm_modulate, norm_modulate_reference
from fastgen.ops.pixel_norm import pixel_norm
from fastgen.ops.polynomial_spline import (
    linear_spline,
    linear_spline_reference,
    quadratic_spline,
    quadratic_spline_reference,
)
from fastgen.ops.reconstruction import (
    bernoulli_log_prob,
    bernoulli_log_prob_reference,
    discretized_logistic_log_prob,
    discretized_logistic_log_prob_reference,
    gaussian_log_prob,
    gaussian_log_prob_reference,
)
from fastgen.ops.registry import BackendError, explain, use_backend
from fastgen.ops.reparameterize import gaussian_reparameterize_kl, gaussian_reparameterize_kl_reference
from fastgen.ops.spline import (
    rational_quadratic_coupling,
    rational_quadratic_coupling_reference,
    rational_quadratic_spline,
    rational_quadratic_spline_reference,
)
from fastgen.ops.sqrtm import sqrtm, sqrtm_reference, trace_sqrtm, trace_sqrtm_reference
from fastgen.ops.upfirdn2d import setup_filter, upfirdn2d, upfirdn2d_reference
from fastgen.ops.vector_quantize import (
    ResidualVectorQuantized,
    VectorQuantized,
    code_perplexity,
    residual_vector_quantize,
    vector_quantize,
    vector_quantize_reference,
)

__all__ = [
    "BackendError",
    "BallCounts",
    "FrechetReference",
    "ResidualVectorQuantized",
    "VectorQuantized",
    "actnorm",
    "actnorm_reference",
    "actnorm_statistics",
    "additive_coupling",
    "affine_coupling",
    "affine_coupling_reference",
    "ball_counts",
    "ball_counts_reference",
    "bernoulli_log_prob",
    "bernoulli_log_prob_reference",
    "bias_act",
    "bias_act_reference",
    "causal_conv1d",
    "causal_conv1d_reference",
    "causal_conv1d_step",
    "code_perplexity",
    "count_within",
    "count_within_reference",
    "coupling_flow",
    "coupling_flow_reference",
    "diffusion_loss",
    "diffusion_loss_weight",
    "diffusion_update",
    "diffusion_update_reference",
    "discretized_logistic_log_prob",
    "discretized_logistic_log_prob_reference",
    "discretized_logistic_mixture_log_prob",
    "discretized_logistic_mixture_log_prob_reference",
    "discretized_logistic_mixture_sample",
    "discretized_logistic_mixture_sample_reference",
    "explain",
    "frechet_distance",
    "frechet_distance_from_features",
    "frechet_distance_from_features_reference",
    "frechet_distance_reference",
    "gated_activation",
    "gated_activation_reference",
    "gaussian_log_prob",
    "gaussian_log_prob_reference",
    "gaussian_reparameterize_kl",
    "gaussian_reparameterize_kl_reference",
    "group_norm_silu",
    "group_norm_silu_reference",
    "importance_weighted_bound",
    "invertible_conv1x1",
    "invertible_conv1x1_factors",
    "invertible_conv1x1_reference",
    "invertible_conv1x1_weight",
    "kde_log_densities",
    "kde_log_densities_reference",
    "kde_log_density",
    "kde_log_density_reference",
    "kde_score",
    "kde_score_reference",
    "knn",
    "knn_reference",
    "linear_spline",
    "linear_spline_reference",
    "masked_autoregressive_inverse",
    "masked_autoregressive_inverse_reference",
    "masked_conv2d",
    "masked_conv2d_live_weight",
    "masked_conv2d_mask",
    "masked_conv2d_reference",
    "minibatch_stddev",
    "modulated_conv2d",
    "modulated_conv2d_reference",
    "moments",
    "moments_reference",
    "norm_modulate",
    "norm_modulate_reference",
    "pixel_norm",
    "polynomial_mmd",
    "polynomial_mmd_reference",
    "q_sample",
    "q_sample_reference",
    "quadratic_spline",
    "quadratic_spline_reference",
    "rational_quadratic_coupling",
    "rational_quadratic_coupling_reference",
    "rational_quadratic_spline",
    "rational_quadratic_spline_reference",
    "rbf_mmd",
    "rbf_mmd_reference",
    "residual_vector_quantize",
    "setup_filter",
    "sqrtm",
    "sqrtm_reference",
    "trace_sqrtm",
    "trace_sqrtm_reference",
    "upfirdn2d",
    "upfirdn2d_reference",
    "use_backend",
    "vector_quantize",
    "vector_quantize_reference",
]
