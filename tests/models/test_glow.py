"""Glow has the paper's layers and priors, learns its classes, and is the same when it recomputes activations."""

import torch

from fastgen.models import Glow
from fastgen.nn import ActNorm, AffineCoupling, InvertibleConv1x1, Squeeze


def perturbed(**config):
    flow = Glow(**{"image_size": 4, "image_channels": 1, "levels": 5, "steps": 2, "channels": 6, **config}).double()
    flow.initialize(torch.randint(5, (16, *flow.shape)))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return flow.eval()


def test_layers_are_those_of_the_paper():
    flow = Glow(image_size=8, scales=2, steps=3, channels=4)
    assert len(flow.transform.scales) == 2
    for scale in flow.transform.scales:
        kinds = [type(layer) for layer in scale]
        assert kinds[:-1] == [Squeeze, *[ActNorm, InvertibleConv1x1, AffineCoupling] * 3]
    assert flow.transform.parts == [(6, 4, 4), (24, 2, 2)]
    assert Glow(image_size=8, image_channels=1, scales=3, steps=1, channels=4).transform.parts[-1] == (16, 1, 1)


def test_the_split_prior_is_a_normal_that_depends_on_what_stays():
    flow = perturbed(scales=2)
    scale = flow.transform.scales[0]
    prior = scale[-1]
    x = torch.randn(3, 4, 2, 2, dtype=torch.float64)
    y, logabsdet = prior(x)
    kept, out = x.chunk(2, dim=1)
    shift, log_scale = prior.transform_net(kept).chunk(2, dim=1)
    normal = torch.distributions.Normal(-shift * (-log_scale).exp(), (-log_scale).exp())
    expected = normal.log_prob(out).flatten(1).sum(1)
    standard = torch.distributions.Normal(0.0, 1.0).log_prob(y[:, 2:]).flatten(1).sum(1)
    torch.testing.assert_close(standard + logabsdet, expected)
    assert torch.equal(y[:, :2], kept)


def test_the_prior_of_the_last_scale_starts_standard_and_depends_on_the_class():
    prior = Glow(image_size=4, scales=1, steps=1, channels=4, num_classes=3).transform.scales[-1][-1]
    x, classes = torch.randn(2, 12, 2, 2), torch.eye(3)[:2]
    y, logabsdet = prior(x, classes)
    assert torch.equal(y, x) and not logabsdet.any()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.normal_()
    y, logabsdet = prior(x, classes)
    assert logabsdet[0] != logabsdet[1]
    back, inverse = prior.inverse(y, classes)
    torch.testing.assert_close(back, x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(inverse, -logabsdet)


def test_a_conditional_glow_learns_its_classes():
    """Two classes, dark and bright images: after training each label draws its own kind and scores it best."""
    flow = Glow(image_size=4, image_channels=1, levels=9, scales=2, steps=2, channels=16, num_classes=2)
    labels = torch.arange(64) % 2
    images = (labels * 6)[:, None, None, None] + torch.randint(3, (64, 1, 4, 4))
    flow.initialize(images, labels)
    optimizer = torch.optim.Adam(flow.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        flow.loss(images, labels).backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 50.0)
        optimizer.step()
    flow.eval()
    assert flow.sample(32, labels=0).float().mean() < 3 < 5 < flow.sample(32, labels=1).float().mean()
    noise = [torch.Generator().manual_seed(0) for _ in range(2)]
    right = flow.log_prob_bound(images, labels, generator=noise[0])
    wrong = flow.log_prob_bound(images, 1 - labels, generator=noise[1])
    assert (right > wrong).float().mean() > 0.95


def test_initialize_normalises_the_first_activations():
    flow = Glow(image_size=8, scales=1, steps=1, channels=4).double()
    images = torch.randint(256, (16, *flow.shape))
    flow.initialize(images)
    norm = next(layer for layer in flow.modules() if isinstance(layer, ActNorm))
    seen = []
    norm.register_forward_hook(lambda _, __, output: seen.append(output[0]))
    flow.eval().encode(images)
    # One sees the images with their noise, the other in the middle of their bins.
    assert seen[0].mean((0, 2, 3)).abs().max() < 0.01
    assert (seen[0].std((0, 2, 3)) - 1).abs().max() < 0.01


def test_reversible_gives_the_same_gradients():
    plain, reversible = perturbed(scales=2), perturbed(scales=2, reversible=True)
    reversible.load_state_dict(plain.state_dict())
    images = torch.randint(5, (4, *plain.shape))
    for flow in (plain, reversible):
        flow.loss(images, generator=torch.Generator().manual_seed(0)).backward()
    for ours, theirs in zip(reversible.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-8)


def test_the_glow_of_the_paper():
    flow = Glow(channels=4)
    assert flow.features == 3 * 32 * 32 and len(flow.transform.scales) == 3
    assert sum(isinstance(layer, InvertibleConv1x1) for layer in flow.modules()) == 96
