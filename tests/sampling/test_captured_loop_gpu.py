"""Diffusion's loop as one CUDA graph, on a GPU: `make gpu` runs these."""

import pytest
import torch
from torch import nn

from fastgen.models import LatentDiffusion, RealNVP, SamplingDiverged
from fastgen.sampling import capture
from tests.models.diffusion_cases import make
from tests.sampling.test_captured_loop import EVERY, STEPS, small

pytestmark = pytest.mark.gpu


def assert_draws_the_same(draw, model, n, **options):
    """Call after call, from the numbers that one seed gives."""
    torch.manual_seed(7)
    drawn = [draw() for _ in range(3)]
    torch.manual_seed(7)
    expected = [model.sample(n, **options) for _ in range(3)]
    assert drawn[0].is_cuda and not torch.equal(drawn[0], drawn[1])
    torch.testing.assert_close(drawn, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("family, sampler, options", EVERY)
def test_a_graph_draws_what_sample_draws(family, sampler, options):
    model = small(family).cuda()
    options = {"sampler": sampler, "steps": STEPS, **options}
    assert_draws_the_same(capture(model, 3, **options), model, 3, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_a_unet_and_the_kernels(dtype):
    model = make("ddpm", levels=None, num_classes=3).cuda().to(dtype)
    labels, others = torch.tensor([0, 2]), torch.tensor([1, 0])
    options = {"sampler": "ddpm", "steps": 5, "guidance": 2.0}
    draw = capture(model, 2, labels=labels, **options)
    for now in (labels, others):
        torch.manual_seed(7)
        drawn = draw(labels=now)
        torch.manual_seed(7)
        expected = model.sample(2, labels=now.cuda(), **options)
        torch.testing.assert_close(drawn, expected, rtol=1e-3, atol=1e-3 if dtype == torch.float32 else 0.1)
    assert drawn.dtype == dtype


def test_a_generator_of_its_own():
    model = small("vp").cuda()
    own, other = (torch.Generator("cuda").manual_seed(3) for _ in range(2))
    draw = capture(model, 2, steps=STEPS, generator=own)
    for _ in range(2):
        torch.testing.assert_close(draw(), model.sample(2, steps=STEPS, generator=other), rtol=1e-7, atol=1e-7)


def test_under_autocast():
    model = make("edm", levels=None).cuda()
    with torch.autocast("cuda", torch.bfloat16):
        draw = capture(model, 2, steps=STEPS)
        torch.manual_seed(7)
        expected = model.sample(2, steps=STEPS)
    torch.manual_seed(7)
    torch.testing.assert_close(draw(), expected, rtol=0.05, atol=0.05)


def test_a_classifier_pulls():
    model, classifier = small("ddpm").cuda(), nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double().cuda()
    options = {"steps": STEPS, "classifier": lambda x, time: classifier(x), "classifier_scale": 3.0}
    draw = capture(model, 2, labels=torch.tensor([0, 2]), **options)
    assert_draws_the_same(draw, model, 2, labels=torch.tensor([0, 2]).cuda(), **options)


def test_latents_are_decoded():
    flow = RealNVP(image_size=[4, 4], image_channels=1, levels=17, channels=8, num_blocks=1)
    model = LatentDiffusion(flow, small("ddpm").float()).double().cuda()
    model.fit_scale(torch.randint(0, 17, (20, 1, 4, 4)).cuda())
    assert_draws_the_same(capture(model, 2, steps=STEPS), model, 2, steps=STEPS)


def test_it_follows_the_weights():
    model = small("edm").cuda()
    draw = capture(model, 2, steps=STEPS)
    with torch.no_grad():
        model.network.conv.weight.mul_(2)
    assert_draws_the_same(draw, model, 2, steps=STEPS)
    model.network.conv.bias = nn.Parameter(model.network.conv.bias.detach() + 1)
    assert_draws_the_same(draw, model, 2, steps=STEPS)


def test_nan_is_told_after_the_replay():
    model = small("flow-matching").cuda()
    honest = model.network.forward
    model.network.forward = lambda x, time, labels=None: honest(x, time).where(time > 500, float("nan"))
    draw = capture(model, 2, steps=10)
    with pytest.raises(SamplingDiverged) as direct:
        model.sample(2, steps=10)
    for _ in range(2):
        with pytest.raises(SamplingDiverged, match=f"after step {direct.value.step} of 10") as caught:
            draw()
        assert caught.value.last_good.isfinite().all()


def test_a_network_that_waits_is_refused_and_leaves_the_gpu_usable():
    model = small("flow-matching").cuda()
    model.network.forward = lambda x, time, labels=None: x * float(x.abs().max())
    with pytest.raises(RuntimeError, match="model: its loop cannot be captured"):
        capture(model, 2, steps=2)
    model = small("flow-matching").cuda()
    assert_draws_the_same(capture(model, 2, steps=2), model, 2, steps=2)
