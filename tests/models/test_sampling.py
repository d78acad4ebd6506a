"""Cached sampling draws what naive sampling draws, also around given pixels, and with the model's probabilities."""

import copy
import pickle

import pytest
import torch
from torch.nn.utils.parametrize import is_parametrized

from fastgen.models import GatedPixelCNN, PixelCNN, PixelCNNPP


def seed(value=0):
    return torch.Generator().manual_seed(value)


def stirred(model):
    """The model, its pixels made to lean on each other and on the labels: a wrong one changes all after it."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture
def lively(model):
    return stirred(model)


def test_cached_draws_what_naive_draws(lively, labels):
    naive = lively.sample(3, labels=labels, generator=seed(), method="naive")
    cached = lively.sample(3, labels=labels, generator=seed(), method="cached")
    assert naive.dtype == torch.uint8 and naive.shape == (3, *lively.shape)
    assert naive.unique().numel() > 2 and int(naive.max()) < lively.levels
    assert torch.equal(cached, naive)
    # The same sampler, another batch size and other labels.
    other = None if labels is None else (labels[:2] + 1) % lively.num_classes
    naive = lively.sample(2, labels=other, generator=seed(1), method="naive")
    assert torch.equal(lively.sample(2, labels=other, generator=seed(1)), naive)


@pytest.mark.parametrize("method", ["cached", "naive"])
def test_completes_a_partial_image(lively, labels, images, method):
    partial = images.clone()
    partial[:, :, lively.image_size[0] // 2 :] = -1
    partial[1, :, 0, 1] = -1
    done = lively.sample(3, labels=labels, conditioned_on=partial, generator=seed(), method=method).long()
    assert torch.equal(done[partial >= 0], images[partial >= 0])
    assert not torch.equal(done, images)
    # What is given acts on what is drawn.
    other = torch.where(partial >= 0, (partial + 1) % lively.levels, partial)
    redone = lively.sample(3, labels=labels, conditioned_on=other, generator=seed(), method=method).long()
    assert not torch.equal(done[partial < 0], redone[partial < 0])
    # One partial image for all, and one that is known whole.
    alike = lively.sample(3, labels=labels, conditioned_on=partial[:1], generator=seed(), method=method).long()
    assert torch.equal(alike[2][partial[0] >= 0], images[0][partial[0] >= 0])
    assert torch.equal(lively.sample(3, labels=labels, conditioned_on=images, method=method).long(), images)


def test_completion_is_the_same_in_both_methods(lively, labels, images):
    partial = images.masked_fill(torch.rand(3, 1, *lively.image_size) < 0.7, -1)
    naive = lively.sample(3, labels=labels, conditioned_on=partial, generator=seed(), method="naive")
    cached = lively.sample(3, labels=labels, conditioned_on=partial, generator=seed(), method="cached")
    assert torch.equal(cached, naive)


def test_some_colours_of_a_pixel_may_be_known_where_they_are_drawn_in_turn():
    model = GatedPixelCNN(image_size=3, image_channels=3, levels=4, channels=6, layers=2).double()
    partial = torch.full((1, 3, 3, 3), -1)
    partial[0, 1] = torch.randint(4, (3, 3))
    cached = model.sample(2, conditioned_on=partial, generator=seed())
    assert torch.equal(cached[:, 1].long(), partial[:, 1].expand(2, -1, -1))
    assert torch.equal(cached, model.sample(2, conditioned_on=partial, generator=seed(), method="naive"))


@pytest.mark.parametrize("method", ["cached", "naive"])
def test_frequencies_are_the_probabilities(method):
    model = stirred(PixelCNN(image_size=(1, 2), levels=3, channels=8, layers=1).double())
    n = 20_000
    drawn = model.sample(n, generator=seed(), method=method).flatten(1).long()
    frequencies = torch.bincount(drawn[:, 0] * 3 + drawn[:, 1], minlength=9) / n
    images = torch.cartesian_prod(torch.arange(3), torch.arange(3)).view(9, 1, 1, 2)
    probabilities = model.log_prob(images).exp()
    assert probabilities.max() > 1.5 * probabilities.min()
    deviations = (frequencies - probabilities) / (probabilities * (1 - probabilities) / n).sqrt()
    assert deviations.abs().max() < 4.5


def test_mixture_frequencies_are_the_probabilities():
    model = PixelCNNPP(image_size=1, image_channels=3, levels=3, channels=4, resnets=1, scales=1, num_mixtures=2)
    model = stirred(model.double().eval())
    n = 20_000
    drawn = model.sample(n, generator=seed()).flatten(1).long()
    frequencies = torch.bincount(drawn @ torch.tensor([9, 3, 1]), minlength=27) / n
    images = torch.cartesian_prod(*[torch.arange(3)] * 3).view(27, 3, 1, 1)
    probabilities = model.log_prob(images).exp()
    deviations = (frequencies - probabilities) / (probabilities * (1 - probabilities) / n).sqrt()
    assert deviations.abs().max() < 4.5


def sampler_of(model):
    return model._kept.last("sampler")


def test_a_seed_decides_the_images(model, labels):
    first = model.sample(3, labels=labels, generator=seed())
    assert torch.equal(first, model.sample(3, labels=labels, generator=seed()))
    assert not torch.equal(first, model.sample(3, labels=labels, generator=seed(1)))
    assert not torch.equal(model.sample(3, labels=labels), model.sample(3, labels=labels))


def test_sampler_follows_the_weights():
    model = PixelCNN(image_size=4, levels=4, channels=8, layers=1).double()

    def changes(change):
        model.sample(2, generator=seed())
        with torch.no_grad():
            change()
        cached = model.sample(8, generator=seed())
        return torch.equal(cached, model.sample(8, generator=seed(), method="naive"))

    weight = model.head[3].weight
    assert changes(lambda: weight.mul_(10))
    assert changes(lambda: weight.data.neg_())
    assert changes(lambda: setattr(model.head[3], "weight", torch.nn.Parameter(weight * -3)))
    assert changes(lambda: model.load_state_dict({k: v.flip(0) for k, v in model.state_dict().items()}))


def test_sampler_is_kept_while_the_weights_stay(model, labels):
    model.sample(3, labels=labels)
    sampler = sampler_of(model)
    model.sample(2, labels=None if labels is None else labels[:2])
    assert sampler_of(model) is sampler


def test_sampler_does_not_travel_with_copies(model, labels):
    model.sample(3, labels=labels)
    other = copy.deepcopy(model)
    assert sampler_of(other) is None
    images = other.sample(3, labels=labels, generator=seed())
    assert torch.equal(images, model.sample(3, labels=labels, generator=seed()))
    # PyTorch pickles no module with parametrisations.
    if not any(is_parametrized(module) for module in model.modules()):
        assert sampler_of(pickle.loads(pickle.dumps(model))) is None


@pytest.mark.parametrize("method", ["cached", "naive"])
def test_sampling_leaves_every_module_in_its_mode(method):
    model = GatedPixelCNN(image_size=4, levels=3, channels=4, layers=2, dropout=0.5)
    model.layers[1].eval()
    before = {name: module.training for name, module in model.named_modules()}
    first = model.sample(4, generator=seed(), method=method)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert torch.equal(first, model.eval().sample(4, generator=seed(), method=method))


def test_float32_draws_the_same_but_for_rounding():
    model = GatedPixelCNN(image_size=8, levels=17, channels=16, layers=3)
    cached = model.sample(16, generator=seed())
    naive = model.sample(16, generator=seed(), method="naive")
    # Rounding may flip a draw about once in a million pixels, and all that follow it.
    assert (cached != naive).flatten(1).any(1).sum() <= 1


def test_progress_counts_the_draws(model, labels):
    total = model.image_size[0] * model.image_size[1] * model.likelihood.colors
    seen = []
    model.sample(3, labels=labels, method="naive", progress=lambda *args: seen.append(args))
    assert seen == [(done, total) for done in range(1, total + 1)]
    seen.clear()
    model.sample(3, labels=labels, progress=lambda *args: seen.append(args))
    assert seen[-1] == (total, total)


def test_one_class_for_all():
    model = stirred(GatedPixelCNN(image_size=4, levels=3, channels=4, layers=2, num_classes=4).double())
    expected = model.sample(5, labels=torch.full((5,), 2), generator=seed())
    assert torch.equal(model.sample(5, labels=2, generator=seed()), expected)
    assert not torch.equal(model.sample(5, labels=3, generator=seed()), expected)


def test_refuses(model, labels, images):
    def sample(n=3, **kwargs):
        return model.sample(n, **{"labels": labels} | kwargs)

    channels, height, width = model.shape
    for n in (0, -1, 2.0):
        with pytest.raises(ValueError, match=f"n: expected a positive int, got {n}"):
            sample(n)
    with pytest.raises(ValueError, match="method: expected 'cached' or 'naive', got 'fast'"):
        sample(method="fast")
    if labels is None:
        with pytest.raises(ValueError, match="labels: this model is unconditional"):
            sample(labels=torch.zeros(3).long())
    else:
        with pytest.raises(ValueError, match=rf"labels: this model has {model.num_classes} classes"):
            sample(labels=None)
        with pytest.raises(ValueError, match=r"labels: expected \[4\], one class per image, got \(3,\)"):
            sample(4)
        with pytest.raises(ValueError, match="labels: expected classes 0 to"):
            sample(labels=model.num_classes)
    with pytest.raises(TypeError, match=r"conditioned_on: expected an integer dtype, got torch.float32"):
        sample(conditioned_on=images.float())
    with pytest.raises(TypeError, match="conditioned_on: expected an integer tensor, got list"):
        sample(conditioned_on=images.tolist())
    for wrong in (images[0], images[:2], images[..., :-1], images[:0]):
        with pytest.raises(
            ValueError, match=rf"conditioned_on: expected \[3 or 1, {channels}, {height}, {width}\], got"
        ):
            sample(conditioned_on=wrong)
    for level in (-2, model.levels):
        with pytest.raises(ValueError, match=f"conditioned_on: expected levels 0 to {model.levels - 1}, or -1"):
            sample(conditioned_on=torch.full_like(images, level))


def test_refuses_a_pixel_known_in_part_where_its_colours_are_drawn_at_once():
    model = PixelCNNPP(image_size=4, channels=4, resnets=1, scales=1)
    partial = torch.full((1, 3, 4, 4), -1)
    partial[0, 0, 2, 2] = 7
    with pytest.raises(ValueError, match="conditioned_on: this model draws all colours of a pixel at once"):
        model.sample(2, conditioned_on=partial)
