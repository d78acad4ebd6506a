"""The Python executor, the draws, naive sampling and the public sampler."""

import math

import pytest
import torch
from torch import nn

from fastgen.sampling import CachedSampler, Categorical, LogisticMixture, naive_sample, uniform_noise
from fastgen.sampling.run.reference import ReferenceSession
from tests.sampling.exactness import LEVELS, assert_draws_as_naive, assert_same_outputs, draw_of_levels, sampler
from tests.sampling.random_networks import Masked, RandomNetwork

SHAPES = [(1, 5, 5), (1, 4, 7), (1, 7, 4), (1, 6, 6)]


def small_network(outputs=LEVELS):
    head = nn.Conv2d(6, outputs, 1, dtype=torch.float64)
    return nn.Sequential(Masked("A", 1, 6, 3), nn.ELU(), Masked("B", 6, 6, 3), nn.ELU(), head)


@pytest.mark.parametrize("seed", range(30))
def test_networks_never_seen_before_are_exact(seed):
    model = RandomNetwork(seed, LEVELS)
    cached = sampler(model, SHAPES[seed % len(SHAPES)])
    assert_same_outputs(cached.program, model)
    assert_draws_as_naive(cached, model, n=1 + seed % 4)


def test_a_program_in_float32_is_close():
    model = RandomNetwork(2, LEVELS)
    program = sampler(model, (1, 6, 6)).program
    x = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    exact = ReferenceSession(program, 2).teacher_force(x)
    single = ReferenceSession(program, 2, torch.float32).teacher_force(x)
    assert single.dtype == torch.float32
    assert (single - exact).abs().max() < 5e-6 * exact.abs().max()


def test_a_float32_network_is_sampled_in_float32():
    model = small_network().float()
    model[0].mask, model[2].mask = model[0].mask.float(), model[2].mask.float()
    cached = sampler(model, (1, 4, 4))
    assert cached.dtype == torch.float32
    images = cached.sample(4)
    assert images.dtype == torch.int64 and images.shape == (4, 1, 4, 4)
    assert set(images.unique().tolist()) <= set(range(LEVELS))


# ---- sessions


def test_step_and_feed_are_a_run_by_hand():
    cached = sampler(small_network(), (1, 4, 5))
    noise = uniform_noise(cached.steps, 3, cached.draw)
    session = ReferenceSession(cached.program, 3, torch.float64, cached.draw)
    images = torch.zeros(3, 1, 4, 5, dtype=torch.int64)
    for step in range(cached.steps):
        drawn = cached.draw(session.step(step), noise[step])
        session.feed(step, cached.draw.table[drawn])
        row, col, _ = cached.program.position(step)
        images[:, :, row, col] = drawn
    assert torch.equal(images, cached.sample(3, noise=noise))
    # A session starts again.
    assert torch.equal(images, session.run(noise))
    assert session.bytes < 8 * 3 * sum(node.channels * 20 for node in cached.program.nodes)


def test_steps_out_of_order_are_refused():
    session = ReferenceSession(sampler(small_network(), (1, 4, 5)).program, 2)
    with pytest.raises(ValueError, match="step: expected 0 of 20, got 1"):
        session.step(1)
    session.step(0)
    with pytest.raises(ValueError, match="step: expected 0 of 20, got 1"):
        session.feed(1, torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"values: expected \[2, 1\]"):
        session.feed(0, torch.zeros(3, 1))


def test_explain_accounts_for_all_multiply_adds():
    model = small_network()
    rows = sampler(model, (1, 6, 6)).explain()
    live = sum(int((m.weight * getattr(m, "mask", 1) != 0).sum()) for m in model if isinstance(m, nn.Conv2d))
    assert sum(row["weights"] for row in rows) == live
    assert {"node", "module", "op", "grain", "ring", "multiply_adds"} <= set(rows[0])
    # Dead positions (the first row reads nothing above) are still computed where a later tap reads them.
    assert 0.8 * live * 36 <= sum(row["multiply_adds"] for row in rows) <= live * 36


# ---- partial images


def test_known_pixels_are_kept_and_the_rest_is_drawn_given_them():
    model = small_network()
    cached = sampler(model, (1, 5, 6))
    given = torch.randint(LEVELS, (4, 1, 5, 6))
    mask = torch.rand(4, 1, 5, 6) < 0.4
    images = assert_draws_as_naive(cached, model, n=4, given=given, mask=mask)
    assert torch.equal(images[mask], given[mask])
    assert not torch.equal(images, given)


