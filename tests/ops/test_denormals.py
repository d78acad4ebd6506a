"""Exponentials whose results are denormal must not slow a CPU kernel: a hundred cycles each, where PyTorch's own `exp`
takes them (its time grows fifty times).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastgen import conformance as c
from fastgen.ops.registry import REGISTRY, Op, Sample

# exp(-95) is denormal in float32, exp(-20) is not.
USUAL, DENORMAL = -20.0, -95.0
SLOWER = 1.1


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


def slowdown(usual: Callable[[], None], denormal: Callable[[], None]) -> float:
    """How much longer a call takes where exponentials are denormal."""
    calls = (usual, denormal)
    for call in calls:
        call()
    # What disturbs a measurement only ever makes it longer.
    least = [math.inf, math.inf]
    for _ in range(12):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            least[i] = min(least[i], time.perf_counter() - start)
    return least[1] / least[0]


def assert_not_slow(usual: Callable[[], None], denormal: Callable[[], None]) -> None:
    # A busy machine gets another chance; a slow path would show every time.
    found = []
    while not found or (found[-1] >= SLOWER and len(found) < 4):
        found.append(slowdown(usual, denormal))
    assert min(found) < SLOWER, found


# Those without exponentials, and those whose exponents are distances: of the density kernels tests/ops/test_kde.py has
# the test; of bias_act it is below, by activation.
OTHERS = ("causal_conv1d", "count_within", "diffusion", "invertible_conv1x1", "kde", "knn", "masked_conv2d", "mmd")
OTHERS += ("bias_act", "norm_modulate", "upfirdn2d", "vector_quantize")
KERNELS = [
    (op, v, gradient)
    for op, v in c.variants("cpu")
    if v.startswith("cpp") and op.family not in OTHERS
    for gradient in ((False, True) if op.grad_order else (False,))
]


@pytest.mark.parametrize(("op", "variant", "gradient"), KERNELS, ids=c.ids)
def test_denormal_exponentials_are_not_slow(op: Op, variant: str, gradient: bool):
    with c.running_on(variant):
        assert_not_slow(*(call_of(op, with_exponents(op, exponent), gradient) for exponent in (USUAL, DENORMAL)))


@pytest.mark.parametrize("variant", sorted({v for _, v in c.variants("cpu") if v.startswith("cpp")}))
def test_denormal_exponentials_of_distances_are_not_slow(variant: str):
    x = torch.randn(400, 16) * 1e-3
    calls = []
    for exponent in (USUAL, DENORMAL):
        y = torch.nn.functional.normalize(torch.randn(400, 16), dim=1) * math.sqrt(-exponent)
        calls.append(call_of(REGISTRY["rbf_mmd"], Sample("two sets", (x, y, 1.0)), False))
    with c.running_on(variant):
        assert_not_slow(*calls)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("act", ["tanh", "sigmoid", "elu", "selu", "softplus", "swish"])
@pytest.mark.parametrize("variant", sorted({v for _, v in c.variants("cpu") if v.startswith("cpp")}))
def test_denormal_exponentials_of_activations_are_not_slow(variant: str, act: str, gradient: bool):
    calls = []
    for exponent in (USUAL, DENORMAL):
        x = exponent * (torch.rand(8, 16, 32, 32, generator=torch.Generator().manual_seed(1)) < 0.5).float()
        calls.append(call_of(REGISTRY["bias_act"], Sample(act, (x, torch.zeros(16)), {"act": act}), gradient))
    with c.running_on(variant):
        assert_not_slow(*calls)
