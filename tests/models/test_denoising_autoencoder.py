"""The generalised denoising autoencoder: corruptions, the chain's stationary distribution, walkback."""

import math

import pytest
import torch

from fastgen.models import DenoisingAutoencoder

MEAN, DEVIATION, NOISE = 2.0, 1.5, 1.0
# Of the best guess of x behind x + noise, both centred.
SLOPE = DEVIATION**2 / (DEVIATION**2 + NOISE**2)


def linear(slope, sigma, **options):
    """`P(x | x~) = N(mean + slope (x~ - mean), sigma^2)`, of one number."""
    model = DenoisingAutoencoder((1, 1), 1, None, latent_size=1, layers=0, noise=NOISE, **options)
    with torch.no_grad():
        encoder, decoder = model.encoder.layers[0], model.decoder.layers[0]
        encoder.weight.fill_(1.0)
        encoder.bias.zero_()
        decoder.weight.fill_(slope)
        decoder.bias.fill_(MEAN * (1 - slope))
        model.likelihood.logvar.fill_(2 * math.log(sigma))
    return model


def test_the_chain_of_the_right_posterior_draws_the_data():
    model = linear(SLOPE, math.sqrt(SLOPE) * NOISE)
    start = torch.full((20_000, 1, 1, 1), -10.0)
    options = {"mean": False, "generator": torch.Generator().manual_seed(0)}
    drawn = model.sample(len(start), steps=30, start=start, **options)
    assert drawn.mean().item() == pytest.approx(MEAN, abs=0.05)
    assert drawn.std().item() == pytest.approx(DEVIATION, rel=0.02)
    # And stays there, which a chain that is too short or a kernel that is wrong would not.
    moved = model.sample(len(start), steps=1, start=drawn, **options)
    assert moved.std().item() == pytest.approx(DEVIATION, rel=0.02)
    correlation = torch.corrcoef(torch.stack([drawn.flatten(), moved.flatten()]))[0, 1].item()
    assert correlation == pytest.approx(SLOPE, abs=0.02)


def test_the_chain_of_a_wrong_posterior_does_not():
    drawn = linear(SLOPE, NOISE / 4).sample(5000, steps=30, mean=False, generator=torch.Generator().manual_seed(0))
    assert drawn.std().item() < 0.8 * DEVIATION


@pytest.mark.parametrize("walkback", [0.0, 0.5])
def test_training_leads_to_the_distribution_of_the_data(walkback):
    """With a further step of probability p the slope `a` solves `a = SLOPE (1 - p) / (1 - p a)`; the chain draws the
    same.
    """
    torch.manual_seed(0)
    model = linear(0.5, 0.5, walkback=walkback).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
    for _ in range(1000):
        optimizer.zero_grad()
        model.loss(MEAN + DEVIATION * torch.randn(2000, 1, 1, 1)).backward()
        optimizer.step()
        schedule.step()
    slope = (model.encoder.layers[0].weight * model.decoder.layers[0].weight).item()
    expected = SLOPE if not walkback else (1 - math.sqrt(1 - 4 * walkback * (1 - walkback) * SLOPE)) / (2 * walkback)
    assert slope == pytest.approx(expected, rel=0.03)
    variance = model.likelihood.logvar.exp().item()
    stationary = (slope**2 * NOISE**2 + variance) / (1 - slope**2)
    assert math.sqrt(stationary) == pytest.approx(DEVIATION, rel=0.02)
    drawn = model.sample(20_000, steps=30, mean=False, generator=torch.Generator().manual_seed(0))
    assert drawn.mean().item() == pytest.approx(MEAN, abs=0.08)
    assert drawn.std().item() == pytest.approx(DEVIATION, rel=0.03)


def test_pixels_that_know_nothing_of_each_other_keep_their_probabilities():
    """The chain of a table of four binary pixels, half of which salt and pepper hide."""
    white = torch.tensor([0.9, 0.5, 0.2, 0.05])
    model = DenoisingAutoencoder((1, 4), 1, 2, latent_size=4, layers=0, corruption="salt-and-pepper", noise=0.5,
                                 likelihood="bernoulli")  # fmt: skip
    # A pixel that is seen white was so, or was hit: 1/2 + 1/4 to 1/4.
    odds = torch.log(white / (1 - white))
    model.denoise = lambda corrupted: (odds + corrupted * math.log(3)).view(-1, 1, 1, 4)
    drawn = model.sample(40_000, steps=25, mean=False, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.double().mean((0, 1, 2)), white.double(), atol=0.01, rtol=0)


def test_corruptions():
    x = torch.rand(200, 1, 10, 10) * 1.8 - 0.9
    generator = torch.Generator().manual_seed(0)

    def model(corruption, noise, levels=17):
        likelihood = {} if levels else {"likelihood": "gaussian"}
        return DenoisingAutoencoder(10, 1, levels, channels=4, corruption=corruption, noise=noise, **likelihood)

    added = model("gaussian", 0.3).corrupt(x, generator) - x
    assert added.std().item() == pytest.approx(0.3, rel=0.02)
    masked = model("masking", 0.3).corrupt(x, generator)
    assert (masked == -1).double().mean().item() == pytest.approx(0.3, abs=0.01)
    assert torch.equal(masked[masked != -1], x[masked != -1])
    assert (model("masking", 0.3, None).corrupt(x, generator) == 0).double().mean().item() == pytest.approx(
        0.3, abs=0.01
    )
    peppered = model("salt-and-pepper", 0.4).corrupt(x, generator)
    for value in (-1, 1):
        assert (peppered == value).double().mean().item() == pytest.approx(0.2, abs=0.01)


def test_walkback_makes_more_pairs_in_training_alone():
    model = DenoisingAutoencoder(4, 1, 5, channels=8, walkback=0.9)
    images = torch.randint(5, (64, 1, 4, 4))
    seen = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    model.train().loss(images)
    assert seen[0] == 64 and 64 * 4 < sum(seen) < 64 * 20 and sorted(seen, reverse=True) == seen
    seen.clear()
    model.eval().loss(images)
    assert seen == [64]


def test_what_sampling_refuses():
    model = DenoisingAutoencoder(4, 1, 5, channels=8)
    with pytest.raises(ValueError, match="steps: expected a positive int, got 0"):
        model.sample(2, steps=0)
    with pytest.raises(ValueError, match="start: expected 2 images, got 3"):
        model.sample(2, start=torch.zeros(3, 1, 4, 4, dtype=torch.uint8))
    with pytest.raises(TypeError, match="images: expected integer levels"):
        model.sample(2, start=torch.zeros(2, 1, 4, 4))
