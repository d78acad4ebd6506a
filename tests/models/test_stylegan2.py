"""What is StyleGAN2's own: styles, mixing, truncation, path lengths, layers that keep the variance."""

import pytest
import torch

from fastgen.models import StyleGAN2
from fastgen.nn.stylegan import TAPS, EqualizedConv2d, EqualizedLinear, Resample2d, StyledConv2d
from tests.models.adversarial_cases import make


@pytest.fixture
def model():
    torch.manual_seed(0)
    return make("stylegan2")


def test_layers_keep_the_variance():
    torch.manual_seed(0)
    x = torch.randn(16, 32, 16, 16)
    assert EqualizedLinear(512, 256, "lrelu")(torch.randn(400, 512)).square().mean().item() == pytest.approx(1, rel=0.1)
    assert EqualizedConv2d(32, 32)(x)[..., 2:-2, 2:-2].square().mean().item() == pytest.approx(1, rel=0.15)
    styled = StyledConv2d(32, 32, 8, (16, 16))
    assert styled(x, torch.randn(16, 8))[..., 2:-2, 2:-2].square().mean().item() == pytest.approx(1, rel=0.15)


def test_resampling_keeps_constants_and_sizes():
    large = Resample2d(up=2, taps=TAPS)(torch.full((1, 2, 5, 6), 3.0))
    assert large.shape == (1, 2, 10, 12)
    torch.testing.assert_close(large[..., 2:-2, 2:-2], torch.full((1, 2, 6, 8), 3.0))
    for kernel_size in (1, 3):
        layer = EqualizedConv2d(2, 4, kernel_size, "linear", down=2, bias=False)
        small = layer(torch.full((1, 2, 10, 12), 3.0))
        assert small.shape == (1, 4, 5, 6)
        expected = 3 * layer.scale * layer.weight.sum((1, 2, 3))
        torch.testing.assert_close(small[0, :, 2, 3], expected, rtol=1e-4, atol=1e-5)


def test_up_layer_doubles_a_constant_image():
    layer = StyledConv2d(3, 4, 5, (12, 12), up=2).eval()
    y = layer(torch.ones(2, 3, 6, 6), torch.zeros(2, 5))
    assert y.shape == (2, 4, 12, 12)
    # Styles are 1 where the style is 0, and each output has a weight of unit norm.
    weight = layer.convolution.weight
    weight = weight / weight.square().sum((1, 2, 3), keepdim=True).sqrt()
    inside = torch.nn.functional.leaky_relu(weight.sum((1, 2, 3)), 0.2) * 2**0.5
    torch.testing.assert_close(y[..., 4:-4, 4:-4], inside.view(1, 4, 1, 1).expand(2, 4, 4, 4), rtol=1e-4, atol=1e-4)


def test_mapping_has_a_running_mean(model):
    mapping = model.generator.mapping
    before = mapping.mean.clone()
    w = mapping(torch.randn(32, 6))
    torch.testing.assert_close(mapping.mean, before + 0.005 * (w.mean(0) - before))
    model.eval()
    kept = mapping.mean.clone()
    mapping(torch.randn(32, 6))
    assert torch.equal(mapping.mean, kept)


def test_truncation_moves_styles_towards_their_mean(model):
    model.eval()
    z, mapping = torch.randn(4, 6), model.generator.mapping
    mapping.mean.copy_(torch.randn(8))
    w = mapping(z)
    torch.testing.assert_close(mapping(z, None, 0.7), mapping.mean + 0.7 * (w - mapping.mean))
    images = model.sample(5, truncation=0.0)
    assert torch.equal(images, images[:1].expand_as(images))
    seeds = [torch.Generator().manual_seed(0) for _ in range(2)]
    assert torch.equal(model.sample(5, truncation=1.0, generator=seeds[0]), model.sample(5, generator=seeds[1]))
    with pytest.raises(ValueError, match="truncation: expected a finite number or None"):
        model.sample(2, truncation=float("nan"))


def test_mixing_gives_two_styles_with_one_crossing(model):
    torch.manual_seed(0)
    generator = model.generator
    styles = generator.styles(torch.randn(300, 6))
    changes = (styles[:, 1:] != styles[:, :-1]).any(2)
    assert changes.sum(1).max() == 1
    assert 0.8 < changes.any(1).float().mean() < 0.97
    assert (changes.float().mean(0) > 0.15).all()
    still = model.eval().generator.styles(torch.randn(20, 6))
    assert torch.equal(still, still[:, :1].expand_as(still))


