"""Loops that are run again, begun in the middle, left, copied and handed timesteps in every form."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch

from fastgen import schedulers as ours
from fastgen.schedulers.spacing import trailing_timesteps
from tests.schedulers.scheduler_cases import EVERY, PREDICTIONS, SPACINGS, calls, known, network, walk

every = pytest.mark.parametrize("cls", EVERY, ids=lambda cls: cls.__name__)
STEPS = 12


def made(cls, **options):
    scheduler = cls(**known(cls, timestep_spacing="leading", **options))
    scheduler.set_timesteps(STEPS)
    return scheduler


def some(batch=2):
    return torch.randn(batch, 1, 3, 3, generator=torch.Generator().manual_seed(batch))


@every
@pytest.mark.parametrize("first", [0, 1, 4, 11])
def test_a_loop_run_again_is_the_same(cls, first):
    scheduler, x = made(cls), some()
    timesteps = scheduler.timesteps[first:]
    expected = walk(made(cls), x, made(cls).timesteps[first:])
    for again in (timesteps, timesteps.clone(), timesteps.tolist(), timesteps):
        torch.testing.assert_close(walk(scheduler, x, again), expected)


@every
@pytest.mark.parametrize("left_after", range(1, 6))
def test_a_loop_that_was_left_leaves_nothing(cls, left_after):
    """Whatever it had in mind for its next step, the next loop is of other images."""
    scheduler, x = made(cls), some()
    expected = [walk(made(cls), x, made(cls).timesteps[first:]) for first in (0, 9)]
    for first, result in zip((0, 9), expected, strict=True):
        walk(scheduler, some(5), scheduler.timesteps[:left_after])
        torch.testing.assert_close(walk(scheduler, x, scheduler.timesteps[first:]), result)
    # A number may name two places, and the one that follows on is taken: set_begin_index ends the loop before.
    walk(scheduler, some(5), scheduler.timesteps[:left_after])
    scheduler.set_begin_index(0)
    torch.testing.assert_close(walk(scheduler, x, scheduler.timesteps.tolist()), expected[0])


@every
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s)), "torch.save"])
def test_copies_in_the_middle_go_on_by_themselves(cls, copied):
    scheduler, x = made(cls), some()
    expected = walk(made(cls), x)
    middle = walk(scheduler, x, scheduler.timesteps[:5])
    if copied == "torch.save":
        buffer = io.BytesIO()
        torch.save(scheduler, buffer)
        buffer.seek(0)
        other = torch.load(buffer, weights_only=False)
    else:
        other = copied(scheduler)
    # In turns, each going its own way.
    a, b = middle.clone(), middle * 0.5
    generators = [torch.Generator() for _ in range(2)]
    for generator in generators:
        generator.manual_seed(0)
        if "DDPM" in cls.__name__:
            for _ in range(5):
                torch.randn(x.shape, generator=generator)
    for t, u in zip(scheduler.timesteps[5:], other.timesteps[5:], strict=True):
        a = scheduler.step(network(scheduler.scale_model_input(a, t), t), t, a, generator=generators[0]).prev_sample
        b = other.step(network(other.scale_model_input(b, u), u), u, b, generator=generators[1]).prev_sample
    torch.testing.assert_close(a, expected)
    assert not torch.equal(a, b)
    assert other.config == scheduler.config and other.config.num_train_timesteps == 1000


@every
def test_nothing_is_kept_after_the_last_step(cls):
    scheduler = made(cls)
    walk(scheduler, some())
    assert scheduler._previous is None


@every
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_form_of_a_timestep(cls, prediction):
    for index in (0, 3, STEPS - 1):
        # Of Heun's, those that a number names too.
        index = index * calls(made(cls))
        scheduler = made(cls, prediction_type=prediction)
        x, times = some(), scheduler.timesteps
        noise = torch.ones_like(x)

        def step(scheduler, t, x=x, noise=noise):
            return copy.deepcopy(scheduler).step(0.3 * x, t, x, variance_noise=noise).prev_sample

        expected = step(scheduler, times[index])
        t = times[index]
        forms = [t.clone(), t[None], times[index : index + 1], t.item(), float(t), t.numpy(), t.numpy()[()], t.double()]
        forms += [
            np.float64(t),
            times[: index + 1][-1],
            times[index:][:1][0],
            times.view(1, -1)[0, index],
            times.flip(0),
        ]
        forms[-1] = forms[-1][len(times) - 1 - index]
        if t == t.round():
            forms += [int(t), np.int32(t), t.int(), t.long(), t.short(), torch.tensor(int(t), dtype=torch.int32)]
        forms += [part for part in (times[index::1], times[index::2], times[index::3]) if len(part)]
        forms = [form[0] if isinstance(form, torch.Tensor) and form.numel() > 1 else form for form in forms]
        for form in forms:
            torch.testing.assert_close(step(scheduler, form), expected, msg=lambda m, f=form: f"{f!r}: {m}")


@every
def test_a_part_of_the_schedule_may_be_assigned(cls):
    x, order = some(), calls(made(cls))
    for first in (1, 4, 9):
        expected = walk(made(cls), x, made(cls).timesteps[first * order :])
        for form in (lambda t: t, torch.clone, lambda t: t[:], lambda t: t.double()):
            scheduler = made(cls)
            scheduler.timesteps = form(scheduler.timesteps[first * order :])
            assert len(scheduler.timesteps) == order * (STEPS - 1) + 1 - first * order
            torch.testing.assert_close(walk(scheduler, x), expected)
            # And a part of that, and the numbers of its elements.
            scheduler.timesteps = scheduler.timesteps[order:]
            again = walk(made(cls), x, made(cls).timesteps[(first + 1) * order :])
            torch.testing.assert_close(walk(scheduler, x), again)
            torch.testing.assert_close(walk(scheduler, x, scheduler.timesteps.tolist()), again)
            x0, noise = some(3), torch.ones(3, 1, 3, 3)
            some_times = scheduler.timesteps[[0, order, 0]]
            got = scheduler.add_noise(x0, noise, some_times)
            torch.testing.assert_close(got, made(cls).add_noise(x0, noise, some_times))


@every
def test_what_is_assigned_has_to_be_of_the_schedule(cls):
    scheduler = made(cls)
    for wrong in (torch.tensor([123.25]), torch.tensor([]), scheduler.timesteps[None]):
        with pytest.raises(ValueError, match="timesteps: expected"):
            scheduler.timesteps = wrong
    jumps = scheduler.timesteps[::3]
    if cls in (ours.DDPMScheduler, ours.DDIMScheduler):
        # Theirs look at nothing else, and so a step goes to the next that was assigned.
        scheduler.timesteps = jumps
        assert walk(scheduler, some()).isfinite().all()
    else:
        with pytest.raises(ValueError, match="timesteps: expected a run of the"):
            scheduler.timesteps = jumps


def test_ddpm_goes_to_the_next_that_was_assigned():
    scheduler, custom, x = ours.DDPMScheduler(), ours.DDPMScheduler(), some()
    scheduler.set_timesteps(STEPS)
    scheduler.timesteps = scheduler.timesteps[::3]
    custom.set_timesteps(timesteps=scheduler.timesteps.tolist())
    assert torch.equal(walk(scheduler, x), walk(custom, x))


@every
def test_timesteps_written_over(cls):
    """What lies at a place may be another time by now."""
    scheduler, x = made(cls), some()
    element, order = scheduler.timesteps[0], calls(scheduler)
    expected = scheduler.step(0.3 * x, made(cls).timesteps[2 * order], x, variance_noise=x).prev_sample
    element.copy_(made(cls).timesteps[2 * order])
    fresh = copy.deepcopy(scheduler)
    torch.testing.assert_close(fresh.step(0.3 * x, fresh.timesteps[0], x, variance_noise=x).prev_sample, expected)
    element.fill_(123.25)
    with pytest.raises(ValueError, match="timestep: expected one of the"):
        scheduler.step(x, element, x)


@every
@pytest.mark.parametrize("options", [{}, {"clip_sample": True, "clip_x0": 1.0}, {"thresholding": True}], ids=str)
def test_x0_is_of_the_sample_at_the_step(cls, options):
    """Whatever becomes of the tensors, and of the scheduler."""
    for index in range(0, 8):
        scheduler = made(cls, **options)
        x, said = some() * 3, some(2).flip(0)
        walk(scheduler, x, scheduler.timesteps[:index])
        t = scheduler.timesteps[index]
        expected = copy.deepcopy(scheduler).step(said, t, x, variance_noise=x).pred_original_sample
        expected = expected.clone()
        after = copy.deepcopy(scheduler)
        output = scheduler.step(said, t, x, variance_noise=x)
        assert torch.equal(after.step(said, t, x, variance_noise=x, return_dict=False)[0], output.prev_sample)
        x.copy_(output.prev_sample)
        said.data.zero_()
        scheduler.set_timesteps(3)
        assert torch.equal(output.pred_original_sample, expected)
        # It is the caller's, and nothing of the scheduler's.
        output.pred_original_sample.zero_()


@every
def test_writing_into_a_result_changes_no_later_step(cls):
    x = some()
    spoilt, left = made(cls), made(cls)
    a = b = x
    for t, u in zip(spoilt.timesteps, left.timesteps, strict=True):
        said = network(a, t)
        one = spoilt.step(said, t, a, variance_noise=x)
        a = one.prev_sample.clone()
        for tensor in (one.prev_sample, one.pred_original_sample, said):
            tensor.fill_(1e3)
        b = left.step(network(b, u), u, b, variance_noise=x).prev_sample
    assert torch.equal(a, b)


@every
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_gradients_of_both_results(cls, prediction):
    scheduler = made(cls, prediction_type=prediction, clip_sample=False)
    x, out = (some().double().requires_grad_() for _ in range(2))
    t = scheduler.timesteps[2]

    def step(x, out, name):
        return getattr(copy.deepcopy(scheduler).step(out, t, x, variance_noise=torch.ones_like(x)), name)

    for name in ("prev_sample", "pred_original_sample"):
        assert torch.autograd.gradcheck(lambda x, out, name=name: step(x, out, name), (x, out))
    output = scheduler.step(out, t, x, variance_noise=torch.ones_like(x))
    with torch.no_grad():
        # Asked for later, under whatever mode.
        assert output.pred_original_sample.requires_grad


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_noising_in_half_precision_rounds_once(cls, dtype):
    for steps in (10, 1000):
        scheduler = made(cls, beta_schedule="scaled_linear", beta_start=0.00085)
        scheduler.set_timesteps(steps)
        times = scheduler.timesteps[[0, 1, steps // 2, -2, -1]]
        x0, noise = torch.randn(2, 5, 3, 8, 8).to(dtype)
        names = ["add_noise"] + ["get_velocity"] * (not times.is_floating_point())
        for name in names:
            got = getattr(scheduler, name)(x0, noise, times)
            expected = getattr(scheduler, name)(x0.double(), noise.double(), times)
            assert got.dtype == dtype
            error = (got.double() - expected).abs() / expected.abs().clamp(min=1e-2)
            assert error.max() <= torch.finfo(dtype).eps
            mixed = getattr(scheduler, name)(x0, noise.float(), times)
            assert mixed.dtype == torch.float32
            torch.testing.assert_close(mixed, expected.float(), rtol=1e-5, atol=1e-5)


def test_a_little_noise_in_half_precision_is_noise():
    for cls in (ours.DDPMScheduler, ours.DDIMScheduler):
        scheduler = cls()
        scheduler.set_timesteps(10)
        for dtype in (torch.bfloat16, torch.float16):
            zero, one = torch.zeros(1, 1, 2, 2, dtype=dtype), torch.ones(1, 1, 2, 2, dtype=dtype)
            assert scheduler.add_noise(zero, one, scheduler.timesteps[-1:])[0, 0, 0, 0].item() == pytest.approx(
                0.01, rel=1e-2
            )


@every
def test_every_form_of_the_times_to_noise_at(cls):
    scheduler = made(cls)
    x0, noise, t = some(1), torch.ones(1, 1, 3, 3), scheduler.timesteps[3]
    expected = scheduler.add_noise(x0, noise, t[None])
    forms = [t, t.clone(), [t.item()], t.numpy(), np.array([t]), scheduler.timesteps[3:4], t.item()]
    if t == t.round():
        forms += [t.int(), int(t), t.short()[None], np.int64(t)]
    for form in forms:
        assert torch.equal(scheduler.add_noise(x0, noise, form), expected)


@every
def test_a_generator_or_noise(cls):
    scheduler, x = made(cls), some()
    with pytest.raises(ValueError, match="variance_noise: expected a generator or noise, got both"):
        scheduler.step(x, scheduler.timesteps[0], x, generator=torch.Generator(), variance_noise=x)


@every
@pytest.mark.parametrize("spacing", SPACINGS)
def test_the_default_device_is_of_no_matter(cls, spacing):
    """Tables are the host's where models are made on no device at all, to be filled later."""
    options = known(cls, timestep_spacing=spacing, clip_x0=1.0)
    x = some()
    expected = cls(**options)
    expected.set_timesteps(STEPS)
    with torch.device("meta"):
        scheduler = cls(**options)
        assert scheduler.table.device.type == scheduler.timesteps.device.type == "cpu"
        scheduler.set_timesteps(STEPS)
        extra = {"s_churn": 3.0} if cls is ours.EulerDiscreteScheduler else {}
        noise = torch.ones(x.shape, device="cpu")
        one = scheduler.step(x, scheduler.timesteps[2], x, variance_noise=noise, **extra)
        scheduler.add_noise(x, x, scheduler.timesteps[:2])
    other = expected.step(x, expected.timesteps[2], x, variance_noise=noise, **extra)
    assert torch.equal(one.prev_sample, other.prev_sample)


@pytest.mark.parametrize("training", [1, 2, 7, 50, 999, 1000, 1024])
def test_trailing_steps_are_counted(training):
    for steps in range(1, training + 1):
        times = trailing_timesteps(training, steps)
        assert len(times) == steps and times[0] == training - 1 and times[-1] >= 0 and (np.diff(times) < 0).all()
        exact = (training - np.arange(steps) * training / steps) - 1
        assert np.abs(times - exact).max() <= 0.5 + 1e-9


def test_arrays_in_a_configuration_are_portable():
    import json

    given = np.linspace(0.001, 0.02, 10)
    scheduler = ours.DDPMScheduler(num_train_timesteps=10, trained_betas=given, beta_end=np.float64(0.02))
    again = ours.DDPMScheduler.from_config(json.loads(json.dumps(scheduler.config)))
    assert torch.equal(again.betas, scheduler.betas) and again.config == scheduler.config
