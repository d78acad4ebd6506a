"""The VQ-VAE: its codes, its prior over codes, its bound."""

import itertools
import math

import pytest
import torch

from fastgen.models import VQVAE
from fastgen.models.vqvae import CodePrior, OneHotLevels
from tests.models.autoencoder_cases import learn


def small(**options):
    sizes = {"num_codes": 6, "latent_size": 3, "channels": 6, "layers": 1, "prior_channels": 8, "prior_layers": 2}
    return VQVAE(6, 1, 5, **{**sizes, **options}).double().eval()


def test_codes_are_the_nearest_ones():
    model = small()
    images = torch.randint(5, (4, 1, 6, 6))
    z = model.encode(images).movedim(1, -1)
    distances = (z[..., None, :] - model.quantizer.codebook).square().sum(-1)
    codes = model.codes(images)
    assert codes.shape == (4, 3, 3) and torch.equal(codes, distances.argmin(-1))
    assert torch.equal(model.decode_codes(codes), model.reconstruct(images))
    # What has been drawn is codes already.
    z = model.draw_latents(5, torch.Generator().manual_seed(0))
    drawn = model.prior.sample(5, generator=torch.Generator().manual_seed(0))[:, 0]
    assert torch.equal(model._quantized(z).indices, drawn.long())
    assert torch.equal(model.sample(5, generator=torch.Generator().manual_seed(0)), model.decode_codes(drawn))


def test_the_bound_is_of_the_image_and_of_its_codes():
    model = small()
    images = torch.randint(5, (4, 1, 6, 6))
    codes = model.codes(images)
    reconstruction = model.log_likelihood(images, model.quantizer.decode(codes))
    bound = reconstruction + model.prior.log_prob(codes.unsqueeze(1))
    torch.testing.assert_close(model.log_prob_bound(images), bound)
    torch.testing.assert_close(model.bits_per_dim(images), -bound / (36 * math.log(2)))
    commitment = 0.25 * (model.encode(images) - model.quantizer.decode(codes)).square().flatten(1).sum(1)
    torch.testing.assert_close(model.loss(images), (commitment - bound).mean())


def test_training_moves_the_codebook_and_scoring_does_not():
    model = small().train()
    images = torch.randint(5, (16, 1, 6, 6))
    before = model.quantizer.codebook.clone()
    model.bits_per_dim(images)
    model.codes(images)
    model.decode(model.encode(images))
    assert torch.equal(model.quantizer.codebook, before) and model.quantizer.training
    model.loss(images)
    assert not torch.equal(model.quantizer.codebook, before)


def test_codes_start_from_different_latents():
    model = small(num_codes=8)
    images = torch.randint(5, (2, 1, 6, 6)).repeat(3, 1, 1, 1)
    model.initialize(images)
    codebook, z = model.quantizer.codebook, model.encode(images).movedim(1, -1).flatten(0, -2)
    assert len(codebook.unique(dim=0)) == 8
    assert (torch.cdist(codebook, z).amin(1) < 1e-12).all()
    # As the averages say too: a step on nothing new leaves them.
    model.train().quantizer(codebook.T.reshape(1, 3, 2, 4))
    torch.testing.assert_close(model.quantizer.codebook, codebook)
    # More codes than latents: the rest stands where others do.
    few = small(num_codes=64)
    few.initialize(images)
    assert len(few.quantizer.codebook.unique(dim=0)) == len(
        few.encode(images).movedim(1, -1).flatten(0, -2).unique(dim=0)
    )


def test_the_gradient_goes_straight_through_to_the_encoder_and_codes_get_none():
    model = small()
    images = torch.randint(5, (4, 1, 6, 6))
    model.quantizer.commitment = 0.0
    z = model.encode(images)
    z.retain_grad()
    found = model._quantized(z)
    quantized = found.quantized.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model.log_likelihood(images, quantized).sum(), quantized)
    model.log_likelihood(images, found.quantized).sum().backward()
    torch.testing.assert_close(z.grad, gradient)
    model.zero_grad()
    (-model._log_prior(found.indices).sum()).backward()
    assert all(parameter.grad is None for parameter in model.encoder.parameters())


def test_the_prior_sees_codes_as_names():
    x = torch.linspace(-1, 1, 7).view(7, 1, 1, 1)
    torch.testing.assert_close(OneHotLevels(7)(x)[:, :, 0, 0], torch.eye(7))
    many = OneHotLevels(256)(torch.linspace(-1, 1, 256).view(-1, 1, 1, 1))[:, :, 0, 0]
    torch.testing.assert_close(many, torch.eye(256), atol=1e-4, rtol=0)


def test_the_prior_is_a_distribution_and_the_cached_sampler_draws_it():
    prior = CodePrior(image_size=2, levels=3, channels=8, layers=2, first_kernel_size=3).double().eval()
    every = torch.tensor(list(itertools.product(range(3), repeat=4))).view(-1, 1, 2, 2)
    probabilities = prior.log_prob(every).exp()
    torch.testing.assert_close(probabilities.sum(), torch.ones_like(probabilities.sum()))
    drawn, naive = (
        prior.sample(9, generator=torch.Generator().manual_seed(0), method=method) for method in ("cached", "naive")
    )
    assert torch.equal(drawn, naive)


def test_a_latent_without_a_code_gives_a_loss_that_says_so():
    model = small()
    with torch.no_grad():
        model.encoder.head.bias.fill_(math.nan)
    assert model.loss(torch.randint(5, (2, 1, 6, 6))).isnan()


def test_it_learns_images_of_few_kinds():
    torch.manual_seed(0)
    # A level for each place of the map of codes.
    kinds = torch.randint(5, (4, 1, 3, 3)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    images = kinds[torch.randint(4, (256,))]
    model = VQVAE(6, 1, 5, num_codes=16, latent_size=4, channels=16, layers=1, prior_channels=16, prior_layers=2,
                  likelihood="discretized_logistic")  # fmt: skip
    model.initialize(images)
    learn(model, (images,), 400, batch_size=64)
    # Two bits say which of the four it is.
    assert (model.bits_per_dim(images).mean() * 36).item() < 8
    drawn = model.sample(100, generator=torch.Generator().manual_seed(0)).long()
    nearest = (drawn[:, None] - kinds).abs().flatten(2).double().mean(2).amin(1)
    assert (nearest < 0.15).double().mean() > 0.85


def test_what_decoding_codes_refuses():
    model = small()
    with pytest.raises(TypeError, match="images: expected an integer dtype"):
        model.decode_codes(torch.zeros(2, 3, 3))
    with pytest.raises(ValueError, match="images: expected levels 0 to 5, got 6"):
        model.decode_codes(torch.full((2, 3, 3), 6))
    with pytest.raises(ValueError, match=r"images: expected \[batch, 1, 3, 3\]"):
        model.decode_codes(torch.zeros(2, 2, 3, dtype=torch.long))
