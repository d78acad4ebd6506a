"""What schedulers promise beside numbers: where a step stands, what is refused, what is learnt from papers."""

import pytest
import torch

from fastgen.schedulers import (
    BETA_SCHEDULES,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerScheduler,
    HeunDiscreteScheduler,
    betas,
    rescale_zero_terminal_snr,
)

ALL = [
    DDPMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    FlowMatchEulerScheduler,
]
every = pytest.mark.parametrize("scheduler_class", ALL)


def exact_output(scheduler, x, index, mean, variance):
    """What a perfect network says for data that are normal: E[x0 | x], as epsilon (or a velocity)."""
    if isinstance(scheduler, FlowMatchEulerScheduler):
        sigma = scheduler.sigmas[index].double()
        x0 = mean + (1 - sigma) * variance / ((1 - sigma) ** 2 * variance + sigma**2) * (x - (1 - sigma) * mean)
        return (x - x0) / sigma
    if hasattr(scheduler, "sigmas"):
        sigma = scheduler.sigmas[index].double()
        variance_preserving = isinstance(scheduler, DPMSolverMultistepScheduler)
        alpha = 1 / (sigma**2 + 1) ** 0.5 if variance_preserving else torch.ones_like(sigma)
        sigma = sigma * alpha
    else:
        cumprod = scheduler.alphas_cumprod[int(scheduler.timesteps[index])].double()
        alpha, sigma = cumprod**0.5, (1 - cumprod) ** 0.5
    x0 = mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)
    return (x - alpha * x0) / sigma


@every
def test_a_perfect_network_gives_the_distribution_of_the_data(scheduler_class):
    mean, variance = 0.3, 0.04
    options = {} if scheduler_class in (DPMSolverMultistepScheduler, EulerDiscreteScheduler) else {"clip_sample": False}
    options = {} if scheduler_class is FlowMatchEulerScheduler else options
    scheduler = scheduler_class(**options)
    # The posterior's variance is that of the reverse step only in the limit of many.
    scheduler.set_timesteps(1000 if scheduler_class is DDPMScheduler else 250)
    x = torch.randn(20_000, 1, dtype=torch.float64) * scheduler.init_noise_sigma
    for index, t in enumerate(scheduler.timesteps):
        x = scheduler.step(exact_output(scheduler, x, index, mean, variance), t, x).prev_sample
    assert x.mean().item() == pytest.approx(mean, abs=0.01)
    assert x.std().item() == pytest.approx(variance**0.5, rel=0.04)


@every
def test_numbers_and_elements_of_timesteps_mean_the_same(scheduler_class):
    walks = []
    for as_number in (True, False):
        scheduler = scheduler_class()
        scheduler.set_timesteps(7)
        x = torch.ones(1, 1, 2, 2)
        for t in scheduler.timesteps:
            generator = torch.Generator().manual_seed(0)
            x = scheduler.step(0.1 * x, float(t) if as_number else t, x, generator=generator).prev_sample
        walks.append(x)
    assert torch.equal(*walks)


