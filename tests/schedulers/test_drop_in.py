"""Schedulers in a loop written for diffusers': the same numbers, whatever the dtype, the spacing and the start."""

import copy
import inspect
import json
import sys

import numpy as np
import pytest
import torch

from fastgen import schedulers as ours
from tests.schedulers.scheduler_cases import EVERY, PREDICTIONS, SPACINGS, calls, known, theirs_of

diffusers = pytest.importorskip("diffusers")

every = pytest.mark.parametrize("cls", EVERY, ids=lambda cls: cls.__name__)
# Dtypes of the sample and of the network's output: a network under autocast, or in half precision, and no mixing.
DTYPES = [
    (torch.float64, torch.float64),
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.bfloat16, torch.float32),
]
STEPS, START = 9, 4


def pair(cls, **options):
    options = known(cls, **options)
    return theirs_of(cls)(**options), cls(**options)


@pytest.fixture
def same_noise(monkeypatch):
    """Noise of theirs is what this holds, in the dtype that it is asked in."""
    held = []
    for module in [module for name, module in sys.modules.items() if name.startswith("diffusers.schedulers.")]:
        if "randn_tensor" in vars(module):
            draw = lambda shape, dtype=None, **rest: held[-1].to(dtype)  # noqa: E731
            monkeypatch.setattr(module, "randn_tensor", draw)
    return held


@every
@pytest.mark.parametrize("start", [0, START])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_step_in_every_dtype(cls, prediction, spacing, start, same_noise):
    """Within a rounding of what theirs computes in float64 (some of theirs in float32), and of theirs' dtype."""
    for dtype, output_dtype in DTYPES:
        theirs, mine = pair(cls, prediction_type=prediction, timestep_spacing=spacing, beta_start=0.001)
        exact = copy.deepcopy(theirs)
        first = start * calls(mine)
        for scheduler in (theirs, exact, mine):
            scheduler.set_timesteps(STEPS)
        for scheduler in (theirs, exact):
            if first and hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(first)
        draws = torch.Generator().manual_seed(0)
        x = torch.randn(2, 3, 4, 4, generator=draws).to(dtype) * float(getattr(theirs, "init_noise_sigma", 1.0))
        for t, element in zip(theirs.timesteps[first:], mine.timesteps[first:], strict=True):
            out = torch.randn(x.shape, generator=draws).to(output_dtype)
            same_noise.append(torch.randn(x.shape, generator=draws).to(output_dtype))
            if hasattr(theirs, "scale_model_input"):
                expected = exact.scale_model_input(x.double(), t)
                assert_rounded(mine.scale_model_input(x, element), expected, theirs.scale_model_input(x, t).dtype)
            expected = exact.step(out.double(), t, x.double()).prev_sample
            like = theirs.step(out, t, x).prev_sample
            got = mine.step(out, element, x, variance_noise=same_noise[-1]).prev_sample
            assert_rounded(got, expected, like.dtype, x)
            x = like.to(dtype)


def assert_rounded(got, expected, dtype, sample=None):
    assert got.dtype == dtype
    scale = max(1.0, expected.abs().max().item(), 0.0 if sample is None else sample.abs().max().item())
    # Some of theirs are in float32 whatever they are given.
    unit = max(torch.finfo(got.dtype).eps, 4 * torch.finfo(torch.float32).eps)
    error = (got.double() - expected.double()).abs().max().item()
    assert error <= unit * scale, f"{error / scale:.2e}"


@every
def test_defaults_are_theirs(cls):
    mine, theirs = (inspect.signature(kind.__init__).parameters for kind in (cls, theirs_of(cls)))
    assert {name: mine[name].default for name in mine if name in theirs} == {
        name: theirs[name].default for name in mine if name in theirs
    }
    # What theirs has not may not change what a configuration of theirs does.
    assert all(not mine[name].default for name in mine.keys() - theirs.keys())


@every
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_number_of_steps(cls, spacing):
    training = 100
    theirs, mine = pair(cls, num_train_timesteps=training, timestep_spacing=spacing)
    for steps in range(1, training + 1):
        mine.set_timesteps(steps)
        assert mine.num_inference_steps == steps and len(mine.timesteps) == calls(mine) * (steps - 1) + 1
        theirs.set_timesteps(steps)
        # Where theirs has a step too many, at -1, it is the last.
        expected = theirs.timesteps[: len(mine.timesteps)].double()
        torch.testing.assert_close(mine.timesteps.double(), expected, rtol=1e-6, atol=1e-5)
        assert mine.timesteps.min() >= 0 and mine.timesteps.max() <= training


