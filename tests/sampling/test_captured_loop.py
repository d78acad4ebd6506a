"""Diffusion's loop as one graph: on the CPU as it is, and on a device that is not there (`pretend_cuda`)."""

import contextlib
import copy

import pytest
import torch
from torch import nn

from fastgen.models import DDPM, LatentDiffusion, PixelCNN, RealNVP, SamplingDiverged
from fastgen.sampling import capture
from tests.models.diffusion_cases import FAMILIES, make
from tests.sampling.pretend_cuda import on_cpu, pretend_cuda, to_cuda

EVERY = [
    (family, sampler, {})
    for family, (cls, _) in FAMILIES.items()
    for sampler in cls.samplers
    if sampler != "ode"
] + [
    ("ddpm", "ddim", {"eta": 0.5}),
    ("ddpm", "euler", {"s_churn": 1.0}),
    ("edm", "heun", {"s_churn": 1.0}),
    ("vp", "pc", {"predictor": "ancestral", "corrector_steps": 2}),
    ("ve", "pc", {"corrector": "none"}),
]  # fmt: skip
every = pytest.mark.parametrize("family, sampler, options", EVERY)
STEPS = 4


class Small(nn.Module):
    """A network that listens to everything it is told."""

    def __init__(self, out_channels=1, num_classes=None):
        super().__init__()
        self.conv = nn.Conv2d(1, out_channels, 3, padding=1)
        self.classes = None if num_classes is None else nn.Embedding(num_classes + 1, out_channels)

    def forward(self, x, time, labels=None):
        said = self.conv(x) * (1 + time.to(x.dtype) / 500).cos().view(-1, 1, 1, 1)
        return said if labels is None else said + self.classes(labels)[:, :, None, None]


def small(family, num_classes=None, **changed):
    if family == "2015":
        changed["num_train_timesteps"] = STEPS
    model = make(family, levels=None, num_classes=num_classes, network=nn.Identity(), **changed)
    model.network = Small(getattr(model, "outputs_per_channel", 1), num_classes)
    return model.double()


def direct(model, calls, *arguments, seed=7, **options):
    """What `sample` draws, call after call."""
    torch.manual_seed(seed)
    return [model.sample(*arguments, **options) for _ in range(calls)]


@every
def test_on_a_cpu_it_is_what_sample_draws(family, sampler, options):
    model = small(family)
    draw = capture(model, 3, sampler=sampler, steps=STEPS, **options)
    expected = direct(model, 2, 3, sampler=sampler, steps=STEPS, **options)
    torch.manual_seed(7)
    assert all(map(torch.equal, [draw(), draw()], expected)) and not torch.equal(*expected)
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    draw = capture(model, 3, sampler=sampler, steps=STEPS, generator=generators[0], **options)
    assert torch.equal(draw(), model.sample(3, sampler=sampler, steps=STEPS, generator=generators[1], **options))


