"""The score of every flow is the same whether it will be differentiated or not, and so are its own derivatives."""

import pytest
import torch

from tests.models.flow_cases import EVERY, context_for, data_for, make

REVERSIBLE = {name for name, (_, config) in EVERY.items() if config.get("reversible")}


def log_density(flow, x, context, inverse):
    """Under the base and the flow's Jacobian, or that of its inverse, which may be differentiated implicitly."""
    y, logabsdet = flow.inverse(x, context) if inverse else flow.forward(x, context)
    return (logabsdet - 0.5 * y.flatten(1).square().sum(1)).sum()


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("name", sorted(EVERY.keys() - REVERSIBLE))
def test_score_and_its_derivatives(name, inverse):
    flow, n = make(name), 3
    context = context_for(flow, n)
    # Of levels' logits there is little slope near the ends.
    x = data_for(flow, n) * 0.5 + (0.25 * flow.levels if flow.levels and not inverse else 0)
    if inverse:
        x = torch.randn(n, *flow.latent_shape, dtype=flow.dtype)
    parameter = next(p for p in flow.parameters() if p.dim() > 1)

    def score(x, **options):
        x = x.detach().requires_grad_()
        wanted = [x, parameter]
        return x, torch.autograd.grad(log_density(flow, x, context, inverse), wanted, allow_unused=True, **options)

    _, (usual, of_parameter) = score(x)
    leaf, (found, of_parameter_again) = score(x, create_graph=True)
    torch.testing.assert_close(found.detach(), usual, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(of_parameter_again, of_parameter, rtol=1e-9, atol=1e-10)

    direction = torch.randn_like(x)
    (product,) = torch.autograd.grad((found * direction).sum(), leaf)
    step = 1e-5
    differences = (score(x + step * direction)[1][0] - score(x - step * direction)[1][0]) / (2 * step)
    torch.testing.assert_close(product, differences, rtol=2e-5, atol=2e-6 * float(differences.abs().max()))
