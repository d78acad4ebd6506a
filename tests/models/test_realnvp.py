"""RealNVP has nflows' numbers for vectors and the paper's layers for images."""

import pytest
import torch

from fastgen.models import RealNVP
from fastgen.nn import ActNorm, AffineCoupling, MaskedAffineCoupling, Squeeze


def test_numbers_are_those_of_nflows():
    flows = pytest.importorskip("nflows.flows")
    theirs = flows.SimpleRealNVP(5, 16, num_layers=4, num_blocks_per_layer=2).double().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    flow = RealNVP(5, transforms=4, hidden_features=16, scale_map="sigmoid").double().eval()
    flow.transform.load_state_dict(theirs._transform.state_dict())
    x = torch.randn(32, 5, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(flow.log_prob(x), theirs.log_prob(x), rtol=0, atol=1e-10)
        z = theirs.transform_to_noise(x)
        torch.testing.assert_close(flow.decode(z), x, rtol=0, atol=1e-10)


def test_layers_of_images_are_those_of_the_paper():
    flow = RealNVP(image_size=8, image_channels=3, scales=2, channels=4, num_blocks=1)
    first, last = flow.transform.scales
    kinds = [type(layer) for layer in first]
    checkerboards, channels = [MaskedAffineCoupling, ActNorm] * 3, [AffineCoupling, ActNorm] * 3
    assert kinds == [*checkerboards, Squeeze, *channels]
    assert [type(layer) for layer in last] == [MaskedAffineCoupling, ActNorm] * 4
    assert flow.transform.parts == [(6, 4, 4), (6, 4, 4)]
    # Masks alternate, so that every value is transformed.
    masks = [layer.mask for layer in first if isinstance(layer, MaskedAffineCoupling)]
    assert torch.equal(masks[0] > 0, ~(masks[1] > 0)) and torch.equal(masks[0], masks[2])
    halves = [layer.transform_features.tolist() for layer in first if isinstance(layer, AffineCoupling)]
    assert halves == [list(range(6)), list(range(6, 12)), list(range(6))]
    # The second scale is twice as wide.
    assert last[0].transform_net.first.out_channels == 2 * first[0].transform_net.first.out_channels


def test_images_start_near_the_identity():
    """Conditioners start at zero: before data are seen the transform only moves values around."""
    flow = RealNVP(image_size=4, image_channels=1, levels=5, channels=4, num_blocks=1).double().eval()
    x = 5 * torch.rand(3, *flow.shape, dtype=torch.float64)
    y, _ = flow.preprocess(x)
    torch.testing.assert_close(flow.encode(x).sort(1).values, y.flatten(1).sort(1).values)


def test_initialize_normalises_the_noise():
    flow = RealNVP(image_size=4, image_channels=1, levels=5, channels=4, num_blocks=1).double()
    images = torch.randint(5, (64, *flow.shape)) // 2
    flow.initialize(images)
    assert all(layer.initialized for layer in flow.modules() if isinstance(layer, ActNorm))
    z = flow.eval().encode(images)
    assert abs(z.mean()) < 0.2 and 0.7 < z.std() < 1.3


def test_images_learn():
    flow = RealNVP(image_size=4, image_channels=1, levels=9, channels=8, num_blocks=1)
    stripes = (torch.arange(4) % 2 * 6).expand(32, 1, 4, 4).contiguous() + torch.randint(3, (32, 1, 1, 1))
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    flow.initialize(stripes)
    first = flow.bits_per_dim(stripes).mean()
    for _ in range(40):
        optimizer.zero_grad()
        flow.loss(stripes).backward()
        optimizer.step()
    flow.eval()
    assert flow.bits_per_dim(stripes).mean() < first - 0.5
    drawn = flow.sample(32).float()
    assert (drawn[..., 1::2] - drawn[..., ::2]).mean() > 4
