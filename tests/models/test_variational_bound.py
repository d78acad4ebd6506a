"""The bound of discrete-time diffusion, and how DDPM follows from the model of 2015."""

import pytest
import torch

from fastgen.models import DDPM, DiffusionProbabilisticModel
from tests.models.diffusion_cases import COSINE, TINY, knowing, make


def test_ddpm_is_the_ancestor_without_its_weights():
    """With the posterior's variance, each term of the bound is DDPM's squared error times a number."""
    options = {"num_train_timesteps": 50, "beta_start": 1e-3, "beta_end": 0.2, "clip_sample": False, **TINY}
    ancestor = DiffusionProbabilisticModel(4, 1, 17, learned_variance=False, **options).double()
    torch.nn.init.normal_(ancestor.network.conv_out.weight)
    ddpm = DDPM(4, 1, 17, **options).double()
    ddpm.load_state_dict(ancestor.state_dict())
    x0 = torch.rand(3, 1, 4, 4, dtype=torch.float64) * 2 - 1
    for time in (1, 2, 17, 49):
        term = ancestor.divergence(x0, time, generator=torch.Generator().manual_seed(time))
        noise = torch.randn(x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(time))
        times = torch.full((3,), time)
        error = (ddpm.output(ddpm.noised(x0, times, noise), times) - noise).square().sum((1, 2, 3))
        torch.testing.assert_close(term, ancestor.weights_of_errors(time) * error, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("family", ["ddpm", "2015"])
def test_terms_of_the_truth_are_what_they_are_in_theory(family):
    """`E L_t = (SNR(t - 1) - SNR(t)) E|x0 - E[x0 | x_t]|^2 / 2`, with the error of normal data in closed form."""
    options = {"learned_variance": False} if family == "2015" else {}
    variance = 0.2
    model = knowing(make(family, levels=None, clip_sample=False, **options), 0.0, variance).double()
    x0 = variance**0.5 * torch.randn(20_000, 1, 4, 4, dtype=torch.float64)
    snr = model.alphas_cumprod / (1 - model.alphas_cumprod)
    for time in (1, 10, 40):
        expected = 0.5 * (snr[time - 1] - snr[time]) * 16 * variance / (1 + variance * snr[time])
        assert model.divergence(x0, time).mean().item() == pytest.approx(expected.item(), rel=0.02)


def test_the_bound_lies_above_the_entropy_of_levels():
    variance, levels = 0.2, 65
    options = {"num_train_timesteps": 500, "beta_start": 1e-4, "beta_end": 0.04, "clip_sample": False}
    model = knowing(make("ddpm", levels=levels, **options), 0.0, variance)
    normal = torch.distributions.Normal(0.0, variance**0.5)
    x = (normal.sample((64, 1, 4, 4)) * 32 + 32).round().clamp(0, 64).long()
    half = 1 / 64
    mass = normal.cdf(x / 32 - 1 + half) - normal.cdf(x / 32 - 1 - half)
    truth = -mass.clamp(min=1e-12).log2().mean()
    bits = model.bits_per_dim(x, generator=torch.Generator().manual_seed(0)).mean()
    # Steps that double the noise, as the first of this schedule do, cost most of the rest.
    assert truth < bits < truth + 1.5


def test_few_timesteps_estimate_all():
    model = make("ddpm", num_train_timesteps=20, beta_end=0.5).eval()
    images = torch.randint(0, 17, (4, 1, 4, 4))
    whole = torch.stack([model.log_prob_bound(images) for _ in range(10)]).mean(0)
    estimates = torch.stack([model.log_prob_bound(images, timesteps=6) for _ in range(40)])
    error = estimates.std(0) / 40**0.5
    assert bool(((estimates.mean(0) - whole).abs() < 5 * error).all())


def test_decoder_masses_add_up_to_one():
    model = make("ddpm", image_size=2, levels=5)
    total = 0.0
    noise = torch.Generator()
    for level in range(5):
        x0 = torch.full((1, 1, 2, 2), level / 2 - 1)
        x0[..., 1:, :] = 0
        x0[..., :, 1:] = 0
        # The same x_1 for every level of the first pixel.
        model._at = lambda x0, time, generator: torch.full_like(x0, 0.3)
        log_mass = model._decoder(x0, None, noise.manual_seed(0))
        others = torch.zeros(1, 1, 2, 2)
        total += (log_mass - _others(model, others)).exp().item()
    assert total == pytest.approx(1.0, abs=1e-4)


def _others(model, x0):
    """The log mass of the three pixels that stay in the middle level."""
    mean, log_variance = model.reverse(torch.full_like(x0, 0.3), 0)
    normal = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    mass = (normal.cdf(x0 + 0.25) - normal.cdf(x0 - 0.25)).clamp(min=1e-12).log()
    return mass.sum() - mass[0, 0, 0, 0]


def test_a_score_of_validation_tells_epochs_apart():
    """It is near the bound of all timesteps, of which a single one may be nearly all."""
    torch.manual_seed(0)
    model = make("2015", num_train_timesteps=200, **COSINE).eval()
    images = torch.randint(0, 17, (100, 1, 4, 4))
    seeds = [torch.Generator().manual_seed(seed) for seed in range(8)]
    scores = torch.stack([model.validation_errors(images, generator=seed).mean() for seed in seeds])
    whole = -model.log_prob_bound(images, generator=seeds[0]).mean() / (16 * torch.tensor(2.0).log())
    # The noisiest timestep is 700 bits of it, and a score that drew timesteps for whole batches missed it or had it
    # ten times.
    assert scores.std() < 0.25 * whole and scores.mean().item() == pytest.approx(whole.item(), rel=0.15)
    same = [model.validation_errors(images, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*same)


def test_floating_data_have_a_density_at_the_last_step():
    variance = 0.2
    options = {"learned_variance": False, "num_train_timesteps": 500, "beta_start": 1e-4, "beta_end": 0.04}
    model = knowing(make("2015", levels=None, **options), 0.0, variance)
    x = variance**0.5 * torch.randn(500, 1, 4, 4)
    truth = 0.5 * (1 + torch.tensor(2 * torch.pi * variance).log()) / torch.tensor(2.0).log()
    bits = model.validation_errors(x, generator=torch.Generator().manual_seed(0)).mean()
    assert truth - 0.05 < bits < truth + 1.5


def test_what_a_bound_refuses():
    with pytest.raises(TypeError, match="levels"):
        make("ddpm", levels=None).log_prob_bound(torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match="timesteps: expected at least 1"):
        make("ddpm").log_prob_bound(torch.zeros(1, 1, 4, 4, dtype=torch.long), timesteps=0)
    with pytest.raises(ValueError, match="classifier"):
        make("2015", num_classes=2).sample(1, labels=1, classifier=lambda x, t: x)
