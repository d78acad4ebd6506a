"""Variational autoencoders: bounds against exact likelihoods, what decoders say, classes."""

import itertools
import math

import pytest
import torch

from fastgen.metrics import annealed_importance_sampling
from fastgen.models import VAE, ConditionalVAE
from fastgen.models.decoder_likelihood import make_likelihood
from tests.models.autoencoder_cases import learn

SIGMA, FEATURES, LATENTS = 0.7, 6, 2


def linear_gaussian(error=0.0):
    """A linear VAE whose posterior is exact but for `error`, data of it, their log-likelihood, the divergence."""
    generator = torch.Generator().manual_seed(3)
    model = VAE((1, FEATURES), 1, None, latent_size=LATENTS, layers=0, likelihood="gaussian", sigma=SIGMA).double()
    orthogonal = torch.linalg.qr(torch.randn(FEATURES, LATENTS, generator=generator, dtype=torch.float64))[0]
    loading = orthogonal * torch.tensor([1.5, 0.8], dtype=torch.float64)
    offset = torch.randn(FEATURES, generator=generator, dtype=torch.float64)
    precision = 1 + loading.square().sum(0) / SIGMA**2
    encoder, decoder = model.encoder.layers[0], model.decoder.layers[0]
    with torch.no_grad():
        decoder.weight.copy_(loading)
        decoder.bias.copy_(offset)
        encoder.weight.zero_()
        encoder.weight[:LATENTS] = loading.T / SIGMA**2 / precision[:, None]
        encoder.bias[:LATENTS] = -encoder.weight[:LATENTS] @ offset + error
        encoder.bias[LATENTS:] = -precision.log() + error
    z = torch.randn(50, LATENTS, generator=generator, dtype=torch.float64)
    noise = torch.randn(50, FEATURES, generator=generator, dtype=torch.float64)
    x = z @ loading.T + offset + SIGMA * noise
    covariance = loading @ loading.T + SIGMA**2 * torch.eye(FEATURES, dtype=torch.float64)
    exact = torch.distributions.MultivariateNormal(offset, covariance).log_prob(x)
    # Of the posterior with the error from the one without, a latent at a time.
    divergence = 0.5 * (math.exp(error) + error**2 * precision - 1 - error).sum()
    return model, x.view(-1, 1, 1, FEATURES), exact, divergence


@torch.no_grad()
def bound(model, x, samples, seed=0):
    return model.log_prob_bound(x, samples=samples, generator=torch.Generator().manual_seed(seed))


def test_weights_of_the_exact_posterior_are_the_likelihood():
    model, x, exact, divergence = linear_gaussian()
    assert divergence == 0
    for samples in (2, 7):
        torch.testing.assert_close(bound(model, x, samples), exact)


def test_the_bound_is_below_by_the_divergence():
    model, x, exact, divergence = linear_gaussian(error=0.5)
    gap = torch.stack([exact - bound(model, x, 1, seed) for seed in range(200)]).mean()
    torch.testing.assert_close(gap, divergence, rtol=0.05, atol=0)


def test_more_samples_tighten_the_bound():
    model, x, exact, _ = linear_gaussian(error=0.5)
    gaps = [(exact - bound(model, x, samples)).mean().item() for samples in (1, 5, 50, 5000)]
    assert gaps[0] > gaps[1] > gaps[2] > gaps[3] - 1e-3
    assert gaps[0] > 0.5 and abs(gaps[3]) < 0.01


