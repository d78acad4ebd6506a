"""Diffusion models of all families: samplers, given a network that knows the truth, losses, guidance, likelihood."""

import math

import pytest
import torch

from fastgen.models import DDPM, EDM, MODELS, DiffusionProbabilisticModel, FlowMatching, SamplingDiverged, ScoreSDE
from fastgen.models.adaptive_ode import StepsExhausted, _weights, integrate
from fastgen.models.probability_flow import _draw_probes, _with_trace
from fastgen.models.score_sde import SDES
from fastgen.ops.philox import philox_normal
from tests.models.diffusion_cases import CONTINUOUS, COSINE, FAMILIES, TINY, knowing, make

every = pytest.mark.parametrize("family", FAMILIES)
continuous = pytest.mark.parametrize("family", CONTINUOUS)
MEAN, VARIANCE = 0.2, 0.09
# Sampler, steps and options with which the truth must come out.
SAMPLERS = [
    ("ddpm", "ddim", 100, {}),
    ("ddpm", "ddim", 100, {"eta": 0.5}),
    ("ddpm-v", "ddpm", 1000, {}),
    ("ddpm", "dpm++", 40, {}),
    ("ddpm", "euler", 100, {}),
    ("ddpm", "heun", 50, {}),
    ("ddpm-v", "ddim", 300, {}),
    ("ddpm-x0", "dpm++", 50, {}),
    ("edm", "heun", 30, {}),
    ("edm", "heun", 40, {"s_churn": 10.0}),
    ("edm", "euler", 200, {}),
    ("edm", "ode", 1, {}),
    ("flow-matching", "euler", 300, {}),
    ("flow-matching", "heun", 30, {}),
    ("flow-matching", "midpoint", 30, {}),
    ("flow-matching", "ode", 1, {}),
    ("ve", "pc", 300, {}),
    ("ve", "em", 1000, {}),
    ("ve", "ode", 1, {}),
    ("vp", "pc", 300, {"corrector": "none", "predictor": "ancestral"}),
    ("vp", "em", 500, {}),
    ("vp", "ode", 1, {}),
    ("subvp", "pc", 300, {}),
    ("subvp", "em", 500, {}),
    ("subvp", "ode", 1, {}),
]


@pytest.mark.parametrize("family, sampler, steps, options", SAMPLERS)
def test_a_network_that_knows_the_truth_draws_from_it(family, sampler, steps, options):
    clip = {"clip_sample": False} if family.startswith("ddpm") else {}
    model = knowing(make(family, levels=None, **clip), MEAN, VARIANCE)
    x = model.sample(2000, sampler=sampler, steps=steps, generator=torch.Generator().manual_seed(0), **options)
    assert x.shape == (2000, 1, 4, 4) and x.dtype == torch.float32
    assert x.mean().item() == pytest.approx(MEAN, abs=0.015)
    assert x.std().item() == pytest.approx(VARIANCE**0.5, rel=0.05)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_as_much_noise_as_ddpm_leaves_no_rounding_below_zero(schedule):
    model = make("ddpm", num_train_timesteps=1000, beta_schedule=schedule, beta_start=1e-4, beta_end=0.02)
    for steps in (2, 5, 20):
        assert model.sample(2, steps=steps, eta=1.0).shape == (2, *model.shape)


@pytest.mark.parametrize("sampler", DDPM.samplers)
def test_small_errors_where_there_is_only_noise_do_not_grow(sampler):
    """With a cosine schedule an error of the noise is 20,000 times that of x0, at the first step."""
    model = knowing(make("ddpm", levels=None, num_train_timesteps=1000, **COSINE), MEAN, VARIANCE)
    honest = model.output
    model.output = lambda x, time, labels=None: honest(x, time) + 0.02 * torch.sin(50 * x)
    x = model.sample(500, sampler=sampler, steps=15, generator=torch.Generator().manual_seed(0))
    assert x.abs().max() < 1.6 and x.mean().item() == pytest.approx(MEAN, abs=0.2) and x.std().item() < 0.5