def test_everything_known_is_returned():
    cached = sampler(small_network(), (1, 4, 4))
    given = torch.randint(LEVELS, (2, 1, 4, 4))
    assert torch.equal(cached.sample(2, given=given, mask=torch.ones_like(given, dtype=torch.bool)), given)


# ---- draws


def test_categorical_draws_with_the_probabilities_of_the_softmax():
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64)
    n = 40_000
    # Evenly spaced noise makes the frequencies exact to 1 / n.
    noise = ((torch.arange(n) + 0.5) / n).double()[:, None]
    drawn = draw_of_levels(4)(logits.expand(n, 4), noise)
    frequencies = torch.bincount(drawn[:, 0], minlength=4) / n
    torch.testing.assert_close(frequencies.double(), logits.softmax(0), atol=1.1 / n, rtol=0)


def test_categorical_at_the_ends_of_the_noise():
    draw = draw_of_levels(4)
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0]], dtype=torch.float64)
    just_below_one = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0)).double()
    assert draw(logits, torch.zeros(1, 1, dtype=torch.float64)).item() == 1
    assert draw(logits, just_below_one.view(1, 1)).item() == 3
    assert draw(logits, torch.full((1, 1), 0.5, dtype=torch.float64)).item() == 3


@pytest.mark.parametrize("logits", [[math.nan, 0.0], [math.inf, 0.0], [-math.inf, -math.inf]])
def test_categorical_refuses_what_is_no_distribution(logits):
    with pytest.raises(ValueError, match="no distribution to draw from"):
        draw_of_levels(2)(torch.tensor([logits]), torch.zeros(1, 1, dtype=torch.float64))


def mixture_probabilities(parameters, levels):
    """Probability of each level of one channel by the paper's formula: the CDF's differences between the bin edges."""
    logits, means, log_scales = parameters.view(3, -1)
    scales = log_scales.clamp(min=-7).exp()
    edges = torch.arange(1, levels, dtype=torch.float64) * (2 / (levels - 1)) - 1 - 1 / (levels - 1)
    cdf = (torch.sigmoid((edges[:, None] - means) / scales) * logits.softmax(0)).sum(1)
    return torch.cat([cdf[:1], cdf.diff(), 1 - cdf[-1:]])


def test_logistic_mixture_draws_with_the_probabilities_of_the_discretised_density():
    draw = LogisticMixture(1, 3, levels=8)
    parameters = torch.tensor([0.2, -0.5, 1.0, -0.8, 0.1, 0.6, -1.5, -2.0, -1.0], dtype=torch.float64)
    side = 300
    even = ((torch.arange(side) + 0.5) / side).double()
    noise = torch.cartesian_prod(even, even)
    drawn = draw(parameters.expand(len(noise), -1), noise)
    frequencies = torch.bincount(drawn[:, 0], minlength=8).double() / len(noise)
    torch.testing.assert_close(frequencies, mixture_probabilities(parameters, 8), atol=2e-2 / 3, rtol=0)


def test_logistic_mixture_shifts_means_by_the_drawn_channels():
    draw = LogisticMixture(3, 2, levels=256)
    per_color = torch.zeros(3, 3, 2, dtype=torch.float64)
    per_color[:, 1] = -20.0
    per_color[:, 0, 1] = torch.tensor([0.5, 0.1, -0.2])
    # Slots of the second mixture's coefficients: green on red, blue on red, blue on green.
    per_color[:, 2, 1] = torch.tensor([0.3, -0.4, 0.7])
    parameters = torch.cat([torch.tensor([-50.0, 0.0]).double(), per_color.flatten()])[None]
    noise = torch.full((1, 4), 0.5, dtype=torch.float64)
    red, green, blue = draw.table[draw(parameters, noise)[0]].tolist()
    c = [math.tanh(v) for v in (0.3, -0.4, 0.7)]
    half_bin = 1 / 255
    assert abs(red - 0.5) <= half_bin
    assert abs(green - (0.1 + c[0] * red)) <= half_bin
    assert abs(blue - (-0.2 + c[1] * red + c[2] * green)) <= half_bin