@every
@pytest.mark.parametrize("options", [{}, {"use_karras_sigmas": True}], ids=["plain", "karras"])
def test_numbers_of_numpy(cls, options):
    theirs, mine = pair(cls, **options)
    for steps in (np.int64(1), np.int32(10), np.uint8(10), torch.tensor(10)):
        theirs.set_timesteps(int(steps))
        mine.set_timesteps(steps)
        torch.testing.assert_close(mine.timesteps.double(), theirs.timesteps.double(), rtol=1e-6, atol=1e-4)
    x = torch.ones(1, 1, 2, 2)
    t = mine.timesteps[4]
    expected = copy.deepcopy(mine).step(x, t, x, variance_noise=x).prev_sample
    for number in (t.numpy()[()], np.float64(t), np.float32(t), t.numpy(), np.array([t])[0]):
        assert torch.equal(copy.deepcopy(mine).step(x, number, x, variance_noise=x).prev_sample, expected)
    for wrong in (0, -1, True, 2.5, "10", np.float64(3)):
        with pytest.raises(ValueError, match="num_inference_steps: expected a positive int"):
            mine.set_timesteps(wrong)


@every
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_schedules_of_the_callers(cls, kind, steps):
    given = {"timesteps": [999, 850, 736, 30, 13][:steps], "sigmas": [14.6, 6.5, 3.9, 0.7, 0.2][:steps]}
    if cls is ours.FlowMatchEulerScheduler:
        given = {"timesteps": [999.0, 700.5, 300.0, 100.0, 1.0][:steps], "sigmas": [1.0, 0.7, 0.4, 0.2, 0.01][:steps]}
    elif cls is ours.EulerDiscreteScheduler:
        given["sigmas"].append(0.0)
    theirs, mine = pair(cls, shift=3.0)
    takes = inspect.signature(theirs.set_timesteps).parameters
    for name in given.keys() & takes.keys():
        theirs.set_timesteps(**{name: given[name]})
        mine.set_timesteps(**{name: kind(given[name])})
        compare_loops(theirs, mine)
        with pytest.raises(ValueError):
            mine.set_timesteps(steps + 1, **{name: given[name]})
        for wrong in ([], [[5.0]], [float("nan")], [-3.0], "ab"):
            with pytest.raises(ValueError, match=f"{name}: expected"):
                mine.set_timesteps(**{name: wrong})
    if cls is ours.FlowMatchEulerScheduler:
        theirs.set_timesteps(steps, **given)
        mine.set_timesteps(steps, **given)
        compare_loops(theirs, mine)


def compare_loops(theirs, mine):
    torch.testing.assert_close(mine.timesteps.double(), theirs.timesteps.double(), rtol=1e-5, atol=1e-3)
    draws = torch.Generator().manual_seed(3)
    x = torch.randn(2, 3, 4, 4, generator=draws, dtype=torch.float64)
    if hasattr(theirs, "set_begin_index"):
        theirs.set_begin_index(0)
    for t, element in zip(theirs.timesteps, mine.timesteps, strict=True):
        out = torch.randn(x.shape, generator=draws, dtype=torch.float64)
        noise = {"generator": torch.Generator().manual_seed(1)} if draws_noise(theirs) else {}
        expected = theirs.step(out, t, x, **noise).prev_sample
        noise = {"generator": torch.Generator().manual_seed(1)}
        scale = max(1.0, x.abs().max().item(), expected.abs().max().item())
        got = mine.step(out, element, x, **noise).prev_sample
        torch.testing.assert_close(got / scale, expected / scale, rtol=0, atol=2e-6)
        x = expected


def draws_noise(theirs):
    return "generator" in inspect.signature(theirs.step).parameters


@every
def test_a_list_of_generators(cls):
    """One for each sample, which then draws the same whatever else is in the batch."""
    options = known(cls, stochastic_sampling=True)
    extra = {"eta": 1.0} if cls is ours.DDIMScheduler else {}
    if cls is ours.EulerDiscreteScheduler:
        extra = {"s_churn": 5.0}
    x, out = torch.randn(2, 3, 1, 4, 4)

    def step(scheduler, x, out, seeds):
        scheduler.set_timesteps(10)
        generator = [torch.Generator().manual_seed(seed) for seed in seeds]
        generator = {"generator": generator} if draws_noise(scheduler) else {}
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(4)
        return scheduler.step(out, scheduler.timesteps[4], x, **extra, **generator).prev_sample

    whole = step(cls(**options), x, out, (3, 4, 5))
    torch.testing.assert_close(whole, step(theirs_of(cls)(**options), x, out, (3, 4, 5)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whole[1:2], step(cls(**options), x[1:2], out[1:2], (4,)))
    if not torch.equal(whole, step(cls(**options), x, out, (6, 7, 8))):
        with pytest.raises(ValueError, match="generator: expected one, or 3, one for each sample, got 2"):
            step(cls(**options), x, out, (3, 4))


# Another's options: set by nobody, set to what others have not, and what Stable Diffusion's scheduler was saved with.
CONFIGS = [
    {},
    {"timestep_spacing": "trailing", "clip_sample": True},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1},
    {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 9.0, "num_train_timesteps": 500},
    {"thresholding": True, "sample_max_value": 2.0, "prediction_type": "v_prediction"},
]


