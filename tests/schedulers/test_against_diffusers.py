"""Every step of every scheduler equals diffusers', for each number of steps, kind of prediction and schedule."""

import pytest
import torch

from fastgen import schedulers as ours

diffusers = pytest.importorskip("diffusers")

STEPS = (10, 50, 1000)
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
PREDICTIONS = ("epsilon", "sample", "v_prediction")
# Their scheduler, our scheduler, options besides the kind of prediction.
CASES = [
    ("DDPMScheduler", {}),
    ("DDPMScheduler", {"clip_sample": False}),
    ("DDPMScheduler", {"variance_type": "fixed_large", "beta_schedule": "sigmoid", "clip_sample_range": 2.0}),
    ("DDPMScheduler", {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing"}),
    ("DDPMScheduler", {"thresholding": True, "sample_max_value": 1.5, "timestep_spacing": "linspace"}),
    (
        "DDPMScheduler",
        {**ZERO_SNR, "variance_type": "fixed_small_log"},
    ),
    ("DDIMScheduler", {}),
    ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    ("DDIMScheduler", {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "linspace"}),
    (
        "DDIMScheduler",
        {**ZERO_SNR, "beta_schedule": "scaled_linear"},
    ),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True, "beta_schedule": "scaled_linear"}),
    ("DPMSolverMultistepScheduler", {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing"}),
    (
        "DPMSolverMultistepScheduler",
        {"thresholding": True, "final_sigmas_type": "sigma_min", "lower_order_final": False},
    ),
    ("DPMSolverMultistepScheduler", ZERO_SNR),
    ("EulerDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "sigma_min": 0.03, "sigma_max": 15.0}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "final_sigmas_type": "sigma_min"}),
    ("EulerDiscreteScheduler", ZERO_SNR),
    ("HeunDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {"use_karras_sigmas": True, "clip_sample": True}),
    ("HeunDiscreteScheduler", {"timestep_spacing": "trailing", "beta_schedule": "squaredcos_cap_v2"}),
    ("FlowMatchEulerScheduler", {}),
    ("FlowMatchEulerScheduler", {"shift": 3.0}),
    ("FlowMatchEulerScheduler", {"shift": 2.0, "use_karras_sigmas": True}),
    ("FlowMatchEulerScheduler", {"stochastic_sampling": True}),
]


def named(case):
    name, options = case
    return "-".join([name.removesuffix("Scheduler"), *(f"{k}={v}" for k, v in options.items())])


def pair(name, options, prediction):
    if name.startswith("Flow"):
        return diffusers.FlowMatchEulerDiscreteScheduler(**options), ours.FlowMatchEulerScheduler(**options)
    options = {**options, "prediction_type": prediction}
    if name == "HeunDiscreteScheduler" or name == "DPMSolverMultistepScheduler":
        options.setdefault("beta_start", 0.00085)
    return getattr(diffusers, name)(**options), getattr(ours, name)(**options)


def predictions_of(name, options):
    if name.startswith("Flow"):
        return PREDICTIONS[:1]
    no_epsilon = options.get("rescale_betas_zero_snr") and name in ("DDPMScheduler", "DDIMScheduler")
    return PREDICTIONS[1:] if no_epsilon else PREDICTIONS


def assert_equal(mine, theirs, what, sample=None):
    """Within 1e-6 of the largest value there is, in the result or (where the noise is large) in what it came from."""
    scale = max(1.0, theirs.abs().max().item(), 0.0 if sample is None else sample.abs().max().item())
    error = (mine - theirs).abs().max().item()
    assert error <= 1e-6 * scale, f"{what}: {error / scale:.2e}"


def walk(theirs, mine, steps, dtype=torch.float32, **options):
    """Both schedulers along their trajectory: each step gets the same sample and the same output."""
    theirs.set_timesteps(steps)
    mine.set_timesteps(steps)
    if hasattr(theirs, "set_begin_index"):
        # As their pipelines do: where the first timestep comes twice, it would start from the second.
        theirs.set_begin_index(0)
    assert mine.init_noise_sigma == pytest.approx(float(getattr(theirs, "init_noise_sigma", 1.0)), rel=1e-6)
    torch.testing.assert_close(mine.timesteps.double(), theirs.timesteps.double(), rtol=1e-5, atol=1e-3)
    draws = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 3, 4, 4, generator=draws, dtype=dtype) * mine.init_noise_sigma
    same = [torch.Generator().manual_seed(1) for _ in range(2)]
    noisy = type(mine).__name__ in ("DDPMScheduler", "DDIMScheduler", "EulerDiscreteScheduler") or mine.config.get(
        "stochastic_sampling"
    )
    extra = [{"generator": generator} if noisy else {} for generator in same]
    compared = 0
    for index, (t_theirs, t_mine) in enumerate(zip(theirs.timesteps, mine.timesteps, strict=True)):
        if hasattr(theirs, "scale_model_input"):
            assert_equal(mine.scale_model_input(sample, t_mine), theirs.scale_model_input(sample, t_theirs), "scale")
        output = torch.randn(sample.shape, generator=draws, dtype=dtype)
        expected = theirs.step(output, t_theirs, sample, **extra[0], **options).prev_sample
        got = mine.step(output, t_mine, sample, **extra[1], **options).prev_sample
        if not expected.isfinite().all():
            # Theirs divides by a step of length 0 where a time is visited twice; ours does not.
            assert got.isfinite().all() and type(mine).__name__ == "DPMSolverMultistepScheduler"
            sample = got
            continue
        assert_equal(got, expected, f"step {index} at {t_mine:g}", sample)
        compared += 1
        sample = expected
    assert compared >= 0.9 * steps


@pytest.mark.parametrize("case", CASES, ids=named)
@pytest.mark.parametrize("steps", STEPS)
def test_every_step_equals_diffusers(case, steps):
    name, options = case
    # Where the noise starts from 20,000, theirs loses three digits in float32: (x - (x - sigma eps)) / sigma.
    dtype = torch.float64 if (name, options.get("timestep_spacing")) == ("HeunDiscreteScheduler", "trailing") else None
    for prediction in predictions_of(name, options):
        walk(*pair(name, options, prediction), steps, dtype or torch.float32)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("options", [{"eta": 0.5}, {"eta": 1.0, "use_clipped_model_output": True}])
def test_stochastic_ddim(options, prediction):
    for steps in (10, 50):
        walk(*pair("DDIMScheduler", {}, prediction), steps, **options)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_churn(prediction):
    walk(*pair("EulerDiscreteScheduler", {}, prediction), 50, s_churn=20.0, s_tmin=0.1, s_tmax=10.0, s_noise=1.01)


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler", "EulerDiscreteScheduler"])
def test_predicted_x0(name):
    for prediction in PREDICTIONS:
        theirs, mine = pair(name, {}, prediction)
        theirs.set_timesteps(10)
        mine.set_timesteps(10)
        sample, output = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
        for scheduler in (theirs, mine):
            scheduler.scale_model_input(sample, scheduler.timesteps[0])
        expected = theirs.step(output, theirs.timesteps[0], sample).pred_original_sample
        assert_equal(mine.step(output, mine.timesteps[0], sample).pred_original_sample, expected, prediction)


@pytest.mark.parametrize("name", sorted({name for name, _ in CASES}))
def test_noising(name):
    theirs, mine = pair(name, {}, "epsilon")
    theirs.set_timesteps(20)
    mine.set_timesteps(20)
    x0, noise = torch.randn(2, 4, 3, 5, 5)
    times = theirs.timesteps[[3, 7, 0, 19]]
    add = theirs.scale_noise if name.startswith("Flow") else theirs.add_noise
    expected = add(x0, times, noise) if name.startswith("Flow") else add(x0, noise, times)
    torch.testing.assert_close(mine.add_noise(x0, noise, mine.timesteps[[3, 7, 0, 19]]), expected, rtol=1e-6, atol=1e-6)
    if name in ("DDPMScheduler", "DDIMScheduler"):
        expected = theirs.get_velocity(x0, noise, times)
        torch.testing.assert_close(mine.get_velocity(x0, noise, times), expected, rtol=1e-6, atol=1e-6)


def test_a_configuration_of_theirs_makes_one_of_ours():
    theirs = diffusers.DDPMScheduler(beta_schedule="scaled_linear", clip_sample=False, num_train_timesteps=100)
    mine = ours.DPMSolverMultistepScheduler.from_config(theirs.config)
    assert mine.config.beta_schedule == "scaled_linear" and len(mine) == 100
    with pytest.raises(ValueError, match="algorithm_type"):
        ours.DPMSolverMultistepScheduler.from_config(
            diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++").config
        )


def test_a_configuration_of_ours_makes_one_of_theirs():
    mine = ours.DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction")
    theirs = diffusers.DDIMScheduler.from_config(dict(mine.config))
    walk(theirs, mine, 10)