@every
def test_a_replayed_graph_draws_what_sample_draws(family, sampler, options, monkeypatch):
    """The capture also proves that the loop neither copies to the device nor reads it: either raises."""
    model = small(family)
    expected = direct(model, 2, 3, sampler=sampler, steps=STEPS, **options)
    with pretend_cuda(monkeypatch):
        torch.manual_seed(7)
        draw = capture(to_cuda(model), 3, sampler=sampler, steps=STEPS, **options)
        drawn = [on_cpu(draw()) for _ in range(2)]
        torch.manual_seed(7)
        again = on_cpu(draw())
    torch.testing.assert_close(drawn, expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(again, drawn[0]) and not torch.equal(*drawn)


@pytest.mark.parametrize("family", ["ddpm", "flow-matching", "vp"])
def test_with_a_unet_labels_and_guidance(family, monkeypatch):
    model = make(family, num_classes=3).double()
    first, second = torch.tensor([0, 2]), torch.tensor([1, 0])
    options = {"steps": 2, "guidance": 2.0, "sampler": model.capturable[-1]}
    torch.manual_seed(7)
    expected = [model.sample(2, labels=labels, **options) for labels in (first, second, second, 2)]
    for on_device in (False, True):
        with pretend_cuda(monkeypatch) if on_device else contextlib.nullcontext():
            moved = to_cuda(copy.deepcopy(model)) if on_device else model
            draw = capture(moved, 2, labels=first, **options)
            torch.manual_seed(7)
            drawn = [draw(), draw(labels=second), draw(), draw(labels=2)]
            drawn = [on_cpu(x) for x in drawn] if on_device else drawn
        assert drawn[0].dtype == torch.uint8
        assert all(map(torch.equal, drawn, expected))
    assert first.tolist() == [0, 2]


def test_a_classifier_pulls():
    """Here as it is: autograd asks for a real device. The rest of it is in `test_captured_loop_gpu.py`."""
    model, classifier = small("ddpm"), nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    pull = {"classifier": lambda x, time: classifier(x), "classifier_scale": 3.0}
    expected = direct(model, 1, 2, steps=STEPS, labels=torch.tensor([0, 2]), **pull)
    draw = capture(model, 2, steps=STEPS, labels=1, **pull)
    torch.manual_seed(7)
    assert torch.equal(draw(labels=torch.tensor([0, 2])), expected[0])


def test_latents_are_decoded(monkeypatch):
    flow = RealNVP(image_size=[4, 4], image_channels=1, levels=17, channels=8, num_blocks=1)
    model = LatentDiffusion(flow, small("ddpm").float()).double()
    model.fit_scale(torch.randint(0, 17, (20, 1, 4, 4)))
    expected = direct(model, 2, 2, steps=STEPS)
    torch.manual_seed(7)
    draw = capture(model, 2, steps=STEPS)
    assert all(map(torch.equal, [draw(), draw()], expected))
    with pretend_cuda(monkeypatch):
        draw = capture(to_cuda(model), 2, steps=STEPS)
        torch.manual_seed(7)
        drawn = [on_cpu(draw()) for _ in range(2)]
    torch.testing.assert_close(drawn, expected, rtol=1e-9, atol=1e-9)


def test_it_follows_the_weights(monkeypatch):
    with pretend_cuda(monkeypatch), torch.no_grad():
        model = to_cuda(small("edm"))
        draw, conv = capture(model, 2, steps=STEPS), model.network.conv

        def follows():
            torch.manual_seed(7)
            drawn = on_cpu(draw())
            torch.manual_seed(7)
            return torch.allclose(drawn, on_cpu(model.sample(2, steps=STEPS)), rtol=1e-9, atol=1e-9)

        graph = draw._graph
        assert follows() and follows() and draw._graph is graph
        conv.weight.mul_(2)
        assert follows()
        conv.bias = nn.Parameter(conv.bias + 1)
        assert follows()
        model.network = nn.Sequential(to_cuda(small("edm")).network)
        model.network.forward = model.network[0].forward
        assert follows() and draw._graph is not graph


@pytest.mark.parametrize(
    "family, sampler", [("ddpm", "ddpm"), ("edm", "heun"), ("flow-matching", "euler"), ("vp", "pc")]
)
def test_nan_is_told_after_the_replay(family, sampler, monkeypatch):
    model = small(family)
    # At the third of the times, on the device: Python is not asked again.
    time = model.times(5).double()[2:3]
    model.register_buffer("bad", model.network_time(time) * (1 + 1e-3))
    honest = model.network.forward
    model.network.forward = lambda x, time, labels=None: torch.where(
        time.double() <= model.bad, float("nan"), honest(x, time)
    )
    with pytest.raises(SamplingDiverged) as on_host:
        model.sample(2, sampler=sampler, steps=5)
    assert on_host.value.step in (2, 3)
    with pretend_cuda(monkeypatch):
        draw = capture(to_cuda(model), 2, sampler=sampler, steps=5)
        for _ in range(2):
            with pytest.raises(SamplingDiverged, match=f"after step {on_host.value.step} of") as caught:
                draw()
            assert on_cpu(caught.value.last_good).isfinite().all()
        # A network that is mended draws again.
        model.bad.fill_(-1e9)
        assert on_cpu(draw()).isfinite().all()


@pytest.mark.parametrize("sampler", ["heun", "dpm++"])
def test_a_loop_that_was_cut_short_leaves_nothing_behind(sampler):
    model = small("ddpm")
    expected = direct(model, 1, 2, sampler=sampler, steps=STEPS)[0]
    draw, honest, calls = capture(model, 2, sampler=sampler, steps=STEPS), model.network.forward, []

    def broken(x, time, labels=None):
        calls.append(time)
        return honest(x, time) * (float("nan") if len(calls) == 3 else 1.0)

    model.network.forward = broken
    with pytest.raises(SamplingDiverged, match="after step 3 of"):
        draw()
    torch.manual_seed(7)
    assert torch.equal(draw(), expected)


@pytest.mark.parametrize("rehearses", [True, False])
def test_a_network_that_waits_or_copies_is_refused(rehearses, monkeypatch):
    """At the rehearsal, and else at the capture, as the other tests would have seen it."""
    waits = [
        lambda x: x * float(x.abs().max()),
        lambda x: x[x.isfinite()].view_as(x),
        lambda x: x * torch.tensor([2.0], device=x.device),
        lambda x: x + torch.linspace(0, 1, 4, dtype=x.dtype).to(x.device),
        lambda x: x.cpu().sin().to(x.device) if hasattr(x, "on_cpu") else x.sin(),
        lambda x: x + 1 if bool((x > 0).any()) else x,
    ]
    for wait in waits:
        model = small("flow-matching")
        model.network.forward = lambda x, time, labels=None, wait=wait: wait(x)
        with pretend_cuda(monkeypatch), monkeypatch.context() as patch:
            if not rehearses:
                patch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
            with pytest.raises(RuntimeError, match="model: its loop cannot be captured"):
                capture(to_cuda(model), 2, steps=2)


def test_the_adaptive_sampler_waits(monkeypatch):
    for family in ("edm", "vp", "flow-matching"):
        with pytest.raises(ValueError, match=r"sampler: 'ode' waits for the device .*, expected one of "):
            capture(small(family), 2, sampler="ode")
    monkeypatch.setattr(type(small("edm")), "capturable", ("ode",))
    with pretend_cuda(monkeypatch), pytest.raises(RuntimeError, match="cannot be captured"):
        capture(to_cuda(small("edm")), 2, sampler="ode")


def test_what_it_refuses(monkeypatch):
    model, labelled = small("ddpm"), small("ddpm", num_classes=3)
    with pytest.raises(TypeError, match="model: expected a diffusion model, got PixelCNN"):
        capture(PixelCNN(image_size=4, levels=3, channels=4, layers=1), 2)
    with pytest.raises(ValueError, match="n: expected a positive int"):
        capture(model, 0)
    with pytest.raises(ValueError, match="sampler: expected one of ddim"):
        capture(model, 2, sampler="best")
    with pytest.raises(ValueError, match="labels: this model is unconditional"):
        capture(model, 2, labels=1)
    with pytest.raises(ValueError, match="labels: this loop was captured without"):
        capture(labelled, 2, steps=2)(labels=1)
    draw = capture(labelled, 2, steps=2, labels=1)
    with pytest.raises(ValueError, match="labels: expected classes 0 to 2, got 3 to 3"):
        draw(labels=3)
    with pytest.raises(ValueError, match=r"labels: expected \[2\]"):
        draw(labels=torch.tensor([1]))
    with pytest.raises(TypeError, match="labels: expected integers"):
        draw(labels=torch.ones(2))
    elsewhere = "generator: expected one on cuda:0, where the model is, got cpu"
    with pretend_cuda(monkeypatch), pytest.raises(ValueError, match=elsewhere):
        capture(to_cuda(model), 2, steps=2, generator=torch.Generator())


def test_modes_and_gradients_are_left_alone():
    model = DDPM(4, 1, 17, channels=8, channel_multipliers=(1, 2), layers=1, attention_levels=(), groups=4, dropout=0.5)
    with torch.inference_mode():
        draw = capture(model, 2, steps=2)
    torch.manual_seed(1)
    images = draw()
    torch.manual_seed(1)
    assert torch.equal(images, model.eval().sample(2, steps=2)) and not images.is_inference()