@pytest.mark.parametrize("saved", [False, True], ids=["live", "json"])
@pytest.mark.parametrize("options", CONFIGS, ids=lambda options: ",".join(options) or "none")
@pytest.mark.parametrize("source", [theirs_of(cls) for cls in EVERY] + ["PNDMScheduler", "UniPCMultistepScheduler"])
@every
def test_configs_of_others(cls, source, options, saved, tmp_path):
    source = getattr(diffusers, source) if isinstance(source, str) else source
    other = source(**known(source, **options))
    config = other.config
    if saved:
        other.save_config(tmp_path)
        config = json.loads((tmp_path / "scheduler_config.json").read_text())
    theirs, mine = theirs_of(cls).from_config(config), cls.from_config(config)
    shared = theirs.config.keys() & inspect.signature(cls.__init__).parameters.keys()
    assert {key: mine.config[key] for key in shared} == {key: theirs.config[key] for key in shared}
    again = theirs_of(cls).from_config(mine.config)
    for scheduler in (theirs, mine, again):
        scheduler.set_timesteps(4)
    compare_loops(theirs, mine)
    mine.set_timesteps(4)
    compare_loops(again, mine)
    # And on to a third, which finds what the second did not know.
    third = ours.EulerDiscreteScheduler.from_config(mine.config)
    third.set_timesteps(4)
    expected = diffusers.EulerDiscreteScheduler.from_config(theirs.config)
    expected.set_timesteps(4)
    torch.testing.assert_close(third.sigmas, expected.sigmas)


def test_the_sigma_of_a_pipeline_whose_spacing_nobody_set():
    options = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    for other in (diffusers.PNDMScheduler(**options), ours.DDIMScheduler(**options)):
        scheduler = ours.EulerDiscreteScheduler.from_config(other.config)
        scheduler.set_timesteps(4)
        assert scheduler.init_noise_sigma == pytest.approx(14.6146, abs=1e-3)


@every
def test_options_that_would_change_the_numbers_are_refused(cls):
    """Whatever theirs takes and ours has not: a changed value is no other numbers without a word."""
    theirs = inspect.signature(theirs_of(cls).__init__).parameters
    without_effect = {"base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "flow_shift"}
    without_effect |= {"time_shift_type"}
    missing = theirs.keys() - inspect.signature(cls.__init__).parameters.keys() - {"self"} - without_effect
    assert missing == cls.fixed_options.keys()
    for name in missing:
        assert theirs[name].default in cls.fixed_options[name]
        for given in ({"config": {name: "another"}}, {"config": {}, name: "another"}):
            with pytest.raises(ValueError, match=f"config: {cls.__name__} has {name}="):
                cls.from_config(**given)
        assert cls.from_config({}, **{name: theirs[name].default})
    with pytest.raises(TypeError, match="has no option sharpen"):
        cls.from_config({}, sharpen=True)


def test_what_nobody_knows_does_nothing():
    assert "clip_sample" in ours.EulerDiscreteScheduler.from_config({"clip_sample": True}).config
    with pytest.warns(UserWarning, match="no scheduler has sharpen"):
        assert ours.DDIMScheduler.from_config({"sharpen": True}).config.sharpen is True
    x = torch.full((1, 1, 2, 2), 5.0)
    scheduler = ours.EulerDiscreteScheduler.from_config({"clip_sample": True})
    assert scheduler.step(x, scheduler.timesteps[-1], x).pred_original_sample.max() > 1
    scheduler = ours.EulerDiscreteScheduler(clip_x0=1.0)
    assert scheduler.step(x, scheduler.timesteps[-1], x).pred_original_sample.max() == 1


@pytest.mark.parametrize("largest", [0.25, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("cls", [cls for cls in EVERY if known(cls, thresholding=True)], ids=lambda cls: cls.__name__)
def test_the_largest_value_of_thresholding(cls, largest):
    theirs, mine = pair(cls, thresholding=True, sample_max_value=largest)
    theirs.set_timesteps(10)
    mine.set_timesteps(10)
    compare_loops(theirs, mine)
    with pytest.raises(ValueError, match="sample_max_value: expected a positive number"):
        cls(thresholding=True, sample_max_value=0.0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_x0_behind_churn(prediction):
    theirs, mine = pair(ours.EulerDiscreteScheduler, prediction_type=prediction)
    x, out = torch.randn(2, 2, 1, 4, 4)
    found = []
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(10)
        generator = torch.Generator().manual_seed(0)
        found.append(scheduler.step(out, scheduler.timesteps[0], x, s_churn=5.0, generator=generator))
    for name in ("prev_sample", "pred_original_sample"):
        torch.testing.assert_close(getattr(found[1], name), getattr(found[0], name), rtol=1e-5, atol=1e-5)


@every
def test_tables_follow_the_samples(cls):
    """Theirs need no `device`: here a scheduler of whose tables another device has the numbers."""
    _, mine = pair(cls)
    mine.set_timesteps(5)
    table = mine.table
    mine._move_tables(torch.device("meta"))
    assert mine.table.device.type == "meta" and mine.table.shape == table.shape