def test_logistic_mixture_clips_noise_scales_and_values():
    draw = LogisticMixture(1, 1, levels=256)
    zero = torch.tensor([[0.0, 0.0]], dtype=torch.float64)
    wide = torch.tensor([[0.0, 0.0, 5.0]], dtype=torch.float64)
    assert draw(wide, zero).item() == 0 and draw(wide, 1 - 1e-12 + zero).item() == 255
    # exp(-7) times the logit of 1e-5 is -0.0105: one level below the middle, however small the scale is said to be.
    narrow = torch.tensor([[0.0, 0.0, -1000.0]], dtype=torch.float64)
    assert draw(narrow, zero).item() == math.floor((1 - math.exp(-7) * math.log((1 - 1e-5) / 1e-5)) * 127.5 + 0.5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logistic_mixture_refuses_parameters_that_are_not_finite(bad):
    with pytest.raises(ValueError, match="parameters: NaN or infinite"):
        LogisticMixture(1, 1)(torch.tensor([[0.0, bad, 0.0]]), torch.zeros(1, 2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Categorical(torch.zeros(2, 2)), "table: expected a vector"),
        (lambda: Categorical(torch.tensor([math.nan])), "table: expected a vector"),
        (lambda: LogisticMixture(2, 5), "channels: expected 1 or 3"),
        (lambda: LogisticMixture(3, 0), "num_mixtures"),
        (lambda: LogisticMixture(3, 1, levels=1), "levels"),
        (lambda: draw_of_levels(3)(torch.zeros(2, 4), torch.zeros(2, 1).double()), r"expected \[batch, 3\]"),
        (lambda: draw_of_levels(3)(torch.zeros(2, 3), torch.zeros(2, 1)), "uniforms: expected float64"),
    ],
)
def test_draws_refuse_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---- the public sampler


def test_the_same_seed_gives_the_same_images_as_naive_sampling():
    model = small_network()
    cached = sampler(model, (1, 4, 4))
    images = cached.sample(5, generator=torch.Generator().manual_seed(7))
    noise = uniform_noise(16, 5, cached.draw, torch.Generator().manual_seed(7))
    assert torch.equal(images, naive_sample(model, (1, 4, 4), noise, draw=cached.draw, dtype=torch.float64))
    assert not torch.equal(images, cached.sample(5, generator=torch.Generator().manual_seed(8)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n: expected at least 1"),
        ({"noise": torch.zeros(16, 2, 1)}, "noise: expected float64"),
        ({"noise": torch.zeros(15, 2, 1).double()}, r"noise: expected float64 \[16, 2, 1\]"),
        ({"noise": torch.ones(16, 2, 1).double()}, r"noise: expected numbers in \[0, 1\)"),
        ({"noise": torch.full((16, 2, 1), math.nan).double()}, r"noise: expected numbers in \[0, 1\)"),
        ({"given": torch.zeros(2, 1, 4, 4).long()}, "given, mask: expected both"),
        ({"given": torch.zeros(2, 1, 4, 4), "mask": torch.ones(2, 1, 4, 4) > 0}, "given: expected int64"),
        ({"given": torch.zeros(2, 1, 4, 4).long(), "mask": torch.ones(2, 1, 4, 3) > 0}, "mask: expected bool"),
        ({"given": torch.full((2, 1, 4, 4), 9), "mask": torch.ones(2, 1, 4, 4) > 0}, r"given: expected levels 0\.\.4"),
    ],
)
def test_sampling_refuses_bad_arguments(options, message):
    cached = sampler(small_network(), (1, 4, 4))
    with pytest.raises(ValueError, match=message):
        cached.sample(**{"n": 2, **options})


def test_a_draw_that_does_not_fit_the_network_is_refused():
    with pytest.raises(ValueError, match="draw: expects 6 parameters a step, the network makes 5"):
        sampler(small_network(), (1, 4, 4), draw=draw_of_levels(6))
    with pytest.raises(ValueError, match="draw: the program draws 1 values a step, the draw makes 3"):
        sampler(small_network(10), (1, 4, 4), draw=LogisticMixture(3, 1))


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="method: expected one of auto, cpp, captured, reference"):
        CachedSampler(small_network(), (1, 4, 4), draw=draw_of_levels(), method="fast")


def test_naive_sampling_refuses_a_draw_of_another_number_of_channels():
    noise = torch.rand(16, 2, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="draw: expected 1 values a step"):
        naive_sample(small_network(), (1, 4, 4), noise, draw=LogisticMixture(3, 1))
