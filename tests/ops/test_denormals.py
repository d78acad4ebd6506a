"""No exponential of a CPU kernel has a denormal result, which would take a hundred cycles where others take one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastgen import conformance as c
from fastgen.ops.registry import REGISTRY, Op, Sample
from tests.ops.denormals import meets_denormals

# exp(-95) is denormal in float32, exp(-20) is not.
USUAL, DENORMAL = -20.0, -95.0


def with_exponents(op: Op, exponent: float) -> Sample:
    """The op's first benchmark case with everything but what is transformed zero or `exponent`, at random: bins and
    mixtures of that logit beside those of zero, scales of that logarithm, gates of that value.
    """
    torch.manual_seed(0)
    case = next(iter(op.cases("cpu", torch.float32)))
    generator = torch.Generator().manual_seed(1)

    def of(tensor: Tensor) -> Tensor:
        return exponent * (torch.rand(tensor.shape, generator=generator) < 0.5).float()

    kept = 1 if len(c.floating(case.args)) > 1 else 0
    args = [
        of(a) if isinstance(a, Tensor) and a.is_floating_point() and i >= kept else a for i, a in enumerate(case.args)
    ]
    return Sample(case.name, tuple(args), case.kwargs)


def call_of(op: Op, sample: Sample, gradient: bool) -> Callable[[], None]:
    args = tuple(c.cast(a, torch.float32, gradient) for a in sample.args)

    def call() -> None:
        with torch.set_grad_enabled(gradient):
            outputs = [o for o in c.as_tuple(op.public(*args, **sample.kwargs)) if o.requires_grad]
            if outputs:
                torch.autograd.backward(outputs, [torch.ones_like(o) for o in outputs])

    return call


# Those without exponentials (actnorm has one for each channel), and those whose exponents are distances: of the density
# kernels tests/ops/test_kde.py has the test; bias_act and the mixture have theirs below.
OTHERS = ("causal_conv1d", "count_within", "diffusion", "invertible_conv1x1", "kde", "knn", "masked_conv2d", "mmd")
OTHERS += ("actnorm", "bias_act", "discretized_logistic_mixture", "norm_modulate", "upfirdn2d", "vector_quantize")
KERNELS = [
    (op, v, gradient)
    for op, v in c.variants("cpu")
    if v.startswith("cpp") and op.family not in OTHERS
    for gradient in ((False, True) if op.grad_order else (False,))
]


CPP = sorted({v for _, v in c.variants("cpu") if v.startswith("cpp")})


def test_the_status_register_tells():
    usual, denormal = torch.full((100,), USUAL), torch.full((100,), DENORMAL)
    assert not meets_denormals(lambda: torch.exp(usual)) and meets_denormals(lambda: torch.exp(denormal))


@pytest.mark.parametrize(("op", "variant", "gradient"), KERNELS, ids=c.ids)
def test_exponentials_are_not_denormal(op: Op, variant: str, gradient: bool):
    with c.running_on(variant):
        for exponent in (USUAL, DENORMAL):
            assert not meets_denormals(call_of(op, with_exponents(op, exponent), gradient))


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("variant", CPP)
@pytest.mark.parametrize("name", ["discretized_logistic_mixture_log_prob", "discretized_logistic_mixture_sample"])
def test_few_masses_of_a_mixture_are_denormal(name: str, variant: str, gradient: bool):
    """A product of small masses may be, here and there: counted pixel by pixel."""
    op = REGISTRY[name]
    sample, found = with_exponents(op, DENORMAL), []
    with c.running_on(variant):
        for y, x in itertools.product(range(10), range(10)):
            pixel = Sample("a pixel", tuple(a[:1, :, y, None, x, None] for a in sample.args), sample.kwargs)
            found.append(meets_denormals(call_of(op, pixel, gradient)))
    assert sum(found) < len(found) / 10


@pytest.mark.parametrize("variant", CPP)
def test_exponentials_of_distances_are_not_denormal(variant: str):
    x = torch.randn(400, 16) * 1e-3
    with c.running_on(variant):
        for exponent in (USUAL, DENORMAL):
            y = torch.nn.functional.normalize(torch.randn(400, 16), dim=1) * math.sqrt(-exponent)
            assert not meets_denormals(call_of(REGISTRY["rbf_mmd"], Sample("two sets", (x, y, 1.0)), False))


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("act", ["tanh", "sigmoid", "elu", "selu", "softplus", "swish"])
@pytest.mark.parametrize("variant", CPP)
def test_exponentials_of_activations_are_not_denormal(variant: str, act: str, gradient: bool):
    with c.running_on(variant):
        for exponent in (USUAL, DENORMAL):
            x = exponent * (torch.rand(8, 16, 32, 32, generator=torch.Generator().manual_seed(1)) < 0.5).float()
            sample = Sample(act, (x, torch.zeros(16)), {"act": act})
            assert not meets_denormals(call_of(REGISTRY["bias_act"], sample, gradient))
