"""Planar and radial flows are normflows' and invert everywhere."""

import pytest
import torch
from torch import nn

from fastgen.nn import PlanarFlow, RadialFlow
from tests.nn.transform_properties import PROPERTIES, Case

CASES = [
    Case("planar", lambda: PlanarFlow(3), (3,)),
    Case("planar, context", lambda: PlanarFlow(3, 2), (3,), 2),
    Case("planar, one feature", lambda: PlanarFlow(1), (1,)),
    Case("radial", lambda: RadialFlow(3), (3,)),
    Case("radial, context", lambda: RadialFlow(3, 2), (3,), 2),
    Case("radial, one feature", lambda: RadialFlow(1), (1,)),
]


@pytest.mark.parametrize("check", PROPERTIES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_property(case, check):
    check(case)


def test_planar_is_normflows():
    normflows = pytest.importorskip("normflows.flows.planar")
    u, w, b = torch.randn(1, 4, dtype=torch.float64), torch.randn(1, 4, dtype=torch.float64), torch.randn(1).double()
    theirs = normflows.Planar((4,), u=u, w=w, b=b)
    ours = PlanarFlow(4).double()
    ours.load_state_dict({"u": u[0], "w": w[0], "b": b})
    x = torch.randn(9, 4, dtype=torch.float64)
    for found, expected in zip(ours(x), theirs(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_radial_is_normflows():
    normflows = pytest.importorskip("normflows.flows.radial")
    center = torch.randn(1, 4, dtype=torch.float64)
    theirs = normflows.Radial((4,), z_0=center).double()
    ours = RadialFlow(4).double()
    ours.load_state_dict({"center": center[0], "log_alpha": theirs.alpha.abs().log(), "raw_beta": theirs.beta})
    x = torch.randn(9, 4, dtype=torch.float64)
    for found, expected in zip(ours(x), theirs(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_inverse_holds_over_the_whole_domain(dtype, scale):
    """Strong pushes and pulls, where the map is steep here and flat there: `f(f^-1(y)) = y`."""
    eps = torch.finfo(dtype).eps
    for make in (PlanarFlow, RadialFlow):
        for _ in range(20):
            flow = make(3).to(dtype)
            for parameter in flow.parameters():
                nn.init.normal_(parameter, std=scale if parameter.numel() > 1 or make is PlanarFlow else 3.0)
            y = scale * torch.randn(200, 3, dtype=dtype) * torch.logspace(-3, 2, 200, dtype=dtype)[:, None]
            x, _ = flow.inverse(y)
            assert x.isfinite().all()
            # A rounding of x is stretched by the slope of the map, at most the norm of its Jacobian.
            slope = 1 + sum(p.detach().norm() for p in flow.parameters()) ** 2
            error = (flow(x)[0] - y).abs().amax(1)
            size = 1 + y.norm(dim=1) + x.norm(dim=1)
            assert (error <= 64 * eps * slope * size).all()


def test_inverse_of_planar_has_second_derivatives():
    flow = PlanarFlow(2).double()
    nn.init.normal_(flow.u)
    y = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    parameters = tuple(flow.parameters())
    assert torch.autograd.gradgradcheck(lambda y, *_: flow.inverse(y), (y, *parameters))


def test_a_direction_of_zero_is_the_identity():
    flow = PlanarFlow(3)
    nn.init.zeros_(flow.w)
    x = torch.randn(4, 3)
    y, logabsdet = flow(x)
    assert torch.equal(y, x) and not logabsdet.any()
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in (flow.u, flow.b))


def test_the_center_of_a_radial_flow_stays():
    flow = RadialFlow(3).double()
    y, logabsdet = flow(flow.center[None].detach())
    assert torch.equal(y[0], flow.center)
    # All directions are stretched alike there, by (alpha + beta) / alpha.
    stretch = nn.functional.softplus(flow.raw_beta) / flow.log_alpha.exp()
    torch.testing.assert_close(logabsdet, 3 * stretch.log())


def test_refuses():
    for make in (PlanarFlow, RadialFlow):
        with pytest.raises(ValueError, match="features: expected a positive int, got 0"):
            make(0)
        with pytest.raises(ValueError, match=r"x: expected \[batch, 3\], got \(2, 4\)"):
            make(3)(torch.randn(2, 4))
        with pytest.raises(ValueError, match="context: made without context_features, expected None"):
            make(3)(torch.randn(2, 3), torch.randn(2, 3))
        for context in (None, torch.randn(1, 2), torch.randn(2, 3)):
            with pytest.raises(ValueError, match=r"context: expected \[batch, context_features\] = \(2, 2\), got"):
                make(3, 2)(torch.randn(2, 3), context)