def test_each_style_reaches_the_image(model):
    model.eval()
    styles = model.generator.styles(torch.randn(2, 6)).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.generator.synthesize(styles).sum(), styles)
    assert (gradient.abs().sum((0, 2)) > 0).all()


def test_noise_is_new_in_training_and_kept_in_eval(model):
    with torch.no_grad():
        for layer in model.generator.modules():
            if isinstance(layer, StyledConv2d):
                layer.noise_strength.fill_(0.5)
        styles = model.eval().generator.styles(torch.randn(2, 6))
        assert torch.equal(model.generator.synthesize(styles), model.generator.synthesize(styles))
        model.train()
        assert not torch.equal(model.generator.synthesize(styles), model.generator.synthesize(styles))


def test_path_length_penalty_follows_its_mean(model):
    x = torch.randint(17, (8, *model.shape))
    assert model.path_mean == 0
    torch.manual_seed(0)
    loss, told = model.player_loss("generator", x)
    length = told["path_length"]
    torch.testing.assert_close(model.path_mean, 0.01 * length)
    torch.manual_seed(0)
    plain = model.player_loss("generator", x, regularize=False)[0]
    # Lengths scatter around their mean, hence at least its distance.
    assert loss - plain >= 4 * 2 * (0.99 * length) ** 2 * (1 - 1e-4)
    assert [model.regularizes("generator", update) for update in range(5)] == [True, False, False, False, True]
    for _ in range(400):
        model.path_length_penalty(8, None)
    assert model.path_mean.item() == pytest.approx(length.item(), rel=0.5)


def test_path_length_is_the_jacobian_s(model):
    """Of one image, against the Jacobian itself."""
    model.double().eval()
    styles = model.generator.styles(model.latents(1)).detach()
    jacobian = torch.autograd.functional.jacobian(lambda w: model.generator.synthesize(w), styles)
    from fastgen.gan import path_lengths

    leaf = styles.requires_grad_()
    torch.manual_seed(0)
    length = path_lengths(leaf, model.generator.synthesize(leaf))
    torch.manual_seed(0)
    noise = torch.randn(1, 1, 8, 8, dtype=torch.float64) / 8
    pulled = (jacobian[..., 0, :, :] * noise[..., None, None]).sum((0, 1, 2, 3))
    torch.testing.assert_close(length[0], pulled.square().sum(1).mean().sqrt())


def test_discriminator_sees_variety():
    """A batch of equal images is told from one of different ones by the deviation alone."""
    torch.manual_seed(0)
    discriminator = make("stylegan2").discriminator.eval()
    images = torch.randn(4, 1, 8, 8)
    same = images[:1].expand(4, -1, -1, -1)
    assert not torch.allclose(discriminator(same)[0], discriminator(images)[0], atol=1e-4)
    assert discriminator(images[:3]).shape == (3,)


def test_second_derivatives_of_the_penalties(model):
    """R1's gradient in the weights, against differences of the penalty."""
    model.double()
    real = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    from fastgen.gan import zero_centred_penalty

    weight = model.discriminator.blocks[0].convolution_2.weight

    def penalty():
        return zero_centred_penalty(model.discriminator, real)

    (gradient,) = torch.autograd.grad(penalty(), weight)
    direction, h = torch.randn_like(weight), 1e-6
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(direction, alpha=sign * h)
        values.append(penalty().item())
        with torch.no_grad():
            weight.add_(direction, alpha=-sign * h)
    assert (values[0] - values[1]) / (2 * h) == pytest.approx((gradient * direction).sum().item(), rel=1e-4)


def test_output_that_keeps_to_the_range(model):
    bounded = StyleGAN2(**{**model.config, "output": "tanh"})
    bounded.load_state_dict(model.state_dict())
    styles = 30 * torch.randn(3, model.generator.num_styles, model.config["style_size"])
    with torch.no_grad():
        expected = model.eval().generator.synthesize(styles).tanh()
        torch.testing.assert_close(bounded.eval().generator.synthesize(styles), expected)
    with pytest.raises(ValueError, match="output: expected one of linear, tanh, got 'relu'"):
        StyleGAN2(8, 1, output="relu")