@pytest.mark.parametrize("options", [{}, {"clip_sample": False}], ids=["clipped", "free"])
def test_noise_drawn_in_the_pass_is_normal_and_seeded(options):
    scheduler = DDPMScheduler(**options)
    scheduler.set_timesteps(10)
    x, t = torch.zeros(100, 1, 32, 32), scheduler.timesteps[4]
    mean = scheduler.step(x, t, x, variance_noise=torch.zeros_like(x)).prev_sample
    one = scheduler.step(x, t, x, variance_noise=torch.ones_like(x)).prev_sample
    torch.manual_seed(3)
    first, second = (scheduler.step(x, t, x).prev_sample for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(first, scheduler.step(x, t, x).prev_sample) and not torch.equal(first, second)
    noise = (first - mean) / (one - mean)
    assert noise.mean().item() == pytest.approx(0, abs=0.01) and noise.std().item() == pytest.approx(1, rel=0.01)
    assert noise.pow(4).mean().item() == pytest.approx(3, rel=0.05)


@every
def test_a_loop_may_begin_in_the_middle(scheduler_class):
    scheduler = scheduler_class()
    scheduler.set_timesteps(10)
    x = torch.ones(1, 1, 2, 2)
    scheduler.step(x, scheduler.timesteps[0], x)
    scheduler.set_timesteps(10)
    begun = scheduler.step(x, scheduler.timesteps[4], x).prev_sample
    assert begun.isfinite().all() and not torch.equal(begun, x)
    scheduler.set_begin_index(4)
    assert scheduler.step_index == 4


@every
def test_more_steps_than_in_training(scheduler_class):
    scheduler = scheduler_class(num_train_timesteps=20)
    with pytest.raises(ValueError, match=r"num_inference_steps: expected at most num_train_timesteps=20, got 21"):
        scheduler.set_timesteps(21)
    with pytest.raises(ValueError, match="num_inference_steps"):
        scheduler.set_timesteps(0)


@every
def test_a_step_that_is_not_in_the_schedule(scheduler_class):
    scheduler = scheduler_class()
    scheduler.set_timesteps(10)
    x = torch.ones(1, 1, 2, 2)
    with pytest.raises(ValueError, match=r"timestep: expected one of the .* of the schedule"):
        scheduler.step(x, 123.456, x)
    with pytest.raises(ValueError, match=r"model_output: expected \[1, 1, 2, 2\]"):
        scheduler.step(x[:, :, :1], scheduler.timesteps[0], x)
    with pytest.raises(ValueError, match="timestep: expected one for the whole batch"):
        scheduler.step(x, scheduler.timesteps[:2], x)
    with pytest.raises(ValueError, match="begin_index"):
        scheduler.set_begin_index(1000)


@every
def test_noise_that_does_not_fit(scheduler_class):
    scheduler = scheduler_class()
    scheduler.set_timesteps(10)
    x = torch.ones(2, 1, 2, 2)
    with pytest.raises(ValueError, match="noise: expected"):
        scheduler.add_noise(x, x[:1], scheduler.timesteps[:2])
    with pytest.raises(ValueError, match="timesteps: expected"):
        scheduler.add_noise(x, x, scheduler.timesteps[:3])
    with pytest.raises(ValueError, match="timesteps: expected"):
        scheduler.add_noise(x, x, torch.tensor([5000, 1], dtype=scheduler.timesteps.dtype))


@pytest.mark.parametrize("scheduler_class", ALL[:5])
def test_options_that_are_none(scheduler_class):
    for options in (
        {"prediction_type": "score"},
        {"beta_schedule": "steep"},
        {"beta_start": 0.5, "beta_end": 0.1},
        {"num_train_timesteps": 0},
        {"trained_betas": [0.1, 0.2]},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            scheduler_class(**options)
    with pytest.raises(ValueError, match="timestep_spacing"):
        scheduler_class(timestep_spacing="uneven").set_timesteps(10)


@pytest.mark.parametrize("scheduler_class", ALL[:2])
def test_epsilon_says_nothing_at_zero_snr(scheduler_class):
    with pytest.raises(ValueError, match="prediction_type: expected 'v_prediction' or 'sample'"):
        scheduler_class(rescale_betas_zero_snr=True)


def test_a_loop_that_begins_at_a_correction_begins_with_a_prediction():
    results = []
    for first in (1, 2):
        scheduler = HeunDiscreteScheduler()
        scheduler.set_timesteps(5)
        x = torch.ones(1, 1, 2, 2)
        results.append(scheduler.step(x, scheduler.timesteps[first], x).prev_sample)
    assert torch.equal(*results) and not scheduler.state_in_first_order


@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
def test_schedules_go_from_data_to_noise(schedule):
    values = betas(schedule, 1000)
    assert bool(((values > 0) & (values < 1)).all()) and bool((values[1:] >= values[:-1]).all())
    cumprod = (1 - values.double()).cumprod(0)
    assert cumprod[0] > 0.999 and cumprod[-1] < 1e-2
    ended = (1 - rescale_zero_terminal_snr(values)).cumprod(0)
    assert ended[-1] == 0 and ended[0].item() == pytest.approx(cumprod[0].item(), rel=1e-6)


@pytest.mark.gpu
@every
def test_no_step_waits_for_the_device(scheduler_class):
    scheduler = scheduler_class()
    scheduler.set_timesteps(10, "cuda")
    x = torch.randn(2, 1, 4, 4, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for t in scheduler.timesteps:
            x = scheduler.step(scheduler.scale_model_input(x, t), t, x).prev_sample
    finally:
        torch.cuda.set_sync_debug_mode("default")
