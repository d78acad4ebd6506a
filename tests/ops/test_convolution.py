"""Convolutions in bfloat16 whose result has one column have gradients made of what is given, and of no stale memory."""

import pytest
import torch

from fastgen.ops import masked_conv2d, modulated_conv2d, use_backend


def _gradients(function, inputs, dtype):
    inputs = [t.to(dtype).requires_grad_() for t in inputs]
    y = function(*inputs)
    return torch.autograd.grad(y, inputs, torch.ones_like(y))


@pytest.mark.parametrize("backend", ["library", "reference"])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [2, 3])
def test_gradients_of_one_column(backend, kernel, stride):
    torch.manual_seed(0)
    x, weight, styles = torch.randn(4, 18, 8, 1), torch.randn(18, 18, kernel, kernel), torch.randn(4, 18)
    cases = [
        (lambda *t: masked_conv2d(*t, mask_type="B", stride=stride, padding=kernel // 2), (x, weight)),
        (lambda *t: modulated_conv2d(*t, up=stride, padding=kernel // 2), (x, weight, styles)),
    ]
    for function, inputs in cases:
        exact = _gradients(function, inputs, torch.float64)
        for _ in range(4):
            # Memory that the allocator hands out next: it is no zeros.
            stale = [torch.full((n,), 1e30, dtype=torch.bfloat16) for n in (200, 2000, 20_000, 200_000)]
            del stale
            with use_backend(backend, "reference"):
                found = _gradients(function, inputs, torch.bfloat16)
            for f, e in zip(found, exact, strict=True):
                assert (f.double() - e).norm() < 0.02 * e.norm()