def test_annealed_importance_sampling_takes_the_model():
    model, x, exact, _ = linear_gaussian()
    found = annealed_importance_sampling(
        model.log_likelihood, x[:10], LATENTS, chains=100, steps=60, generator=torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(found.log_likelihood.double().mean(), exact[:10].mean(), atol=0.05, rtol=0)


def test_training_reaches_the_likelihood():
    """The best linear VAE of these data has the likelihood of probabilistic PCA."""
    torch.manual_seed(0)
    model, _, _, _ = linear_gaussian()
    with torch.no_grad():
        x = model.sample(2000, mean=False)
    flat = x.flatten(1)
    lengths = torch.linalg.eigvalsh(flat.T.cov(correction=0)).flip(0)
    noise = lengths[LATENTS:].mean()
    log_likelihood = -0.5 * (
        FEATURES * math.log(2 * math.pi) + lengths[:LATENTS].log().sum() + (FEATURES - LATENTS) * noise.log() + FEATURES
    )
    learner = VAE((1, FEATURES), 1, None, latent_size=LATENTS, layers=0, likelihood="gaussian").double()
    optimizer = torch.optim.Adam(learner.parameters(), lr=2e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)
    for _ in range(600):
        optimizer.zero_grad()
        learner.loss(x).backward()
        optimizer.step()
        schedule.step()
    reached = torch.stack([bound(learner, x, 1, seed) for seed in range(10)]).mean()
    torch.testing.assert_close(reached, log_likelihood, atol=0.02, rtol=0)
    assert reached < log_likelihood + 0.01


@pytest.mark.parametrize("beta", [0.0, 1.0, 3.0])
def test_the_loss_weighs_the_divergence(beta):
    model = VAE(4, 1, 2, latent_size=3, channels=8, beta=beta).double()
    images = torch.randint(2, (5, 1, 4, 4))
    torch.manual_seed(1)
    loss = model.loss(images)
    torch.manual_seed(1)
    reconstruction, kl = model.bound_terms(images)
    torch.testing.assert_close(loss, beta * kl.mean() - reconstruction.mean())
    mean, logvar = model.posterior(images)
    normal = torch.distributions.Normal
    exact = torch.distributions.kl_divergence(normal(mean, (logvar / 2).exp()), normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(kl, exact)


def test_bits_are_those_of_the_bound_and_can_be_repeated():
    model = VAE(4, 1, 5, latent_size=3, channels=8, likelihood="discretized_logistic")
    images = torch.randint(5, (6, 1, 4, 4))
    generators = [torch.Generator().manual_seed(4) for _ in range(2)]
    bits = model.bits_per_dim(images, samples=3, generator=generators[0])
    nats = model.log_prob_bound(images, samples=3, generator=generators[1])
    torch.testing.assert_close(bits, -nats / (16 * math.log(2)))
    with pytest.raises(ValueError, match="samples: expected a positive int, got 0"):
        model.log_prob_bound(images, samples=0)
    with pytest.raises(ValueError, match="temperature: expected a number of at least 0, got -1"):
        model.sample(2, temperature=-1)


def test_many_samples_are_as_good_in_pieces(monkeypatch):
    model, x, exact, _ = linear_gaussian(error=0.3)
    monkeypatch.setattr("fastgen.models.vae.MOST_DECODED", 101)
    gap = (exact - bound(model, x, 301)).mean().item()
    assert abs(gap) < 0.05


@pytest.mark.parametrize("value", [200.0, 1e30])
def test_a_log_variance_that_overflows_gives_a_finite_loss(value):
    model = VAE(4, 1, 2, latent_size=3, channels=8)
    with torch.no_grad():
        model.encoder.layers[-1].bias[3:] = value
    loss = model.loss(torch.randint(2, (5, 1, 4, 4)))
    loss.backward()
    assert loss.isfinite() and loss > 1e30
    with torch.no_grad():
        model.encoder.layers[-1].bias[3:] = math.nan
    assert model.loss(torch.randint(2, (5, 1, 4, 4))).isnan()


class TestLikelihoods:
    """What a decoder says of all images that there are."""

    def every(self, levels, pixels):
        return torch.tensor(list(itertools.product(range(levels), repeat=pixels))).view(-1, 1, 1, pixels)

    @pytest.mark.parametrize(("name", "levels"), [("bernoulli", 2), ("discretized_logistic", 5)])
    def test_probabilities_sum_to_one(self, name, levels):
        likelihood, images = make_likelihood(name, levels), self.every(levels, 3)
        output = torch.randn(1, likelihood.outputs, 1, 3, dtype=torch.float64).expand(len(images), -1, -1, -1)
        total = likelihood.log_prob(images, output).exp().sum()
        torch.testing.assert_close(total, torch.ones_like(total))

    @pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0])
    def test_a_density_of_levels_is_a_bound(self, sigma):
        likelihood = make_likelihood("gaussian", 9, sigma).double()
        levels = self.every(9, 1)
        total = likelihood.log_prob(levels, torch.zeros(9, 1, 1, 1, dtype=torch.float64)).exp().sum()
        assert total < 1
        # Of a wide density a bin is nearly flat, and the bound nearly what it bounds.
        edges = torch.distributions.Normal(0.0, sigma).cdf(torch.tensor([-1.125, 1.125]))
        if sigma == 1:
            assert total.item() == pytest.approx((edges[1] - edges[0]).item(), rel=0.005)

    @pytest.mark.parametrize(("name", "levels"), [("bernoulli", 2), ("discretized_logistic", 5), ("gaussian", None)])
    def test_draws_are_as_frequent_as_they_are_probable(self, name, levels):
        likelihood = make_likelihood(name, levels, 0.4 if name == "gaussian" else None).double()
        output = torch.tensor([0.3, -1.2][: likelihood.outputs], dtype=torch.float64).view(1, -1, 1, 1)
        drawn = likelihood.draw(output.expand(50_000, -1, -1, -1), torch.Generator().manual_seed(0)).flatten()
        if levels is None:
            assert drawn.mean().item() == pytest.approx(0.3, abs=0.01) and drawn.std().item() == pytest.approx(
                0.4, rel=0.02
            )
            return
        levels_drawn = (drawn + 1) * (levels - 1) / 2
        found = torch.bincount(levels_drawn.round().long(), minlength=levels) / len(drawn)
        images = self.every(levels, 1)
        expected = likelihood.log_prob(images, output.expand(levels, -1, -1, -1)).exp()
        torch.testing.assert_close(found.double(), expected, atol=0.01, rtol=0)

    def test_grey_is_the_mean_over_images_at_random(self):
        likelihood, output = make_likelihood("bernoulli", 5), torch.randn(1, 1, 1, 3, dtype=torch.float64)
        grey = torch.tensor([0, 1, 3]).view(1, 1, 1, 3)
        binary = make_likelihood("bernoulli", 2)
        expected = 0.0
        for image in self.every(2, 3):
            probability = torch.where(image == 1, grey / 4, 1 - grey / 4).prod()
            expected = expected + probability * binary.log_prob(image[None], output)
        torch.testing.assert_close(likelihood.log_prob(grey, output), expected)


def test_classes_say_what_is_drawn():
    torch.manual_seed(0)
    labels = torch.arange(400) % 4
    # The class is the bright quadrant; how bright it is varies.
    images = torch.zeros(400, 1, 4, 4, dtype=torch.long)
    bright = torch.randint(4, 9, (400,))
    for image, label, level in zip(images, labels.tolist(), bright.tolist(), strict=True):
        image[0, label // 2 * 2 :, label % 2 * 2 :][:2, :2] = level
    model = ConditionalVAE(4, 1, 9, num_classes=4, latent_size=2, channels=64, likelihood="gaussian")
    learn(model, (images, labels), 300)
    for label in range(4):
        for drawn in (
            model.sample(16, labels=label, generator=torch.Generator().manual_seed(0)),
            model.reconstruct(images[:16], labels[:16], as_labels=torch.full((16,), label)),
        ):
            quadrants = drawn.float().unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)).flatten(1)
            assert (quadrants.argmax(1) == label).all()