def test_the_ancestor_draws_from_the_truth():
    model = make("2015", levels=None, learned_variance=False, num_train_timesteps=300, beta_end=0.05, beta_start=1e-4)
    x = knowing(model, MEAN, VARIANCE).sample(2000, generator=torch.Generator().manual_seed(0))
    assert x.mean().item() == pytest.approx(MEAN, abs=0.015)
    assert x.std().item() == pytest.approx(VARIANCE**0.5, rel=0.07)


@every
def test_it_learns(family):
    torch.manual_seed(0)
    model = make(family)
    images = torch.full((32, 1, 4, 4), 12)
    images[:, :, ::2] = 3

    def score():
        with torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            return sum(model.errors(images, generator=generator).mean().item() for _ in range(40))

    before = score()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        model.loss(images).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert score() < 0.7 * before


def test_likelihood_weights_are_those_of_the_sde():
    model, time = make("subvp", likelihood_weighting=True), torch.tensor([0.1, 0.7])
    expected = model.sde.squared_diffusion(time) / model.alpha_sigma(time)[1] ** 2
    torch.testing.assert_close(model.weights(time), expected)


@every
def test_samples_are_levels_and_follow_the_generator(family):
    model = make(family)
    draws = [
        model.sample(3, steps=50 if family == "2015" else 3, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert draws[0].shape == (3, 1, 4, 4) and draws[0].dtype == torch.uint8 and int(draws[0].max()) <= 16
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@every
def test_config_makes_the_model_again(family):
    model = make(family, num_classes=3)
    again = type(model).from_config(model.config)
    again.load_state_dict(model.state_dict())
    images, labels = torch.randint(0, 17, (5, 1, 4, 4)), torch.tensor([0, 1, 2, 0, 1])
    errors = [m.eval().errors(images, labels, generator=torch.Generator().manual_seed(3)) for m in (model, again)]
    assert torch.equal(*errors) and type(model) in MODELS.values()


@every
def test_the_loss_of_one_time_is_what_the_paper_says(family):
    """Written out again: noise, ask, compare, weigh."""
    model = make(family).eval()
    if family == "2015":
        pytest.skip("its loss is the bound, see test_variational_bound")
    images = torch.randint(0, 17, (6, 1, 4, 4))
    got = model.errors(images, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    time = model.draw_times(6, generator)
    if isinstance(model, DDPM):
        seed = torch.randint(2**63 - 1, (), generator=generator)
        noise = philox_normal((6, 1, 4, 4), seed=seed, offset=0, device="cpu").float()
    else:
        noise = torch.randn(6, 1, 4, 4, generator=generator)
    x0 = images / 8 - 1
    alpha, sigma = (value.view(-1, 1, 1, 1).float() for value in model.alpha_sigma(time))
    said = model.output(alpha * x0 + sigma * noise, time)
    truth = {"epsilon": noise, "sample": x0, "velocity": noise - x0, "v_prediction": alpha * noise - sigma * x0}
    expected = (said - truth[model.prediction_type]).square().mean((1, 2, 3)) * model.weights(time)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("weighting", ["min_snr", "p2"])
def test_weights_are_those_of_errors_of_x0(weighting):
    """Whatever the network says, its error as one of x0 has the same weight."""
    time = torch.tensor([5, 50, 400, 900])
    noise, x0 = torch.randn(2, 4, 1, 4, 4)
    losses = []
    for prediction in ("epsilon", "sample", "v_prediction"):
        model = DDPM(4, 1, 17, prediction_type=prediction, weighting=weighting, **TINY)
        alpha, sigma = (value.view(-1, 1, 1, 1) for value in model.alpha_sigma(time))
        x, guess = alpha * x0 + sigma * noise, x0 + 0.1
        eps = (x - alpha * guess) / sigma
        said = {"epsilon": eps, "sample": guess, "v_prediction": alpha * eps - sigma * guess}[prediction]
        losses.append((said - model.target(x0, noise, time)).square().mean((1, 2, 3)) * model.weights(time))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(losses[2], losses[1], rtol=1e-3, atol=1e-6)


@every
def test_the_score_is_the_gradient_of_the_log_density(family):
    # Of normal data, whose noised density is known.
    model = knowing(make(family, levels=None), MEAN, VARIANCE).double()
    time = model.draw_times(8)
    x = torch.randn(8, 1, 4, 4, dtype=torch.float64)
    alpha, sigma = (value.view(-1, 1, 1, 1).double() for value in model.alpha_sigma(time))
    expected = (alpha * MEAN - x) / (alpha**2 * VARIANCE + sigma**2)
    if family == "2015":
        pytest.skip("its network has outputs for the variance too")
    torch.testing.assert_close(model.score(x, time), expected, rtol=1e-4, atol=1e-4)


def test_a_denoising_autoencoder_is_a_score_network():
    """Vincent (2011): least squares on noisy data, and the best denoiser's residual over sigma^2 is the score."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    data = torch.randn(200_000, 4, generator=generator, dtype=torch.float64) @ mixing
    sigma = 0.7
    noisy = data + sigma * torch.randn(data.shape, generator=generator, dtype=torch.float64)
    autoencoder = torch.linalg.lstsq(noisy, data).solution
    x = torch.randn(10, 4, generator=generator, dtype=torch.float64)
    truth = -x @ torch.linalg.inv(mixing.T @ mixing + sigma**2 * torch.eye(4))
    torch.testing.assert_close((x @ autoencoder - x) / sigma**2, truth, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("family", ["ve", "vp", "subvp"])
def test_denoising_and_score_matching_are_one_objective(family):
    """One network as an autoencoder of data and as a score: equal scores, and equal gradients up to alpha/sigma."""
    score_model = make(family, levels=None).double()
    time = torch.full((3,), 0.4, dtype=torch.float64)
    x0, noise = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64)
    x = score_model.noised(x0, time, noise)
    alpha, sigma = (value.view(-1, 1, 1, 1) for value in score_model.alpha_sigma(time))
    reconstruction = score_model.denoise(x, time)
    torch.testing.assert_close((alpha * reconstruction - x) / sigma**2, score_model.score(x, time))
    torch.testing.assert_close(score_model.score(x, time), -score_model.output(x, time) / sigma)
    autoencoding = (reconstruction - x0).square().sum()
    matching = ((sigma * score_model.score(x, time) + noise) * sigma / alpha).square().sum()
    parameters = list(score_model.parameters())
    for one, other in zip(
        torch.autograd.grad(autoencoding, parameters, retain_graph=True, allow_unused=True),
        torch.autograd.grad(matching, parameters, allow_unused=True),
        strict=True,
    ):
        if one is not None:
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("sde", SDES)
def test_marginals_solve_the_sde(sde):
    """`d alpha / dt = f alpha` and `d sigma^2 / dt = 2 f sigma^2 + g^2`, and the time of a ratio is its inverse."""
    equation = SDES[sde]()
    time = torch.linspace(0.01, 1, 50, dtype=torch.float64, requires_grad=True)
    alpha, sigma = equation.alpha_sigma(time)
    drift, squared = equation.drift(time), equation.squared_diffusion(time)
    grows = alpha.requires_grad
    slope_alpha = torch.autograd.grad(alpha.sum(), time, retain_graph=True)[0] if grows else torch.zeros_like(time)
    slope_variance = torch.autograd.grad(sigma.square().sum(), time)[0]
    torch.testing.assert_close(slope_alpha, drift * alpha)
    torch.testing.assert_close(slope_variance, 2 * drift * sigma**2 + squared, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(equation.time_of_ratio(sigma / alpha), time, rtol=1e-7, atol=1e-9)


@continuous
@pytest.mark.parametrize("probes", ["rademacher", "exact"])
def test_likelihood_of_normal_data_is_exact(family, probes):
    # Where noise explodes, the mean of the data is lost only in the limit.
    options = {"sigma_min": 1e-3, "sigma_max": 500.0} if family in ("edm", "ve") else {}
    model = knowing(make(family, image_size=2, levels=None, **options), MEAN, VARIANCE).double()
    x = MEAN + VARIANCE**0.5 * torch.randn(16, 1, 2, 2, dtype=torch.float64)
    truth = torch.distributions.Normal(MEAN, VARIANCE**0.5).log_prob(x).sum((1, 2, 3))
    # The trace's estimate has no variance here: the flow scales every pixel alike.
    got, solution = model.log_prob(x, probes=probes, return_solution=True)
    torch.testing.assert_close(got, truth, rtol=0, atol=0.02)
    assert solution.evaluations < 400


def test_probes_estimate_the_trace():
    field = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4)).double()
    y, rows = torch.randn(6, 1, 2, 2, dtype=torch.float64), torch.tensor([5, 0, 3, 2, 1, 4])

    def velocity(y):
        return field(y.flatten(1)).view_as(y)

    jacobian = torch.func.vmap(torch.func.jacrev(field))(y.flatten(1))
    exact = jacobian.diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(_with_trace(velocity, y, None, rows)[1], exact)
    for kind in ("rademacher", "gaussian"):
        probes = _draw_probes(kind, 4000, y, None)
        torch.testing.assert_close(_with_trace(velocity, y, probes, rows)[1], exact, rtol=0.1, atol=0.06)


def test_each_sample_takes_its_own_steps():
    rates = torch.tensor([0.1, 5.0, 80.0], dtype=torch.float64)[:, None]
    seen = []

    def derivative(time, y, rows):
        seen.append(len(rows))
        return -rates[rows] * (y - time.cos()[:, None])

    y = torch.zeros(3, 1, dtype=torch.float64)
    together = integrate(derivative, y, 0.0, 2.0, rtol=1e-8, atol=1e-10)
    assert together.steps[0] < together.steps[1] < together.steps[2] and min(seen) == 1
    for row in range(3):
        # y' = -k (y - cos t) has a closed form.
        k, t = rates[row].item(), 2.0
        truth = k / (1 + k**2) * (k * math.cos(t) + math.sin(t) - k * math.exp(-k * t))
        assert together.y[row].item() == pytest.approx(truth, abs=1e-7)
    backwards = integrate(derivative, together.y[:1], 2.0, 0.0, rtol=1e-8, atol=1e-10)
    assert backwards.y.item() == pytest.approx(0, abs=1e-6)


def test_a_step_is_exact_for_polynomials():
    """Of the nodes that count, however they lie, and of no others."""
    nodes = torch.tensor([[0.0, -1.3, -2.0, -7.0], [-1.0, -1.1, -4.0, math.nan], [-0.5, 9.0, 9.0, 9.0]])
    known = torch.tensor([4, 3, 1])
    weights = _weights(nodes.double(), known)
    for row, count in enumerate(known):
        for power in range(count):
            found = (weights[row, :count] * nodes[row, :count].double() ** power).sum()
            assert found.item() == pytest.approx((-1) ** power / (power + 1))
        assert weights[row, count:].eq(0).all()


def test_a_smooth_path_takes_an_evaluation_for_each_step():
    y = torch.ones(4, 3, dtype=torch.float64)
    solution = integrate(lambda t, y, rows: -y * t.cos()[:, None], y, 0.0, 6.0, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(solution.y, y * math.exp(-math.sin(6.0)), rtol=0, atol=1e-6)
    # scipy's RK45 takes 314 for it.
    assert solution.steps.max() < solution.evaluations < 160


def test_a_derivative_that_is_nan_gives_up():
    with pytest.raises(StepsExhausted, match="max_steps: 1 of 1"):
        integrate(lambda t, y, rows: y * math.nan, torch.ones(1, 1), 0.0, 1.0, max_steps=20)


def test_bits_of_levels_bound_what_dequantised_data_have():
    model = knowing(make("vp"), 0.0, 0.2)
    images = torch.randint(4, 13, (8, 1, 4, 4))
    bits = model.bits_per_dim(images, generator=torch.Generator().manual_seed(0))
    # Noise of a width of 1/8 around levels / 8 - 1, under N(0, 0.2).
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    density = torch.distributions.Normal(0.0, 0.2**0.5).log_prob((images + noise) / 8 - 1) + math.log(1 / 8)
    torch.testing.assert_close(bits, -density.mean((1, 2, 3)) / math.log(2), rtol=0, atol=3e-3)


def test_guidance_extrapolates_from_no_label_to_the_label():
    model = make("ddpm", num_classes=3).eval()
    x, time, labels = torch.randn(4, 1, 4, 4), torch.tensor([7]), torch.tensor([0, 1, 2, 0])
    none = torch.full((4,), 3)
    with torch.no_grad():
        expected = model.output(x, time, none) + 2.5 * (model.output(x, time, labels) - model.output(x, time, none))
        torch.testing.assert_close(model.guided(4, labels, 2.5)(x, time), expected)
        torch.testing.assert_close(model.guided(4, labels, 1.0)(x, time), model.output(x, time, labels))


@every
def test_a_classifier_pulls_by_its_gradient(family):
    if family == "2015":
        pytest.skip("its reverse steps take no pull")
    # For normal data and a linear log-odds, the pulled score is that of another normal distribution.
    model = knowing(make(family, levels=None), MEAN, VARIANCE).double()

    def classifier(x, time):
        odds = 3.0 * x.flatten(1).sum(1)
        return torch.stack([torch.zeros_like(odds), odds], 1)

    x, time = torch.randn(5, 1, 4, 4, dtype=torch.float64), model.draw_times(1)
    labels = torch.ones(5, dtype=torch.long)
    alpha, sigma = (value.double().item() for value in model.alpha_sigma(time))
    x0 = model.predict_x0(x, time, model.guided(5, labels, None, classifier, 2.0)(x, time))
    gradient = 3.0 * (1 - torch.sigmoid(3.0 * x.flatten(1).sum(1))).view(-1, 1, 1, 1)
    expected = model.score(x, time) + 2.0 * gradient
    torch.testing.assert_close((alpha * x0 - x) / sigma**2, expected, rtol=1e-4, atol=1e-4)


def test_a_classifier_moves_samples_to_its_class():
    model = knowing(make("ddpm", levels=None, clip_sample=False), 0.0, 0.25)

    def classifier(x, time):
        odds = x.flatten(1).sum(1)
        return torch.stack([-odds, odds], 1)

    for label, sign in ((0, -1), (1, 1)):
        x = model.sample(200, labels=label, classifier=classifier, classifier_scale=3.0, steps=20)
        assert sign * x.mean().item() > 0.1


@every
def test_nan_stops_at_its_step_and_keeps_the_last_good_state(family):
    if family == "2015":
        return
    model = knowing(make(family, levels=None), MEAN, VARIANCE)
    honest, calls = model.output, []

    def broken(x, time, labels=None):
        calls.append(time)
        return honest(x, time) * (math.nan if len(calls) > 4 else 1.0)

    model.output = broken
    sampler = "em" if isinstance(model, ScoreSDE) else "euler"
    with pytest.raises(SamplingDiverged, match="after step 5 of 10") as caught:
        model.sample(2, sampler=sampler, steps=10)
    assert caught.value.step == 5 and caught.value.last_good.isfinite().all()


@every
def test_what_sample_refuses(family):
    model, labelled = make(family), make(family, num_classes=3, label_dropout=0.0)
    for options, message in (
        ({"sampler": "best"}, "sampler: expected one of"),
        ({"steps": 0}, "steps: expected a positive int"),
        ({"guidance": 2.0}, "guidance: expected labels"),
        ({"labels": 1}, "labels: this model is unconditional"),
    ):
        with pytest.raises(ValueError, match=message):
            model.sample(2, **options)
    with pytest.raises(ValueError, match="n: expected a positive int"):
        model.sample(0)
    with pytest.raises(ValueError, match="guidance: this model learnt without label_dropout"):
        labelled.sample(2, labels=1, guidance=2.0)
    with pytest.raises(ValueError, match="guidance: expected a number"):
        make(family, num_classes=3).sample(2, labels=1, guidance=math.nan)
    with pytest.raises(ValueError, match="labels: expected classes 0 to 2, got 3 to 3"):
        labelled.sample(2, labels=3)


@pytest.mark.parametrize("family", ["ddpm", "ddpm-v", "2015"])
def test_more_steps_than_in_training(family):
    with pytest.raises(ValueError, match="steps: expected"):
        make(family).sample(1, steps=5000)


@every
def test_what_a_loss_refuses(family):
    model, labelled = make(family), make(family, num_classes=3)
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(TypeError, match="images: expected integer levels"):
        model.loss(images.float())
    with pytest.raises(ValueError, match=r"images: expected \[batch, 1, 4, 4\]"):
        model.loss(images[:, :, :2])
    with pytest.raises(ValueError, match="images: expected levels 0 to 16, got 17"):
        model.loss(images + 17)
    with pytest.raises(ValueError, match="labels: this model has 3 classes"):
        labelled.loss(images)
    with pytest.raises(ValueError, match="labels: this model is unconditional"):
        model.loss(images, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"labels: expected \[2\]"):
        labelled.loss(images, torch.tensor([0]))
    with pytest.raises(TypeError, match="labels: expected integers"):
        labelled.loss(images, torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize(
    "cls, options, message",
    [
        (DDPM, {"weighting": "heavy"}, "weighting"),
        (DDPM, {"prediction_type": "score"}, "prediction_type"),
        (DDPM, {"beta_schedule": "steep"}, "beta_schedule"),
        (DDPM, {"levels": 1}, "levels"),
        (DDPM, {"label_dropout": 1.5}, "label_dropout"),
        (EDM, {"sigma_min": 3.0, "sigma_max": 2.0}, "sigma_min and sigma_max"),
        (EDM, {"sigma_data": 0.0}, "sigma_data"),
        (FlowMatching, {"times": "early"}, "times"),
        (FlowMatching, {"shift": 0.0}, "shift"),
        (ScoreSDE, {"sde": "vpsde"}, "sde"),
        (ScoreSDE, {"least_time": 0.0}, "least_time"),
        (ScoreSDE, {"beta_min": 3.0, "beta_max": 1.0}, "beta_min and beta_max"),
        (DiffusionProbabilisticModel, {"variance_type": "none"}, "variance_type"),
    ],
)
def test_what_a_constructor_refuses(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(4, 1, **{"levels": 17, **TINY, **options})


@continuous
def test_what_a_likelihood_refuses(family):
    model = make(family)
    with pytest.raises(TypeError, match="x: expected floating data"):
        model.log_prob(torch.zeros(1, 1, 4, 4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"x: expected \[batch, 1, 4, 4\]"):
        model.log_prob(torch.zeros(1, 1, 4, 5))
    with pytest.raises(ValueError, match="x: expected finite"):
        model.log_prob(torch.full((1, 1, 4, 4), math.nan))
    with pytest.raises(ValueError, match="probes"):
        model.log_prob(torch.zeros(1, 1, 4, 4), probes="many")
    with pytest.raises(ValueError, match="rtol and atol"):
        model.log_prob(torch.zeros(1, 1, 4, 4), rtol=0.0)


def test_pc_refuses_other_predictors():
    with pytest.raises(ValueError, match="predictor and corrector"):
        make("vp").sample(1, steps=2, predictor="magic")
